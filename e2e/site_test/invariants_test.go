// SPDX-License-Identifier: MIT

package site_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/minifleet/minifleet/githubapp/githubsim"
	"github.com/minifleet/minifleet/vm"
)

// settlePatience is how long a site may take to come to rest: the longest single wait
// in it is for GitHub's list to prove that a registration is not there.
const settlePatience = 5 * time.Minute

// fleeting is for how long a look from outside can see what is over already: a vmm
// gives its lock up just before it ends.
const fleeting = 10 * time.Second

// breath is the most of it that passes between two looks: a machine that stands still ends
// nothing meanwhile.
const breath = time.Second

// settled waits until the site has come to rest with nothing but the running jobs in
// it, and holds it to the seven invariants of docs/architecture.md all the while.
// The controller must answer. Jobs are to end well unless s.fates says otherwise:
// another conclusion, or lost for one whose VM died, which may have ended before, and which
// its user may have cancelled.
func (s *site) settled(running ...int64) {
	s.t.Helper()
	over := time.Now().Add(settlePatience)
	lasting := map[string]time.Duration{} // what must never be, and for how long it was seen
	for looked := time.Now(); ; {
		changes, err := s.sim.Wait(s.ctx, 0, 0)
		if err != nil {
			s.t.Fatal(err)
		}
		l := s.look(running)
		passed := min(time.Since(looked), breath)
		looked = time.Now()
		seen := map[string]time.Duration{}
		for _, broken := range l.never {
			if before, ok := lasting[broken]; ok {
				seen[broken] = before + passed
			} else {
				seen[broken] = 0
			}
			if seen[broken] > fleeting {
				s.t.Fatal(broken)
			}
		}
		lasting = seen
		if len(l.open)+len(l.never) == 0 {
			break
		}
		if time.Now().After(over) {
			s.t.Fatalf("the site does not come to rest within %s:\n  %s", settlePatience, strings.Join(slices.Concat(l.never, l.open), "\n  "))
		}
		s.redeliver()
		if _, err := s.sim.Wait(s.ctx, changes, 200*time.Millisecond); err != nil {
			s.t.Fatal(err)
		}
	}
	s.holdsNoSecret()
}

// look is one look at everything: GitHub, the controller's books, the hosts' disks and
// processes.
type look struct {
	s        *site
	running  []int64
	github   []githubsim.Job
	names    []githubsim.Runner
	arrived  map[string]string // deliveries that were answered well, by GUID
	jobs     map[int64]jobRow
	runners  map[string]runnerRow
	hosts    []hostRow
	taken    map[string]bool // deliveries that the controller knows
	bundles  map[string]string
	machines map[string]*processes

	open  []string // is not yet as it shall be at rest
	never []string // shall be at no time
}

type (
	jobRow struct {
		ID    int64  `json:"id"`
		Name  string `json:"name"`
		State string `json:"state"`
		Wait  struct {
			Code   string `json:"code"`
			Reason string `json:"reason"`
		} `json:"wait"`
	}
	runnerRow struct {
		ID           string `json:"id"`
		HostName     string `json:"host_name"`
		Phase        string `json:"phase"`
		Observed     string `json:"observed"`
		Registration string `json:"registration"`
		RunnerName   string `json:"runner_name"`
		Attempts     int    `json:"attempts"`
		Job          int64  `json:"job"`
		Failure      string `json:"failure"`
	}
	hostRow struct {
		ID        string `json:"id"`
		Name      string `json:"name"`
		State     string `json:"state"`
		Degraded  string `json:"degraded"`
		Slots     int    `json:"slots"`
		FreeSlots int    `json:"free_slots"`
	}
	deliveryRow struct {
		GUID string `json:"guid"`
	}
)

// processes are those of one VM. Where it has a hypervisor, guest program and listener are
// not the host's.
type processes struct{ vmms, hypervisors, guests, listeners []int }

