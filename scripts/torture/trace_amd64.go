package main

import (
	"bytes"
	"debug/elf"
	"debug/gosym"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// writing are the system calls that change what outlives a process, and those by which it answers.
var writing = map[uint64]string{
	unix.SYS_WRITE: "write", unix.SYS_PWRITE64: "pwrite64", unix.SYS_WRITEV: "writev", unix.SYS_PWRITEV: "pwritev",
	unix.SYS_FSYNC: "fsync", unix.SYS_FDATASYNC: "fdatasync", unix.SYS_MSYNC: "msync", unix.SYS_FTRUNCATE: "ftruncate", unix.SYS_TRUNCATE: "truncate",
	unix.SYS_FALLOCATE: "fallocate", unix.SYS_RENAME: "rename", unix.SYS_RENAMEAT: "renameat", unix.SYS_RENAMEAT2: "renameat2",
	unix.SYS_UNLINK: "unlink", unix.SYS_UNLINKAT: "unlinkat", unix.SYS_RMDIR: "rmdir", unix.SYS_MKDIR: "mkdir", unix.SYS_MKDIRAT: "mkdirat",
	unix.SYS_LINKAT: "linkat", unix.SYS_SYMLINKAT: "symlinkat", unix.SYS_FCHMOD: "fchmod", unix.SYS_FCHMODAT: "fchmodat", unix.SYS_CHMOD: "chmod",
	unix.SYS_FCHOWN: "fchown", unix.SYS_FCHOWNAT: "fchownat", unix.SYS_CHOWN: "chown", unix.SYS_LCHOWN: "lchown", unix.SYS_FLOCK: "flock",
	unix.SYS_OPENAT: "openat", unix.SYS_BIND: "bind", unix.SYS_LISTEN: "listen", unix.SYS_SENDTO: "sendto", unix.SYS_SENDMSG: "sendmsg",
	unix.SYS_MMAP: "mmap", unix.SYS_BPF: "bpf",
}

// bpfCommands are those of bpf(2) that change something, by number (enum bpf_cmd of linux/bpf.h).
var bpfCommands = map[uint64]string{
	0: "MAP_CREATE", 2: "MAP_UPDATE_ELEM", 3: "MAP_DELETE_ELEM", 5: "PROG_LOAD", 6: "OBJ_PIN", 8: "PROG_ATTACH", 18: "BTF_LOAD",
	22: "MAP_FREEZE", 24: "MAP_LOOKUP_AND_DELETE_ELEM", 26: "MAP_UPDATE_BATCH", 27: "MAP_DELETE_BATCH", 28: "LINK_CREATE", 29: "LINK_UPDATE", 34: "LINK_DETACH",
}

// callName names a call, or says that it writes nothing that matters.
func callName(r *unix.PtraceRegs) (string, bool) {
	switch name := writing[r.Orig_rax]; r.Orig_rax {
	case unix.SYS_BPF:
		command, ok := bpfCommands[r.Rdi]
		return "bpf " + command, ok
	case unix.SYS_OPENAT:
		return "openat to create", r.Rdx&unix.O_CREAT != 0
	case unix.SYS_MMAP:
		return "mmap to write", r.R10&unix.MAP_SHARED != 0 && r.Rdx&unix.PROT_WRITE != 0
	default:
		return name, name != ""
	}
}

// asFilter becomes the daemon, after it has asked the kernel to stop at every call that writes.
func asFilter(args []string) error {
	runtime.LockOSThread()
	const allow, trace = unix.SECCOMP_RET_ALLOW, unix.SECCOMP_RET_TRACE
	program := []unix.SockFilter{{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 0}} // the call's number
	for number := range writing {
		program = append(program,
			unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: uint32(number), Jf: 1},
			unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: trace})
	}
	program = append(program, unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: allow})
	filter := unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}
	if err := unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&filter)), 0, 0); err != nil {
		return fmt.Errorf("set a filter: %w", err)
	}
	return syscall.Exec(args[0], args, os.Environ())
}

