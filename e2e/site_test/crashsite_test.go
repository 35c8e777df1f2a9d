// SPDX-License-Identifier: MIT

package site_test

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/minifleet/minifleet/crashpoint"
	"github.com/minifleet/minifleet/githubapp/githubsim"
)

// host is the one of whose agent the points are.
const host = "mini-1"

// crashSite is a site of programs that die at armed points. A job runs in it all the
// while.
type crashSite struct {
	*site
	points     string // the folder in which they are armed
	images     string // of which its machines are made; "" for processes
	controller *program
	agents     map[string]*program
	died       func(crashpoint.Point)
	waits      func() // gives other sites the room of this one, which only waits from now on

	born   time.Time
	long   int64
	stop   string  // the file that ends the long job, where it runs
	doomed []int64 // jobs to be cancelled as soon as they run
	short  []int64 // jobs that succeed

	alone bool // no job is queued while a program is dead

	inNext  crashpoint.Point // is to be armed in the next machine; none is noPoint
	thenArm crashpoint.Point // is to be armed once that one is; none is noPoint

	again func() // provokes once more, every few seconds, where one runner may miss the point; nil: once is enough
}

// newCrashSite makes a site without a controller or an agent yet. Its jobs that lose
// their VM fail later than a living runner renews its own, which is once a minute.
func newCrashSite(t *testing.T, programs, images string, died func(crashpoint.Point), githubArgs ...string) *crashSite {
	t.Helper()
	c := &crashSite{
		site: &site{t: t, ctx: t.Context(), programs: programs, slots: 3}, agents: map[string]*program{}, died: died, born: time.Now(),
		images: images, inNext: noPoint, thenArm: noPoint,
	}
	c.points = t.TempDir()
	c.env = []string{crashpoint.Variable + "=" + c.points}
	c.dir = folder(t)
	c.stop = c.path("stop")
	if c.onMachines() {
		githubArgs = append(githubArgs, "--runner-url", "http://"+guestGitHub)
		c.stop = "/tmp/stop"
	}
	github := c.launch("minifleet", append([]string{"githubsim", "--lease", "90s"}, githubArgs...)...).announced("github")
	if c.onMachines() {
		c.vms = c.crashMachines(github)
	}
	c.open(github)
	if c.onMachines() {
		c.unhurried()
	}
	return c
}

// begin starts the controller, an agent for each name, and the long job on the first.
func (c *crashSite) begin(agents ...string) {
	c.t.Helper()
	c.controller = c.startController()
	for _, name := range agents {
		c.agents[name] = c.startAgent(name)
		if c.long == 0 {
			c.beginLong()
		}
	}
}

// beginLong starts the job that counts until it is told to stop.
func (c *crashSite) beginLong() {
	c.t.Helper()
	c.long = c.queue(githubsim.JobSpec{Name: "long", Env: map[string]string{"STOP": c.stop}, Steps: []githubsim.Step{
		{Name: "Tick", Run: `echo "it begins"; i=0; until [ -e "$STOP" ]; do i=$((i+1)); echo "tick $i."; sleep 0.2; done`},
		{Name: "End", Run: `echo "ran to the end"`},
	}})[0]
	c.ticks()
}

// ticks waits until the long job has counted on.
func (c *crashSite) ticks() {
	c.t.Helper()
	before := len(c.job(c.long).Feed)
	c.untilJob(c.long, "the long job counts on", func(j githubsim.Job) bool {
		if j.Done() {
			c.t.Fatalf("invariant 6: the long job ended: %s (%s)\n%s", j.Conclusion, j.Reason, j.Logs)
		}
		return len(j.Feed) > before+1
	})
}

// jobs queues one job that succeeds and one that is cancelled as soon as it runs. Where it
// takes a machine, the second is left out.
func (c *crashSite) jobs() {
	c.t.Helper()
	c.succeeding("short")
	if c.onMachines() {
		return
	}
	c.cancelled("doomed", "sleep 300")
}

func (c *crashSite) succeeding(name string) int64 {
	c.t.Helper()
	id := c.queue(githubsim.JobSpec{Name: fmt.Sprintf("%s-%d", name, len(c.short)), Steps: []githubsim.Step{
		{Name: "Work", Run: `echo "it begins"; sleep 0.3; echo "ran to the end"`},
	}})[0]
	c.short = append(c.short, id)
	c.armInside()
	return id
}

