// SPDX-License-Identifier: MIT

package site_test

import (
	"bytes"
	"encoding/binary"
	"net/http"
	"os"
	"testing"
	"time"

	"github.com/minifleet/minifleet/githubapp/githubsim"
)

// The books become a day older while the controller is away. GitHub has cancelled the job in
// that day and told nobody. It is slow to answer, and until it has, no runner is made for the
// job.
func TestQueuedForADay(t *testing.T) {
	turn(t)
	s, _ := newSimulated(t, githubsim.Options{Seed: 134, Kind: true, OneKey: true})
	// Nothing that GitHub says in that day shows that it has the job still.
	s.inject(githubsim.Fault{Kind: githubsim.FaultStatus, Method: http.MethodGet, Path: "/actions/", Count: -1})
	controller := s.startController()
	id := s.queue(short("waits-for-a-day"))[0]
	var queued time.Time
	eventually(t, "it is known", func() bool {
		for _, j := range all[struct {
			QueuedAt time.Time `json:"queued_at"`
		}](s, "jobs") {
			queued = j.QueuedAt
		}
		return !queued.IsZero()
	})
	s.inject(githubsim.Fault{Kind: githubsim.DeliveryLost, Count: -1})
	if err := s.sim.CancelJob(s.ctx, id); err != nil {
		t.Fatal(err)
	}
	controller.stop()
	s.older(queued, 25*time.Hour)
	if err := s.sim.ClearFaults(s.ctx); err != nil {
		t.Fatal(err)
	}
	s.inject(githubsim.Fault{Kind: githubsim.FaultDelay, Delay: 3 * time.Second, Method: http.MethodGet, Path: "/actions/", Count: -1})
	controller = s.startController()
	agent := s.startAgent("mini-1")
	eventually(t, "the books say that it is over", func() bool { return s.stateOf(id) == "completed" })
	if n := s.registrations(); n != 0 {
		t.Errorf("%d runners were made for it", n)
	}
	if vms := s.runners(""); len(vms) != 0 {
		t.Errorf("it had machines: %+v", vms)
	}
	if err := s.sim.ClearFaults(s.ctx); err != nil {
		t.Fatal(err)
	}
	s.over(s.queue(short("next"))...)
	s.nothingLeft()
	agent.stop()
	controller.stop()
}

// older sets a moment in the database back, wherever it is written. No program uses it. It
// serves where there is one job: with more, the order of an index could break.
func (s *site) older(at time.Time, by time.Duration) {
	s.t.Helper()
	number := func(at time.Time) []byte { return binary.BigEndian.AppendUint64(nil, uint64(at.UnixMicro())) }
	b, err := os.ReadFile(s.path("minifleet.db"))
	if err != nil {
		s.t.Fatal(err)
	}
	if !bytes.Contains(b, number(at)) {
		s.t.Fatalf("%s is not in the database", at)
	}
	if err := os.WriteFile(s.path("minifleet.db"), bytes.ReplaceAll(b, number(at), number(at.Add(-by))), 0o600); err != nil {
		s.t.Fatal(err)
	}
}
