// SPDX-License-Identifier: MIT

package site_test

import (
	"context"
	"net/http"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/minifleet/minifleet/githubapp/githubsim"
)

// Ghosts of runners: listeners that end in every way, registrations that vanish, configs
// that must not be used twice, jobs that go elsewhere. That GitHub does not show who is busy
// makes every deletion dangerous. Listeners stand for the official one where this client
// cannot do what that does.
func TestGhostsOfRunners(t *testing.T) {
	turn(t)
	s, sim := newSimulated(t, githubsim.Options{Seed: 132, Kind: true, OneKey: true, Timing: githubsim.Timing{
		AssignTimeout: time.Minute, // for which strangers hold jobs, while runners of ours come
		BusyLag:       time.Hour,
	}})
	s.config = strings.NewReplacer("timing: {", "timing: {reconcile: 1s, absence: 2s, ", "surplus: 1s, booting: 30s, registering: 30s,", "surplus: 2s, booting: 2m, registering: 2m,").Replace(s.config)
	s.oddListener()
	controller := s.startController()
	agent := s.startAgent("mini-1")
	s.haunted(
		ghost{"the runner is too old: code 7 (actions/runner#3366)", endsOddly("too old",
			`echo "An error occurred: Runner version v2.300.0 is deprecated and cannot receive messages." >&2`, "exit 7")},
		ghost{"another session is open: code 5", endsOddly("used twice", "exit 5")},
		ghost{"the registration is gone before the runner is online: code 1", endsOddly("registration is gone",
			`echo "Failed to create a session. The runner registration has been deleted from the server, please re-configure. Runner registrations are automatically deleted for runners that have not connected to the service recently." >&2`, "exit 1")},
		ghost{"an error that a new start may cure: code 2 (actions/runner#2286)", startsAgain("exit 2")},
		ghost{"it updates itself: code 4 (actions/runner#3822)", startsAgain(`: >"$root/update.finished"`, "exit 4")},
		ghost{"its registration vanishes, and it listens for ever (actions/runner#4617)", func(s *site) {
			id, runner := s.listens()
			s.vanish(sim, runner)
			s.over(id)
			if why := s.retired(runner.ID); !strings.Contains(why, "its registration at GitHub is gone") {
				s.t.Errorf("runner %s was ended because of this: %q", runner.ID, why)
			}
		}},
		ghost{"the agent dies while a runner listens: its config is not used twice (actions-runner-controller#4588)", func(s *site) {
			id, runner := s.listens()
			agent.signal(syscall.SIGKILL)
			agent.exit()
			agent = s.startAgent("mini-1")
			s.vanish(sim, runner)
			s.over(id)
		}},
		ghost{"its registration vanishes, and it ends (actions/runner#4726)", func(s *site) { endsItself(s, sim) }},
		ghost{"a job that a runner does not take is queued again", func(s *site) { notTaken(s, sim) }},
		ghost{"GitHub does not show that it is busy (terraform-aws-github-runner#5085)", func(s *site) { busyUnseen(s, sim) }},
	)
	s.oneConfigEach()
	agent.stop()
	controller.stop()
}

// ghostRow is what these tests read of a runner.
type ghostRow struct {
	ID         string `json:"id"`
	Pool       string `json:"pool"`
	Phase      string `json:"phase"`
	RunnerName string `json:"runner_name"`
	Failure    string `json:"failure"`
	Retired    string `json:"retired"`
}

// runners returns all runners that ever were, or those of a phase.
func (s *site) runners(phase string) []ghostRow {
	s.t.Helper()
	var page []ghostRow
	for _, r := range all[ghostRow](s, "runners", "all", "true") {
		if phase == "" || r.Phase == phase {
			page = append(page, r)
		}
	}
	return page
}

// endsOddly is a listener's end without a job: it is told apart, and the job gets another.
func endsOddly(words string, lines ...string) func(*site) {
	return func(s *site) {
		before := s.registrations()
		s.nextListener(lines...)
		s.over(s.queue(short("odd"))...)
		if n := s.registrations() - before; n < 2 {
			s.t.Errorf("%d runners were registered: the first has not ended", n)
		}
		if !slices.ContainsFunc(s.runners(""), func(r ghostRow) bool { return strings.Contains(r.Failure, words) }) {
			s.t.Errorf("no runner's failure says %q: %+v", words, s.runners(""))
		}
	}
}

// startsAgain is an end after which the guest starts the listener again, with its config.
func startsAgain(lines ...string) func(*site) {
	return func(s *site) {
		before := s.starts()
		s.nextListener(lines...)
		s.over(s.queue(short("again"))...)
		if again := s.starts()[len(before):]; len(again) != 2 || again[0] != again[1] {
			s.t.Errorf("listeners were started so, want twice the same: %q", again)
		}
	}
}

// listens queues a job for which a listener is online that will never hear of it.
func (s *site) listens() (job int64, runner ghostRow) {
	s.t.Helper()
	s.nextListener(online, "exec sleep 1000")
	job = s.queue(short("unheard"))[0]
	return job, s.idle()
}

