// SPDX-License-Identifier: MIT

package freeze_test

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/minifleet/minifleet/internal/freeze"
	"github.com/minifleet/minifleet/internal/leakcheck"
)

// busy makes the test's own binary a program all of whose threads write to one counter.
const busy = "MINIFLEET_TEST_BUSY"

func TestMain(m *testing.M) {
	if os.Getenv(busy) != "" {
		work()
	}
	leakcheck.Main(m)
}

func work() {
	var n atomic.Int64
	for range runtime.GOMAXPROCS(0) + 2 {
		go func() {
			for {
				n.Add(1)
			}
		}()
	}
	in := bufio.NewScanner(os.Stdin)
	for fmt.Println(n.Load()); in.Scan(); {
		fmt.Println(n.Load())
	}
	os.Exit(0)
}

// A process that is frozen uses no processor, and one that goes on does.
func TestProcess(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("only Linux tells what each thread does")
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), busy+"=yes")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	said := bufio.NewScanner(out)
	said.Scan()
	pid := cmd.Process.Pid
	for range 50 {
		if err := freeze.Process(pid); err != nil {
			t.Fatal(err)
		}
		before := times(t, pid)
		for range 1000 {
			runtime.Gosched()
		}
		if after := times(t, pid); after != before {
			t.Fatalf("its threads go on:\n%s\n%s", before, after)
		}
		if err := unix.Kill(pid, unix.SIGCONT); err != nil {
			t.Fatal(err)
		}
		fmt.Fprintln(in)
		if !said.Scan() {
			t.Fatal("it does not go on")
		}
	}
	in.Close()
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	if err := freeze.Process(pid); !errors.Is(err, unix.ESRCH) {
		t.Errorf("a process that has ended: %v", err)
	}
}

// times returns what each thread has had of a processor, in nanoseconds.
func times(t *testing.T, pid int) string {
	t.Helper()
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		t.Fatal(err)
	}
	var all strings.Builder
	for _, task := range tasks {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/schedstat", pid, task.Name()))
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintln(&all, task.Name(), strings.Fields(string(text))[0])
	}
	return all.String()
}
