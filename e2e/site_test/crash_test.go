// SPDX-License-Identifier: MIT

package site_test

import (
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/minifleet/minifleet/crashpoint"
	"github.com/minifleet/minifleet/githubapp/githubsim"
	"github.com/minifleet/minifleet/internal/freeze"
)

// Each program is killed at each of its points, in turn, while jobs come, run and are
// cancelled, and is started again. Whoever is not restarted by anybody, a vmm or a
// guest, takes its runner along and nothing else.
func TestEveryCrash(t *testing.T) {
	t.Parallel()
	everyCrash(t, "")
}

// The same where runners are machines: those of which a program dies, those that it has to
// find again, and the one whose job prints on all the while. The guest program dies inside
// its machine, whose init starts it anew. It dies at every point here too, but more of
// them follow each other before the site has to be at rest: a machine takes seconds to
// boot.
func TestEveryCrashOnQEMU(t *testing.T) {
	machineTurn(t)
	programs(t)
	bin, err := crashPrograms()
	if err != nil {
		t.Fatal(err)
	}
	everyCrash(t, crashImages(t, bin))
}

// everyCrash kills programs in sites of processes, or in sites of machines made of the
// images in a folder.
func everyCrash(t *testing.T, images string) {
	programs(t)
	bin, err := crashPrograms()
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex // guards deaths
	deaths := map[crashpoint.Point]bool{}
	died := func(p crashpoint.Point) {
		mu.Lock()
		defer mu.Unlock()
		deaths[p] = true
	}
	sites := []struct { // the longest first
		name   string
		github []string
		run    func(*crashSite)
	}{
		{"mint", []string{"--flow", "migrate"}, mintCrashes},
		{"teardown", []string{"--flow", "migrate"}, teardownCrashes},
		{"guest", nil, guestCrashes},
		{"vmm", nil, vmmCrashes},
		{"agent", nil, agentCrashes},
		{"ending", nil, endingCrashes},
		{"deletion", nil, deletionCrashes},
		{"controller", nil, controllerCrashes},
		{"enrolment", []string{"--flow", "migrate"}, enrolmentCrashes},
	}
	room := processSites
	if images != "" {
		room = machineSlots // of a site's machines one boots at a time, mostly
	}
	next := make(chan int, len(sites))
	for i := range sites {
		next <- i
	}
	var ran atomic.Int64
	t.Run("sites", func(t *testing.T) {
		for lane := range sites {
			t.Run(fmt.Sprintf("lane %d", lane+1), func(t *testing.T) {
				t.Parallel()
				giveBack := takeRoom(t, room, 1)
				i := <-next
				s := sites[i]
				t.Run(s.name, func(t *testing.T) {
					ran.Add(1)
					c := newCrashSite(t, bin, images, died, append(s.github, "--seed", fmt.Sprint(51+i))...)
					c.waits = giveBack
					s.run(c)
				})
			})
		}
	})
	if int(ran.Load()) < len(sites) {
		return // not all were asked for
	}
	for _, p := range crashpoint.All() {
		if !deaths[p] && !slices.Contains(slices.Concat(crashpoint.Images(), crashpoint.Cache(), crashpoint.ScaleSets()), p) { // those have tests of their own: TestEveryCrashOfImages, imagecache's TestKilled, and TestScaleSet
			t.Errorf("no program died at %s", p)
		}
	}
}

func controllerCrashes(c *crashSite) {
	c.config = strings.Replace(c.config, "timing: {", "timing: {redelivery: 1s, ", 1)
	c.begin("mini-1", "mini-2")
	// The first plan places a runner at once; a later one would wait for its machine to boot.
	c.crashes(crashpoint.CarryWritten, crashpoint.CarryCommitted, crashpoint.DeliveryJudged, crashpoint.IngestWritten, crashpoint.IngestCommitted,
		crashpoint.DeliveryTaken, crashpoint.DesiredRead, crashpoint.ReportReceived, crashpoint.ReportStored)
	c.crash(func() { c.jobs(); c.restartController() }, crashpoint.InstallationsListed, crashpoint.InstallationsStored,
		crashpoint.PruneStepped, crashpoint.JobsListed)
	for kind, p := range map[githubsim.FaultKind]crashpoint.Point{
		githubsim.DeliveryFailed: crashpoint.DeliveryPulled, githubsim.DeliveryBare: crashpoint.RedeliveryAsked,
	} {
		c.crash(func() {
			c.fault(githubsim.Fault{Kind: kind, Path: "workflow_job.queued"})
			c.jobs()
		}, p)
	}
	c.backup()
	c.end()
}

