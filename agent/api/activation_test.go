package api

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	if path := os.Getenv("LEVEE_TEST_ACTIVATED"); path != "" {
		activatedMain(path)
	}
	goleak.VerifyTestMain(m)
}

// activatedMain serves until its stdin ends.
func activatedMain(path string) {
	ctx, stop := context.WithCancel(context.Background())
	s := New(Config{Socket: path, Backend: &stub{}})
	go func() {
		<-s.Ready()
		fmt.Println("ready")
		_, _ = bufio.NewReader(os.Stdin).ReadByte()
		stop()
	}()
	if err := s.Run(ctx); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	os.Exit(0)
}

// A socket that systemd hands over is served, and stays when the daemon ends; one that is not where
// the configuration says is refused.
func TestActivation(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	listener, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	file, err := listener.(*net.UnixListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	start := func(configured string) (*exec.Cmd, string, func() error) {
		// As systemd does it: the process's own number, and the socket as its descriptor 3.
		cmd := exec.Command("sh", "-c", `LISTEN_PID=$$ LISTEN_FDS=1 exec "$0"`, os.Args[0])
		cmd.Env = append(os.Environ(), "LEVEE_TEST_ACTIVATED="+configured)
		cmd.ExtraFiles = []*os.File{file}
		stdin, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		stdout, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		line, _ := bufio.NewReader(stdout).ReadString('\n')
		return cmd, line, func() error { stdin.Close(); return cmd.Wait() }
	}
	for range 2 {
		_, line, end := start(path)
		if line != "ready\n" {
			t.Fatal(line)
		}
		transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{Timeout: 10 * time.Second}).DialContext(ctx, "unix", path)
		}}
		client := &http.Client{Transport: transport, Timeout: 10 * time.Second}
		answer, err := client.Get("http://levee/healthz")
		if err != nil || answer.StatusCode != 200 {
			t.Errorf("%v, %v", answer, err)
		} else {
			answer.Body.Close()
		}
		transport.CloseIdleConnections()
		if err := end(); err != nil {
			t.Error(err)
		}
		if _, err := os.Lstat(path); err != nil {
			t.Error("the socket was taken away, which is systemd's")
		}
	}
	_, line, end := start(path + "2")
	if err := end(); err == nil || !strings.Contains(line, "they must be the same") {
		t.Errorf("%q, %v", line, err)
	}
}
