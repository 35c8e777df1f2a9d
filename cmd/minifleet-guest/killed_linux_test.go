// SPDX-License-Identifier: MIT

package main

import (
	"bufio"
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/minifleet/minifleet/guest"
	"github.com/minifleet/minifleet/secret"
)

// asProgram makes the test's own binary the program.
const asProgram = "MINIFLEET_TEST_AS_GUEST"

// TestMainAsProgram is the program where asProgram is set.
func TestMainAsProgram(t *testing.T) {
	if os.Getenv(asProgram) == "" {
		t.Skip("runs as a child of TestListenerDiesWithKilledProgram and TestBecome")
	}
	if name, ok := strings.CutPrefix(os.Getenv(asProgram), "become "); ok {
		os.Args = []string{"minifleet-guest", "become", name, "/bin/sh", "-c", `echo "$(id -u) $SECRET $OURS done"; cat`}
		main()
		return
	}
	os.Args = append([]string{"minifleet-guest"}, "--listen="+os.Getenv(asProgram), "--runner-dir=.")
	main()
}

func TestListenerDiesWithKilledProgram(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/bin/sh", filepath.Join(dir, "bin", "Runner.Listener")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "run"), []byte("exec 3> witness\necho Listening for Jobs\nexec sleep 100000"), 0o644); err != nil {
		t.Fatal(err)
	}
	// The pipe ends with the last process that has it open for writing.
	path := filepath.Join(dir, "witness")
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	witness, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer witness.Close()

	socket := socketPath(t)
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestMainAsProgram$")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), asProgram+"=unix:"+socket)
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	killed := false
	defer func() {
		if !killed {
			cmd.Process.Kill()
			cmd.Wait()
		}
	}()
	if !bufio.NewScanner(stderr).Scan() { // it says that it serves
		t.Fatal("the program says nothing")
	}
	c := guest.NewClient(func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", socket)
	})
	defer c.Close()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := c.Run(ctx, secret.New("abc"), nil, nil); err != nil {
		t.Fatal(err)
	}
	for s := (guest.Status{}); s.Phase != guest.PhaseIdle; {
		if s, err = c.Status(ctx, s.Revision, time.Minute); err != nil {
			t.Fatal(err)
		}
	}
	killed = true
	cmd.Process.Kill()
	cmd.Wait()
	witness.SetReadDeadline(time.Now().Add(patience))
	if n, err := witness.Read(make([]byte, 1)); os.IsTimeout(err) || n > 0 {
		t.Errorf("the listener outlives the program: %d bytes, %v", n, err)
	}
}
