package agent

import (
	"cmp"
	"errors"
	"fmt"
	"slices"

	"github.com/levee-xdp/levee/agent/state"
	"github.com/levee-xdp/levee/loader"
)

// Interfaces lists what is shielded, and what is to be.
func (e *engine) Interfaces() ([]state.InterfaceView, error) {
	attachments, err := e.shield.Attachments()
	if err != nil {
		return nil, fmt.Errorf("list the interfaces: %w", err)
	}
	views := map[string]*state.InterfaceView{}
	view := func(name string) *state.InterfaceView {
		if views[name] == nil {
			views[name] = &state.InterfaceView{Name: name}
		}
		return views[name]
	}
	for _, a := range attachments {
		*view(a.Name) = attachmentView(a)
	}
	for _, i := range e.state.Interfaces() {
		if mode, source, ok := i.Wanted(); ok {
			v := view(i.Name)
			v.Wanted, v.Source = mode, source
		}
	}
	e.mu.Lock()
	for name, why := range e.troubles {
		if v := view(name); !v.Attached {
			v.Why = why
		}
	}
	e.mu.Unlock()
	out := make([]state.InterfaceView, 0, len(views))
	for _, v := range views {
		if !v.Attached && v.Why == "" {
			v.Why = loader.WhyNot(v.Name)
		}
		out = append(out, *v)
	}
	slices.SortFunc(out, func(a, b state.InterfaceView) int { return cmp.Compare(a.Name, b.Name) })
	return out, nil
}

func attachmentView(a loader.Attachment) state.InterfaceView {
	v := state.InterfaceView{Name: a.Name, Attached: a.Mode != loader.ModeNone, Why: a.Why, Ifindex: a.Ifindex,
		ProgramID: uint32(a.ProgramID), ProgramTag: a.ProgramTag}
	if v.Attached {
		v.Mode = a.Mode.String()
	}
	return v
}

// Attach shields an interface, now and after a restart. What the kernel said when it was attached is the
// answer: nothing is read afterwards, which could fail.
func (e *engine) Attach(by state.Actor, r state.AttachRequest) (state.InterfaceView, error) {
	e.settings.Lock()
	defer e.settings.Unlock()
	if r.Mode == "" {
		r.Mode = state.ModeAuto
	}
	if err := state.CheckInterface(r.Name, r.Mode); err != nil {
		return state.InterfaceView{}, err
	}
	modes, err := e.attachedModes()
	if err != nil {
		return state.InterfaceView{}, err
	}
	before, had := modes[r.Name]
	known, _ := e.state.Interface(r.Name)
	things := []state.Thing{{About: state.AboutInterface, Name: r.Name}}
	a := state.Attempt{By: by, About: state.AboutInterface, What: "attach " + r.Name, For: r.Confirm, Modes: modes}
	if !had || known.API != r.Mode {
		a.Things = things
	}
	var now loader.Attachment
	began, err := e.onTrial(&a, nil, func() (_ []state.Thing, err error) {
		var left bool
		if now, left, err = e.attach(r, before); err != nil && !left {
			return nil, err
		}
		return things, err
	})
	if err != nil {
		return state.InterfaceView{}, err
	}
	v := attachmentView(now)
	v.Wanted, v.Source, v.Trial = r.Mode, state.FromAPI, began
	return v, nil
}

// attach attaches an interface that was attached in a mode before, or with none was not. It tells with
// an error whether it could not be put back so.
func (e *engine) attach(r state.AttachRequest, before string) (now loader.Attachment, left bool, err error) {
	now, err = e.shield.Attach(r.Name, kernelMode(r.Mode))
	if err != nil {
		return now, false, attachError(r.Name, err)
	}
	if err := e.state.RememberAttached(r.Name, r.Mode); err != nil {
		var undo error
		switch before {
		case "":
			undo = e.shield.Detach(r.Name)
		case now.Mode.String():
		default:
			_, undo = e.shield.Attach(r.Name, kernelMode(state.InterfaceMode(before)))
		}
		if undo != nil {
			err = errors.Join(err, attachError(r.Name, undo))
		}
		return now, undo != nil, err
	}
	e.trouble(r.Name, "")
	return now, false, nil
}

// attachedModes is in which mode each interface is attached, if it is.
func (e *engine) attachedModes() (map[string]string, error) {
	list, err := e.shield.Attachments()
	if err != nil {
		return nil, fmt.Errorf("list what is attached: %w", err)
	}
	modes := map[string]string{}
	for _, a := range list {
		if a.Mode != loader.ModeNone {
			modes[a.Name] = a.Mode.String()
		}
	}
	return modes, nil
}

// trouble notes what keeps an interface from being shielded; empty if nothing does.
func (e *engine) trouble(name, why string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if why == "" {
		delete(e.troubles, name)
	} else {
		e.troubles[name] = why
	}
}

