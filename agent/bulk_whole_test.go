package agent

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/levee-xdp/levee/agent/config"
	"github.com/levee-xdp/levee/agent/protect"
	"github.com/levee-xdp/levee/agent/state"
)

// onFake starts what a daemon is made of without its tasks, its API and a kernel.
func onFake(t *testing.T, k *fakeKernel, clock state.Clock) *engine {
	t.Helper()
	return onFakeIn(t, t.TempDir(), k, clock)
}

func onFakeIn(t *testing.T, dir string, k *fakeKernel, clock state.Clock) *engine {
	t.Helper()
	d := &testDaemon{TB: t, dir: dir, text: fmt.Sprintf("api: {socket: %[1]s/s, group: \"\"}\nstate: {path: %[1]s/state.db}\naudit: {path: %[1]s/audit.log}\nlock: %[1]s/lock\nmetrics: {listen: \"off\"}\n", dir)}
	d.write(d.text)
	c, err := config.Load(dir + "/levee.yaml")
	if err != nil {
		t.Fatal(err)
	}
	e, _, err := start(t.Context(), &Options{Config: c, Stderr: &buffer{}, Kernel: k, System: protect.System(&fakeSystem{}), Clock: clock})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.close(); err != nil {
			t.Error(err)
		}
	})
	return e
}

// lined hands over a line for each prefix, and does something behind the first.
func lined(between func(), prefixes ...string) state.BulkLines {
	return func(yield func(state.BulkLine) bool) error {
		for i, p := range prefixes {
			if !yield(state.BulkLine{Number: i + 1, Item: state.BanItem{Prefix: p}}) {
				return nil
			}
			if i == 0 {
				between()
			}
		}
		return nil
	}
}

// far is somebody on another host.
func far() state.Actor {
	return state.Actor{Kind: state.ActorToken, Name: "far", ID: "1", Scopes: []state.Scope{state.ScopeBan}, Address: netip.MustParseAddrPort("192.0.2.77:4711")}
}

// A bulk that is taken whole holds up nobody while its lines come, which may take as long as its sender
// likes.
func TestBulkWholeSlow(t *testing.T) {
	e := onFake(t, newFakeKernel(), nil)
	whole := state.BulkRequest{Origin: "api:x", Whole: true}
	out, err := e.BanBulk(far(), whole, lined(func() {
		done := make(chan state.BulkResponse, 1)
		go func() {
			r, err := e.BanBulk(state.Operator("root"), whole, lined(func() {}, "198.51.100.1", "198.51.100.2"))
			if err != nil {
				t.Error(err)
			}
			done <- r
		}()
		select {
		case r := <-done:
			if r.Added != 2 {
				t.Errorf("%+v", r)
			}
		case <-time.After(10 * time.Second):
			t.Error("root's bulk waits for one that is still being read")
		}
	}, "203.0.113.1", "203.0.113.2"))
	if err != nil || out.Added != 2 {
		t.Errorf("%+v, %v", out, err)
	}
}

// What a bulk says of its bans' end holds, however long its lines take to come.
func TestBulkExpires(t *testing.T) {
	for _, whole := range []bool{false, true} {
		clock := &movableClock{}
		e := onFake(t, newFakeKernel(), clock)
		end := clock.Now().Add(time.Hour)
		out, err := e.BanBulk(state.Operator("root"), state.BulkRequest{Origin: "feed:x", Whole: whole, Expires: end},
			lined(func() { clock.advance(5 * time.Minute) }, "198.51.100.1", "198.51.100.2"))
		if err != nil || out.Added != 2 {
			t.Fatalf("%+v, %v", out, err)
		}
		page, err := e.Bans(state.Filter{})
		if err != nil || len(page.Bans) != 2 {
			t.Fatalf("%+v, %v", page, err)
		}
		for _, b := range page.Bans {
			if off := b.Expires.Sub(end).Abs(); off > 10*time.Second {
				t.Errorf("whole %t: %s ends %s off", whole, b.Prefix, off)
			}
		}
	}
}

// What could not be taken back of a whole, the next one takes back before it begins, in the kernel, too: it
// must not make it stay.
func TestBulkWholeLeft(t *testing.T) {
	k := newFakeKernel()
	e := onFake(t, k, nil)
	left := []state.Proposal{{Prefix: netip.MustParsePrefix("198.51.100.1/32"), Origin: "api:x", Reason: "left"}}
	if err := e.state.ProposeWhole(left, make([]state.Outcome, 1)); err != nil {
		t.Fatal(err)
	}
	if _, err := e.reconciler.Sync(); err != nil || k.show() != "198.51.100.1/32" {
		t.Fatalf("%s, %v", k.show(), err)
	}
	out, err := e.BanBulk(state.Operator("root"), state.BulkRequest{Origin: "api:x", Whole: true}, lined(func() {}, "203.0.113.1"))
	if err != nil || out.Added != 1 || k.show() != "203.0.113.1/32" {
		t.Errorf("%+v, %v; the kernel holds %s", out, err, k.show())
	}
	if v4, _ := e.state.Prefixes(); v4 != 1 {
		t.Errorf("%d are banned", v4)
	}
}

// Who asks from another host may have fewer lines kept.
func TestBulkWholeFar(t *testing.T) {
	k := newFakeKernel()
	k.room = 2 * maxFar
	e := onFake(t, k, nil)
	lines := func(yield func(state.BulkLine) bool) error {
		for i := range maxFar + 1 {
			if !yield(state.BulkLine{Number: i + 1, Item: state.BanItem{Prefix: netip.AddrFrom4([4]byte{100, byte(i >> 16), byte(i >> 8), byte(i)}).String()}}) {
				return nil
			}
		}
		return nil
	}
	whole := state.BulkRequest{Origin: "api:x", Whole: true}
	if out, err := e.BanBulk(far(), whole, lines); state.AsError(err, "").Code != state.CodeInvalid {
		t.Errorf("%+v, %v", out, err)
	}
	if v4, _ := e.state.Prefixes(); v4 != 0 {
		t.Errorf("%d are banned", v4)
	}
}
