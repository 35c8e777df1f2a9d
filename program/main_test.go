// SPDX-License-Identifier: MIT

package program_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/minifleet/minifleet/internal/leakcheck"
	"github.com/minifleet/minifleet/program"
)

// asProgram makes the test's own binary a program that behaves as it says.
const asProgram = "MINIFLEET_TEST_AS"

func TestMain(m *testing.M) {
	does, ok := map[string]func(context.Context) error{
		"ends":  func(context.Context) error { return nil },
		"fails": func(context.Context) error { return errors.New("out of luck") },
		"exits": func(context.Context) error { return fmt.Errorf("wrapped: %w", program.Exit(7)) },
		"stops": func(ctx context.Context) error {
			fmt.Println("runs")
			<-ctx.Done()
			fmt.Println(context.Cause(ctx))
			return nil
		},
		"is interrupted": func(ctx context.Context) error {
			fmt.Println("runs")
			<-ctx.Done()
			fmt.Println("told")
			return fmt.Errorf("request: %w", ctx.Err())
		},
		"hangs": func(ctx context.Context) error {
			fmt.Println("runs")
			<-ctx.Done()
			fmt.Println(context.Cause(ctx))
			time.Sleep(time.Minute) // killed long before, or the test fails
			return nil
		},
	}[os.Getenv(asProgram)]
	if ok {
		program.Main("a-program", does)
	}
	if signal.Ignored(os.Interrupt) { // as shells have it for what runs in the background, and children inherit
		signal.Notify(make(chan os.Signal, 1), os.Interrupt)
	}
	leakcheck.Main(m)
}

// child is a process of this test's binary.
type child struct {
	cmd    *exec.Cmd
	lines  *bufio.Scanner
	stderr bytes.Buffer
}

func start(t *testing.T, does string) *child {
	t.Helper()
	c := &child{cmd: exec.CommandContext(t.Context(), os.Args[0])}
	c.cmd.Env = append(os.Environ(), asProgram+"="+does)
	c.cmd.Stderr = &c.stderr
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	c.lines = bufio.NewScanner(out)
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return c
}

// says waits for the next line.
func (c *child) says(t *testing.T, want string) {
	t.Helper()
	if !c.lines.Scan() || c.lines.Text() != want {
		t.Errorf("it says %q, want %q", c.lines.Text(), want)
	}
}

func (c *child) exit(t *testing.T) syscall.WaitStatus {
	t.Helper()
	for c.lines.Scan() {
	}
	_ = c.cmd.Wait()
	return c.cmd.ProcessState.Sys().(syscall.WaitStatus)
}

func TestExitStatus(t *testing.T) {
	for name, tc := range map[string]struct {
		status int
		said   string
	}{
		"ends":  {0, ""},
		"fails": {1, "a-program: out of luck\n"},
		"exits": {7, ""},
	} {
		t.Run(name, func(t *testing.T) {
			c := start(t, name)
			if status := c.exit(t); !status.Exited() || status.ExitStatus() != tc.status || c.stderr.String() != tc.said {
				t.Errorf("exit status %v, stderr %q; want %d, %q", status, &c.stderr, tc.status, tc.said)
			}
		})
	}
}

func TestFirstSignal(t *testing.T) {
	for name, s := range map[string]syscall.Signal{"SIGINT": syscall.SIGINT, "SIGTERM": syscall.SIGTERM} {
		t.Run(name, func(t *testing.T) {
			c := start(t, "stops")
			c.says(t, "runs")
			_ = c.cmd.Process.Signal(s)
			c.says(t, name)
			if status := c.exit(t); !status.Exited() || status.ExitStatus() != 0 {
				t.Errorf("exit status %v", status)
			}
		})
	}
	t.Run("of a command that cannot end well", func(t *testing.T) {
		c := start(t, "is interrupted")
		c.says(t, "runs")
		_ = c.cmd.Process.Signal(os.Interrupt)
		c.says(t, "told")
		if status := c.exit(t); status.ExitStatus() != 1 || c.stderr.String() != "a-program: ended by SIGINT before it was done\n" {
			t.Errorf("exit status %v, stderr %q", status, &c.stderr)
		}
	})
}

// A second signal ends the process whatever it does, and its status says by which.
func TestSecondSignal(t *testing.T) {
	for name, s := range map[string][2]syscall.Signal{
		"SIGTERM twice":       {syscall.SIGTERM, syscall.SIGTERM},
		"SIGINT twice":        {syscall.SIGINT, syscall.SIGINT},
		"SIGTERM then SIGINT": {syscall.SIGTERM, syscall.SIGINT},
	} {
		t.Run(name, func(t *testing.T) {
			c := start(t, "hangs")
			c.says(t, "runs")
			_ = c.cmd.Process.Signal(s[0])
			if !c.lines.Scan() || !strings.HasPrefix(c.lines.Text(), "SIG") {
				t.Fatalf("it says %q", c.lines.Text())
			}
			_ = c.cmd.Process.Signal(s[1])
			if status := c.exit(t); !status.Signaled() || status.Signal() != s[1] {
				t.Errorf("exit status %v, want the signal %v", status, s[1])
			}
		})
	}
}

// Two signals at the same moment are two: neither is lost on the way.
func TestBothSignalsAtOnce(t *testing.T) {
	c := start(t, "hangs")
	c.says(t, "runs")
	_ = c.cmd.Process.Signal(syscall.SIGTERM)
	_ = c.cmd.Process.Signal(syscall.SIGINT)
	if status := c.exit(t); !status.Signaled() {
		t.Errorf("exit status %v", status)
	}
}