// idle waits for the one runner that listens.
func (s *site) idle() ghostRow {
	s.t.Helper()
	var idle []ghostRow
	eventually(s.t, "a runner listens", func() bool {
		idle = s.runners("idle")
		return len(idle) == 1
	})
	return idle[0]
}

// vanish has GitHub remove a registration by itself.
func (s *site) vanish(sim *githubsim.Sim, r ghostRow) {
	s.t.Helper()
	list := sim.Runners()
	i := slices.IndexFunc(list, func(at githubsim.Runner) bool { return at.Name == r.RunnerName })
	if i < 0 {
		s.t.Fatalf("GitHub does not know runner %s", r.RunnerName)
	}
	if err := sim.RemoveRunner(list[i].ID); err != nil {
		s.t.Fatal(err)
	}
}

// retired is why the controller ended a runner.
func (s *site) retired(id string) string {
	s.t.Helper()
	for _, r := range s.runners("") {
		if r.ID == id {
			return r.Retired
		}
	}
	return ""
}

// stranger is a runner of somebody else's that GitHub offers a job, which it has not taken.
func (s *site) stranger(sim *githubsim.Sim, name string, job githubsim.JobSpec) (*githubsim.Listener, int64) {
	s.t.Helper()
	config, err := sim.Register("octo/demo", name, "self-hosted", "demo")
	if err != nil {
		s.t.Fatal(err)
	}
	l, err := sim.Listen(config)
	if err != nil {
		s.t.Fatal(err)
	}
	id := s.queue(job)[0]
	ctx, cancel := context.WithTimeout(s.ctx, patience)
	defer cancel()
	if offered, err := l.Next(ctx); err != nil || offered.ID != id {
		s.t.Fatalf("the stranger was offered job %d, %v; want %d", offered.ID, err, id)
	}
	return l, id
}

func endsItself(s *site, sim *githubsim.Sim) {
	l, id := s.stranger(sim, "slow", short("held"))
	first := s.idle()
	s.vanish(sim, first)
	l.Close()
	s.dismiss(sim, "slow")
	s.over(id)
	if j := s.job(id); j.RunnerName == first.RunnerName {
		s.t.Error("the runner whose registration was gone had the job")
	}
}

// dismiss deletes the registration of a stranger.
func (s *site) dismiss(sim *githubsim.Sim, name string) {
	s.t.Helper()
	for _, r := range sim.Runners() {
		if r.Name == name && r.RemovedAt.IsZero() {
			if err := sim.RemoveRunner(r.ID); err != nil {
				s.t.Fatal(err)
			}
		}
	}
}

func notTaken(s *site, sim *githubsim.Sim) {
	l, id := s.stranger(sim, "asleep", short("offered"))
	s.untilJob(id, "it is offered again", func(j githubsim.Job) bool { return j.Attempts > 1 })
	l.Close() // or it may be the one again, any number of times
	s.over(id)
	if j := s.job(id); j.Attempts < 2 || j.RunnerName == "asleep" {
		s.t.Errorf("the job was offered %d times and ran on %s", j.Attempts, j.RunnerName)
	}
	s.dismiss(sim, "asleep")
}

// busyUnseen has a runner that nobody needs run a job of which the controller hears nothing:
// only its guest tells that it is busy, and GitHub would delete it.
func busyUnseen(s *site, sim *githubsim.Sim) {
	l, taken := s.stranger(sim, "faster", short("taken"))
	ours := s.idle()
	for _, event := range []string{"workflow_run.requested", "workflow_job.queued", "workflow_job.in_progress", "workflow_run.in_progress"} {
		s.inject(githubsim.Fault{Kind: githubsim.DeliveryLost, Path: event})
	}
	for _, list := range []string{"/actions/runs", "/actions/jobs/"} {
		s.inject(githubsim.Fault{Kind: githubsim.FaultStatus, Method: http.MethodGet, Path: list, Count: -1})
	}
	const ticks = 40 // several times as long as a runner that nobody needs is kept
	job := ticking("unseen", ticks)
	job.Steps = slices.Insert(job.Steps, 0, s.held("unneeded"))
	unseen := s.queue(job)[0]
	s.untilJob(unseen, "it runs", githubsim.Job.Running)
	eventually(s.t, "its guest says so", func() bool {
		return slices.ContainsFunc(s.runners("busy"), func(r ghostRow) bool { return r.ID == ours.ID })
	})
	if err := l.Take(); err != nil {
		s.t.Fatal(err)
	}
	eventually(s.t, "the books say that the other runner has the job for which ours was made", func() bool { return s.stateOf(taken) == "in_progress" })
	s.file("unneeded", "")
	j := s.untilJob(unseen, "it ends", githubsim.Job.Done)
	complete(s.t, j, ticks)
	if j.RunnerName != ours.RunnerName {
		s.t.Errorf("it ran on %s, not on %s: nothing was tested", j.RunnerName, ours.RunnerName)
	}
	if err := s.sim.ClearFaults(s.ctx); err != nil {
		s.t.Fatal(err)
	}
	if err := l.Finish("succeeded"); err != nil {
		s.t.Fatal(err)
	}
	eventually(s.t, "the books say so", func() bool { return s.stateOf(taken) == "completed" })
	l.Close()
	s.dismiss(sim, "faster")
}
