package main

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/levee-xdp/levee/loader"
)

// TestMain lets the test's binary play the tracer's roles, as the tool does.
func TestMain(m *testing.M) {
	if len(os.Args) > 2 && (os.Args[1] == roleFilter || os.Args[1] == roleTrace) {
		main()
		return
	}
	os.Exit(m.Run())
}

// buildLevee builds the daemon.
func buildLevee(t *testing.T) string {
	t.Helper()
	switch {
	case os.Getenv("LEVEE_UNPRIVILEGED") != "":
		t.Skip("LEVEE_UNPRIVILEGED is set")
	case os.Geteuid() != 0:
		t.Skip("needs root")
	}
	if err := loader.Probe("").Err(); err != nil {
		t.Fatal(err)
	}
	bin := filepath.Join(t.TempDir(), "levee")
	build := exec.Command("go", "build", "-o", bin, "./cmd/levee")
	build.Dir = "../.."
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build levee: %v\n%s", err, out)
	}
	return bin
}

func check(t *testing.T, r report, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("\n%s", r.text())
	for _, text := range r.complaints() {
		t.Error(text)
	}
}

// The short version of `make torture`.
func TestTorture(t *testing.T) {
	bin := buildLevee(t)
	ctx := context.Background()
	t.Run("kills", func(t *testing.T) {
		r, err := kills(ctx, bin, t.TempDir(), 20, 1, t.Logf)
		check(t, r, err)
		if r.Kills < 20 || r.Acknowledged < 100 || r.Flood.Banned.Sent < 10_000 || r.Flood.Clean.Passed < 10_000 {
			t.Errorf("that was no torture: %+v", r)
		}
	})
	t.Run("sites", func(t *testing.T) {
		r, err := sites(ctx, bin, t.TempDir(), selection{most: 4, pattern: regexp.MustCompile("")}, 1, t.Logf)
		check(t, r, err)
		if r.Sites < 12 || r.Kills != 2*r.Sites {
			t.Errorf("that was no torture: %+v", r)
		}
	})
	t.Run("faults", func(t *testing.T) {
		// The end of a commit: of all places the one where an error leaves most behind.
		r, err := faults(ctx, bin, t.TempDir(), selection{pattern: regexp.MustCompile(`bbolt\.\(\*Tx\)\.write`)}, 1, t.Logf)
		check(t, r, err)
		if r.Sites < 4 || r.Refused == 0 || r.Ended == 0 {
			t.Errorf("that was no torture: %+v", r)
		}
	})
	t.Run("upgrades", func(t *testing.T) {
		r, err := upgrades(ctx, bin, t.TempDir(), 10, 1, t.Logf)
		check(t, r, err)
		if r.Upgrades != 10 || r.NewSets != 1 || r.Counted == 0 {
			t.Errorf("that was no torture: %+v", r)
		}
	})
}

// The harness finds what it is there to find: a shield that lets go, and a change that is lost.
func TestFindsFaults(t *testing.T) {
	bin := buildLevee(t)
	ctx := context.Background()
	x, d, err := newTorture(ctx, bin, t.TempDir(), 1, t.Logf)
	if err != nil {
		t.Fatal(err)
	}
	defer x.close()
	f, err := x.startFlood(ctx, 4096, 0)
	if err != nil {
		t.Fatal(err)
	}
	x.load.run(ctx)
	for x.acknowledged.Load() < 50 {
		if d.ended() {
			t.Fatal(d.log)
		}
	}
	x.halt()
	if err := x.examineLive(ctx, "before", d, f); err != nil || len(x.wrong) > 0 {
		t.Fatal(err, x.wrong)
	}
	// Something is believed that is not so.
	w := x.workers[0]
	for _, b := range w.believed {
		*b = belief{banned: !b.banned}
	}
	if err := x.examineDead("a lie", f); err != nil || len(x.wrong) < len(w.prefixes)/2 {
		t.Errorf("%v, of %d lies about the kernel %d were found", err, len(w.prefixes), len(x.wrong))
	}
	x.wrong = nil
	if err := x.examineLive(ctx, "a lie", d, f); err != nil || len(x.wrong) < mostComplaints/2 {
		t.Errorf("%v, of %d lies about the state %d were found", err, len(w.prefixes), len(x.wrong))
	}
	// The shield is gone for a moment, and a pin was left behind.
	x.wrong = nil
	d.kill()
	if err := x.host.host.Do(func() error { return os.MkdirAll(root+"/7-new/maps", 0o700) }); err != nil {
		t.Fatal(err)
	}
	if err := loaderDetach(x); err != nil {
		t.Fatal(err)
	}
	for {
		if n, err := f.passedOfBanned(); err != nil || n > 0 {
			break
		}
	}
	if err := x.examineFlood("detached", f); err != nil || len(x.wrong) != 1 {
		t.Errorf("%v, %v", err, x.wrong)
	}
	if wrong, err := x.standing(); err != nil || !strings.Contains(strings.Join(wrong, " "), "7-new") {
		t.Errorf("%v, %v", wrong, err)
	}
	if _, err := x.finish(ctx, nil, f); err != nil {
		t.Fatal(err)
	}
}

func loaderDetach(x *torture) error {
	return x.host.host.Do(func() error { return loader.DetachInterface(root, shielded) })
}
