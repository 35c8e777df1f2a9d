// SPDX-License-Identifier: MIT

package site_test

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/minifleet/minifleet/githubapp/githubsim"
	"github.com/minifleet/minifleet/internal/freeze"
)

// pids returns the processes of the site whose arguments or place have all the words.
func (s *site) pids(words ...string) (pids []int) {
	s.t.Helper()
	for _, line := range processesOf(s.t, s.dir) {
		if slices.ContainsFunc(words, func(word string) bool { return !strings.Contains(line, word) }) {
			continue
		}
		pid, err := strconv.Atoi(strings.Fields(line)[0])
		if err != nil {
			s.t.Fatal(err)
		}
		pids = append(pids, pid)
	}
	return pids
}

// strike sends a signal to a process that may be gone.
func (s *site) strike(signal syscall.Signal, pids ...int) {
	s.t.Helper()
	for _, pid := range pids {
		if err := syscall.Kill(pid, signal); err != nil && !errors.Is(err, syscall.ESRCH) {
			s.t.Fatalf("%s to process %d: %v", signal, pid, err)
		}
	}
}

// freeze stops processes, as a debugger, a swapping machine or a mistake does.
func (s *site) freeze(pids ...int) (thaw func()) {
	s.t.Helper()
	if len(pids) == 0 {
		s.t.Fatal("there is no process to freeze")
	}
	for _, pid := range pids {
		if err := freeze.Process(pid); err != nil && !errors.Is(err, syscall.ESRCH) {
			s.t.Fatal(err)
		}
	}
	return sync.OnceFunc(func() { s.strike(syscall.SIGCONT, pids...) })
}

// bundleOf waits for the bundle of the VM that runs a job.
func (s *site) bundleOf(job int64) string {
	s.t.Helper()
	var host, id string
	eventually(s.t, fmt.Sprintf("the books name the runner of job %d", job), func() bool {
		for _, r := range all[runnerRow](s, "runners") {
			if r.Job == job {
				host, id = r.HostName, r.ID
			}
		}
		return id != ""
	})
	return s.path(host, "vms", id)
}

// startAgentWith is startAgent with further lines of configuration.
func (s *site) startAgentWith(name, settings string) *program {
	s.t.Helper()
	text, err := os.ReadFile(s.agentConfig(name))
	if err != nil {
		s.t.Fatal(err)
	}
	p := launch(s.t, s.dir, "minifleet-agent", nil, "run", "--config", s.file(name+".yaml", string(text)+settings))
	s.online(p, name)
	return p
}

// frozen is what can stand still for longer than the deadlines that concern it, and how
// the site shows that they are over.
type frozen struct {
	name  string
	pids  func(s *site, controller, agent *program, bundle string) []int
	shown func(s *site, agent *program, waiting int64)
}

var frozens = []frozen{
	{
		"the agent", func(_ *site, _, agent *program, _ string) []int { return []int{agent.cmd.Process.Pid} },
		func(s *site, _ *program, _ int64) {
			eventually(s.t, "the host is unreachable", func() bool {
				return slices.ContainsFunc(s.list("hosts"), func(h row) bool { return h.State == "unreachable" })
			})
		},
	},
	{
		"the controller", func(_ *site, controller, _ *program, _ string) []int { return []int{controller.cmd.Process.Pid} },
		func(s *site, agent *program, waiting int64) {
			s.untilDelivered(waiting, http.StatusGatewayTimeout)
			agent.await("the lease is over, in both its steps", func(out string) bool {
				return strings.Contains(out, "the lease has ended") && strings.Contains(out, "stage=2")
			})
		},
	},
	{
		"the vmm", func(s *site, _, _ *program, bundle string) []int { return s.pids("minifleet-vmm run", bundle+" ") },
		silentGuest,
	},
	{
		"the guest", func(s *site, _, _ *program, bundle string) []int {
			return s.pids("minifleet-guest --listen", bundle+"/")
		},
		silentGuest,
	},
}

func silentGuest(s *site, _ *program, _ int64) {
	type progress struct {
		Progress string `json:"progress"`
	}
	eventually(s.t, "the guest is silent", func() bool {
		return slices.ContainsFunc(all[progress](s, "runners"), func(r progress) bool { return strings.Contains(r.Progress, "has not answered since") })
	})
}

// What stands still for longer than any deadline and then goes on disturbs no running
// job and doubles none.
func TestFrozen(t *testing.T) {
	t.Parallel()
	for i, f := range frozens {
		t.Run(f.name, func(t *testing.T) {
			turn(t)
			s := newSite(t, "--seed", fmt.Sprint(90+i))
			s.config = strings.Replace(s.config, "host_deadline: 20s, repair: 1s,", "host_deadline: 10s, lease: 5s, poll: 2s, repair: 1s,", 1)
			controller := s.startController()
			agent := s.startAgentWith("mini-1", "guest_timeout: 2s\nlook_every: 1s\n")
			const ticks = 200
			long := s.queue(ticking("long", ticks))[0]
			s.untilJob(long, "it ticks", func(j githubsim.Job) bool { return len(j.Feed) > 2 })
			bundle := s.bundleOf(long)

			thaw := s.freeze(f.pids(s, controller, agent, bundle)...)
			defer thaw()
			waiting := s.queue(githubsim.JobSpec{Name: "waiting", Steps: []githubsim.Step{{Run: "echo once"}}})[0]
			f.shown(s, agent, waiting)
			if j := s.job(long); !j.Running() && j.Conclusion != "success" {
				t.Errorf("the running job is %s %s", j.Status, j.Conclusion)
			}
			thaw()

			for _, id := range []int64{waiting, long} {
				s.untilEnd(id, "the job ends")
			}
			complete(t, s.job(long), ticks)
			if j := s.job(waiting); strings.Count(j.Logs, "once") == 0 || j.Attempts > 1 {
				t.Errorf("the waiting job was offered %d times:\n%s", j.Attempts, j.Logs)
			}
			s.settled()
			agent.stop()
			controller.stop()
		})
	}
}
