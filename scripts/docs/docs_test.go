package docs

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
	"unicode"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

const root = "../.."

// pages are README.md and every page of docs/.
func pages(t *testing.T) []string {
	t.Helper()
	list, err := filepath.Glob(filepath.Join(root, "docs", "*.md"))
	if err != nil {
		t.Fatal(err)
	}
	books, err := filepath.Glob(filepath.Join(root, "docs", "runbook", "*.md"))
	if err != nil {
		t.Fatal(err)
	}
	list = append(list, books...)
	for _, name := range []string{"SECURITY.md", "README.md", "CONTRIBUTING.md", "CHANGELOG.md"} {
		list = append(list, filepath.Join(root, name))
	}
	return list
}

var (
	link    = regexp.MustCompile(`\]\(([^)#]*)(?:#([^)]*))?\)`)
	heading = regexp.MustCompile(`(?m)^#+ (.+)$`)
)

// A link of a page leads to a file that is there, and to a heading that is in it.
func TestLinks(t *testing.T) {
	for _, page := range pages(t) {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range link.FindAllStringSubmatch(string(text), -1) {
			if strings.Contains(m[1], "://") {
				continue
			}
			target := page
			if m[1] != "" {
				target = filepath.Join(filepath.Dir(page), m[1])
			}
			if _, err := os.Stat(target); err != nil {
				t.Errorf("%s links to %s, which is not there", page, m[1])
			} else if m[2] != "" && !slices.Contains(anchors(t, target), m[2]) {
				t.Errorf("%s links to #%s of %s, which has no such heading", page, m[2], target)
			}
		}
	}
}

// anchors are the names by which a page's headings can be linked to, as GitHub makes them.
func anchors(t *testing.T, page string) (names []string) {
	t.Helper()
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range heading.FindAllStringSubmatch(string(text), -1) {
		names = append(names, strings.Map(func(r rune) rune {
			switch {
			case r == ' ':
				return '-'
			case r == '-', r == '_', unicode.IsLetter(r), unicode.IsDigit(r):
				return unicode.ToLower(r)
			}
			return -1
		}, m[1]))
	}
	return names
}

var targets = regexp.MustCompile(`(?m)^([a-z-]+):`)

// Every make target that a page names exists.
func TestTargets(t *testing.T) {
	makefile, err := os.ReadFile(filepath.Join(root, "Makefile"))
	if err != nil {
		t.Fatal(err)
	}
	var known []string
	for _, m := range targets.FindAllStringSubmatch(string(makefile), -1) {
		known = append(known, m[1])
	}
	named := regexp.MustCompile("(?m)(?:^|`)make ([a-z-]+)")
	for _, page := range pages(t) {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range named.FindAllStringSubmatch(string(text), -1) {
			if !slices.Contains(known, m[1]) {
				t.Errorf("%s names `make %s`, which the Makefile does not have", page, m[1])
			}
		}
	}
}

// commands are the lines of a page's ```sh blocks that call levee, without their comments.
func commands(t *testing.T, page string) []string {
	t.Helper()
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	inside := false
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		if fence, ok := strings.CutPrefix(line, "```"); ok {
			inside = !inside && fence == "sh"
			continue
		}
		command, _, _ := strings.Cut(line, " #")
		command = strings.TrimSpace(strings.TrimPrefix(command, "bin/"))
		if inside && strings.HasPrefix(command, "levee ") {
			lines = append(lines, command)
		}
	}
	return lines
}

// The commands of the pages are run against a real daemon, in a network namespace that has an eth1.
func TestCommands(t *testing.T) {
	if os.Getenv("LEVEE_UNPRIVILEGED") != "" {
		t.Skip("LEVEE_UNPRIVILEGED is set")
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	dir := t.TempDir()
	bin := filepath.Join(dir, "levee")
	build := exec.Command("go", "build", "-o", bin, "./cmd/levee")
	build.Dir = root
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build levee: %v\n%s", err, out)
	}
	bpffs := fmt.Sprintf("/sys/fs/bpf/levee-docs-%d", os.Getpid())
	socket := filepath.Join(dir, "levee.sock")
	config := filepath.Join(dir, "levee.yaml")
	if err := os.WriteFile(config, fmt.Appendf(nil, `
bpffs: %s
lock: %s/lock
api: {socket: %s}
metrics: {listen: "off"}
state: {path: %s/state.db}
tables: {ipv4_bans: 4096, ipv6_bans: 4096, sources: 4096}
`, bpffs, dir, socket, dir), 0o600); err != nil {
		t.Fatal(err)
	}
	env := append(os.Environ(), "LEVEE_SOCKET="+socket, "LEVEE_CONFIG="+config, "NO_COLOR=1")

	daemon := startDaemon(t, bin, config, env)
	levee := func(command string) (string, int) {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		cmd := exec.CommandContext(ctx, "bash", "-c", command)
		cmd.Dir = dir
		cmd.Env = append(env, "PATH="+dir+":"+os.Getenv("PATH"))
		out, err := cmd.CombinedOutput()
		if err != nil && cmd.ProcessState == nil {
			t.Fatal(err)
		}
		return string(out), cmd.ProcessState.ExitCode()
	}
	t.Cleanup(func() {
		if out, code := levee("levee detach --all"); code != 0 {
			t.Errorf("levee detach --all: exit code %d: %s", code, out)
		}
		daemon()
		os.RemoveAll(bpffs)
	})

	n := 0
	for _, page := range pages(t) {
		if filepath.Base(page) == "audit.md" {
			continue // TestAudit runs them, on a log that has what they ask for
		}
		for _, command := range commands(t, page) {
			if strings.HasPrefix(command, "levee run") {
				continue // this is the daemon that is running
			}
			n++
			if out, code := levee(command); code != 0 {
				t.Errorf("%s: `%s`: exit code %d:\n%s", page, command, code, out)
			}
		}
	}
	if n < 5 {
		t.Fatalf("only %d commands found: are the pages' blocks still marked ```sh?", n)
	}
}

// startDaemon runs `levee run` in a namespace of its own and returns when it is ready. What it
// returns stops the daemon.
func startDaemon(t *testing.T, bin, config string, env []string) func() {
	t.Helper()
	runtime.LockOSThread()
	home, err := netns.Get()
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := netns.Set(home); err != nil {
			t.Fatal(err)
		}
		home.Close()
		runtime.UnlockOSThread()
	}()
	space, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	defer space.Close()
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth1"}, PeerName: "peer"}); err != nil {
		t.Fatal(err)
	}

	return runDaemon(t, bin, config, env)
}

// runDaemon runs `levee run` where the calling thread is, and returns when it is ready.
func runDaemon(t *testing.T, bin, config string, env []string) func() {
	t.Helper()
	ready, notify := filepath.Join(filepath.Dir(config), "notify.sock"), make(chan error, 1)
	conn, err := listenNotify(ready)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	cmd := exec.Command(bin, "run", "--config", config)
	cmd.Env = append(env, "NOTIFY_SOCKET="+ready)
	cmd.Stderr, cmd.Stdout = t.Output(), t.Output()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	exited := make(chan error, 1)
	go func() { exited <- cmd.Wait() }()
	go func() { notify <- awaitReady(conn) }()
	select {
	case err := <-notify:
		if err != nil {
			t.Fatal(err)
		}
	case err := <-exited:
		t.Fatalf("the daemon ended: %v", err)
	case <-time.After(30 * time.Second):
		t.Fatal("the daemon was not ready within 30 s")
	}
	return func() {
		if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Error(err)
		}
		if err := <-exited; err != nil {
			t.Errorf("the daemon did not end cleanly: %v", err)
		}
	}
}
