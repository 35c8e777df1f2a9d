// SPDX-License-Identifier: MIT

package site_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/minifleet/minifleet/githubapp/githubsim"
)

// A host's state folder is copied, and an agent started on the copy: on the same machine
// and on another one. It is refused and says what to do; the original and its VMs notice
// nothing.
func TestTwoAgentsOnOneCredential(t *testing.T) {
	turn(t)
	s := newSite(t, "--seed", "111")
	controller := s.startController()
	agent := s.startAgent("mini-1")
	const ticks = 60
	long := s.queue(ticking("long", ticks))[0]
	s.untilJob(long, "it ticks", func(j githubsim.Job) bool { return len(j.Feed) > 2 })
	text, err := os.ReadFile(s.path("mini-1.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	duplicate := func(t *testing.T, name string) (config string) {
		t.Helper()
		if out, err := exec.CommandContext(s.ctx, "cp", "-a", s.path("mini-1"), s.path(name)).CombinedOutput(); err != nil {
			t.Fatalf("cp: %v: %s", err, out)
		}
		t.Cleanup(func() {
			if err := os.RemoveAll(s.path(name)); err != nil {
				t.Error(err)
			}
		})
		return s.file(name+".yaml", strings.Replace(string(text), "state_dir: "+s.path("mini-1"), "state_dir: "+s.path(name), 1))
	}
	refused := func(t *testing.T, p *program, want string) {
		t.Helper()
		if code, out := p.exit(); code == 0 || !strings.Contains(out, want) {
			t.Errorf("exit status %d, want %q in:\n%s", code, want, out)
		}
	}
	t.Run("the same folder", func(t *testing.T) {
		refused(t, launch(t, s.dir, "minifleet-agent", nil, "run", "--config", s.path("mini-1.yaml")), "another agent runs with")
	})
	t.Run("the same machine", func(t *testing.T) {
		refused(t, launch(t, s.dir, "minifleet-agent", nil, "run", "--config", duplicate(t, "copy-1")), "is a copy of "+s.path("mini-1"))
	})
	t.Run("another machine", func(t *testing.T) {
		if runtime.GOOS != "linux" || os.Geteuid() != 0 {
			lacking(t, "only root can make a machine look like another one, here on Linux")
		}
		config, other := duplicate(t, "copy-2"), s.file("machine-id", "00000000000000000000000000000002\n")
		// It has an id of its own and does not see the original.
		script := `mount --bind "$1" /etc/machine-id && mount -t tmpfs tmpfs "$2" && shift 2 && exec "$@"`
		p := launch(t, s.dir, "/usr/bin/unshare", nil, "--mount", "sh", "-c", script, "sh", other, s.path("mini-1"),
			filepath.Join(programs(t), "minifleet-agent"), "run", "--config", config)
		refused(t, p, "the state folder was copied: delete the copy and enrol this machine as a host of its own")
	})
	if strings.Contains(outputOf(agent), "another agent has taken over") {
		t.Error("the original was superseded")
	}
	short := s.queue(githubsim.JobSpec{Name: "short", Steps: []githubsim.Step{{Run: "true"}}})[0]
	for _, id := range []int64{short, long} {
		s.untilEnd(id, "it ends")
	}
	complete(t, s.job(long), ticks)
	s.settled()
	agent.stop()
	controller.stop()
}

func outputOf(p *program) string {
	text, _ := p.output()
	return text
}
