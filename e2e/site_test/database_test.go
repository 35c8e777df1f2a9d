// SPDX-License-Identifier: MIT

package site_test

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/minifleet/minifleet/githubapp/githubsim"
)

// Two controllers are started by mistake on one database: the second refuses at once and
// says which process is in its way, and disturbs nothing. It may begin when the first is
// dead, however it died.
func TestSecondController(t *testing.T) {
	turn(t)
	s := newSite(t, "--seed", "51")
	first := s.startController()
	agent := s.startAgent("mini-1")
	const ticks = 15
	id := s.queue(ticking("undisturbed", ticks))[0]
	s.untilJob(id, "it runs", githubsim.Job.Running)
	code, out := launch(t, s.dir, "minifleet", nil, "serve", "--config", s.path("controller.yaml")).exit()
	for _, want := range []string{"minifleet: ", "minifleet.db", fmt.Sprintf("process %d", first.cmd.Process.Pid), "stop that one first"} {
		if code == 0 || !strings.Contains(out, want) {
			t.Errorf("the second controller: exit status %d, want %q in:\n%s", code, want, out)
		}
	}
	first.signal(syscall.SIGKILL)
	first.exit()
	second := s.startController()
	complete(t, s.untilJob(id, "the job ends", githubsim.Job.Done), ticks)
	s.settled()
	agent.stop()
	second.stop()
}

// databaseFault keeps the controller from writing, until mend is called.
type databaseFault struct {
	name string
	do   func(t *testing.T, s *site, v *volume) (mend func())
}

var databaseFaults = []databaseFault{
	{"locked by another process", func(t *testing.T, s *site, _ *volume) func() { return writeLock(t, s.path("db", "minifleet.db")) }},
	{"read-only", func(t *testing.T, s *site, _ *volume) func() { return immutable(t, s.path("db", "minifleet.db-wal")) }},
	{"on a full volume", func(_ *testing.T, _ *site, v *volume) func() { return v.fill() }},
}

