package api

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"runtime"
	"sync"
)

// smallBody is up to where a body is one of many that are taken at once.
const smallBody = 64 << 10

// bodies bounds how many bodies are taken at once. A body costs several times its size while it is
// understood, so it is their number that bounds memory. A bulk is read as it comes: it takes little
// memory and may take long, so it keeps nobody else's body out.
type bodies struct {
	small, large, bulk *places
	// What is made of large ones takes a processor for a good part of a second. One is left for
	// everybody else, who would else wait for their turn at each step of a request.
	work *places
}

func newBodies(smallEach int) *bodies {
	return &bodies{small: newPlaces(128, smallEach), large: newPlaces(4, 2), bulk: newPlaces(8, 2), work: newPlaces(spared(), 0)}
}

// insideBodies are those of the Unix socket, where all may be the same actor: root.
func insideBodies() *bodies { return newBodies(0) }

// outsideBodies are those of other hosts. Who sends slowly holds no more than a share of the places.
func outsideBodies() *bodies { return newBodies(32) }

// spared is how many processors there are, but for one.
func spared() int { return max(1, runtime.GOMAXPROCS(0)-1) }

// take waits for a place for a request's body; it returns where to write the answer and how to give the
// place back, or false. A large one is read before its turn comes to be understood, and its turn is over
// when its answer is written: neither depends on who asks.
func (b *bodies) take(w http.ResponseWriter, r *http.Request, actor string) (_ http.ResponseWriter, free func(), ok bool) {
	switch {
	case r.ContentLength == 0:
		return w, func() {}, true
	case r.ContentLength > 0 && r.ContentLength <= smallBody:
		free, ok = b.small.take(r.Context(), actor)
		return w, free, ok
	case r.URL.Path == bulkPath:
		free, ok = b.bulk.take(r.Context(), actor)
		return w, free, ok
	}
	leave, ok := b.large.take(r.Context(), actor)
	if !ok {
		return w, nil, false
	}
	r.Body = whatComes(r.Body)
	done, ok := b.work.take(r.Context(), actor)
	if !ok {
		leave()
		return w, nil, false
	}
	done = sync.OnceFunc(done)
	return &worked{w, done}, func() { done(); leave() }, true
}

// worked is the answer to what took work, which is over when there is something to write.
type worked struct {
	http.ResponseWriter
	done func()
}

// Write lets others work while a peer takes the answer.
func (w *worked) Write(b []byte) (int, error) {
	w.done()
	return w.ResponseWriter.Write(b)
}

// Unwrap is for http.ResponseController.
func (w *worked) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// whatComes reads a body to its end or to what breaks it off, and is read as it was.
func whatComes(body io.ReadCloser) io.ReadCloser {
	text, err := io.ReadAll(body)
	if err == nil {
		err = io.EOF
	}
	return &read{bytes.NewReader(text), err, body}
}

// read is a body that has been read.
type read struct {
	text *bytes.Reader
	end  error
	io.Closer
}

// Read implements io.Reader.
func (r *read) Read(p []byte) (int, error) {
	n, err := r.text.Read(p)
	if errors.Is(err, io.EOF) {
		err = r.end
	}
	return n, err
}