// backup kills a backup that is whole and has no name yet, and makes another.
func (c *crashSite) backup() {
	c.t.Helper()
	c.arm(crashpoint.BackupCopied)
	for _, want := range []bool{false, true} {
		out, err := c.tool("backup", "--config", c.path("controller.yaml"), "--to", c.path("copy.db")).CombinedOutput()
		_, statErr := os.Stat(c.path("copy.db"))
		if ok := err == nil; ok != want || (statErr == nil) != want {
			c.t.Errorf("a backup ends with %v and leaves %v, want a copy: %t\n%s", err, statErr, want, out)
		}
	}
	c.untilDead(crashpoint.BackupCopied)
}

// mintCrashes leave runners behind whose earlier registration may exist, until GitHub's
// list has proved for long enough that it does not. They share that time.
func mintCrashes(c *crashSite) {
	c.slots = 12
	c.begin(host)
	c.crash(c.jobs, crashpoint.MintGranted)
	c.die(c.jobs, crashpoint.MintCommitted)
	c.die(c.jobs, crashpoint.MintRegistered, crashpoint.EarlierIntended)
	// GitHub registers and does not answer until it lists that: an earlier attempt that
	// must be deleted, and is found.
	unanswered := githubsim.Fault{Kind: githubsim.FaultTimeoutAfterSuccess, Delay: time.Second, Method: http.MethodPost, Path: "/generate-jitconfig"}
	c.again = func() { c.fault(unanswered); c.jobs() }
	c.die(c.again, crashpoint.EarlierDeleted)
	c.again = nil
	c.die(func() {
		c.fault(githubsim.Fault{Kind: githubsim.FaultStatus, Status: http.StatusForbidden, Method: http.MethodPost, Path: "/generate-jitconfig"})
		c.jobs()
	}, crashpoint.MintRefused)
	// Whose deletion comes first, the mint's or the decision's, is open, and the other
	// runners' deletions come as well: all are vetoed until the mint's is.
	c.fault(githubsim.Fault{Kind: githubsim.FaultStatus, Status: http.StatusUnprocessableEntity, Method: http.MethodDelete, Path: "/actions/runners/", Count: -1})
	c.again = func() { c.fault(unanswered); c.jobs() }
	c.die(c.again, crashpoint.EarlierVetoed)
	c.again = nil
	if err := c.sim.ClearFaults(c.ctx); err != nil {
		c.t.Fatal(err)
	}
	c.waits()
	c.rest()
	c.end()
}

// superfluous makes a registration that nobody needs: its job is cancelled before its
// listener has a session, for which a busy machine needs time.
func (c *crashSite) superfluous() {
	c.t.Helper()
	c.fault(githubsim.Fault{Kind: githubsim.FaultDelay, Delay: 15 * time.Second, Method: http.MethodPost, Path: "/session"})
	c.takenBack(func(githubsim.Runner) bool { return true })
}

// takenBack cancels a job once there is a registration for it, as wanted, that has not
// begun a job. It may have been offered this one, of which it does not hear in time.
func (c *crashSite) takenBack(ok func(githubsim.Runner) bool) {
	c.t.Helper()
	id := c.cancelled("taken-back", "sleep 300")
	c.doomed = nil
	eventually(c.t, "a registration is made for a job that has not begun", func() bool {
		names, err := c.sim.Runners(c.ctx)
		if err != nil {
			c.t.Fatal(err)
		}
		return slices.ContainsFunc(names, func(r githubsim.Runner) bool { return r.RemovedAt.IsZero() && (r.JobID == 0 || r.JobID == id) && ok(r) })
	})
	c.cancel(id)
}

func deletionCrashes(c *crashSite) {
	c.begin(host)
	// A registration is deleted once its listener is idle. It could be given a job that comes
	// in that moment, which would be lost: GitHub's word on who is busy lags.
	c.alone = true
	c.crash(c.superfluous, crashpoint.DeleteIntended)
	c.crash(c.superfluous, crashpoint.DeleteDone)
	for p, status := range map[crashpoint.Point]int{
		crashpoint.DeleteVetoed: http.StatusUnprocessableEntity, crashpoint.DeleteFailed: http.StatusBadGateway,
	} {
		c.crash(func() {
			c.fault(githubsim.Fault{Kind: githubsim.FaultStatus, Status: status, Method: http.MethodDelete, Path: "/actions/runners/"})
			c.superfluous()
		}, p)
	}
	c.end()
}