// tracer runs a daemon and stops it at its system calls.
type tracer struct {
	plan   plan
	out    *json.Encoder
	table  *gosym.Table
	seen   map[string]bool
	passed int
	hits   int
	pid    int
	after  map[int]bool // threads that the plan waits for at the end of a call
}

// asTracer runs a daemon under a plan, and returns its exit status.
func asTracer(text string, args []string) (int, error) {
	runtime.LockOSThread()
	t := &tracer{out: json.NewEncoder(os.NewFile(3, "report")), seen: map[string]bool{}, after: map[int]bool{}}
	status, err := t.run(text, args)
	if err != nil {
		_ = t.out.Encode(traceEvent{Err: err.Error()})
	}
	return status, err
}

func (t *tracer) run(text string, args []string) (int, error) {
	if err := json.Unmarshal([]byte(text), &t.plan); err != nil {
		return 0, err
	}
	var err error
	if t.table, err = symbols(args[0]); err != nil {
		return 0, fmt.Errorf("read the symbols of %s: %w", args[0], err)
	}
	self, err := os.Executable()
	if err != nil {
		return 0, err
	}
	process, err := os.StartProcess(self, append([]string{self, roleFilter}, args...), &os.ProcAttr{
		Files: []*os.File{nil, os.Stdout, os.Stderr}, Env: os.Environ(),
		Sys: &syscall.SysProcAttr{Ptrace: true, Pdeathsig: syscall.SIGKILL},
	})
	if err != nil {
		return 0, err
	}
	t.pid = process.Pid
	var status unix.WaitStatus
	if _, err := unix.Wait4(t.pid, &status, 0, nil); err != nil || !status.Stopped() {
		return 0, fmt.Errorf("the daemon did not stop at its start: %w", err)
	}
	const options = unix.PTRACE_O_TRACESECCOMP | unix.PTRACE_O_TRACECLONE | unix.PTRACE_O_TRACEEXEC | unix.PTRACE_O_TRACESYSGOOD | unix.PTRACE_O_EXITKILL
	if err := unix.PtraceSetOptions(t.pid, options); err != nil {
		return 0, err
	}
	if err := t.out.Encode(traceEvent{PID: t.pid}); err != nil {
		return 0, err
	}
	if err := unix.PtraceCont(t.pid, 0); err != nil {
		return 0, err
	}
	for {
		tid, err := unix.Wait4(-1, &status, unix.WALL, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return 0, fmt.Errorf("wait: %w", err)
		}
		switch {
		case status.Exited() && tid == t.pid:
			return status.ExitStatus(), nil
		case status.Signaled() && tid == t.pid:
			return 128 + int(status.Signal()), nil
		case !status.Stopped():
			continue
		}
		if err := t.stopped(tid, status); err != nil && !errors.Is(err, unix.ESRCH) { // ESRCH: it was killed meanwhile
			return 0, err
		}
	}
}

// stopped handles a stop of a thread, and lets it go on.
func (t *tracer) stopped(tid int, status unix.WaitStatus) error {
	switch stop := status.StopSignal(); {
	case stop == syscall.SIGTRAP|0x80: // a call has returned
		if t.after[tid] {
			delete(t.after, tid)
			return t.kill()
		}
		return unix.PtraceCont(tid, 0)
	case stop == syscall.SIGTRAP && status.TrapCause() == unix.PTRACE_EVENT_SECCOMP:
		return t.called(tid)
	case stop == syscall.SIGTRAP && status.TrapCause() != 0: // a thread was made, or the daemon begun
		return unix.PtraceCont(tid, 0)
	case stop == syscall.SIGSTOP: // a new thread begins so
		return unix.PtraceCont(tid, 0)
	default:
		return unix.PtraceCont(tid, int(stop))
	}
}

func (t *tracer) kill() error {
	t.hits++
	if err := t.out.Encode(traceEvent{Hit: true}); err != nil {
		return err
	}
	return unix.Kill(t.pid, unix.SIGKILL)
}

