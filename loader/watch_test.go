package loader

import (
	"context"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/levee-xdp/levee/bpf"
	"github.com/vishvananda/netns"
)

// watch runs Watch in the lab's namespace until the test or stop ends it.
func (l *lab) watch(s *Set) (stop func()) { return l.inside(s.Watch) }

// inside runs a task in the lab's namespace until the test or stop ends it.
func (l *lab) inside(run func(context.Context) error) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if err := netns.Set(l.ns); err != nil {
			done <- err
			return
		}
		done <- run(ctx)
	}()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			l.Errorf("watch: %v", err)
		}
	})
	l.Cleanup(stop)
	return stop
}

func (l *lab) attachment(s *Set, name string) Attachment {
	l.Helper()
	all, err := s.Attachments()
	must(l, err)
	i := slices.IndexFunc(all, func(a Attachment) bool { return a.Name == name })
	if i < 0 {
		return Attachment{}
	}
	return all[i]
}

func (l *lab) attached(s *Set, name string) func() bool {
	return func() bool { return l.attachment(s, name).Mode != ModeNone }
}

func TestWatchAttachesAgain(t *testing.T) {
	l := newLab(t)
	l.veth("net0", 1500)
	s := l.open()
	before := descriptors(t)
	a := l.attach(s, "net0", ModeGeneric)
	stop := l.inside(func(ctx context.Context) error { // as Watch, and never by itself
		events, end, err := subscribe()
		if err == nil {
			defer end()
			s.lookAfter(ctx, events, nil)
		}
		return err
	})
	for range 3 {
		l.del("net0")
		l.eventually("the attachment is noted as gone", func() bool {
			a := l.attachment(s, "net0")
			return a.Mode == ModeNone && a.Why == ErrNoInterface.Error()
		})
		l.veth("net0", 1500)
		l.eventually("net0 is shielded again", l.attached(s, "net0"))
		b := l.attachment(s, "net0")
		if b.Ifindex == a.Ifindex || b.Slot != a.Slot || b.Mode != ModeGeneric || b.Why != "" {
			t.Errorf("attached again as %+v, was %+v", b, a)
		}
		l.wantShield("net0", a.Slot)
	}
	if n := l.packets(a.Slot, bpf.ReasonMartian); n != 30 {
		t.Errorf("%d packets, want 30: the counters did not last", n)
	}
	stop()
	if after := descriptors(t); after != before {
		t.Errorf("%d descriptors, were %d", after, before)
	}
}

// Where no event arrives, as when the kernel had to drop them, it looks by itself.
func TestLostEvents(t *testing.T) {
	l := newLab(t)
	l.veth("net0", 1500)
	s := l.open()
	a := l.attach(s, "net0", ModeAuto)
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	l.inside(func(ctx context.Context) error {
		s.lookAfter(ctx, nil, tick.C)
		return nil
	})
	l.del("net0")
	l.veth("net0", 1500)
	l.eventually("net0 is shielded again", l.attached(s, "net0"))
	l.wantShield("net0", a.Slot)
}

func TestWatchWaitsForAnInterface(t *testing.T) {
	l := newLab(t)
	s := l.open()
	must(t, s.Want("net0", ModeNative))
	l.watch(s)
	l.veth("net0", 1500)
	l.eventually("net0 is shielded", l.attached(s, "net0"))
	l.wantShield("net0", l.attachment(s, "net0").Slot)
	if s.Want("no such/name is allowed", ModeAuto) == nil {
		t.Error("wanted a name that no interface can have")
	}
}

// What is detached stays so, also if that was done past the daemon.
func TestWatchLeavesDetachedAlone(t *testing.T) {
	l := newLab(t)
	l.veth("net0", 1500)
	l.veth("net1", 1500)
	s := l.open()
	l.attach(s, "net0", ModeAuto)
	l.attach(s, "net1", ModeAuto)
	l.watch(s)
	must(t, DetachInterface(l.root, "net0"))
	l.del("net1")
	l.veth("net1", 1500)
	l.eventually("net1 is shielded again", l.attached(s, "net1"))
	if id, _ := l.program("net0"); id != 0 {
		t.Error("net0 was attached again")
	}
}

// A program of somebody else keeps the shield off until it goes, and is said once.
func TestReconcileRetries(t *testing.T) {
	l := newLab(t)
	l.veth("net0", 1500)
	s := l.open()
	a := l.attach(s, "net0", ModeAuto)
	l.del("net0")
	l.veth("net0", 1500)
	theirs := l.trivial()
	l.setXDP("net0", theirs.FD(), xdpFlagsNative)
	now := time.Now()
	s.reconcile(now)
	b := l.attachment(s, "net0")
	if b.Mode != ModeNone || !strings.Contains(b.Why, `"theirs"`) {
		t.Errorf("under a foreign program: %+v", b)
	}
	s.reconcile(now.Add(time.Second))
	l.setXDP("net0", -1, xdpFlagsNative)
	s.reconcile(now.Add(2 * time.Second))
	if b = l.attachment(s, "net0"); b.Mode != ModeNative || b.Slot != a.Slot || b.Why != "" {
		t.Errorf("when it has gone: %+v", b)
	}

	// A refusal is tried again later and later.
	must(t, s.Detach("net0"))
	l.del("net0")
	l.veth("net0", 9000)
	s.frags = false
	must(t, s.Want("net0", ModeNative))
	s.reconcile(now)
	first := s.retries["net0"]
	if first.after != retryFirst || !strings.Contains(first.said, "MTU") {
		t.Errorf("first refusal: %+v", first)
	}
	s.reconcile(now.Add(time.Second))
	if s.retries["net0"] != first {
		t.Error("tried again at once")
	}
	s.reconcile(now.Add(retryFirst * 2))
	if second := s.retries["net0"]; second.after != 2*retryFirst {
		t.Errorf("second refusal: %+v", second)
	}
	s.frags = true
	s.reconcile(now.Add(time.Hour))
	if !l.attached(s, "net0")() {
		t.Error("not attached when it could be")
	}
}
