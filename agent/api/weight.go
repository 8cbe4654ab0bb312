package api

import (
	"context"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"github.com/levee-xdp/levee/agent/state"
)

// metaWeight is where an operation's metadata says that it is none of the light ones.
const metaWeight = "weight"

// weight says of an operation what it takes that there is not any amount of.
type weight int

const (
	light   weight = iota
	scan           // it reads a whole table
	measure        // likewise, and waits in between
	dump           // it writes for as long as the peer reads
	whole          // it is kept in memory until its end is known
	settle         // it changes settings, which is done one at a time
)

// weights is the places of one door for what is not light. Each door has its own: whatever other hosts
// ask for, there are places for those on this one.
type weights map[weight]*places

// Those on the host are few, and are all the same actor where they are root.
func insideWeights() weights {
	return weights{scan: newPlaces(8, 0), measure: newPlaces(8, 0), dump: newPlaces(4, 0), whole: newPlaces(1, 0)}
}

// Those on other hosts leave a processor to everybody else, and of their changes of settings one stands
// before a change from this host.
func outsideWeights() weights {
	return weights{scan: newPlaces(spared(), 1), measure: newPlaces(8, 2), dump: newPlaces(2, 1), whole: newPlaces(2, 1), settle: newPlaces(1, 1)}
}

type weightsKey struct{}

// takePlace waits for a place for what is about to be done.
func takePlace(ctx context.Context, w weight) (free func(), ok bool) {
	all, _ := ctx.Value(weightsKey{}).(weights)
	return all[w].take(ctx, actorKeyOf(actorOf(ctx)))
}

// inPlace does something when there is a place for it, where the place depends on what the request says, or
// must not be held while its body comes.
func inPlace[T any](ctx context.Context, w weight, do func() (*T, error)) (*T, error) {
	free, ok := takePlace(ctx, w)
	if !ok {
		return nil, busy(tooMany)
	}
	defer free()
	return do()
}

// heavy marks an operation as none of the light ones.
func heavy(op huma.Operation, w weight) huma.Operation {
	op.Metadata[metaWeight] = w
	return op
}

const tooMany = "there are too many requests of this kind under way"

// weighed has operations that are not light wait for their place.
func weighed(ctx huma.Context, next func(huma.Context)) {
	w, _ := ctx.Operation().Metadata[metaWeight].(weight)
	if w == light {
		next(ctx)
		return
	}
	free, ok := takePlace(ctx.Context(), w)
	if !ok {
		_, out := humago.Unwrap(ctx)
		writeProblem(out, busy(tooMany))
		return
	}
	defer free()
	next(ctx)
}

// measured is the weight of what takes two readings, with a time in between. Where that is short it is a
// reading like any other.
func measured(d time.Duration) weight {
	if d < time.Second {
		return scan
	}
	return measure
}

// busy says that something is not done now, for want of a place.
func busy(why string) *Problem {
	return newProblem(http.StatusServiceUnavailable, state.CodeBusy, why+"; Retry-After says when to come again")
}
