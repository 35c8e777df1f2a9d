// SPDX-License-Identifier: MIT

package crashpoint_test

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/minifleet/minifleet/crashpoint"
)

// What else is tagged is as in the Makefile.
const tag = "-tags=crashpoints,disable_grpc_modules"

// build builds packages of this module as releases are built, and returns the folder.
func build(t *testing.T, args ...string) string {
	t.Helper()
	dir := t.TempDir()
	cmd := exec.CommandContext(t.Context(), "go", append([]string{"build", "-trimpath", "-o", dir + "/"}, args...)...)
	cmd.Dir = ".."
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build %s: %v\n%s", args, err, out)
	}
	return dir
}

// reach runs the program that reaches a point so many times.
func reach(t *testing.T, program, dir string, p crashpoint.Point, times int) (out string, killed bool, pid int) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), program, strconv.Itoa(int(p)), strconv.Itoa(times))
	cmd.Env = []string{crashpoint.Variable + "=" + dir}
	text, err := cmd.Output()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		killed = exit.Sys().(syscall.WaitStatus).Signal() == syscall.SIGKILL
	}
	if err != nil && !killed {
		t.Errorf("reach: %v", err)
	}
	return string(text), killed, cmd.Process.Pid
}

func arm(t *testing.T, dir string, p crashpoint.Point, passes int) {
	t.Helper()
	if err := crashpoint.Arm(dir, p, passes); err != nil {
		t.Fatal(err)
	}
}

func TestKillsOnceAndLeavesAMark(t *testing.T) {
	program := filepath.Join(build(t, tag, "./crashpoint/testdata/reach"), "reach")
	dir, p := t.TempDir(), crashpoint.DeliveryTaken
	if _, killed, _ := reach(t, program, dir, p, 3); killed {
		t.Error("killed at a point that is not armed")
	}
	if _, err := crashpoint.Killed(dir, p); err == nil {
		t.Error("a point that is not armed has a mark")
	}
	arm(t, dir, p, 4)
	if err := crashpoint.Arm(dir, p, 0); err == nil {
		t.Error("armed twice")
	}
	if _, killed, _ := reach(t, program, dir, crashpoint.DeliveryJudged, 9); killed {
		t.Error("killed at another point than the armed one")
	}
	if out, killed, _ := reach(t, program, dir, p, 3); killed || !strings.HasSuffix(out, "passed 3\nended\n") {
		t.Errorf("killed too early:\n%s", out)
	}
	if pid, err := crashpoint.Killed(dir, p); pid != 0 || err != nil {
		t.Errorf("a mark of a death that was none: %d, %v", pid, err)
	}
	out, killed, pid := reach(t, program, dir, p, 3)
	if want := crashpoint.Variable + "=" + dir + "\npassed 1\n"; !killed || out != want {
		t.Errorf("killed: %t, having said %q, want %q", killed, out, want)
	}
	if marked, err := crashpoint.Killed(dir, p); marked != pid || err != nil {
		t.Errorf("the mark is of process %d (%v), want %d", marked, err, pid)
	}
	if _, killed, _ := reach(t, program, dir, p, 9); killed {
		t.Error("killed twice")
	}
}

// However many processes come to a point at once, one of them dies.
func TestKillsOneOfMany(t *testing.T) {
	program := filepath.Join(build(t, tag, "./crashpoint/testdata/reach"), "reach")
	dir, p := t.TempDir(), crashpoint.VMMLocked
	arm(t, dir, p, 20)
	deaths := make([]bool, 8)
	var all sync.WaitGroup
	for i := range deaths {
		all.Go(func() { _, deaths[i], _ = reach(t, program, dir, p, 10) })
	}
	all.Wait()
	if n := len(slices.DeleteFunc(deaths, func(died bool) bool { return !died })); n != 1 {
		t.Errorf("%d processes died, want 1", n)
	}
}

func TestWithoutTheTagNothingDies(t *testing.T) {
	program := filepath.Join(build(t, "./crashpoint/testdata/reach"), "reach")
	dir := t.TempDir()
	arm(t, dir, crashpoint.VMMLocked, 0)
	if out, killed, _ := reach(t, program, dir, crashpoint.VMMLocked, 2); killed || out != "\npassed 1\npassed 2\nended\n" {
		t.Errorf("killed: %t, having said %q", killed, out)
	}
}

func TestNames(t *testing.T) {
	form := regexp.MustCompile(`^[a-z]+\.[a-z]+\.[a-z]+$`)
	seen := map[string]bool{}
	for _, p := range crashpoint.All() {
		if name := p.String(); !form.MatchString(name) || seen[name] {
			t.Errorf("point %d is called %q: twice, or in another form than package.subject.moment", p, name)
		}
		seen[p.String()] = true
	}
	parts := slices.Concat(crashpoint.Controller(), crashpoint.Agent(), crashpoint.VMM(), crashpoint.Guest(), crashpoint.Images(), crashpoint.Cache())
	if !slices.Equal(parts, crashpoint.All()) {
		t.Errorf("the programs have the points %v of %v", parts, crashpoint.All())
	}
}

// TestReleasesHoldNoPoint: nothing of a point is in a release, and a build with the
// tag has what a release lacks.
func TestReleasesHoldNoPoint(t *testing.T) {
	programs := []string{"minifleet", "minifleet-agent", "minifleet-vmm", "minifleet-guest"}
	var paths []string
	for _, name := range programs {
		paths = append(paths, "./cmd/"+name)
	}
	crashing, release := build(t, append([]string{tag}, paths...)...), build(t, paths...)
	for _, name := range programs {
		with, without := content(t, crashing, name), content(t, release, name)
		words := []string{crashpoint.Variable}
		for _, p := range crashpoint.All() {
			words = append(words, p.String())
		}
		for _, word := range words {
			if !bytes.Contains(with, []byte(word)) {
				t.Errorf("%s with the tag lacks %s", name, word)
			}
			if bytes.Contains(without, []byte(word)) {
				t.Errorf("a release of %s holds %s", name, word)
			}
		}
	}
}

func content(t *testing.T, dir, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}
