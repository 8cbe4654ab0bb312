package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// faultsResult is what the third phase found.
type faultsResult struct {
	Sites, Faults, NotMet           int
	Refused, Ended, Mute, Unnoticed int
	Where                           string // which places were chosen; empty: all
	ByError                         map[string]int
	Silent                          []string // places whose failure nobody was told of
	Checks                          int
	Flood                           outcome
	Took                            time.Duration
	Wrong                           []string
}

// errnosFor are the errors that a call is failed with: those of a disk that is full, broken or
// read-only for files, those of a kernel that lacks memory or permission for its own objects.
func errnosFor(call string) []syscall.Errno {
	switch call {
	case "write", "pwrite64", "writev", "fsync", "fdatasync", "ftruncate", "fallocate", "renameat", "rename", "renameat2", "mkdirat", "openat to create":
		return []syscall.Errno{unix.ENOSPC, unix.EIO, unix.EROFS}
	case "unlinkat", "flock", "fchmodat", "fchownat", "unlink", "rmdir":
		return []syscall.Errno{unix.EIO, unix.EROFS}
	case "sendto", "sendmsg":
		return []syscall.Errno{unix.ENOBUFS}
	case "bind", "listen":
		return []syscall.Errno{unix.EACCES}
	}
	return []syscall.Errno{unix.ENOMEM} // bpf, mmap
}

// faults fails the daemon's system calls that write.
func faults(ctx context.Context, bin, dir string, which selection, seed uint64, log func(string, ...any)) (r faultsResult, err error) {
	began := time.Now()
	g, err := newRig(ctx, bin, dir, seed, log)
	if err != nil {
		return r, err
	}
	defer g.end()
	r.ByError, r.Where = map[string]int{}, which.pattern.String()
	err = g.each(ctx, which, func(l *life, s site) error {
		r.Sites++
		for _, errno := range errnosFor(s.Call) {
			// Once, as an error that passes; or, of a full disk, for as long as the daemon lives.
			for _, times := range []int{1, 0} {
				if times == 0 && errno != unix.ENOSPC {
					continue
				}
				if err := g.fault(ctx, l, s, errno, times, &r); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err != nil {
		return r, err
	}
	if r.Flood, err = g.finish(ctx, nil, g.flood); err != nil {
		return r, err
	}
	slices.Sort(r.Silent)
	r.Silent = slices.Compact(r.Silent)
	r.Checks, r.Wrong, r.Took = g.checks, g.wrong, time.Since(began)
	return r, nil
}

// fault fails one place in one way, and looks at what comes of it.
func (g *rig) fault(ctx context.Context, l *life, s site, errno syscall.Errno, times int, r *faultsResult) error {
	name := unix.ErrnoName(errno)
	when := fmt.Sprintf("%s, %s once at %s", l.name, name, s)
	if times == 0 {
		when = fmt.Sprintf("%s, %s from then on at %s", l.name, name, s)
	}
	p := &plan{Site: s.Key, Do: doFail, Errno: int(errno), Times: times}
	if l.work && times == 1 {
		p.Skip = g.random.IntN(3)
	}
	g.reset()
	d, err := g.begin(ctx, l, p)
	if errors.Is(err, errNotReady) { // as when no answer can be written; it was killed then
		r.Faults++
		r.ByError[name]++
		r.Mute++
		return g.recover(ctx, when)
	}
	if err != nil {
		return err
	}
	if l.work && !d.ended() {
		g.load.run(ctx)
		select {
		case <-d.exited:
		case <-time.After(workTime):
		}
		_ = g.host.client.Reload(ctx)
		g.halt()
	}
	r.Faults++
	r.ByError[name]++
	said := strings.Contains(d.log.String(), errno.Error()) || g.saw(errno.Error())
	if !d.ended() {
		err := g.examineLive(ctx, when+", while it lives", d, g.flood)
		if l.begin && errors.Is(err, fs.ErrNotExist) {
			// It could not shield the interface, and serves: there was no shield before that could fall.
			if !said {
				g.complain(when, "the daemon shields no interface and did not say why\n"+d.log.String())
			}
			g.refused.Add(1)
			err = nil
		}
		if err != nil {
			return err
		}
		d.kill() // what was refused must not come back
		if g.refused.Load() > 0 {
			r.Refused++
		} else if d.trace.hitAll() > 0 {
			r.Unnoticed++
		}
	} else {
		r.Ended++
		if code := d.cmd.ProcessState.ExitCode(); code != 1 {
			g.complain(when, fmt.Sprintf("the daemon ended with exit code %d\n%s", code, d.log))
		}
		if !said {
			g.complain(when, "the daemon ended and did not say why\n"+d.log.String())
		}
	}
	if d.trace.hitAll() == 0 {
		r.NotMet++
	} else if !said {
		r.Silent = append(r.Silent, s.String())
	}
	if !l.begin {
		if err := g.examineDead(when, g.flood); err != nil {
			return err
		}
	}
	return g.recover(ctx, when)
}

// add adds what another run found.
func (r *faultsResult) add(o faultsResult) {
	r.Sites += o.Sites
	r.Faults += o.Faults
	r.NotMet += o.NotMet
	r.Refused += o.Refused
	r.Ended += o.Ended
	r.Mute += o.Mute
	r.Unnoticed += o.Unnoticed
	for name, n := range o.ByError {
		r.ByError[name] += n
	}
	r.Silent = append(r.Silent, o.Silent...)
	r.Checks += o.Checks
	r.Flood.Banned.add(o.Flood.Banned)
	r.Flood.Clean.add(o.Flood.Clean)
	r.Took += o.Took
	r.Wrong = append(r.Wrong, o.Wrong...)
}

func (r faultsResult) complaints() []string { return r.Wrong }

func (r faultsResult) text() string {
	var errnos []string
	for name, n := range r.ByError {
		errnos = append(errnos, fmt.Sprintf("%s %d", name, n))
	}
	slices.Sort(errnos)
	places := fmt.Sprint(r.Sites)
	if r.Where != "" {
		places += ", those that match `" + strings.ReplaceAll(r.Where, "|", "` or `") + "`"
	}
	return table([][2]string{
		{"places whose call was failed", places},
		{"faults", fmt.Sprintf("%d: %s; of these %d where the place was not met again", r.Faults, strings.Join(errnos, ", "), r.NotMet)},
		{"the daemon refused changes and said why", fmt.Sprint(r.Refused)},
		{"the daemon ended with exit code 1 and said why", fmt.Sprint(r.Ended)},
		{"the daemon could answer nobody, and was killed", fmt.Sprint(r.Mute)},
		{"the daemon went on, and nobody was refused anything", fmt.Sprint(r.Unnoticed)},
		{"looks at a prefix, in the kernel and in the state", fmt.Sprint(r.Checks)},
		{"frames of banned sources", r.Flood.Banned.words()},
		{"frames of other sources", r.Flood.Clean.words()},
		{"took", r.Took.Round(time.Second).String()},
		{"acknowledged changes lost or undone, refused ones in force, packets passed or lost, things left behind", fmt.Sprint(len(r.Wrong))},
	}) + list(r.Wrong)
}