// enrolmentCrashes are those of the first start of each program and of a host's coming
// and going.
func enrolmentCrashes(c *crashSite) {
	for _, p := range []crashpoint.Point{crashpoint.StoreCreated, crashpoint.StoreMigrated, crashpoint.SiteStored} {
		c.arm(p)
		c.controller = c.launch("minifleet", "serve", "--config", c.file("controller.yaml", c.firstConfig()))
		c.untilDead(p)
	}
	c.controller = c.startController()

	c.arm(crashpoint.EnrolmentStored)
	if out, err := c.operator("host", "token", "--name", "mini-2").CombinedOutput(); err == nil {
		c.t.Errorf("a token from a controller that died: %s", out)
	}
	c.untilDead(crashpoint.EnrolmentStored)
	c.revive(crashpoint.EnrolmentStored)

	c.agentConfig("mini-2")
	var before crashpoint.Point
	for i, p := range []crashpoint.Point{crashpoint.EnrolReceived, crashpoint.EnrolStored, crashpoint.HelloStored} {
		c.arm(p)
		if i == 0 {
			c.restartAgent("mini-2")
		} else {
			c.revive(before)
		}
		c.untilDead(p)
		before = p
	}
	c.revive(before)
	c.online(c.agents["mini-2"], "mini-2")
	c.beginLong()

	c.agentConfig(host)
	c.crash(func() { c.jobs(); c.restartAgent(host) },
		crashpoint.CredentialWritten, crashpoint.EnrolAnswered, crashpoint.IdentityWritten, crashpoint.HelloAnswered, crashpoint.EpochWritten)

	leaving := c.startAgent("mini-3")
	leaving.stop()
	c.crash(func() {
		c.jobs()
		hosts := all[hostRow](c.site, "hosts")
		i := slices.IndexFunc(hosts, func(h hostRow) bool { return h.Name == "mini-3" })
		if out, err := c.operator("host", "remove", hosts[i].ID).CombinedOutput(); err == nil {
			c.t.Errorf("a controller that died has answered: %s", out)
		}
	}, crashpoint.HostRemoved)
	c.end()
}

func agentCrashes(c *crashSite) {
	c.begin(host)
	follow := [][]crashpoint.Point{
		{crashpoint.RecordWritten, crashpoint.RecordMourned},
		{crashpoint.BundleBegun},
		{crashpoint.BundleFilled, crashpoint.LeftoverRemoved},
		{crashpoint.ConfigRecorded, crashpoint.ConfigWithdrawn}, // the second of two is met at the start after the first
	}
	if c.onMachines() {
		follow = [][]crashpoint.Point{slices.Concat(follow...)}
	}
	c.again = c.jobs
	for _, points := range follow {
		c.crash(c.jobs, points...)
	}
	c.again = nil
	c.crashes(crashpoint.DesiredReceived, crashpoint.DesiredApplied, crashpoint.FileWritten, crashpoint.BundlePlaced)
	c.crashes(crashpoint.VMMSpawned, crashpoint.MintAsking, crashpoint.MintAnswered, crashpoint.ConfigDelivered)
	c.crashes(crashpoint.VMMReady, crashpoint.ReportReady, crashpoint.ReportAnswered)
	c.end()
}

// endingCrashes are those while a guest is told to end its listener: one that nobody
// needs any more, and that does not hear of the end of its registration for a while.
func endingCrashes(c *crashSite) {
	c.begin(host)
	for _, p := range []crashpoint.Point{crashpoint.EndTold, crashpoint.GuestEndAsked, crashpoint.ListenerTold} {
		c.crash(func() {
			c.fault(githubsim.Fault{Kind: githubsim.FaultDelay, Delay: 45 * time.Second, Method: http.MethodGet, Path: "/message", Count: -1})
			c.takenBack(func(r githubsim.Runner) bool { return !r.OnlineAt.IsZero() })
			// Its first call for a message may come later than it is online.
			eventually(c.t, "its registration is gone", func() bool {
				names, err := c.sim.Runners(c.ctx)
				if err != nil {
					c.t.Fatal(err)
				}
				return !slices.ContainsFunc(names, func(r githubsim.Runner) bool { return r.RemovedAt.IsZero() && r.JobID == 0 && !r.OnlineAt.IsZero() })
			})
			if err := c.sim.ClearFaults(c.ctx); err != nil {
				c.t.Fatal(err)
			}
		}, p)
	}
	c.end()
}

// teardownCrashes are those of an agent while a runner ends.
func teardownCrashes(c *crashSite) {
	c.begin(host)
	c.crashes(crashpoint.VMStopped, crashpoint.TombstoneWritten, crashpoint.BundleTrashed, crashpoint.BundleRemoved, crashpoint.RecordDropped,
		crashpoint.RevisionWritten, crashpoint.TombstoneDropped)
	c.arm(crashpoint.VMMOpened) // what fails is kept
	c.failing(c.jobs, crashpoint.FailureKept)
	c.untilDead(crashpoint.VMMOpened)
	c.failing(c.killedVMM, crashpoint.WriterEnded)
	c.end()
}

