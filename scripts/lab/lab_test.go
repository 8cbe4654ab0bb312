package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// build builds the real daemon, once for all tests, into a folder that TestMain removes.
var build = sync.OnceValues(func() (dir string, err error) {
	dir, err = os.MkdirTemp("", "levee-lab-")
	if err != nil {
		return dir, err
	}
	cmd := exec.Command("go", "build", "-o", filepath.Join(dir, "levee"), "github.com/levee-xdp/levee/cmd/levee")
	if out, err := cmd.CombinedOutput(); err != nil {
		return dir, fmt.Errorf("build the daemon: %w\n%s", err, out)
	}
	return dir, nil
})

func daemon(t *testing.T) string {
	t.Helper()
	dir, err := build()
	built = dir
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, "levee")
}

var built string // the folder, once there is one

// tries is how often a measurement may be repeated because the machine was busy with other things.
const tries = 3

// TestShieldHolds runs the lab with the two attacks that the shield is held to, and with the one
// where the operator acts.
func TestShieldHolds(t *testing.T) {
	privileged(t)
	scenarios, err := pick([]string{"heavy", "botnet"})
	if err != nil {
		t.Fatal(err)
	}
	o := options{
		Levee: daemon(t), Scenarios: scenarios, Families: []int{4, 6}, Duration: 500 * time.Millisecond,
		Progress: t.Logf,
	}
	for try := 1; ; try++ {
		res, err := run(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("\n%s", res)
		problems := res.problems()
		if len(problems) == 0 {
			break
		}
		if try == tries {
			t.Fatal(problems)
		}
		t.Logf("try %d: %v", try, problems)
	}
}

// promptly is within what time of the answer a ban must begin, and of its expiry end.
const promptly = 10 * time.Millisecond

// problems says in what a result is not what it should be.
func (r result) problems() (problems []string) {
	for _, w := range r.Rows {
		name := w.Scenario + " " + w.Family + ": "
		if !w.harmed(r) {
			problems = append(problems, name+"no harm without the shield")
		}
		if calm := r.calm(w.Family).With; !fine(w.With.Client, calm.Client) {
			problems = append(problems, name+w.With.String()+"; in calm: "+calm.String())
		}
		reason := map[remedy]string{nothing: "penalty", banList: "banned", emergency: "limit_aggregate"}[w.scenario.remedy]
		if dropped := w.With.Dropped[reason]; float64(dropped) < 0.9*float64(w.With.Flood.Sent) {
			problems = append(problems, name+"not dropped as "+reason+": "+w.With.why())
		}
	}
	for _, w := range r.Timings {
		if w.Begins > promptly || w.Ends > promptly || w.Ends < -promptly {
			text, _ := json.Marshal(w)
			problems = append(problems, "a ban is late: "+string(text))
		}
	}
	if len(r.Timings) != 4 {
		problems = append(problems, "not every ban was timed")
	}
	return problems
}
