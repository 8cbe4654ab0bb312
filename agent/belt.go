package agent

import (
	"errors"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/errgroup"
)

// belt decides on the parts of a bulk while the next ones are read: while one goes to the kernel, the
// one behind it goes to the disk. Parts are committed and told of in their order. When one fails, none
// behind it is begun.
type belt struct {
	commit  func(p *part, decided func(error)) error // to the kernel; decided is told when it is on the disk, or will not be
	tell    func(*part)
	group   errgroup.Group
	parts   sync.Pool // empty ones
	stopped atomic.Bool

	committed chan struct{} // closed when the part that was taken last is on the disk, or will not be
	told      chan struct{} // and when it was told of
}

// onBelt is how many parts are on their way at once.
const onBelt = 2

// errStopped ends the reading. What it was that failed is told by end.
var errStopped = errors.New("a part has failed")

func newBelt(commit func(*part, func(error)) error, tell func(*part)) *belt {
	t := &belt{commit: commit, tell: tell, committed: make(chan struct{}), told: make(chan struct{})}
	t.group.SetLimit(onBelt)
	t.parts.New = func() any { return newPart() }
	close(t.committed)
	close(t.told)
	return t
}

// take takes a part when there is room for it, and gives an empty one for it.
func (t *belt) take(p *part) (*part, error) {
	if t.stopped.Load() {
		return p, errStopped
	}
	before, toldBefore := t.committed, t.told
	committed, told := make(chan struct{}), make(chan struct{})
	t.committed, t.told = committed, told
	t.group.Go(func() error {
		defer close(told)
		next := sync.OnceFunc(func() { close(committed) })
		defer next()
		<-before // and not within commit: who waits for all changes to end holds up those that come
		if t.stopped.Load() {
			return nil
		}
		err := t.commit(p, func(err error) {
			if err != nil {
				t.stopped.Store(true)
			}
			next()
		})
		<-toldBefore
		if err != nil {
			t.stopped.Store(true)
			return err
		}
		t.tell(p)
		p.reset()
		t.parts.Put(p)
		return nil
	})
	return t.parts.Get().(*part), nil
}

// end waits for what is on its way.
func (t *belt) end() error { return t.group.Wait() }
