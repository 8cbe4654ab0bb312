package agent

import (
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/levee-xdp/levee/agent/state"
)

// pile is what was said of a prefix, the newest last; what has a time is on trial.
type pile []wish

type wish struct {
	trial  string
	until  time.Time
	reason string // empty: not banned
}

// past takes out what was not confirmed in time.
func (p pile) past(now time.Time) pile {
	return slices.DeleteFunc(slices.Clone(p), func(w wish) bool { return w.trial != "" && !w.until.After(now) })
}

// Bans on trial on top of each other, plain ones, removals, confirmations, with time that passes while
// the daemon is up, down or killed in between: what is in force is what the reference says, in the state
// and in the kernel.
func TestTrialsAgainstModel(t *testing.T) {
	runs := 4
	if os.Getenv("LEVEE_LONG") != "" {
		runs = 60
	}
	for seed := range runs {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			d, clock := onClock(t)
			r := rand.New(rand.NewPCG(uint64(seed), 1))
			prefixes := []string{"192.0.2.1", "192.0.2.2", "192.0.2.3"}
			piles := map[string]pile{}
			for _, p := range prefixes {
				piles[p] = pile{{}}
			}
			ids := func() (out []string) {
				for _, p := range prefixes {
					for _, w := range piles[p] {
						if w.trial != "" && !slices.Contains(out, w.trial) {
							out = append(out, w.trial)
						}
					}
				}
				slices.Sort(out)
				return out
			}
			some := func() []string {
				n := 1 + r.IntN(len(prefixes))
				out := slices.Clone(prefixes)
				r.Shuffle(len(out), func(i, j int) { out[i], out[j] = out[j], out[i] })
				return out[:n]
			}
			items := func(of []string, reason string) (out []state.BanItem) {
				for _, p := range of {
					out = append(out, state.BanItem{Prefix: p, Reason: reason})
				}
				return out
			}
			for step := range 60 {
				what := "nothing"
				switch r.IntN(8) {
				case 0, 1, 2:
					of, lasts := some(), time.Duration(1+r.IntN(120))*10*time.Second
					b, err := d.Ban(t.Context(), state.BanRequest{Bans: items(of, fmt.Sprint("try ", step)), Confirm: state.Duration(lasts)})
					if err != nil {
						t.Fatal(err)
					}
					what = fmt.Sprint("try ", of, lasts)
					for _, p := range of {
						piles[p] = append(piles[p], wish{b.Trial.ID, b.Trial.Expires, fmt.Sprint("try ", step)})
					}
				case 3:
					of := some()[:1]
					d.ban(items(of, fmt.Sprint("plain ", step))...)
					what = fmt.Sprint("ban ", of)
					for _, p := range of {
						piles[p] = pile{{reason: fmt.Sprint("plain ", step)}}
					}
				case 4:
					of := some()[:1]
					if _, err := d.Unban(t.Context(), state.UnbanRequest{Prefixes: of, All: true}); err != nil {
						t.Fatal(err)
					}
					what = fmt.Sprint("unban ", of)
					piles[of[0]] = pile{{}}
				case 5:
					pending := ids()
					if len(pending) == 0 {
						continue
					}
					id := pending[r.IntN(len(pending))]
					if _, err := d.Confirm(t.Context(), id); err != nil {
						t.Fatal(err)
					}
					what = "confirm " + id
					for _, p := range prefixes {
						if i := slices.IndexFunc(piles[p], func(w wish) bool { return w.trial == id }); i >= 0 {
							kept := piles[p][i]
							kept.trial = ""
							piles[p] = append(pile{kept}, piles[p][i+1:]...)
						}
					}
				case 6, 7:
					by := time.Duration(r.IntN(60)) * 10 * time.Second
					if what = fmt.Sprint("up ", by); r.IntN(2) == 0 {
						what = fmt.Sprint("down ", by)
						d.down(clock, by)
					} else {
						clock.advance(by)
						d.tick()
					}
					for _, p := range prefixes {
						piles[p] = piles[p].past(d.clock.Now())
					}
				}
				page, err := d.Bans(t.Context(), state.Filter{})
				if err != nil {
					t.Fatal(err)
				}
				got, want, kernel := map[string]string{}, map[string]string{}, ""
				for _, c := range page.Bans {
					got[state.PrefixString(c.Prefix)] = c.Reason
				}
				for _, p := range prefixes {
					if w := piles[p][len(piles[p])-1]; w.reason != "" {
						want[p] = w.reason
						kernel += " " + p + "/32"
					}
				}
				if fmt.Sprint(got) != fmt.Sprint(want) || " "+d.kernel.show() != kernel && d.kernel.show() != kernel {
					t.Fatalf("step %d, %s: in force %v, kernel %q; want %v", step, what, got, d.kernel.show(), want)
				}
				l, err := d.Trials(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				var on []string
				for _, tr := range l.Trials {
					on = append(on, tr.ID)
				}
				slices.Sort(on)
				if !slices.Equal(on, ids()) {
					t.Fatalf("step %d, %s: on trial %v, want %v", step, what, on, ids())
				}
			}
		})
	}
}