func kernelMode(m state.InterfaceMode) loader.Mode {
	mode, err := loader.ParseMode(string(m))
	if err != nil {
		return loader.ModeAuto
	}
	return mode
}

func attachError(name string, err error) error {
	failed := &state.Error{Code: state.CodeKernel, Field: "interface", Value: name, Detail: err.Error()}
	_, foreign := errors.AsType[*loader.ForeignError](err)
	_, mode := errors.AsType[*loader.ModeError](err)
	switch {
	case foreign:
		failed.Code = state.CodeRefused
	case mode:
		failed.Code = state.CodeConflict
	case errors.Is(err, loader.ErrNoInterface):
		failed.Code, failed.Detail = state.CodeNotFound, loader.ErrNoInterface.Error()
	case errors.Is(err, loader.ErrNotAttached):
		failed.Code, failed.Detail = state.CodeNotFound, loader.ErrNotAttached.Error()
	case errors.Is(err, loader.ErrTooManyInterfaces):
		failed.Code = state.CodeFull
	}
	return failed
}

// Detach takes the shield off an interface, now and after a restart.
func (e *engine) Detach(by state.Actor, name string) error {
	e.settings.Lock()
	defer e.settings.Unlock()
	if err := state.CheckInterface(name, ""); err != nil {
		return err
	}
	things := []state.Thing{{About: state.AboutInterface, Name: name}}
	_, err := e.onTrial(&state.Attempt{By: by}, nil, func() ([]state.Thing, error) {
		i, known := e.state.Interface(name)
		_, _, wanted := i.Wanted()
		err := e.shield.Detach(name)
		if err != nil && (!errors.Is(err, loader.ErrNotAttached) || !known || !wanted) {
			return nil, attachError(name, err)
		}
		e.trouble(name, "")
		if err := e.state.RememberDetached(name); err != nil {
			failed := *state.AsError(err, state.CodeStorage)
			failed.Detail = "the interface " + name + " is detached, but the daemon's next start would shield it again, for its state says so still (" + failed.Detail + ")"
			return nil, &failed
		}
		return things, nil
	})
	return err
}

// attachAll brings every interface to this program, shields those that are wanted, and no longer
// those that were wanted before. What can't be shielded is said, and does not keep the others from it.
func (e *engine) attachAll(before []state.Interface) error {
	changed, err := e.shield.Upgrade()
	if errors.Is(err, loader.ErrNotReplaced) {
		return fmt.Errorf("%w; the shield stands as it was, with the tables and programs that were there", err)
	}
	if err != nil {
		e.log.Error("the program could not be upgraded, the one before goes on", "error", err)
		e.mu.Lock()
		e.lasting = append(e.lasting, "the program could not be upgraded, the one before goes on: "+err.Error())
		e.mu.Unlock()
	}
	for _, a := range changed {
		e.log.Info("upgraded the program", "interface", a.Name, "tag", a.ProgramTag)
	}
	for _, i := range append(before, e.state.Interfaces()...) {
		now, _ := e.state.Interface(i.Name)
		if _, _, wanted := now.Wanted(); wanted {
			continue
		}
		switch err := e.shield.Detach(i.Name); {
		case err == nil:
			e.log.Info("detached; it is not wanted any more", "interface", i.Name)
		case !errors.Is(err, loader.ErrNotAttached):
			e.log.Error("an interface could not be detached", "interface", i.Name, "error", err)
		}
	}
	for _, i := range e.state.Interfaces() {
		if _, _, wanted := i.Wanted(); !wanted {
			continue
		}
		if err := e.attachConfigured(i); err != nil {
			e.log.Error("an interface could not be shielded", "interface", i.Name, "error", err)
			e.trouble(i.Name, state.AsError(err, state.CodeKernel).Detail)
		}
	}
	views, err := e.Interfaces()
	if err != nil {
		return err
	}
	shielded := 0
	for _, v := range views {
		switch {
		case v.Attached && v.Wanted == "":
			e.log.Warn("an interface is shielded that nobody asks for; it is left so", "interface", v.Name, "undo", "levee detach "+v.Name)
		case v.Attached:
			e.log.Info("shielded", "interface", v.Name, "mode", v.Mode, "why", v.Why)
		}
		if v.Attached {
			shielded++
		}
	}
	if shielded == 0 {
		e.log.Warn("no interface is shielded; name them in the configuration, or use levee attach")
	}
	return nil
}

// attachConfigured attaches an interface that is wanted. One that is not there is no error: it is
// attached when it comes.
func (e *engine) attachConfigured(i state.Interface) error {
	mode, _, _ := i.Wanted()
	_, err := e.shield.Attach(i.Name, kernelMode(mode))
	if errors.Is(err, loader.ErrNoInterface) {
		e.log.Warn("there is no such interface; it is shielded when it comes", "interface", i.Name)
		return e.shield.Want(i.Name, kernelMode(mode))
	}
	if err != nil {
		return attachError(i.Name, err)
	}
	e.trouble(i.Name, "")
	return nil
}
