package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The lab's own processes are this binary again.
func TestMain(m *testing.M) {
	asRole()
	if os.Getenv(asLab) != "" {
		main()
	}
	code := m.Run()
	if built != "" {
		_ = os.RemoveAll(built)
	}
	os.Exit(code)
}

// privileged skips a test that needs root where there is none, or where it is not wanted.
func privileged(t *testing.T) {
	t.Helper()
	if os.Getenv("LEVEE_UNPRIVILEGED") != "" {
		t.Skip("LEVEE_UNPRIVILEGED is set")
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
}

func TestUsage(t *testing.T) {
	for _, c := range []struct {
		args []string
		code int
		says string
	}{
		{[]string{"-help"}, exitDone, "botnet"},
		{[]string{"-unknown"}, exitUsage, "-unknown"},
		{[]string{"eth0"}, exitUsage, `unknown argument "eth0"`},
		{[]string{"-scenario", "tsunami"}, exitUsage, `scenario "tsunami": there are heavy, syn`},
		{[]string{"-family", "5"}, exitUsage, "family 5: must be 4 or 6"},
		{[]string{"-duration", "1h"}, exitUsage, "duration 1h0m0s: must be 100ms to 10s"},
		{[]string{"-levee", "/nowhere/levee"}, exitMissing, "/nowhere/levee"},
	} {
		var stderr bytes.Buffer
		if code := command(t.Context(), c.args, io.Discard, &stderr); code != c.code {
			t.Errorf("%v: exit code %d, want %d", c.args, code, c.code)
		}
		if !strings.Contains(stderr.String(), c.says) {
			t.Errorf("%v: says %q, want %q in it", c.args, stderr.String(), c.says)
		}
	}
}

func TestMissing(t *testing.T) {
	cmd := asNobody(t, "-levee", "/proc/self/exe")
	cmd.Env = append(os.Environ(), asLab+"=1")
	said, err := cmd.CombinedOutput()
	if ended, ok := errors.AsType[*exec.ExitError](err); !ok || ended.ExitCode() != exitMissing {
		t.Errorf("%v, want the exit code %d", err, exitMissing)
	}
	if !strings.Contains(string(said), "not root") {
		t.Errorf("says %q", said)
	}
}

// A network that can't be made is an error, and what was made of it is taken down.
func TestNetworkNotMade(t *testing.T) {
	if os.Geteuid() == 0 {
		if said, err := asNobody(t, "-test.run=^TestNetworkNotMade$").CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, said)
		}
		return
	}
	if n, err := newNetwork(); err == nil || n != nil {
		t.Errorf("%+v, %v", n, err)
	}
}

// asNobody is this program again, as somebody who may do nothing.
func asNobody(t *testing.T, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", args...)
	if os.Geteuid() == 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	}
	return cmd
}

func TestExitCode(t *testing.T) {
	interrupted, cancel := context.WithCancel(t.Context())
	cancel()
	for _, c := range []struct {
		ctx  context.Context
		err  error
		code int
	}{
		{t.Context(), errors.New("anything"), exitFailed},
		{t.Context(), joinMissing([]error{errors.New("root")}), exitMissing},
		{t.Context(), errNotVeth, exitRefused},
		{t.Context(), errHostNet, exitRefused},
		{interrupted, context.Canceled, exitInterrupted},
	} {
		if code := exitCode(c.ctx, c.err); code != c.code {
			t.Errorf("%v: exit code %d, want %d", c.err, code, c.code)
		}
	}
}

func TestReport(t *testing.T) {
	known, err := pick(nil)
	if err != nil {
		t.Fatal(err)
	}
	client := func(share float64, median time.Duration) clientReport {
		return clientReport{Requests: 1000, Succeeded: int(share * 1000), Median: median, P99: time.Second, Timeout: time.Second}
	}
	stranger := client(0.02, time.Second)
	res := result{
		Calm: []row{{Scenario: "no flood", Family: "IPv4", Without: measurement{Client: client(1, 600*time.Microsecond)},
			With: measurement{Client: client(1, 500*time.Microsecond)}}},
		Rows: []row{
			{Scenario: "heavy", Family: "IPv4", scenario: known[0],
				Without: measurement{Client: client(0.3, time.Second), Flood: floodReport{700000, 1}},
				With: measurement{Client: client(0.996, 700*time.Microsecond), Flood: floodReport{700000, 1},
					Dropped: map[string]uint64{"penalty": 690000, "limit_packets": 5000}, Passed: 5000}},
			{Scenario: "spoofed", Family: "IPv4", scenario: known[6],
				Without: measurement{Client: client(0.999, 600*time.Microsecond), Flood: floodReport{600000, 1}},
				With: measurement{Client: client(1, 800*time.Microsecond), Stranger: &stranger, Flood: floodReport{400000, 1},
					Dropped: map[string]uint64{"limit_aggregate": 300000}, Passed: 100000}},
		},
		Timings: []timing{{Family: "IPv4", Killed: true, Begins: -time.Millisecond, Ends: 300 * time.Microsecond}},
		Notes:   []string{"one CPU alone"},
	}
	res.Rows = append(res.Rows, row{Scenario: "fragments", Family: "IPv6", scenario: known[4],
		Without: measurement{Client: client(1, time.Millisecond), Flood: floodReport{900000, 1}},
		With: measurement{Client: client(1, time.Millisecond), Flood: floodReport{1400000, 1},
			Dropped: map[string]uint64{"penalty": 1390000, "limit_fragments": 32}, Passed: 1000}})
	res.Calm = append(res.Calm, row{Scenario: "no flood", Family: "IPv6", Without: measurement{Client: client(1, time.Millisecond)},
		With: measurement{Client: client(1, time.Millisecond)}})
	text := res.String()
	for _, want := range []string{
		"30 %", "> 1 s", "99 % │ 0.7 ms", "99 % penalty, limit_packets", "600k/400k", "75 % limit_aggregate",
		"The shield held", "1 of 3 floods hurt", "kill -9 of the daemon", "-1.0 ms", "got 2 %", "Note: one CPU alone.",
		"its source sends more packets than its limit",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is not in the report:\n%s", want, text)
		}
	}
	for line := range strings.Lines(text) {
		if n := len([]rune(strings.TrimRight(line, "\n"))); n > 100 {
			t.Errorf("%d columns: %s", n, line)
		}
	}
	for _, asJSON := range []bool{false, true} {
		res.Rows[0].With.Client = client(0.996, 700*time.Microsecond)
		res.Held = res.held()
		var stdout, stderr bytes.Buffer
		if code := report(res, asJSON, &stdout, &stderr); code != exitDone || stderr.Len() > 0 {
			t.Errorf("JSON %t: the shield held, and the exit code is %d: %s", asJSON, code, stderr.String())
		}
		res.Rows[0].With.Client = client(0.98, 700*time.Microsecond)
		res.Held = res.held()
		stdout.Reset()
		if code := report(res, asJSON, &stdout, &stderr); code != exitNotHeld {
			t.Errorf("JSON %t: 98 %% were answered, and the exit code is %d", asJSON, code)
		}
		if want := map[bool]string{false: "The shield did not hold", true: `"held": false`}[asJSON]; !strings.Contains(stdout.String(), want) {
			t.Errorf("JSON %t: 98 %% is not said to be too little:\n%s", asJSON, stdout.String())
		}
		if want := "lab: heavy IPv4: the shield did not hold: answered  98 %"; !strings.Contains(stderr.String(), want) {
			t.Errorf("JSON %t: says %q, want %q in it", asJSON, stderr.String(), want)
		}
	}
}
