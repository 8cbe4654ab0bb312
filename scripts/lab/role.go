package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/levee-xdp/levee/scripts/internal/space"
)

// The lab's own processes are this program again, with a role as its first argument. A role reads
// its order as JSON from standard input, says a line when it has started, and then its report.
const (
	roleServer = "role-server"
	roleClient = "role-client"
	roleFlood  = "role-flood"
)

const startedLine = "started"

// role runs the process as one of its parts, if that is what it was started for.
func role(args []string, in io.Reader, out io.Writer) (is bool, err error) {
	if len(args) != 1 {
		return false, nil
	}
	started := func() { fmt.Fprintln(out, startedLine) }
	var report any
	switch args[0] {
	case roleServer:
		return true, serve(started)
	case roleClient:
		var order clientOrder
		if err = json.NewDecoder(in).Decode(&order); err == nil {
			started()
			report = request(context.Background(), order)
		}
	case roleFlood:
		var order floodOrder
		decoder := json.NewDecoder(in)
		if err = decoder.Decode(&order); err == nil {
			ctx, cancel := context.WithCancel(context.Background())
			go func() { // the end of the input is the order to stop, and comes when the lab dies, too
				_ = decoder.Decode(new(any))
				cancel()
			}()
			report, err = flood(ctx, order, started)
		}
	default:
		return false, nil
	}
	if err != nil {
		return true, err
	}
	return true, json.NewEncoder(out).Encode(report)
}

// actor is a role at work in a process of its own.
type actor struct {
	name   string
	cmd    *exec.Cmd
	in     io.Closer
	out    *bufio.Reader
	errors bytes.Buffer
}

// act starts a role in a space and waits until it says that it has started.
func act(ctx context.Context, in *space.Space, name string, order any) (*actor, error) {
	input, err := json.Marshal(order)
	if err != nil {
		return nil, err
	}
	// A pipe of the operating system, so that what has been written stays when the end is closed.
	read, write, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer read.Close()
	a := &actor{name: name, cmd: exec.CommandContext(ctx, "/proc/self/exe", name)}
	a.cmd.Stdin, a.in = read, write
	a.cmd.Stderr = &a.errors
	a.cmd.SysProcAttr = space.ChildAttr()
	a.cmd.WaitDelay = time.Second
	out, err := a.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	a.out = bufio.NewReader(out)
	if err := in.Do(a.cmd.Start); err != nil {
		write.Close()
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	if err := prefer(name, a.cmd.Process.Pid); err != nil {
		return nil, a.failed(err)
	}
	if _, err := write.Write(input); err != nil { // less than a pipe holds, or read as it is written
		return nil, a.failed(err)
	}
	line, err := a.out.ReadString('\n')
	if strings.TrimSpace(line) != startedLine {
		return nil, a.failed(err)
	}
	return a, nil
}

// prefer lets the lab's parts go before what else this machine does, and the client before the flood:
// they share a CPU here, and not in the world.
func prefer(name string, pid int) error {
	nice := map[string]int{roleClient: -15, roleServer: -10, roleFlood: -5}[name]
	if err := unix.Setpriority(unix.PRIO_PROCESS, pid, nice); err != nil {
		return fmt.Errorf("raise its priority: %w", err)
	}
	return nil
}

// report waits for the role's end and decodes what it says.
func (a *actor) report(into any) error {
	defer a.in.Close()
	if err := json.NewDecoder(a.out).Decode(into); err != nil {
		return a.failed(err)
	}
	return a.cmd.Wait()
}

// stop tells the role that it is enough, and decodes what it says then.
func (a *actor) stop(into any) error {
	if err := a.in.Close(); err != nil {
		return a.failed(err)
	}
	return a.report(into)
}

// end kills the role's process.
func (a *actor) end() {
	_ = a.in.Close()
	_ = a.cmd.Process.Kill()
	_ = a.cmd.Wait()
}

func (a *actor) failed(err error) error {
	_ = a.in.Close()
	_ = a.cmd.Process.Kill()
	wait := a.cmd.Wait()
	if message := strings.TrimSpace(a.errors.String()); message != "" {
		return fmt.Errorf("%s: %s", a.name, message)
	}
	return fmt.Errorf("%s: %w", a.name, errors.Join(err, wait))
}

// asRole is main for a process that plays a part. It does not return if it does.
func asRole() {
	is, err := role(os.Args[1:], os.Stdin, os.Stdout)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	if is {
		os.Exit(0)
	}
}