func (c *crashSite) cancelled(name, script string) int64 {
	c.t.Helper()
	id := c.queue(githubsim.JobSpec{Name: fmt.Sprintf("%s-%d", name, len(c.fates)), Steps: []githubsim.Step{{Run: script}}})[0]
	c.doomed, c.fates[id] = append(c.doomed, id), "cancelled"
	c.armInside()
	return id
}

// cancelRunning cancels what is to be cancelled and runs.
func (c *crashSite) cancelRunning() {
	c.t.Helper()
	c.doomed = slices.DeleteFunc(c.doomed, func(id int64) bool { return c.job(id).Running() && c.cancel(id) })
}

func (c *crashSite) cancel(id int64) bool {
	c.t.Helper()
	if err := c.sim.CancelJob(c.ctx, id); err != nil {
		c.t.Fatal(err)
	}
	return true
}

// crash arms the points one after the other and has each kill its program, which is
// then restarted. At rest the site is held to the invariants, and the long job goes on.
func (c *crashSite) crash(provoke func(), points ...crashpoint.Point) {
	c.t.Helper()
	c.die(provoke, points...)
	c.rest()
}

// crashes is crash for each of the points while jobs come and go, or, with machines, for
// one after the other in one go.
func (c *crashSite) crashes(points ...crashpoint.Point) {
	c.t.Helper()
	if c.onMachines() {
		c.again = c.jobs
		c.crash(c.jobs, points...)
		c.again = nil
		return
	}
	for _, p := range points {
		c.crash(c.jobs, p)
	}
}

// rest waits until the site is at rest and the long job has counted on.
func (c *crashSite) rest() {
	c.t.Helper()
	for _, agent := range c.agents { // until it speaks, the books know nothing of what its guests do
		agent.await("it speaks with the controller", func(out string) bool { return strings.Contains(out, "connected to the controller") })
	}
	c.settled(c.long)
	c.ticks()
}

// failing is crash at a point that takes a VM along: its runner says why it failed.
func (c *crashSite) failing(provoke func(), p crashpoint.Point) {
	c.t.Helper()
	before := c.failed()
	c.crash(provoke, p)
	if c.failed() == before {
		c.t.Errorf("no runner says that it failed when its VM died at %s", p)
	}
}

// failed counts the runners that say why they failed.
func (c *crashSite) failed() int {
	c.t.Helper()
	runners := c.list("runners?all=true&limit=1000")
	return len(slices.DeleteFunc(runners, func(r row) bool { return r.Failure == "" }))
}

// die is crash without the rest.
func (c *crashSite) die(provoke func(), points ...crashpoint.Point) {
	c.t.Helper()
	for i, p := range points {
		c.arm(p)
		if i == 0 {
			provoke()
		} else {
			c.revive(points[i-1])
		}
		c.untilDead(p)
		if i == 0 && !c.alone && (c.victim(p) != nil || !c.onMachines()) {
			c.succeeding("meanwhile") // it is queued while the program is dead
		}
	}
	for _, id := range c.doomed { // whether they run or not
		c.cancel(id)
	}
	c.doomed = nil
	c.revive(points[len(points)-1])
}

func (c *crashSite) arm(p crashpoint.Point) {
	c.t.Helper()
	if c.onMachines() && slices.Contains(crashpoint.Guest(), p) {
		c.armNext(p)
		return
	}
	if err := crashpoint.Arm(c.points, p, 0); err != nil {
		c.t.Fatal(err)
	}
}

// untilDead waits until a program has died at the point.
func (c *crashSite) untilDead(p crashpoint.Point) {
	c.t.Helper()
	var pid int
	provoked := time.Now()
	eventually(c.t, "a program dies at "+p.String(), func() bool {
		c.cancelRunning()
		if c.again != nil && time.Since(provoked) > c.patience() {
			provoked = time.Now()
			c.again()
		}
		pid = c.killed(p)
		return pid != 0
	})
	if victim := c.victim(p); victim != nil {
		victim.exit()
		status, ok := victim.cmd.ProcessState.Sys().(syscall.WaitStatus)
		if victim.cmd.Process.Pid != pid || !ok || status.Signal() != syscall.SIGKILL {
			c.t.Fatalf("process %d died at %s; %s is process %d and ended with %s", pid, p, victim.name, victim.cmd.Process.Pid, victim.cmd.ProcessState)
		}
	}
	c.died(p)
	c.t.Logf("%.1f s: killed at %s", time.Since(c.born).Seconds(), p)
}