// called handles a call that is about to be made.
func (t *tracer) called(tid int) error {
	var regs unix.PtraceRegs
	if err := unix.PtraceGetRegs(tid, &regs); err != nil {
		return err
	}
	name, writes := callName(&regs)
	if !writes {
		return unix.PtraceCont(tid, 0)
	}
	s, ours := t.site(tid, name, &regs)
	if !ours {
		return unix.PtraceCont(tid, 0)
	}
	if !t.seen[s.Key] {
		t.seen[s.Key] = true
		if err := t.out.Encode(traceEvent{Site: &s}); err != nil {
			return err
		}
	}
	if t.plan.Do == "" || s.Key != t.plan.Site || t.plan.Times > 0 && t.hits >= t.plan.Times {
		return unix.PtraceCont(tid, 0)
	}
	if t.passed++; t.passed <= t.plan.Skip {
		return unix.PtraceCont(tid, 0)
	}
	switch {
	case t.plan.Do == doKill && t.plan.After:
		t.after[tid] = true
		return unix.PtraceSyscall(tid, 0)
	case t.plan.Do == doKill:
		return t.kill()
	}
	regs.Orig_rax, regs.Rax = ^uint64(0), uint64(-int64(t.plan.Errno))
	if err := unix.PtraceSetRegs(tid, &regs); err != nil {
		return err
	}
	t.hits++
	if err := t.out.Encode(traceEvent{Hit: true}); err != nil {
		return err
	}
	return unix.PtraceCont(tid, 0)
}

const house = "github.com/levee-xdp/levee/"

// site finds out who makes a call, by the frame pointers on the thread's stack. What the runtime does
// for itself is nobody's.
func (t *tracer) site(tid int, name string, regs *unix.PtraceRegs) (s site, ours bool) {
	pcs := []uint64{regs.Rip}
	if pc, ok := t.word(tid, regs.Rsp); ok {
		pcs = append(pcs, pc)
	}
	for frame := regs.Rbp; frame != 0 && len(pcs) < 40; {
		pc, ok := t.word(tid, frame+8)
		if !ok || pc == 0 {
			break
		}
		pcs = append(pcs, pc)
		if frame, ok = t.word(tid, frame); !ok {
			break
		}
	}
	s.Call = name
	var key bytes.Buffer
	key.WriteString(name)
	mine := 0
	for i, pc := range pcs {
		file, line, f := t.table.PCToLine(pc - 1)
		if f == nil {
			break
		}
		if i == 0 && strings.HasPrefix(f.Name, "runtime.") {
			return s, false
		}
		fmt.Fprintf(&key, " %x", pc)
		short := f.Name
		if at := strings.LastIndexByte(short, '/'); at >= 0 {
			short = short[at+1:]
		}
		if i > 1 && !strings.HasPrefix(f.Name, "syscall.") && !strings.HasPrefix(f.Name, "internal/") {
			s.Chain = append(s.Chain, short+":"+strconv.Itoa(line))
		}
		_ = file
		if strings.HasPrefix(f.Name, house) {
			if mine++; mine == 2 {
				break
			}
		}
		if i >= 14 {
			break
		}
	}
	s.Key = key.String()
	return s, true
}

func (t *tracer) word(tid int, at uint64) (uint64, bool) {
	var b [8]byte
	if n, err := unix.PtracePeekData(tid, uintptr(at), b[:]); err != nil || n != len(b) {
		return 0, false
	}
	return binary.LittleEndian.Uint64(b[:]), true
}

// symbols reads the functions of a Go binary from the table that its runtime uses.
func symbols(path string) (*gosym.Table, error) {
	f, err := elf.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	section, text := f.Section(".gopclntab"), f.Section(".text")
	if section == nil || text == nil {
		return nil, errors.New("it is not a Go program")
	}
	b, err := section.Data()
	if err != nil {
		return nil, err
	}
	return gosym.NewTable(nil, gosym.NewLineTable(b, text.Addr))
}
