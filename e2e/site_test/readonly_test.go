// SPDX-License-Identifier: MIT

package site_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/minifleet/minifleet/githubapp/githubsim"
)

// plainUser is a user whom permissions bind: nobody in root's place, else ourselves.
// What it must reach in the folder is opened to it.
func plainUser(t *testing.T, dir string) *syscall.Credential {
	t.Helper()
	if os.Geteuid() != 0 {
		return nil
	}
	for _, d := range []string{dir, programs(t)} {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return &syscall.Credential{Uid: 65534, Gid: 65534, NoSetGroups: true}
}

// give makes all below a folder the user's own.
func give(t *testing.T, user *syscall.Credential, dir string) {
	t.Helper()
	if user == nil {
		return
	}
	err := filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(path, int(user.Uid), int(user.Gid))
	})
	if err != nil {
		t.Fatal(err)
	}
}

// lonelyAgent runs an agent whose controller nobody is, and returns its end.
func lonelyAgent(t *testing.T, user *syscall.Credential, dir, state string) (int, string) {
	t.Helper()
	images := filepath.Join(dir, "images")
	if err := os.MkdirAll(images, 0o755); err != nil {
		t.Fatal(err)
	}
	config := filepath.Join(dir, "agent.yaml")
	text := fmt.Sprintf("controller: http://127.0.0.1:1\nname: mini-1\nstate_dir: %s\nimages_dir: %s\nenrolment_token: x\nbackend: process\nallow_copy: true\n", state, images)
	if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return launchAs(t, user, dir, "minifleet-agent", nil, "run", "--config", config).exit()
}

func TestStateFolderCannotBeWritten(t *testing.T) {
	turn(t)
	programs(t)
	check := func(t *testing.T, code int, out, state string) {
		t.Helper()
		for _, part := range []string{"minifleet-agent: ", "state_dir", state, "can write to"} {
			if code == 0 || !strings.Contains(out, part) {
				t.Errorf("exit status %d, want %q in:\n%s", code, part, out)
			}
		}
	}
	t.Run("by permission", func(t *testing.T) {
		dir := folder(t)
		user := plainUser(t, dir)
		state := filepath.Join(dir, "state")
		if err := os.Mkdir(state, 0o555); err != nil {
			t.Fatal(err)
		}
		code, out := lonelyAgent(t, user, dir, state)
		check(t, code, out, state)
		empty(t, state)
	})
	t.Run("in a folder that is not ours", func(t *testing.T) {
		dir := folder(t)
		user := plainUser(t, dir)
		parent := filepath.Join(dir, "parent")
		if err := os.Mkdir(parent, 0o555); err != nil {
			t.Fatal(err)
		}
		code, out := lonelyAgent(t, user, dir, filepath.Join(parent, "state"))
		check(t, code, out, filepath.Join(parent, "state"))
		empty(t, parent)
	})
	t.Run("on a read-only volume", func(t *testing.T) {
		if runtime.GOOS != "linux" || os.Geteuid() != 0 {
			t.Skip("only root can mount a read-only volume, here on Linux")
		}
		dir := folder(t)
		state := filepath.Join(dir, "state")
		if err := os.Mkdir(state, 0o755); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.CommandContext(t.Context(), "mount", "-t", "tmpfs", "-o", "ro", "tmpfs", state).CombinedOutput(); err != nil {
			why := fmt.Sprintf("mount a read-only volume: %v: %s", err, out)
			if os.Getenv("CI") == "true" {
				t.Fatal(why)
			}
			t.Skip(why)
		}
		t.Cleanup(func() {
			if out, err := exec.Command("umount", state).CombinedOutput(); err != nil {
				t.Errorf("unmount: %v: %s", err, out)
			}
		})
		code, out := lonelyAgent(t, nil, dir, state)
		check(t, code, out, state)
	})
}

// The folder of the VMs cannot be written for a while: the operator is told why no
// runner comes, and the job runs once it can be.
func TestVMFolderCannotBeWrittenForAWhile(t *testing.T) {
	turn(t)
	programs(t)
	s := newSite(t, "--seed", "43")
	controller := s.startController()
	user := plainUser(t, s.dir)
	if err := os.Mkdir(s.path("mini-1"), 0o700); err != nil {
		t.Fatal(err)
	}
	s.agentConfig("mini-1")
	for _, owned := range []string{"mini-1", "mini-1.yaml", "mini-1.token", "images"} {
		give(t, user, s.path(owned))
	}
	agent := launchAs(t, user, s.dir, "minifleet-agent", nil, "run", "--config", s.path("mini-1.yaml"))
	s.online(agent, "mini-1")
	vms := s.path("mini-1", "vms")
	if err := os.Chmod(vms, 0o500); err != nil {
		t.Fatal(err)
	}
	id := s.queue(githubsim.JobSpec{Name: "patient", Steps: []githubsim.Step{{Run: "echo at last"}}})[0]
	eventually(t, "the operator sees why no runner comes", func() bool {
		return slices.ContainsFunc(s.list("runners?all=true"), func(r row) bool { return strings.Contains(r.Failure, "permission denied") })
	})
	if j := s.job(id); j.Status != "queued" {
		t.Errorf("the job is %s", j.Status)
	}
	if err := os.Chmod(vms, 0o700); err != nil {
		t.Fatal(err)
	}
	j := s.untilJob(id, "the job ends", githubsim.Job.Done)
	if j.Conclusion != "success" || !strings.Contains(j.Logs, "at last") {
		t.Errorf("the job: %s\n%s", j.Conclusion, j.Logs)
	}
	s.nothingLeft()
	agent.stop()
	controller.stop()
}
