package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"

	"github.com/spf13/cobra"

	"github.com/levee-xdp/levee/agent"
	"github.com/levee-xdp/levee/agent/client"
	"github.com/levee-xdp/levee/agent/config"
	"github.com/levee-xdp/levee/agent/state"
)

func (a *app) attachCommand() *cobra.Command {
	var mode, confirm string
	cmd := &cobra.Command{
		Use:   "attach IFACE…",
		Short: "Shield interfaces",
		Long: `Attach the shield to interfaces. It stays attached while the daemon is restarted or dead, until
levee detach takes it off. Another program on an interface is never replaced.`,
		Example: `  levee attach eth0
  levee attach eth1 --mode generic`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return a.attach(cmd.Context(), args, mode, confirm) },
	}
	cmd.Flags().StringVar(&mode, "mode", string(state.ModeAuto), "native (in the driver), generic (behind it), or auto: native, else generic")
	confirmFlag(cmd, &confirm)
	must(cmd.RegisterFlagCompletionFunc("mode", fixed("auto", "native", "generic")))
	cmd.ValidArgsFunction = a.completeInterfaces
	return cmd
}

func (a *app) attach(ctx context.Context, names []string, mode, confirm string) error {
	onTrial, err := parseConfirm(confirm)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := state.CheckInterface(name, state.InterfaceMode(mode)); err != nil {
			return &usageError{err}
		}
	}
	c := a.client()
	defer c.Close()
	done, failed, err := eachOf(a, names, func(name string) (state.InterfaceView, error) {
		return c.Attach(ctx, state.AttachRequest{Name: name, Mode: state.InterfaceMode(mode), Confirm: onTrial})
	})
	if err != nil {
		return err
	}
	if a.machine() {
		if err := printList(a, state.InterfaceList{Interfaces: done}, done); err != nil {
			return err
		}
	}
	for _, v := range done {
		switch {
		case !v.Attached:
			a.say("%s is not attached yet: %s", v.Name, v.Why)
		case v.Why != "":
			a.say("%s is shielded in %s mode, as native was refused: %s", v.Name, v.Mode, v.Why)
		default:
			a.say("%s is shielded in %s mode", v.Name, v.Mode)
		}
		a.onTrial(onTrial, v.Trial)
	}
	return ofEach(len(done), failed)
}

// eachOf asks for several things one after another. What fails is told at once, and does not stop
// the others, unless there is no daemon. A single one that fails is the call's error.
func eachOf[T any](a *app, names []string, do func(string) (T, error)) (done []T, failed []error, err error) {
	for _, name := range names {
		v, err := do(name)
		switch {
		case err == nil:
			done = append(done, v)
		case len(names) == 1 || errors.Is(err, client.ErrUnreachable) && len(done) == 0:
			return nil, nil, err
		default:
			a.complain("%s: %v", name, err)
			failed = append(failed, err)
		}
	}
	return done, failed, nil
}

// ofEach says what came of several things. What failed has been told.
func ofEach(done int, failed []error) error {
	if len(failed) == 0 {
		return nil
	}
	if done > 0 {
		return &codeError{code: exitPartly}
	}
	code := exitCode(failed[0])
	for _, err := range failed {
		if exitCode(err) != code {
			code = exitFailed
		}
	}
	return &codeError{code: code}
}