// patience is how long one provocation may take.
func (c *crashSite) patience() time.Duration {
	if c.onMachines() {
		return 30 * time.Second
	}
	return 10 * time.Second
}

// killed returns the process that died at the point, 0 as long as none did.
func (c *crashSite) killed(p crashpoint.Point) int {
	c.t.Helper()
	if c.onMachines() && slices.Contains(crashpoint.Guest(), p) {
		return c.killedInside(p)
	}
	pid, err := crashpoint.Killed(c.points, p)
	if err != nil {
		c.t.Fatal(err)
	}
	return pid
}

// victim is the program that dies at the point, nil for those that nobody restarts.
func (c *crashSite) victim(p crashpoint.Point) *program {
	switch {
	case p == crashpoint.BackupCopied: // a program of its own
		return nil
	case slices.Contains(crashpoint.Controller(), p):
		return c.controller
	case slices.Contains(crashpoint.Agent(), p):
		return c.agents[host]
	default:
		return nil
	}
}

// revive starts a program again that died at the point.
func (c *crashSite) revive(p crashpoint.Point) {
	c.t.Helper()
	switch c.victim(p) {
	case nil:
	case c.controller:
		c.controller = c.startController()
	default:
		c.restartAgent(host)
	}
}

// restartAgent starts an agent on its folder and its configuration.
func (c *crashSite) restartAgent(name string) {
	c.t.Helper()
	c.agents[name] = c.launch("minifleet-agent", "run", "--config", c.path(name+".yaml"))
}

// restartController ends the controller as a service manager does, and starts it.
func (c *crashSite) restartController() {
	c.t.Helper()
	c.controller.stop()
	c.controller = c.startController()
}

// fault has the simulated GitHub misbehave.
func (c *crashSite) fault(f githubsim.Fault) {
	c.t.Helper()
	if err := c.sim.Inject(c.ctx, f); err != nil {
		c.t.Fatal(err)
	}
}

// end ends the long job and the site. Every job's own output proves that it ran once,
// from its first line to its last.
func (c *crashSite) end() {
	c.t.Helper()
	c.endLong()
	j := c.untilJob(c.long, "the long job ends", githubsim.Job.Done)
	ticks := strings.Count(j.Logs, "tick ")
	complete(c.t, j, ticks)
	if j.Attempts != 1 {
		c.t.Errorf("invariant 6: the long job was given out %d times", j.Attempts)
	}
	c.settled()
	for _, id := range append(c.short, c.long) {
		if j := c.job(id); j.Conclusion == "success" {
			begins, ends := strings.Count(j.Logs, "it begins"), strings.Count(j.Logs, "ran to the end")
			if begins != 1 || ends != 1 {
				c.t.Errorf("invariant 4: %s began %d times and ended %d times:\n%s", j.Name, begins, ends, j.Logs)
			}
		}
	}
	c.t.Logf("%.1f s: %d jobs; the long one counted to %d", time.Since(c.born).Seconds(), len(c.github()), ticks)
	if c.onMachines() {
		c.countBoots("")
	}
	for _, agent := range c.agents {
		agent.stop()
	}
	c.controller.stop()
}

func (c *crashSite) github() []githubsim.Job {
	c.t.Helper()
	jobs, err := c.sim.Jobs(c.ctx)
	if err != nil {
		c.t.Fatal(err)
	}
	return jobs
}

// crashPrograms builds the programs that die at armed points.
var crashPrograms = sync.OnceValues(func() (string, error) {
	cmd := exec.Command("make", "--no-print-directory", "crash-programs")
	cmd.Dir = filepath.Join("..", "..")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("make crash-programs: %w\n%s", err, out)
	}
	return filepath.Abs(filepath.Join("..", "bin", "crash"))
})
