// SPDX-License-Identifier: MIT

package site_test

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/minifleet/minifleet/githubapp/githubsim"
)

// buildSkewed builds the programs of a host so that their clock on the wall is off, and
// the steady one is not, by replacing one file of Go's own library.
func buildSkewed(t *testing.T, dirs map[string]time.Duration) {
	t.Helper()
	root, err := exec.CommandContext(t.Context(), "go", "env", "GOROOT").Output()
	if err != nil {
		t.Fatal(err)
	}
	original := filepath.Join(strings.TrimSpace(string(root)), "src", "time", "time.go")
	source, err := os.ReadFile(original)
	if err != nil {
		t.Fatal(err)
	}
	const now = "func Now() Time {\n\tsec, nsec, mono := runtimeNow()\n"
	if strings.Count(string(source), now) != 1 {
		t.Fatalf("%s is not as this test knows it: adapt the test to this version of Go", original)
	}
	skewed := strings.Replace(string(source), now, now+"\tsec += testSkew\n", 1) + `
var testSkewText string // set by the linker

var testSkew = func() (seconds int64) {
	for _, c := range testSkewText {
		if c >= '0' && c <= '9' {
			seconds = seconds*10 + int64(c-'0')
		}
	}
	if testSkewText != "" && testSkewText[0] == '-' {
		seconds = -seconds
	}
	return seconds
}()
`
	dir := t.TempDir()
	replaced, overlay := filepath.Join(dir, "time.go"), filepath.Join(dir, "overlay.json")
	list, err := json.Marshal(map[string]map[string]string{"Replace": {original: replaced}})
	if err != nil {
		t.Fatal(err)
	}
	for path, content := range map[string][]byte{replaced: []byte(skewed), overlay: list} {
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for out, skew := range dirs {
		build := exec.CommandContext(t.Context(), "go", "build", "-overlay", overlay,
			"-ldflags", fmt.Sprintf("-X time.testSkewText=%d", int(skew.Seconds())), "-o", out+string(filepath.Separator),
			"./cmd/minifleet-agent", "./cmd/minifleet-vmm", "./cmd/minifleet-guest")
		build.Dir, build.Env = filepath.Join("..", ".."), append(os.Environ(), "CGO_ENABLED=0")
		if said, err := build.CombinedOutput(); err != nil {
			t.Fatalf("go build: %v\n%s", err, said)
		}
	}
}

// The clocks of two hosts are an hour ahead of the controller's and an hour behind it.
// All goes as it does otherwise: no side compares its clock with another's.
func TestClocksAnHourApart(t *testing.T) {
	turn(t)
	hosts := map[string]time.Duration{"mini-1": time.Hour, "mini-2": -time.Hour}
	skewed, folders := t.TempDir(), map[string]time.Duration{}
	for name, skew := range hosts {
		folders[filepath.Join(skewed, name)] = skew
	}
	buildSkewed(t, folders) // which may take longer than a site lasts
	s := newSite(t, "--seed", "131")
	controller := s.startController()
	start := func(name string) *program {
		p := launch(t, s.dir, filepath.Join(skewed, name, "minifleet-agent"), nil, "run", "--config", s.agentConfig(name))
		s.online(p, name)
		return p
	}
	agents := map[string]*program{}
	for name := range hosts {
		agents[name] = start(name)
	}
	const ticks = 50
	long := s.queue(ticking("long-1", ticks), ticking("long-2", ticks), ticking("long-3", ticks), ticking("long-4", ticks))
	for _, id := range long {
		s.untilJob(id, "it ticks", func(j githubsim.Job) bool { return len(j.Feed) > 2 })
	}
	waiting := s.queue(githubsim.JobSpec{Name: "fails", Steps: []githubsim.Step{{Run: "exit 3"}}},
		githubsim.JobSpec{Name: "cancelled", Steps: []githubsim.Step{{Run: "true"}}})
	if err := s.sim.CancelJob(s.ctx, waiting[1]); err != nil {
		t.Fatal(err)
	}
	s.fates[waiting[0]], s.fates[waiting[1]] = "failure", "cancelled"
	for name, p := range agents {
		p.signal(syscall.SIGKILL)
		p.exit()
		agents[name] = start(name)
	}
	controller.signal(syscall.SIGKILL)
	controller.exit()
	controller = s.startController()
	for _, id := range append(waiting, long...) {
		s.untilEnd(id, "it ends")
	}
	for _, id := range long {
		complete(t, s.job(id), ticks)
	}
	s.settled()
	for name, p := range agents {
		if off := clockOf(t, p) - hosts[name]; off.Abs() > 5*time.Minute {
			t.Errorf("%s: its clock was to be off by %s, and is by %s more", name, hosts[name], off)
		}
		if strings.Contains(outputOf(p), "slept or its clock was set") {
			t.Errorf("%s: its two clocks do not run alike", name)
		}
		p.stop()
	}
	controller.stop()
}

var logTime = regexp.MustCompile(`(?m)^time=(\S+)`)

// clockOf returns by how much the first line of a program's log is off.
func clockOf(t *testing.T, p *program) time.Duration {
	t.Helper()
	said := logTime.FindStringSubmatch(outputOf(p))
	if said == nil {
		t.Fatal("there is no time in the log")
	}
	at, err := time.Parse(time.RFC3339, said[1])
	if err != nil {
		t.Fatal(err)
	}
	return time.Until(at)
}