func (a *app) detachCommand() *cobra.Command {
	var (
		all  bool
		root pinnedRoot
	)
	cmd := &cobra.Command{
		Use:   "detach IFACE… | --all",
		Short: "Take the shield off interfaces, also without a daemon",
		Long: `Take the shield off interfaces. Where no daemon answers, what is pinned in the kernel is taken down
directly; that needs root. With --all and no daemon, the kernel's tables go, too: bans, allow entries
and limits are kept in the daemon's state, and return when it starts.`,
		Args: func(_ *cobra.Command, args []string) error {
			if all != (len(args) == 0) {
				return errors.New("name the interfaces, or --all, and not both")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error { return a.detach(cmd.Context(), args, all, root) },
	}
	cmd.Flags().BoolVar(&all, "all", false, "every interface")
	root.flags(cmd)
	cmd.ValidArgsFunction = a.completeShielded
	return cmd
}

func (a *app) detach(ctx context.Context, names []string, all bool, root pinnedRoot) error {
	for _, name := range names {
		if err := state.CheckInterface(name, state.ModeAuto); err != nil {
			return &usageError{err}
		}
	}
	a.listensAt(root.config)
	c := a.client()
	defer c.Close()
	list, err := c.Interfaces(ctx)
	if errors.Is(err, client.ErrUnreachable) {
		return a.detachPinned(names, all, root, err)
	}
	if err != nil {
		return err
	}
	if all {
		for _, v := range list.Interfaces {
			if v.Attached || v.Wanted != "" {
				names = append(names, v.Name)
			}
		}
		if len(names) == 0 {
			a.say("no interface is shielded")
			return a.detached(nil)
		}
	}
	done, failed, err := eachOf(a, names, func(name string) (string, error) { return name, c.Detach(ctx, name) })
	if err != nil {
		return err
	}
	for _, name := range done {
		a.say("%s is no longer shielded", name)
		for _, v := range list.Interfaces {
			if v.Name == name && v.Source == state.FromConfig {
				a.note("  the configuration file names it; this detach holds until it is attached again")
			}
		}
	}
	if err := a.detached(done); err != nil {
		return err
	}
	return ofEach(len(done), failed)
}

// detached writes the answer for programs.
func (a *app) detached(names []string) error {
	if !a.machine() {
		return nil
	}
	type item struct {
		Name     string `json:"name"`
		Detached bool   `json:"detached"`
	}
	items := []item{}
	for _, n := range names {
		items = append(items, item{n, true})
	}
	return printList(a, struct {
		Interfaces []item `json:"interfaces"`
	}{items}, items)
}

// detachPinned works on what is pinned in the kernel.
func (a *app) detachPinned(names []string, all bool, root pinnedRoot, unreachable error) error {
	path, err := root.path()
	if err != nil {
		return err
	}
	a.note("%v", unreachable)
	a.note("Working on what is pinned under %s instead.", path)
	if all {
		done, err := a.offline.remove(path)
		for _, line := range done {
			a.say("%s", line)
		}
		switch {
		case err != nil && len(done) > 0:
			return &codeError{exitPartly, asRoot(err)}
		case err != nil:
			return asRoot(err)
		case len(done) == 0:
			a.say("no interface is shielded")
		default:
			a.say("the shield is down; the daemon puts it up again when it starts")
		}
		return a.detached(nil)
	}
	done, failed, err := eachOf(a, names, func(name string) (string, error) { return name, asRoot(a.offline.detach(path, name)) })
	if err != nil {
		return err
	}
	for _, name := range done {
		a.say("%s is no longer shielded; if the daemon is to shield it, it does so again when it starts", name)
	}
	if err := a.detached(done); err != nil {
		return err
	}
	return ofEach(len(done), failed)
}

// pinnedRoot is where what works without a daemon finds the shield.
type pinnedRoot struct{ bpffs, config string }

func (r *pinnedRoot) flags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&r.bpffs, "bpffs", "", "without a daemon: where the shield is pinned (default: as the configuration file says)")
	cmd.Flags().StringVarP(&r.config, "config", "c", "", "the daemon's configuration file: where it listens, and where the shield is pinned (default "+config.Path+")")
}

// listensAt asks the daemon of a configuration file, if nothing else says where it listens: what works on the
// pins below a daemon that was not asked would undo what it does.
func (a *app) listensAt(file string) {
	if a.socket != "" || a.remote.address != "" {
		return
	}
	if c, err := config.Load(file); err == nil { // a bad file is told where it is needed
		a.socket = c.API.Socket
	}
}

// path returns where the shield is pinned. A file that nobody named and that can't be read is no
// reason to leave the shield as it is.
func (r *pinnedRoot) path() (string, error) {
	if r.bpffs != "" {
		return r.bpffs, nil
	}
	c, err := config.Load(r.config)
	if err == nil {
		return c.BPFFS, nil
	}
	if r.config == "" {
		return agent.PinnedRoot, nil
	}
	return "", err
}

// asRoot says of what was not permitted who may.
func asRoot(err error) error {
	if errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("%w\nwithout a daemon that answers, this needs root", err)
	}
	return err
}

// pinned is what works without a daemon.
func pinned() offline {
	return offline{
		setPanic: agent.SetPinnedPanic,
		detach: func(root, name string) error {
			err := agent.DetachPinned(root, name)
			if errors.Is(err, agent.ErrNotAttached) {
				return &codeError{exitNotFound, err}
			}
			return err
		},
		remove:     agent.RemovePinned,
		interfaces: upInterfaces,
		examine:    agent.Examine,
	}
}

func hostInterfaces() []string {
	found, err := net.Interfaces()
	if err != nil {
		return nil
	}
	var names []string
	for _, i := range found {
		if i.Flags&net.FlagLoopback == 0 {
			names = append(names, i.Name)
		}
	}
	return names
}