// writeLock takes the lock with which SQLite has one writer at a time, as a backup or a
// shell in another process does: byte 120 of the shared memory.
func writeLock(t *testing.T, path string) (unlock func()) {
	t.Helper()
	f, err := os.OpenFile(path+"-shm", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	lock := syscall.Flock_t{Type: syscall.F_WRLCK, Start: 120, Len: 1}
	eventually(t, "the database can be locked", func() bool { return syscall.FcntlFlock(f.Fd(), syscall.F_SETLK, &lock) == nil })
	return sync.OnceFunc(func() {
		if err := f.Close(); err != nil { // and with it the lock
			t.Error(err)
		}
	})
}

// immutable keeps even root from writing to a file, also where it is open already.
func immutable(t *testing.T, path string) (mutable func()) {
	t.Helper()
	if out, err := exec.CommandContext(t.Context(), "chattr", "+i", path).CombinedOutput(); err != nil {
		lacking(t, "chattr: %v: %s", err, out)
	}
	return sync.OnceFunc(func() {
		if out, err := exec.Command("chattr", "-i", path).CombinedOutput(); err != nil {
			t.Errorf("chattr: %v: %s", err, out)
		}
	})
}

// While the database cannot be written a delivery is refused soon enough for GitHub to
// hear of it, running jobs go on, the controller is not ready; all heals by itself.
func TestDatabaseCannotBeWrittenForAWhile(t *testing.T) {
	t.Parallel()
	for i, fault := range databaseFaults {
		t.Run(fault.name, func(t *testing.T) {
			turn(t)
			if runtime.GOOS != "linux" {
				t.Skip("these faults are made as Linux has them")
			}
			s := newSite(t, "--seed", fmt.Sprint(60+i))
			s.config = strings.Replace(s.config, "database: minifleet.db", "database: db/minifleet.db", 1)
			v := newVolume(t, s.path("db"), 16, 64)
			controller := s.startController()
			agent := s.startAgent("mini-1")
			const ticks = 40
			long := s.queue(ticking("long", ticks))[0]
			s.untilJob(long, "it ticks", func(j githubsim.Job) bool { return len(j.Feed) > 2 })
			if status := s.readiness(); status != http.StatusOK {
				t.Errorf("before the fault the readiness is %d", status)
			}

			mend := fault.do(t, s, v)
			defer mend()
			id := s.queue(githubsim.JobSpec{Name: "patient", Steps: []githubsim.Step{{Run: "echo at last"}}})[0]
			eventually(t, "a delivery is refused in GitHub's time", func() bool {
				all, err := s.sim.Deliveries(s.ctx)
				if err != nil {
					t.Fatal(err)
				}
				s.redeliver() // what took a busy machine longer is not heard of
				return slices.ContainsFunc(all, func(d githubsim.Delivery) bool {
					return d.JobID == id && d.StatusCode == http.StatusServiceUnavailable && d.Duration < 9*time.Second
				})
			})
			eventually(t, "the controller is not ready", func() bool { return s.readiness() == http.StatusServiceUnavailable })
			before := len(s.job(long).Feed)
			s.untilJob(long, "the running job goes on", func(j githubsim.Job) bool { return len(j.Feed) > before+2 || j.Done() })

			mend()
			eventually(t, "the controller is ready again", func() bool { return s.readiness() == http.StatusOK })
			for _, job := range []int64{id, long} {
				s.untilEnd(job, "the job ends")
			}
			complete(t, s.job(long), ticks)
			s.settled()
			agent.stop()
			controller.stop()
		})
	}
}

// A full inode table takes no room: who has his files goes on, and who has not says why.
func TestDatabaseOnAFullInodeTable(t *testing.T) {
	turn(t)
	s := newSite(t, "--seed", "64")
	s.config = strings.Replace(s.config, "database: minifleet.db", "database: db/minifleet.db", 1)
	v := newVolume(t, s.path("db"), 16, 64)
	free := v.crowd()
	defer free()
	text := strings.NewReplacer("WEBHOOK", "127.0.0.1:0", "AGENTS", "127.0.0.1:0", "ADMIN", "127.0.0.1:0").Replace(s.config)
	code, out := launch(t, s.dir, "minifleet", nil, "serve", "--config", s.file("controller.yaml", text)).exit()
	if code == 0 || !strings.Contains(out, "no space left on device") || !strings.Contains(out, "minifleet.db") {
		t.Errorf("exit status %d:\n%s", code, out)
	}
	free()
	controller := s.startController()
	agent := s.startAgent("mini-1")
	free = v.crowd()
	id := s.queue(githubsim.JobSpec{Name: "no new file", Steps: []githubsim.Step{{Run: "true"}}})[0]
	s.untilJob(id, "the job ends", githubsim.Job.Done)
	s.settled()
	free()
	agent.stop()
	controller.stop()
}

// What cannot be opened as it is stays as it is, and the program says what to do.
func TestDatabaseIsRefusedAtTheStart(t *testing.T) {
	turn(t)
	s := newSite(t, "--seed", "65")
	s.startController().stop()
	path := s.path("minifleet.db")
	good, err := os.ReadFile(path)
	lock, lockErr := os.ReadFile(path + ".lock")
	if err := errors.Join(err, lockErr); err != nil {
		t.Fatal(err)
	}
	user := plainUser(t, s.dir)
	restore := func() {
		if err := errors.Join(os.Chmod(s.dir, 0o777), os.WriteFile(path, good, 0o600), os.Chmod(path, 0o600), os.WriteFile(path+".lock", lock, 0o600)); err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"minifleet.db", "minifleet.db.lock", "minifleet.db.place", "minifleet.db.peer-key", "app.pem", "webhook.secret", "admin.token", "controller.yaml"} {
			give(t, user, s.path(name))
		}
	}
	damage := map[string]func(){
		"cut":            func() { _ = os.Truncate(path, int64(len(good)/2)) },
		"overwritten":    func() { _ = os.WriteFile(path, slices.Concat([]byte("SQLite or not"), good[13:]), 0o600) },
		"empty":          func() { _ = os.Truncate(path, 0) },
		"gone":           func() { _ = os.Remove(path) },
		"not writable":   func() { _ = os.Chmod(path, 0o400) },
		"folder is not":  func() { _ = errors.Join(os.Remove(s.path("minifleet.db.lock")), os.Chmod(s.dir, 0o555)) },
		"good after all": func() {},
	}
	for _, c := range []struct{ name, want string }{
		{"cut", "restore a backup, as docs/operations.md"},
		{"overwritten", "restore a backup, as docs/operations.md"},
		{"empty", "restore a backup, as docs/operations.md"},
		{"gone", "restore a backup, as docs/operations.md"},
		{"not writable", "it cannot be written: give the controller's user"},
		{"folder is not", "it cannot be written: give the controller's user"},
		{"good after all", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			restore()
			damage[c.name]()
			p := launchAs(t, user, s.dir, "minifleet", nil, "serve", "--config", s.path("controller.yaml"))
			if c.want == "" {
				p.announced("admin")
				p.stop()
				return
			}
			code, out := p.exit()
			if code == 0 || !strings.Contains(out, c.want) || !strings.Contains(out, path) || strings.Contains(out, "goroutine ") {
				t.Errorf("exit status %d, want %q in:\n%s", code, c.want, out)
			}
		})
	}
}

// readiness is the status with which the controller answers its service manager.
func (s *site) readiness() int {
	s.t.Helper()
	req, err := http.NewRequestWithContext(s.ctx, http.MethodGet, s.admin+"/readyz", nil)
	if err != nil {
		s.t.Fatal(err)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	res.Body.Close()
	return res.StatusCode
}

// untilDelivered waits for a delivery about a job that was answered with a status.
func (s *site) untilDelivered(job int64, status int) {
	s.t.Helper()
	eventually(s.t, fmt.Sprintf("a delivery about job %d is answered %d", job, status), func() bool {
		all, err := s.sim.Deliveries(s.ctx)
		if err != nil {
			s.t.Fatal(err)
		}
		return slices.ContainsFunc(all, func(d githubsim.Delivery) bool { return d.JobID == job && d.StatusCode == status })
	})
}
