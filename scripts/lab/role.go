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
		if err = json.NewDecoder(in).Decode(&order); err == nil {
			report, err = flood(order, started)
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
	out    *bufio.Reader
	errors bytes.Buffer
}

// act starts a role in a space and waits until it says that it has started.
func act(ctx context.Context, in *space, name string, order any) (*actor, error) {
	input, err := json.Marshal(order)
	if err != nil {
		return nil, err
	}
	a := &actor{name: name, cmd: exec.CommandContext(ctx, "/proc/self/exe", name)}
	a.cmd.Stdin = bytes.NewReader(input)
	a.cmd.Stderr = &a.errors
	a.cmd.SysProcAttr = childAttr()
	a.cmd.WaitDelay = time.Second
	out, err := a.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	a.out = bufio.NewReader(out)
	if err := in.do(a.cmd.Start); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	if name == roleClient {
		if err := unix.Setpriority(unix.PRIO_PROCESS, a.cmd.Process.Pid, -15); err != nil {
			return nil, err
		}
	}
	line, err := a.out.ReadString('\n')
	if strings.TrimSpace(line) != startedLine {
		return nil, a.failed(err)
	}
	return a, nil
}

// report waits for the role's end and decodes what it says.
func (a *actor) report(into any) error {
	err := json.NewDecoder(a.out).Decode(into)
	if err != nil {
		return a.failed(err)
	}
	return a.cmd.Wait()
}

// end kills the role's process.
func (a *actor) end() {
	_ = a.cmd.Process.Kill()
	_ = a.cmd.Wait()
}

func (a *actor) failed(err error) error {
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
