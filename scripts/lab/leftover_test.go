package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// asLab makes the test's binary the lab itself.
const asLab = "LEVEE_LAB_MAIN"

// traces finds what a lab of this process id has made on the machine: processes, threads in its
// namespaces, and the kernel's threads for its interfaces.
func traces(lab int, namespaces map[string]bool) (found []string) {
	comms, _ := filepath.Glob("/proc/[0-9]*/comm")
	for _, path := range comms {
		comm, _ := os.ReadFile(path)
		if strings.HasPrefix(string(comm), fmt.Sprintf("napi/lv%d", lab)) {
			found = append(found, "thread "+strings.TrimSpace(string(comm)))
		}
	}
	for namespace, holders := range holdersOf() {
		if namespaces[namespace] {
			found = append(found, fmt.Sprintf("%s of %d threads, as %s", namespace, len(holders), holders[0]))
		}
	}
	return found
}

// holdersOf lists which threads are in which network namespace.
func holdersOf() map[string][]string {
	holders := map[string][]string{}
	links, _ := filepath.Glob("/proc/[0-9]*/task/[0-9]*/ns/net")
	for _, path := range links {
		if namespace, err := os.Readlink(path); err == nil {
			holders[namespace] = append(holders[namespace], path)
		}
	}
	return holders
}

// namespacesOf lists the network namespaces of a lab's processes that are not ours.
func namespacesOf(t *testing.T, lab int) map[string]bool {
	t.Helper()
	ours, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	namespaces := map[string]bool{}
	for namespace, holders := range holdersOf() {
		for _, h := range holders {
			if namespace != ours && belongs(h, lab) {
				namespaces[namespace] = true
			}
		}
	}
	return namespaces
}

// belongs says whether a path in /proc is that of a process or of one of its children.
func belongs(path string, pid int) bool {
	owner := strings.Split(path, "/")[2]
	if owner == strconv.Itoa(pid) {
		return true
	}
	stat, err := os.ReadFile("/proc/" + owner + "/stat")
	if err != nil {
		return false
	}
	_, rest, _ := strings.Cut(string(stat), ") ")
	fields := strings.Fields(rest)
	return len(fields) > 1 && fields[1] == strconv.Itoa(pid)
}

// TestNothingIsLeft ends the lab in the middle of a flood, in several ways, and looks for what it
// leaves behind.
func TestNothingIsLeft(t *testing.T) {
	privileged(t)
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	bin := daemon(t)
	const flooding, shielding = "no flood", "kill -9" // the last line before
	for _, c := range []struct {
		name   string
		when   string
		signal syscall.Signal
		code   int
	}{
		{"Ctrl-C", flooding, syscall.SIGINT, exitInterrupted},
		{"SIGTERM", flooding, syscall.SIGTERM, exitInterrupted},
		{"kill -9", flooding, syscall.SIGKILL, -1},
		{"a crash", flooding, syscall.SIGQUIT, 2}, // Go's runtime ends without a deferred call, as in a panic
		{"Ctrl-C, shielded", shielding, syscall.SIGINT, exitInterrupted},
		{"kill -9, shielded", shielding, syscall.SIGKILL, -1},
	} {
		t.Run(c.name, func(t *testing.T) {
			temp := t.TempDir()
			output := &logBuffer{}
			lab := exec.Command("/proc/self/exe", "-levee", bin, "-scenario", "udp", "-family", "4", "-duration", "100ms")
			lab.Env = append(os.Environ(), asLab+"=1", "TMPDIR="+temp)
			lab.Stdout, lab.Stderr = output, output
			if err := lab.Start(); err != nil {
				t.Fatal(err)
			}
			for begun := time.Now(); !strings.Contains(output.String(), c.when); time.Sleep(20 * time.Millisecond) {
				if time.Since(begun) > time.Minute {
					t.Fatal("it does not get to the flood: ", output)
				}
			}
			time.Sleep(200 * time.Millisecond) // now it is on
			namespaces := namespacesOf(t, lab.Process.Pid)
			if len(namespaces) != 2 {
				t.Errorf("%d namespaces, want 2", len(namespaces))
			}
			begun := time.Now()
			if err := lab.Process.Signal(c.signal); err != nil {
				t.Fatal(err)
			}
			_ = lab.Wait()
			if took := time.Since(begun); took > 15*time.Second {
				t.Errorf("it took %s to end", took)
			}
			if code := lab.ProcessState.ExitCode(); code != c.code {
				t.Errorf("exit code %d, want %d: %s", code, c.code, output.String())
			}

			left := traces(lab.Process.Pid, namespaces)
			for deadline := time.Now().Add(20 * time.Second); len(left) > 0 && time.Now().Before(deadline); {
				time.Sleep(50 * time.Millisecond)
				left = traces(lab.Process.Pid, namespaces)
			}
			for _, l := range left {
				t.Error("left behind:", l)
			}
			if files, err := os.ReadDir(temp); err != nil || len(files) > 0 {
				t.Errorf("left behind: %v %v", files, err)
			}
			if after, err := os.ReadFile("/proc/self/mounts"); err != nil || !bytes.Equal(mounts, after) {
				t.Error("the mounts are not as before")
			}
		})
	}
}
