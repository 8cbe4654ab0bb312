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

// SetLimit makes or replaces a limit of the run time.
func (e *engine) SetLimit(by state.Actor, name string, spec state.LimitSpec, confirm state.Duration) (state.LimitView, error) {
	e.settings.Lock()
	defer e.settings.Unlock()
	changes, err := e.state.JudgeLimit(name, spec)
	if err != nil {
		return state.LimitView{}, err
	}
	things := []state.Thing{{About: state.AboutLimit, Name: name}}
	a := state.Attempt{By: by, About: state.AboutLimit, What: "set the limit " + name, For: confirm}
	if changes {
		a.Things = things
	}
	began, err := e.onTrial(&a, nil, func() ([]state.Thing, error) {
		if left, err := e.setLimit(by, name, spec); err != nil && !left {
			return nil, err
		} else {
			return things, err
		}
	})
	if err != nil {
		return state.LimitView{}, err
	}
	view, err := e.Limit(name)
	view.Trial = began
	return view, err
}

// setLimit tells with an error whether the limit could not be put back as it was.
func (e *engine) setLimit(by state.Actor, name string, spec state.LimitSpec) (left bool, err error) {
	err = e.reconciler.ChangeSettings(func() error {
		_, before, err := e.state.SetLimit(name, spec, by.String())
		if err != nil {
			return err
		}
		if err = e.reconciler.SyncLimits(); err == nil {
			return nil
		}
		var undo error
		if before != nil {
			_, _, undo = e.state.SetLimit(name, *before, by.String())
		} else {
			undo = e.state.RemoveLimit(name)
		}
		undo = errors.Join(undo, e.reconciler.SyncLimits())
		left = undo != nil
		return errors.Join(err, undo)
	})
	return left, err
}

// RemoveLimit takes a limit of the run time back.
func (e *engine) RemoveLimit(by state.Actor, name string) error {
	e.settings.Lock()
	defer e.settings.Unlock()
	things := []state.Thing{{About: state.AboutLimit, Name: name}}
	_, err := e.onTrial(&state.Attempt{By: by}, nil, func() ([]state.Thing, error) {
		return things, e.reconciler.ChangeSettings(func() error {
			if err := e.state.RemoveLimit(name); err != nil {
				return err
			}
			return e.reconciler.SyncLimits()
		})
	})
	return err
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