// killedVMM kills the vmm of a running job whose guest does not end by itself.
func (c *crashSite) killedVMM() {
	c.t.Helper()
	c.succeeding("short")
	id := c.cancelled("orphaned", "sleep 300")
	c.doomed, c.fates[id] = nil, "lost"
	c.untilJob(id, "it runs", githubsim.Job.Running)
	var m *processes
	eventually(c.t, "its runner is known", func() bool {
		l := c.look([]int64{c.long})
		for _, r := range l.runners {
			if r.Job == id {
				m = l.machines[r.ID]
			}
		}
		return m != nil && len(m.vmms) == 1 && len(m.hypervisors)+len(m.guests) == 1
	})
	if err := freeze.Process(append(m.hypervisors, m.guests...)[0]); err != nil {
		c.t.Fatal(err)
	}
	if err := syscall.Kill(m.vmms[0], syscall.SIGKILL); err != nil {
		c.t.Fatal(err)
	}
}

func vmmCrashes(c *crashSite) {
	c.begin(host)
	if c.onMachines() {
		vmmCrashesInTurn(c)
		c.end()
		return
	}
	for _, p := range crashpoint.VMM() {
		switch {
		case p == crashpoint.VMMOpened: // see teardownCrashes
		case p <= crashpoint.VMMGuestReady:
			c.failing(c.jobs, p)
		default: // its job is over
			c.crash(c.jobs, p)
		}
	}
	c.end()
}

// vmmCrashesInTurn arms several points at once: each vmm dies at the first that no earlier
// one has died at, and its runner's job gets another. After more of them in a row the
// controller would wait for minutes.
func vmmCrashesInTurn(c *crashSite) {
	var before, after []crashpoint.Point // before the job, and after it
	for _, p := range crashpoint.VMM() {
		switch {
		case p == crashpoint.VMMOpened: // see teardownCrashes
		case p <= crashpoint.VMMGuestReady:
			before = append(before, p)
		default:
			after = append(after, p)
		}
	}
	c.again = c.jobs
	for points := range slices.Chunk(before, 3) {
		failed := c.failed()
		for _, p := range points {
			c.arm(p)
		}
		c.jobs()
		for _, p := range points {
			c.untilDead(p)
		}
		c.rest()
		if n := c.failed() - failed; n < len(points) {
			c.t.Errorf("%d runners say that they failed when their VMs died at %v", n, points)
		}
	}
	for _, p := range after {
		c.arm(p)
		c.jobs()
	}
	for _, p := range after {
		c.untilDead(p)
	}
	c.again = nil
	c.rest()
}

func guestCrashes(c *crashSite) {
	c.begin(host)
	if c.onMachines() {
		guestCrashesInside(c)
		c.end()
		return
	}
	for _, p := range []crashpoint.Point{crashpoint.GuestReceived, crashpoint.GuestTaken, crashpoint.ListenerStarted} {
		c.failing(c.jobs, p)
	}
	for _, p := range []crashpoint.Point{crashpoint.ListenerExited, crashpoint.GuestFinished} { // the job is over
		c.crash(c.jobs, p)
	}
	c.failing(c.interrupted, crashpoint.ListenerBusy)
	c.end()
}

// interrupted queues a job that may be lost.
func (c *crashSite) interrupted() {
	c.t.Helper()
	c.fates[c.succeeding("interrupted")] = "lost"
}

// guestCrashesInside kill the guest program inside its machine, which does not end of that,
// nor does a listener that runs: the agent finds a guest program that has forgotten its
// config, and ends the machine. Jobs that are lost share the minute that GitHub takes to see
// it. Where the job is over, no agent is there: it could see the end before the death.
func guestCrashesInside(c *crashSite) {
	for _, p := range []crashpoint.Point{
		crashpoint.GuestReceived, crashpoint.GuestTaken, crashpoint.ListenerStarted, crashpoint.ListenerBusy, crashpoint.ListenerExited, crashpoint.GuestFinished,
	} {
		before, unseen := c.failed(), p == crashpoint.ListenerExited || p == crashpoint.GuestFinished
		c.again = c.interrupted
		c.die(func() {
			if unseen {
				c.thenArm = crashpoint.ConfigDelivered
			}
			c.interrupted()
			if unseen {
				c.untilDead(crashpoint.ConfigDelivered)
			}
		}, p)
		c.again = nil
		if unseen {
			c.revive(crashpoint.ConfigDelivered)
		}
		eventually(c.t, "a runner says that its guest program was started anew", func() bool { return c.failed() > before })
	}
	c.waits()
	c.rest()
}

// firstConfig is the controller's configuration before it has ever listened.
func (c *crashSite) firstConfig() string {
	return strings.NewReplacer("WEBHOOK", "127.0.0.1:0", "AGENTS", "127.0.0.1:0", "ADMIN", "127.0.0.1:0").Replace(c.config)
}
