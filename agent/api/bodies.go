package api

import "net/http"

// smallBody is up to where a body is one of many that are taken at once.
const smallBody = 64 << 10

// bodies bounds how many bodies are taken at once. A body costs several times its size while it is
// read, so it is their number that bounds memory. A bulk is read as it comes: it takes little memory
// and may take long, so it keeps nobody else's body out.
type bodies struct{ small, large, bulk *places }

func newBodies() *bodies {
	return &bodies{small: newPlaces(128, 0), large: newPlaces(4, 2), bulk: newPlaces(8, 2)}
}

// take waits for a place for a request's body; it returns how to give the place back, or false.
func (b *bodies) take(r *http.Request, actor string) (free func(), ok bool) {
	switch {
	case r.ContentLength == 0:
		return func() {}, true
	case r.ContentLength > 0 && r.ContentLength <= smallBody:
		return b.small.take(r.Context(), actor)
	case r.URL.Path == bulkPath:
		return b.bulk.take(r.Context(), actor)
	}
	return b.large.take(r.Context(), actor)
}
