package api

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"runtime"
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

func newBodies() *bodies {
	return &bodies{small: newPlaces(128, 0), large: newPlaces(4, 2), bulk: newPlaces(8, 2), work: newPlaces(spared(), 0)}
}

// spared is how many processors there are, but for one.
func spared() int { return max(1, runtime.GOMAXPROCS(0)-1) }

// take waits for a place for a request's body; it returns how to give the place back, or false. A
// large one is read before its turn comes to be understood, which does not depend on its sender.
func (b *bodies) take(r *http.Request, actor string) (free func(), ok bool) {
	switch {
	case r.ContentLength == 0:
		return func() {}, true
	case r.ContentLength > 0 && r.ContentLength <= smallBody:
		return b.small.take(r.Context(), actor)
	case r.URL.Path == bulkPath:
		return b.bulk.take(r.Context(), actor)
	}
	leave, ok := b.large.take(r.Context(), actor)
	if !ok {
		return nil, false
	}
	r.Body = whatComes(r.Body)
	done, ok := b.work.take(r.Context(), actor)
	if !ok {
		leave()
		return nil, false
	}
	return func() { done(); leave() }, true
}

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
