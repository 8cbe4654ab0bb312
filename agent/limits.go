package agent

import (
	"cmp"
	"errors"
	"slices"
	"strconv"

	"github.com/levee-xdp/levee/agent/state"
	"github.com/levee-xdp/levee/bpf"
	"github.com/levee-xdp/levee/maps"
)

// SetLimit makes or replaces a limit of the run time. What it has done so far is read first: once the limit
// is in force, nothing may fail that the answer needs.
func (e *engine) SetLimit(by state.Actor, name string, spec state.LimitSpec, confirm state.Duration) (state.LimitView, error) {
	e.settings.Lock()
	defer e.settings.Unlock()
	changes, err := e.state.JudgeLimit(name, spec)
	if err != nil {
		return state.LimitView{}, err
	}
	r, err := e.read(topSources)
	if err != nil {
		return state.LimitView{}, err
	}
	a := state.Attempt{By: by, About: state.AboutLimit, What: "set the limit " + name, For: confirm}
	if changes {
		a.Things = limitThings(name)
	}
	began, err := e.changeLimit(&a, name, func() error {
		_, err := e.state.SetLimit(name, spec, by.String())
		return err
	})
	if err != nil {
		return state.LimitView{}, err
	}
	view, err := e.limitView(r, name)
	view.Trial = began
	return view, err
}

// RemoveLimit takes a limit of the run time back.
func (e *engine) RemoveLimit(by state.Actor, name string) error {
	e.settings.Lock()
	defer e.settings.Unlock()
	_, err := e.changeLimit(&state.Attempt{By: by}, name, func() error { return e.state.RemoveLimit(name) })
	return err
}

func limitThings(name string) []state.Thing {
	return []state.Thing{{About: state.AboutLimit, Name: name}}
}

// changeLimit makes a change to a limit of the run time and brings it to the kernel. If that fails, the
// limit is put back as it was.
func (e *engine) changeLimit(a *state.Attempt, name string, change func() error) (*state.Trial, error) {
	return e.onTrial(a, nil, func() (changed []state.Thing, err error) {
		err = e.reconciler.ChangeSettings(func() error {
			before, had := e.state.Limit(name)
			if err := change(); err != nil {
				return err
			}
			err := e.reconciler.SyncLimits()
			if err == nil {
				changed = limitThings(name)
				return nil
			}
			var undo error
			if had && before.Source == state.FromAPI {
				_, undo = e.state.SetLimit(name, before.LimitSpec, before.Actor)
			} else {
				undo = e.state.RemoveLimit(name)
			}
			undo = errors.Join(undo, e.reconciler.SyncLimits())
			if undo != nil {
				changed = limitThings(name)
			}
			return errors.Join(err, undo)
		})
		return changed, err
	})
}

// topSources is how many of the sources that are dropped most are looked at for limits.
const topSources = 1000

// Limits lists the limits with what they have done.
func (e *engine) Limits() ([]state.LimitView, error) {
	r, err := e.read(topSources)
	if err != nil {
		return nil, err
	}
	return e.limitViews(r, r, 0, 0), nil
}

// Limit shows one limit, and whom it drops most.
func (e *engine) Limit(name string) (state.LimitView, error) {
	r, err := e.read(topSources)
	if err != nil {
		return state.LimitView{}, err
	}
	return e.limitView(r, name)
}

func (e *engine) limitView(r readings, name string) (state.LimitView, error) {
	for _, v := range e.limitViews(r, r, 0, 10) {
		if v.Name == name {
			return v, nil
		}
	}
	if err := state.CheckLimitName(name); err != nil {
		return state.LimitView{}, err
	}
	return state.LimitView{}, &state.Error{Code: state.CodeNotFound, Field: "name", Value: name, Detail: "is no limit; `levee limit list` shows those that there are"}
}

// limitViews are the limits with what they have done.
func (e *engine) limitViews(first, last readings, since uint64, most int) []state.LimitView {
	names := e.limitNames()
	before := byKey(first.top)
	var out []state.LimitView
	for _, l := range e.state.Limits() {
		v := state.LimitView{Limit: l, Exceeded: exceeded(l.Number, first, last)}
		for i := range last.top {
			s := &last.top[i]
			if s.Limit != l.Number || s.Dropped == 0 || len(v.Sources) >= most {
				continue
			}
			var b *maps.Source
			if last.at != first.at {
				b = earlier(before, s, since)
			}
			v.Sources = append(v.Sources, e.source(*s, names, b, last.at.Sub(first.at)))
		}
		out = append(out, v)
	}
	return out
}

// limitNames names limits by their numbers.
func (e *engine) limitNames() map[uint8]string {
	names := map[uint8]string{}
	for _, l := range e.state.Limits() {
		names[l.Number] = l.Name
	}
	return names
}

func nameOf(names map[uint8]string, number uint8) string {
	if name, ok := names[number]; ok {
		return name
	}
	return "limit " + strconv.Itoa(int(number)) + ", gone"
}

func exceeded(number uint8, first, last readings) []state.Exceeded {
	type key struct {
		threshold bpf.Threshold
		monitored bool
	}
	before := map[key]uint64{}
	for _, c := range first.limits {
		if c.Limit == number {
			before[key{c.Threshold, c.Monitored}] = c.Packets
		}
	}
	out := []state.Exceeded{}
	for _, c := range last.limits {
		if c.Limit == number {
			out = append(out, state.Exceeded{Threshold: c.Threshold.String(), Monitored: c.Monitored, Packets: c.Packets, Bytes: c.Bytes,
				PerSecond: rate(before[key{c.Threshold, c.Monitored}], c.Packets, last.at.Sub(first.at))})
		}
	}
	slices.SortFunc(out, func(a, b state.Exceeded) int { return cmp.Compare(b.Packets, a.Packets) })
	return out
}
