// SPDX-License-Identifier: MIT

package main

import (
	"fmt"
	"net/url"
	"strings"
	"time"
)

type (
	dayJob struct {
		ID    int64  `json:"id"`
		State string `json:"state"`
		Wait  struct {
			Code   string `json:"code"`
			Reason string `json:"reason"`
		} `json:"wait"`
	}
	dayRunner struct {
		ID           string `json:"id"`
		HostName     string `json:"host_name"`
		Phase        string `json:"phase"`
		Registration string `json:"registration"`
		RunnerName   string `json:"runner_name"`
		Failure      string `json:"failure"`
	}
	dayHostRow struct {
		Name      string `json:"name"`
		State     string `json:"state"`
		Degraded  string `json:"degraded"`
		Slots     int    `json:"slots"`
		FreeSlots int    `json:"free_slots"`
	}
	dayDelivery struct {
		GUID string `json:"guid"`
	}
)

// look is a look at the site in the middle of its day, where the controller answers.
func (d *day) look() {
	jobs, err := all[dayJob](d, "jobs", url.Values{"state": {"queued"}})
	if err != nil {
		return
	}
	for _, j := range jobs {
		if j.Wait.Reason == "" {
			d.broken("invariant 1: job %d is queued and nothing says why", j.ID)
		}
		d.mu.Lock()
		d.waits[j.ID] = j.Wait.Code + ": " + j.Wait.Reason
		d.mu.Unlock()
	}
	hosts, err := all[dayHostRow](d, "hosts", url.Values{})
	if err != nil {
		return
	}
	for _, h := range hosts {
		if h.FreeSlots < 0 {
			d.broken("invariant 5: host %s is promised more often than it has slots: %d are free", h.Name, h.FreeSlots)
		}
	}
}

// open lists what is not yet as it shall be at rest.
func (d *day) open() (open []string) {
	awaits := func(format string, args ...any) { open = append(open, fmt.Sprintf(format, args...)) }
	jobs, err := all[dayJob](d, "jobs", url.Values{})
	if err != nil {
		return []string{err.Error()}
	}
	known := map[int64]dayJob{}
	for _, j := range jobs {
		known[j.ID] = j
	}
	for _, j := range d.sim.Jobs() {
		k := known[j.ID]
		switch {
		case j.Done() && k.ID != 0 && k.State != "completed":
			awaits("invariant 1: job %d is over at GitHub and %s in the books", j.ID, k.State)
		case j.Done():
		case j.Status == "queued" && k.State == "queued" && k.Wait.Code == "no_pool":
		default:
			awaits("invariant 1: job %d is %s (%s) since %s and %q in the books (%s: %s)", j.ID, j.Status, j.RunnerName, j.QueuedAt.Sub(d.start), k.State, k.Wait.Code, k.Wait.Reason)
		}
	}
	runners, err := all[dayRunner](d, "runners", url.Values{})
	if err != nil {
		return append(open, err.Error())
	}
	for _, r := range runners {
		awaits("invariant 2: runner %s is still %s on %s (registration %s %q): %s", r.ID, r.Phase, r.HostName, r.Registration, r.RunnerName, r.Failure)
	}
	for _, h := range d.minis {
		for _, v := range h.left() {
			awaits("invariant 2: there is still VM %s", v)
		}
	}
	for _, r := range d.sim.Runners() {
		if r.RemovedAt.IsZero() && !d.isForeign(r.Name) {
			awaits("invariant 3: registration %s of %s (%s) is still there", r.Name, r.Scope, r.Status)
		}
	}
	hosts, err := all[dayHostRow](d, "hosts", url.Values{})
	if err != nil {
		return append(open, err.Error())
	}
	for _, h := range hosts {
		if h.State != "online" || h.Degraded != "" || h.FreeSlots != h.Slots {
			awaits("invariant 5: host %s is %s, %d of %d slots are free: %s", h.Name, h.State, h.FreeSlots, h.Slots, h.Degraded)
		}
	}
	return open
}

func (d *day) isForeign(name string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.foreign[name]
}

// tooCloseToCall is how long before a guest says that it has a job a deletion may have
// left the controller: GitHub does not know either, and nobody can.
const tooCloseToCall = 2 * time.Second

// killed holds every job to how it would have ended without us, and every delivery that
// was answered well to the books.
func (d *day) killed() {
	gone := map[string]time.Time{}
	for _, r := range d.sim.Runners() {
		gone[r.Name] = r.RemovedAt
		if d.isForeign(r.Name) && r.RemovedWhy == "deleted" {
			d.broken("registration %s is none of ours and was deleted", r.Name)
		}
	}
	for _, j := range d.sim.Jobs() {
		d.count("jobs "+strings.TrimSpace(j.Status+" "+j.Conclusion), 1)
		_, script := d.script(j.ID)
		want := map[string]string{"succeeded": "success", "failed": "failure"}[script]
		switch {
		case j.Conclusion == "" || j.Conclusion == want || j.Conclusion == "cancelled" || j.Conclusion == "skipped":
		case d.mayEnd(j.ID):
			d.count("jobs lost with their VM", 1)
		case strings.Contains(j.Reason, "deleted while it ran") && gone[j.RunnerName].Sub(j.StartedAt) < tooCloseToCall:
			d.count("jobs lost because GitHub forgot that it had just given them away", 1)
		default:
			d.broken("invariant 6: job %d ended on %s with %s (%s) after %s, and should have with %s",
				j.ID, j.RunnerName, j.Conclusion, j.Reason, j.DoneAt.Sub(j.StartedAt), want)
		}
	}
	deliveries, err := all[dayDelivery](d, "deliveries", url.Values{})
	if err != nil {
		d.broken("%v", err)
	}
	books := map[string]bool{}
	for _, x := range deliveries {
		books[x.GUID] = true
	}
	for _, x := range d.sim.Deliveries() {
		if x.Repeat {
			d.count("deliveries sent twice", 1)
		}
		d.count(fmt.Sprintf("deliveries answered %d", x.StatusCode), 1)
		if x.StatusCode/100 == 2 && !books[x.GUID] && x.Event != "ping" {
			d.broken("invariant 7: delivery %s (%s %s) was answered well and is lost", x.GUID, x.Event, x.Action)
		}
	}
}