func (s *site) look(running []int64) *look {
	s.t.Helper()
	l := &look{
		s: s, running: running, arrived: map[string]string{}, jobs: map[int64]jobRow{}, runners: map[string]runnerRow{},
		taken: map[string]bool{}, bundles: map[string]string{}, machines: map[string]*processes{},
	}
	var err error
	if l.github, err = s.sim.Jobs(s.ctx); err != nil {
		s.t.Fatal(err)
	}
	if l.names, err = s.sim.Runners(s.ctx); err != nil {
		s.t.Fatal(err)
	}
	deliveries, err := s.sim.Deliveries(s.ctx)
	if err != nil {
		s.t.Fatal(err)
	}
	for _, d := range deliveries {
		if d.StatusCode/100 == 2 {
			l.arrived[d.GUID] = d.Event + " " + d.Action
		}
	}
	for _, j := range all[jobRow](s, "jobs") {
		l.jobs[j.ID] = j
	}
	for _, r := range all[runnerRow](s, "runners") {
		l.runners[r.ID] = r
	}
	for _, d := range all[deliveryRow](s, "deliveries") {
		l.taken[d.GUID] = true
	}
	l.hosts = all[hostRow](s, "hosts")
	l.disks()
	l.processes()

	l.everyJobIsServed()        // 1
	l.everyVMHasARecord()       // 2
	l.everyRegistrationHasAVM() // 3
	l.everyVMHasOneLife()       // 4
	l.noHostIsOverfull()        // 5
	l.noJobWasKilled()          // 6
	l.noDeliveryIsLost()        // 7
	return l
}

// all reads a list of the controller's API to its end. The filters are names and values.
func all[T any](s *site, what string, filters ...string) []T {
	s.t.Helper()
	var list []T
	query := url.Values{"limit": {"1000"}}
	for filter := range slices.Chunk(filters, 2) {
		query.Set(filter[0], filter[1])
	}
	for {
		req, err := http.NewRequestWithContext(s.ctx, http.MethodGet, s.admin+"/api/v1/"+what+"?"+query.Encode(), nil)
		if err != nil {
			s.t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+operatorToken)
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			s.t.Fatal(err)
		}
		var page struct {
			Items []T    `json:"items"`
			Next  string `json:"next"`
		}
		err = json.NewDecoder(res.Body).Decode(&page)
		res.Body.Close()
		if err != nil || res.StatusCode != http.StatusOK {
			s.t.Fatalf("%s: %s %v", what, res.Status, err)
		}
		list = append(list, page.Items...)
		if page.Next == "" {
			return list
		}
		query.Set("cursor", page.Next)
	}
}

func (l *look) awaits(format string, args ...any) {
	l.open = append(l.open, fmt.Sprintf(format, args...))
}

func (l *look) refuses(format string, args ...any) {
	l.never = append(l.never, fmt.Sprintf(format, args...))
}

// disks finds the bundles, and what else is left of a VM in a host's folder.
func (l *look) disks() {
	l.s.t.Helper()
	for _, pattern := range []string{
		"*/vms/*", "*/vms/.*", "*/runners/*.json", "*/tombstones/*.json", "*/.new-*", "*/*/.new-*",
	} {
		found, err := filepath.Glob(l.s.path(pattern))
		if err != nil {
			l.s.t.Fatal(err)
		}
		for _, path := range found {
			name := filepath.Base(path)
			switch {
			case pattern == "*/vms/*" && !strings.HasPrefix(name, "."):
				l.bundles[name] = path
			case pattern == "*/runners/*.json" && l.bundles[strings.TrimSuffix(name, ".json")] != "":
			default:
				l.awaits("invariant 2: left on a disk: %s", path)
			}
		}
	}
}

// processes sorts the site's processes by VM.
func (l *look) processes() {
	for _, line := range processesOf(l.s.t, l.s.dir) {
		pid, err := strconv.Atoi(strings.Fields(line)[0])
		if err != nil {
			l.s.t.Fatal(err)
		}
		for id, dir := range l.bundles {
			if !strings.Contains(line, dir) {
				continue
			}
			m := l.machines[id]
			if m == nil {
				m = &processes{}
				l.machines[id] = m
			}
			switch {
			case strings.Contains(line, "minifleet-vmm run --bundle "+dir+" "):
				if parent := parentOf(pid); !slices.Contains(m.vmms, parent) { // or it is about to become the guest
					m.vmms = append(m.vmms, pid)
				}
			case strings.Contains(line, "-name minifleet,process=minifleet-qemu "):
				if parent := parentOf(pid); !slices.Contains(m.hypervisors, parent) {
					m.hypervisors = append(m.hypervisors, pid)
				}
			case strings.Contains(line, "minifleet-guest --listen unix:"+dir+"/"):
				if parent := parentOf(pid); !slices.Contains(m.guests, parent) {
					m.guests = append(m.guests, pid)
				}
			case strings.Contains(line, "Runner.Listener run"):
				if parent := parentOf(pid); !slices.Contains(m.listeners, parent) {
					m.listeners = append(m.listeners, pid)
				}
			}
		}
	}
}

