package agent

import (
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/levee-xdp/levee/agent/state"
)

// rated is a configuration of which all that can differ does, by a number from 1 to 9.
func rated(n int) string {
	return fmt.Sprintf("interfaces: [eth0%s]\nmode: %s\nallow: [198.51.100.%d]\nlimits: {default: {packets: %dk/s}}\n",
		map[bool]string{true: ", eth1"}[n%2 == 0], map[bool]string{true: "monitor", false: "enforce"}[n%2 == 0], n, n)
}

// configured is what is in force of such a configuration.
func configured(n int) string {
	more := map[bool]string{true: " eth1 native"}[n%2 == 0]
	return fmt.Sprintf("banned [] allowed [198.51.100.%d/32] limit %d attached [eth0 native%s] monitor %t", n, n*1000, more, n%2 == 0)
}

func (d *testDaemon) tryConfig(n int, confirm state.Duration) string {
	d.Helper()
	d.write(rated(n))
	r, err := d.ReloadOnTrial(d.Context(), confirm)
	if err != nil || r.Trial == nil {
		d.Fatalf("%+v, %v", r, err)
	}
	if d.on() != configured(n) {
		d.Fatalf("on trial: %s", d.on())
	}
	return r.Trial.ID
}

func (d *testDaemon) wantConfig(n int) {
	d.Helper()
	if d.on() != configured(n) {
		d.Errorf("in force: %s\nwant      %s", d.on(), configured(n))
	}
}

func configDaemon(t *testing.T) (*testDaemon, *movableClock) {
	t.Helper()
	d := newDaemon(t, newFakeKernel(), rated(1))
	clock := &movableClock{}
	d.clock = clock
	d.restart()
	d.wantConfig(1)
	return d, clock
}

// down has time pass while the daemon is not there.
func (d *testDaemon) down(clock *movableClock, by time.Duration) {
	d.Helper()
	d.end()
	clock.advance(by)
	d.start()
}

// Configurations on trial on top of each other, of which each takes back itself alone, in whatever order
// they end, with the daemon up or down; the file stays what was tried last all the while.
func TestTrialsOfConfigs(t *testing.T) {
	const soon, late = 10 * second, 60 * second
	for name, tt := range map[string]struct {
		first, second state.Duration
		confirm       int // 0: none
		then          []int
	}{
		"the second ends first":                        {late, soon, 0, []int{2, 1}},
		"the first ends first":                         {soon, late, 0, []int{3, 1}},
		"both end":                                     {soon, soon, 0, []int{1, 1}},
		"the first is confirmed, the second ends":      {late, soon, 1, []int{2, 2}},
		"the first is confirmed, the second ends late": {soon, late, 1, []int{3, 2}},
		"the second is confirmed":                      {soon, late, 2, []int{3, 3}},
	} {
		for _, down := range []bool{false, true} {
			t.Run(fmt.Sprint(name, " down ", down), func(t *testing.T) {
				d, clock := configDaemon(t)
				ids := []string{d.tryConfig(2, tt.first), d.tryConfig(3, tt.second)}
				d.restart()
				d.wantConfig(3)
				if tt.confirm > 0 {
					if _, err := d.Confirm(t.Context(), ids[tt.confirm-1]); err != nil {
						t.Fatal(err)
					}
				}
				for i, by := range []time.Duration{20 * time.Second, time.Minute} {
					if down {
						d.down(clock, by)
					} else {
						clock.advance(by)
						d.tick()
					}
					d.wantConfig(tt.then[i])
					d.restart() // and so it stays
					d.wantConfig(tt.then[i])
				}
				if d.state() != "" {
					t.Errorf("on trial: %s", d.state())
				}
				rejected := tt.then[1] != 3
				if got := d.problems(); strings.Contains(got, "was tried and not confirmed") != rejected {
					t.Error(got)
				}
				// A signal is no word for a text that was rejected.
				d.reload <- syscall.SIGHUP
				if rejected {
					d.awaitLog("was tried and not confirmed")
				}
				d.wantConfig(tt.then[1])
			})
		}
	}
}

// tick has the daemon notice that the test has moved the clock, with a trial that is over at once.
func (d *testDaemon) tick() {
	d.Helper()
	if _, err := d.SetLimitOnTrial(d.Context(), "tick", state.LimitSpec{Services: []state.Service{{Protocol: 6, Port: 1}}}, 60*second); err != nil {
		d.Fatal(err)
	}
	if err := d.RemoveLimit(d.Context(), "tick"); err != nil {
		d.Fatal(err)
	}
	d.awaitOver()
}

// A file that was changed once more while its trial went on is a newer word for the next start, and not
// before: until then all of the configuration of before is in force, or all of the newer one.
func TestTrialOfConfigFileChanged(t *testing.T) {
	t.Run("up", func(t *testing.T) {
		d, clock := configDaemon(t)
		d.tryConfig(2, 10*second)
		d.write(rated(4))
		clock.advance(time.Minute)
		d.tick()
		d.wantConfig(1)
		d.restart()
		d.wantConfig(4)
		if got := d.problems(); got != "ok " {
			t.Error(got)
		}
	})
	t.Run("down", func(t *testing.T) {
		d, clock := configDaemon(t)
		d.tryConfig(2, 10*second)
		d.write(rated(4))
		d.down(clock, time.Minute)
		d.wantConfig(4)
		if got := d.problems(); got != "ok " || d.state() != "" || d.takenBack() != "" {
			t.Error(got, d.state(), d.takenBack())
		}
	})
	t.Run("to nonsense", func(t *testing.T) {
		d, clock := configDaemon(t)
		d.tryConfig(2, 10*second)
		d.write("nonsense: 1\n")
		clock.advance(time.Minute)
		d.tick()
		d.wantConfig(1)
	})
}

// A configuration of which a part can't be taken back stays whole, until all of it can.
func TestTrialOfConfigWhole(t *testing.T) {
	for _, down := range []bool{false, true} {
		t.Run(fmt.Sprint(down), func(t *testing.T) {
			d, clock := configDaemon(t)
			d.tryConfig(2, 10*second)
			d.stick("eth1") // it was attached for the trial, and can't be let go
			if down {
				d.down(clock, time.Minute)
			} else {
				clock.advance(time.Minute)
				d.tick()
				d.wantConfig(2)
			}
			if !down {
				if got := d.problems(); !strings.HasPrefix(got, "degraded the trial t1 (reload the configuration)") {
					t.Error(got)
				}
			}
			d.stick("")
			if down {
				d.restart()
			}
			clock.advance(2 * time.Minute)
			d.awaitOn(configured(1))
			until(t, func() bool { return d.state() == "" })
		})
	}
}

// A signal while a text is on trial, by a log rotation for one, does not make it permanent.
func TestTrialOfConfigAndSignal(t *testing.T) {
	d, clock := configDaemon(t)
	d.tryConfig(2, 10*second)
	d.reload <- syscall.SIGHUP
	d.awaitLog("a signal does not confirm it")
	d.wantConfig(2)
	clock.advance(time.Minute)
	d.tick()
	d.wantConfig(1)
}
