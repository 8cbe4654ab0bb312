package agent

import (
	"fmt"
	gomaps "maps"
	"math"
	"slices"
	"time"

	"github.com/levee-xdp/levee/agent/state"
	"github.com/levee-xdp/levee/maps"
)

// keepLimits keeps limits that were set at run time, and the numbers of all, under which stands what
// sources owe them. The kernel does not know their names: one that is bound to just what a limit of the
// configuration file is bound to stood in that one's place; any other is called after its number.
func (r *rescued) keepLimits(held map[uint8]maps.Limit) error {
	inForce := r.state.Limits()
	if !r.all { // the state knows its limits, but for one that came last
		for _, l := range inForce {
			delete(held, l.Number)
		}
		for number := range held {
			if held[number].Derived {
				delete(held, number)
			}
		}
		for _, number := range r.state.LimitsOnTrial() {
			if number == 0 { // the one that is not known can only be this one
				clear(held)
			}
			delete(held, number) // its trial alone decides on it
		}
	}
	var kept []state.KeptLimit
	for _, number := range slices.Sorted(gomaps.Keys(held)) {
		k := state.KeptLimit{Name: state.DefaultLimit, Number: number}
		spec, derived := specOf(held[number]), held[number].Derived
		if number != 0 {
			k.Name = r.nameFor(number, &spec, inForce)
		}
		switch {
		case derived && (k.Name == "" || number == 0):
			continue // the file says it, or no longer
		case derived:
			kept = append(kept, k)
			continue
		case k.Name == "":
			r.notes = append(r.notes, fmt.Sprintf("the limit with the number %d was not kept: the configuration file binds all that it was bound to", number))
			continue
		}
		if err := spec.Validate(k.Name); err != nil {
			r.notes = append(r.notes, fmt.Sprintf("the limit with the number %d was not kept: %s", number, err))
			continue
		}
		k.Spec = &spec
		kept = append(kept, k)
		r.limits = append(r.limits, k.Name)
	}
	if len(kept) == 0 {
		return nil
	}
	return r.state.KeepLimits(kept, rescuer)
}

// nameFor names a limit that was found under a number, and takes from it what is bound to others. It is
// empty if nothing is left that it could be bound to.
func (r *rescued) nameFor(number uint8, spec *state.LimitSpec, inForce []state.Limit) string {
	name := fmt.Sprintf("kernel-%d", number)
	for i := range inForce {
		l := &inForce[i]
		if l.Name == name {
			name += "-kept"
		}
		if l.Name != state.DefaultLimit && slices.Equal(l.Sources, spec.Sources) && slices.Equal(l.Services, spec.Services) {
			return l.Name
		}
	}
	for i := range inForce {
		l := &inForce[i]
		spec.Sources = slices.DeleteFunc(spec.Sources, func(p state.Prefix) bool { return slices.Contains(l.Sources, p) })
		spec.Services = slices.DeleteFunc(spec.Services, func(s state.Service) bool { return slices.Contains(l.Services, s) })
	}
	if len(spec.Sources)+len(spec.Services) == 0 {
		return ""
	}
	return name
}

// specOf is a limit as it was asked for, worked out from what the kernel was told: the inverse of what the
// reconciler writes.
func specOf(k maps.Limit) state.LimitSpec {
	l := state.LimitSpec{Penalty: state.Duration(k.Penalty)}
	if k.Monitor {
		l.Mode = state.Monitor
	}
	l.Packets, l.Bits, l.SYN = thresholdOf(k.Thresholds[0], false), thresholdOf(k.Thresholds[1], true), thresholdOf(k.Thresholds[2], false)
	l.UDP, l.ICMP, l.Fragments = thresholdOf(k.Thresholds[3], false), thresholdOf(k.Thresholds[4], false), thresholdOf(k.Thresholds[5], false)
	other := func(n, usual int) int {
		if n == usual {
			return 0
		}
		return n
	}
	usual := state.LimitSpec{}
	g4, g6 := usual.GroupLengths()
	l.Group = state.Group{IPv4: other(k.Group4, g4), IPv6: other(k.Group6, g6)}
	if t := thresholdOf(k.Aggregate, false); t != nil {
		a4, a6 := usual.AggregateLengths()
		l.Aggregate = &state.Aggregate{Rate: t.Rate, IPv4: other(k.Aggregate4, a4), IPv6: other(k.Aggregate6, a6), Always: k.AggregateAlways}
		if t.Burst.Units != 0 {
			l.Aggregate.Burst = &t.Burst
		}
	}
	for _, p := range k.Sources {
		l.Sources = append(l.Sources, state.Prefix{Prefix: p})
	}
	for _, s := range k.Services {
		l.Services = append(l.Services, state.Service{Protocol: s.Protocol, Port: s.Port})
	}
	return l
}

// thresholdOf works out which rate was asked for: it was a whole number a second, a minute or an hour, and
// the kernel's is at most a little below.
func thresholdOf(r maps.Rate, bits bool) *state.Threshold {
	if r.PerSecond == 0 {
		return nil
	}
	const close = 1e-6
	t := &state.Threshold{}
	for _, per := range []time.Duration{time.Second, time.Minute, time.Hour} {
		exact := r.PerSecond * per.Seconds()
		whole := math.Round(exact)
		t.Rate = state.Rate{Count: uint64(max(whole, 1)), Per: per, Bits: bits}
		if whole >= 1 && math.Abs(whole-exact) <= close*exact {
			break
		}
	}
	units := uint64(r.Burst)
	if usual := t.BurstUnits(); math.Abs(usual-r.Burst) > close*usual {
		t.Burst = state.Burst{Units: units, Bits: bits}
	}
	return t
}