// parentOf returns a process's parent, 0 where it is not known.
func parentOf(pid int) int {
	if runtime.GOOS != "linux" {
		return 0
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	// pid (name) state parent ...
	fields := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:])
	parent, _ := strconv.Atoi(string(fields[1]))
	return parent
}

// everyJobIsServed: no queued job waits for ever, and one that waits has a reason.
func (l *look) everyJobIsServed() {
	for _, j := range l.github {
		known := l.jobs[j.ID]
		runs := slices.Contains(l.running, j.ID)
		switch {
		case runs && j.Running() && known.State != "in_progress", j.Done() && known.State != "completed":
			l.awaits("invariant 1: job %s is %s at GitHub and %q in the books", j.Name, j.Status, known.State)
		case runs || j.Done():
		case known.State == "queued" && known.Wait.Reason == "":
			l.awaits("invariant 1: job %s is queued and nothing says why", j.Name)
		default:
			l.awaits("invariant 1: job %s is %s (%s) and %q in the books (%s: %s)", j.Name, j.Status, j.RunnerName, known.State, known.Wait.Code, known.Wait.Reason)
		}
	}
}

// everyVMHasARecord: no VM without a runner record, and no record without a VM.
func (l *look) everyVMHasARecord() {
	for id, dir := range l.bundles {
		if _, ok := l.runners[id]; !ok {
			l.awaits("invariant 2: the VM %s has no runner record", dir)
		}
	}
	for id, r := range l.runners {
		switch {
		case l.bundles[id] == "":
			l.awaits("invariant 2: runner %s (%s, %s, registration %q) has no VM", id, r.Phase, r.Failure, r.Registration)
		case !slices.Contains(l.running, r.Job):
			l.awaits("invariant 2: runner %s (%s) is still there", id, r.Phase)
		case l.machines[id] == nil || len(l.machines[id].vmms) == 0:
			l.refuses("invariant 2: the VM of runner %s, which runs job %d, has no vmm", id, r.Job)
		}
	}
}

// everyRegistrationHasAVM: none at GitHub outlives its VM.
func (l *look) everyRegistrationHasAVM() {
	owner := map[string]string{}
	for id, r := range l.runners {
		if l.bundles[id] != "" {
			owner[r.RunnerName] = id
		}
	}
	for _, r := range l.names {
		if r.RemovedAt.IsZero() && owner[r.Name] == "" {
			l.awaits("invariant 3: registration %s (%s) has no VM", r.Name, r.Status)
		}
	}
}

// everyVMHasOneLife: one job, one writer, one life, and no secret before its time.
func (l *look) everyVMHasOneLife() {
	ran := map[string]string{}
	for _, j := range l.github {
		if j.StartedAt.IsZero() {
			continue
		}
		if other := ran[j.RunnerName]; other != "" {
			l.s.t.Fatalf("invariant 4: runner %s ran job %s and job %s", j.RunnerName, other, j.Name)
		}
		ran[j.RunnerName] = j.Name
	}
	for id, m := range l.machines {
		if len(m.vmms) > 1 || len(m.hypervisors) > 1 || len(m.guests) > 1 || len(m.listeners) > 1 {
			l.refuses("invariant 4: the disk of VM %s has several writers: vmms %v, hypervisors %v, guests %v, listeners %v", id, m.vmms, m.hypervisors, m.guests, m.listeners)
		}
		if r := l.runners[id]; len(m.listeners) > 0 && (r.Attempts == 0 || slices.Contains([]string{"booting", "standby"}, r.Observed)) {
			l.refuses("invariant 4: VM %s is %s after %d registrations, and a listener runs in it", id, r.Observed, r.Attempts)
		}
		states, err := vm.ReadStatus(l.bundles[id])
		if err != nil {
			l.refuses("invariant 4: VM %s: %v", id, err)
		}
		for _, state := range states[min(len(states), 1):] {
			if state.Phase == vm.PhaseStarting && !state.StartedAt.Equal(states[0].StartedAt) {
				l.s.t.Fatalf("invariant 4: VM %s began twice", id)
			}
		}
	}
}

