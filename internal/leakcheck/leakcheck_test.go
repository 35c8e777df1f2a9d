// SPDX-License-Identifier: MIT

package leakcheck_test

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/minifleet/minifleet/internal/leakcheck"
)

// leakEnv makes the test's own binary a package whose tests leave something of that kind.
const leakEnv = "MINIFLEET_TEST_LEAK"

func TestMain(m *testing.M) {
	if kind := os.Getenv(leakEnv); kind != "" {
		if !strings.HasSuffix(kind, "that ends") {
			leakcheck.Hasten()
		}
		leakcheck.Main(leaves(kind))
	}
	leakcheck.Main(m)
}

// leaves is a package's tests, all of them good.
type leaves string

func (kind leaves) Run() int {
	switch kind {
	case "nothing":
	case "failure":
		return 3
	case "goroutine":
		go func() { select {} }()
	case "goroutine that ends":
		go time.Sleep(2 * time.Second)
	case "descriptor":
		_, err := syscall.Open(os.DevNull, syscall.O_RDONLY, 0) // which no garbage collection closes
		check(err)
	case "file":
		check(os.WriteFile(filepath.Join(os.TempDir(), "forgotten"), nil, 0o600))
	case "child":
		check(exec.Command("sleep", "1000").Start())
	case "zombie":
		check(exec.Command("true").Start())
	case "grandchild": // in a session of its own, as a vmm is
		check(exec.Command("sh", "-c", "setsid sleep 1000 >/dev/null 2>&1 & exit 0").Run())
	case "grandchild that ends":
		check(exec.Command("sh", "-c", "sleep 0.1 >/dev/null 2>&1 & exit 0").Run())
	case "folder":
		if own := os.TempDir(); len(own) > 11 || os.Getenv("GOTMPDIR") != "" {
			panic(own + " and " + os.Getenv("GOTMPDIR"))
		}
	case "umask":
		path := filepath.Join(os.TempDir(), "mode")
		check(os.WriteFile(path, nil, 0o777))
		info, err := os.Stat(path)
		check(errors.Join(err, os.Remove(path)))
		if info.Mode().Perm() != 0o755 {
			panic(info.Mode())
		}
	case "poller": // the runtime's own descriptors are none of the tests'
		r, w, err := os.Pipe()
		check(err)
		go w.Close()
		_, _ = r.Read(make([]byte, 1))
		r.Close()
	}
	return 0
}

// outside is the environment of a package's tests that nobody supervises yet.
func outside(kind string) []string {
	return append(slices.DeleteFunc(os.Environ(), func(kv string) bool { return strings.HasPrefix(kv, "MINIFLEET_LEAKCHECK=") }), leakEnv+"="+kind)
}

func check(err error) {
	if err != nil {
		panic(err)
	}
}

func TestWhatIsLeftBehindFailsThePackage(t *testing.T) {
	t.Parallel()
	for kind, tt := range map[string]struct {
		code      int
		want      string // in the list
		linuxOnly bool
	}{
		"nothing":              {0, "", false},
		"poller":               {0, "", false},
		"grandchild that ends": {0, "", false},
		"goroutine that ends":  {0, "", false},
		"failure":              {3, "", false},
		"goroutine":            {1, "found unexpected goroutines", false},
		"file":                 {1, "/forgotten", false},
		"descriptor":           {1, "/dev/null", true},
		"child":                {1, "child that nobody waits for", false},
		"zombie":               {1, "child that nobody waits for", false},
		"grandchild":           {1, "sleep 1000", true},
	} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			if tt.linuxOnly && runtime.GOOS != "linux" {
				t.Skip("only Linux tells")
			}
			self, err := os.Executable()
			if err != nil {
				t.Fatal(err)
			}
			cmd := exec.CommandContext(t.Context(), self)
			cmd.Env = outside(kind)
			var said bytes.Buffer
			cmd.Stdout, cmd.Stderr = &said, &said
			_ = cmd.Run()
			if code := cmd.ProcessState.ExitCode(); code != tt.code {
				t.Errorf("exit code %d, want %d: %s", code, tt.code, &said)
			}
			if listed := strings.Contains(said.String(), "left behind"); listed != (tt.want != "") || !strings.Contains(said.String(), tt.want) {
				t.Errorf("the list lacks %q: %s", tt.want, &said)
			}
		})
	}
}

func TestTestsHaveAFolderOfTheirOwn(t *testing.T) {
	t.Parallel()
	dir := os.TempDir()
	if !strings.HasPrefix(dir, "/tmp/mf") || len(dir) > 11 {
		t.Errorf("TMPDIR is %s", dir)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self)
	cmd.Env = append(outside("folder"), "TMPDIR="+dir, "GOTMPDIR="+dir)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("where the user has others: %v: %s", err, out)
	}
}

// Some tests have another user read or run what they wrote.
func TestTheUmaskIsTheSameEverywhere(t *testing.T) {
	t.Parallel()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, umask := range []string{"000", "077"} {
		cmd := exec.CommandContext(t.Context(), "sh", "-c", "umask "+umask+` && exec "$0"`, self)
		cmd.Env = outside("umask")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("with umask %s: %v: %s", umask, err, out)
		}
	}
}