// noHostIsOverfull: no host runs more VMs than it has slots.
func (l *look) noHostIsOverfull() {
	for _, h := range l.hosts {
		if h.State != "online" {
			l.awaits("host %s is %s", h.Name, h.State)
		}
		runs, held := 0, 0
		for id, dir := range l.bundles {
			if m := l.machines[id]; m != nil && strings.HasPrefix(dir, l.s.path(h.Name)+"/") && len(m.vmms)+len(m.hypervisors)+len(m.guests) > 0 {
				runs++
			}
			if l.runners[id].HostName == h.Name {
				held++
			}
		}
		if runs > h.Slots {
			l.refuses("invariant 5: host %s runs %d VMs on %d slots", h.Name, runs, h.Slots)
		}
		if h.FreeSlots < 0 {
			l.refuses("invariant 5: host %s is promised more often than it has slots: %d are free", h.Name, h.FreeSlots)
		}
		if h.Slots-h.FreeSlots != held {
			l.awaits("invariant 5: host %s has %d slots, %d of them free, and %d runners", h.Name, h.Slots, h.FreeSlots, held)
		}
		if h.Degraded != "" {
			l.awaits("host %s: %s", h.Name, h.Degraded)
		}
	}
}

// noJobWasKilled: each job ends as it would have without us.
func (l *look) noJobWasKilled() {
	for _, j := range l.github {
		want := l.s.fates[j.ID]
		if want == "" {
			want = "success"
		}
		switch {
		case slices.Contains(l.running, j.ID):
			if !j.Running() {
				l.s.t.Fatalf("invariant 6: job %s runs no more: it is %s %s (%s)\n%s", j.Name, j.Status, j.Conclusion, j.Reason, j.Logs)
			}
		case want == "lost" && (j.Reason == "" || strings.Contains(j.Reason, "lost communication") || strings.Contains(j.Reason, "deleted while it ran") || strings.Contains(j.Reason, "did not end the job in time")):
		case j.Done() && j.Conclusion != want:
			l.s.t.Fatalf("invariant 6: job %s ended on %s with %s (%s), and should have with %s\n%s", j.Name, j.RunnerName, j.Conclusion, j.Reason, want, j.Logs)
		}
	}
}

// noDeliveryIsLost: what was answered 2xx is in the books.
func (l *look) noDeliveryIsLost() {
	for guid, what := range l.arrived {
		if !l.taken[guid] {
			l.s.t.Fatalf("invariant 7: delivery %s (%s) was answered well and is lost", guid, what)
		}
	}
}

// holdsNoSecret searches the site's folder for a JIT config: none is ever written.
func (s *site) holdsNoSecret() {
	s.t.Helper()
	config := []byte("eyIuY3JlZGVudGlhbHMi") // {".credentials" in base64, as every config begins
	err := filepath.WalkDir(s.dir, func(path string, e os.DirEntry, err error) error {
		switch {
		case os.IsNotExist(err):
			return nil
		case err != nil:
			return err
		case e.IsDir() && (path == s.path("images") || path == s.path("programs") || strings.HasSuffix(path, "/root/runner")):
			return filepath.SkipDir // programs
		case !e.Type().IsRegular():
			return nil
		}
		found, err := holds(path, config)
		if os.IsNotExist(err) {
			return nil
		}
		if found {
			s.t.Errorf("invariant 4: %s holds a JIT config", path)
		}
		return err
	})
	if err != nil {
		s.t.Error(err)
	}
}

// holds reports whether a file has the words in it. What a disk has not written is not read.
func holds(path string, words []byte) (bool, error) {
	f, err := os.Open(path)
	if err != nil {
		return false, err
	}
	defer f.Close()
	const seekData = 3 // Linux's SEEK_DATA
	const chunk = 1 << 20
	buf := make([]byte, chunk+len(words))
	for at := int64(0); ; {
		if runtime.GOOS == "linux" {
			next, err := f.Seek(at, seekData)
			if errors.Is(err, syscall.ENXIO) { // the rest is a hole
				return false, nil
			}
			if err != nil {
				return false, err
			}
			at = next
		}
		n, err := f.ReadAt(buf, at)
		switch {
		case bytes.Contains(buf[:n], words):
			return true, nil
		case errors.Is(err, io.EOF):
			return false, nil
		case err != nil:
			return false, err
		}
		at += chunk // what lies across the border is read twice
	}
}
