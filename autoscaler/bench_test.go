// SPDX-License-Identifier: MIT

package autoscaler_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/minifleet/minifleet/autoscaler"
	"github.com/minifleet/minifleet/fleet"
)

// shapes are 1,000 jobs and 1,000 runners on 500 hosts, in the ways that are
// hardest for one part of the decision or another.
func shapes() map[string]func() *snap {
	hosts := func(s *snap, slots int) {
		for i := range 500 {
			s.host(fmt.Sprintf("%03d", i), slots)
		}
	}
	phases := []fleet.Phase{
		fleet.PhaseBusy, fleet.PhaseIdle, fleet.PhaseStandby, fleet.PhaseBooting, fleet.PhaseArmed, fleet.PhaseRegistering,
	}
	runners := func(s *snap, pool func(int) string, edit func(int) func(*fleet.Runner)) {
		for i := range 1000 {
			s.runner(fmt.Sprint("r", i), pool(i), fmt.Sprintf("%03d", i%500), phases[i%len(phases)], edit(i))
		}
	}
	named := func(i int) func(*fleet.Runner) {
		return func(r *fleet.Runner) {
			if r.Observed == fleet.ObservedBusy {
				r.Job, r.Registration = fleet.JobID(100000+i), fleet.RegBusy
			}
		}
	}
	return map[string]func() *snap{
		"one class": func() *snap {
			s := newSnap()
			s.pool("a", mac)
			hosts(s, 4)
			runners(s, func(int) string { return "a" }, named)
			for i := range 1000 {
				s.job(i+1, "app", "macos")
			}
			return s
		},
		"1000 repositories": func() *snap {
			s := newSnap()
			var list []string
			for i := range 1000 {
				list = append(list, fmt.Sprintf("acme/r%d", i))
			}
			s.pool("a", mac, scopes(list...))
			hosts(s, 4)
			runners(s, func(int) string { return "a" }, func(i int) func(*fleet.Runner) {
				return func(r *fleet.Runner) {
					if !r.Scope.IsZero() {
						r.Scope.Repo = fmt.Sprintf("r%d", i)
					}
				}
			})
			for i := range 1000 {
				s.job(i+1, fmt.Sprintf("r%d", i), "macos")
			}
			return s
		},
		"overlapping pools, saturated": func() *snap {
			s := newSnap()
			labels := []string{"x"}
			for i := range 20 {
				labels = append(labels, fmt.Sprint("l", i))
				s.pool(fmt.Sprint("p", i), labels, most(52))
			}
			hosts(s, 2)
			runners(s, func(i int) string { return fmt.Sprint("p", i%20) }, named)
			for i := range 1000 {
				s.job(i+1, fmt.Sprint("r", i%100), "x", fmt.Sprint("l", (i*7)%20))
			}
			return s
		},
		"everything full of what nobody needs": func() *snap {
			s := newSnap()
			s.pool("idle", []string{"other"})
			s.pool("a", mac)
			hosts(s, 2)
			runners(s, func(int) string { return "idle" }, func(int) func(*fleet.Runner) { return aged(time.Second) })
			for i := range 1000 {
				s.job(i+1, fmt.Sprint("r", i), "macos")
			}
			return s
		},
		"all hosts empty": func() *snap {
			s := newSnap()
			for i := range 20 {
				s.pool(fmt.Sprint("p", i), []string{"x", fmt.Sprint("l", i)}, standby(10))
			}
			hosts(s, 2)
			for i := range 1000 {
				s.job(i+1, fmt.Sprint("r", i), "x", fmt.Sprint("l", i%20))
			}
			return s
		},
		"one more job on 5,000 hosts": func() *snap {
			s := newSnap()
			s.pool("a", mac)
			for i := range 5000 {
				s.host(fmt.Sprintf("%04d", i), 2)
			}
			for i := range 100 {
				s.runner(fmt.Sprint("r", i), "a", fmt.Sprintf("%04d", i*7), fleet.PhaseIdle)
				s.job(i+1, "app", "macos")
			}
			s.job(101, "app", "macos")
			return s
		},
		"an image rolls out to 5,000 hosts": func() *snap {
			s := newSnap()
			s.pool("a", mac, rolled(fleet.Canary{Percent: 10}))
			s.rollout("ab--")
			for i := range 5000 {
				s.host(fmt.Sprintf("%04d", i), 2, with("a"), turn("a", true, time.Hour), turn("b", true, time.Hour))
			}
			for i := range 100 {
				s.runner(fmt.Sprint("r", i), "a", fmt.Sprintf("%04d", i*7), fleet.PhaseIdle, from("a"))
				s.job(i+1, "app", "macos")
			}
			return s
		},
		"nobody can serve": func() *snap {
			s := newSnap()
			for i := range 20 {
				s.pool(fmt.Sprint("p", i), []string{"x", fmt.Sprint("l", i)}, func(p *fleet.Pool) { p.Backend = "vz" })
			}
			hosts(s, 2)
			runners(s, func(i int) string { return fmt.Sprint("p", i%20) }, func(i int) func(*fleet.Runner) {
				return func(r *fleet.Runner) { r.Observed, r.Job, r.Registration = fleet.ObservedBusy, 7, fleet.RegBusy }
			})
			for i := range 1000 {
				s.job(i+1, fmt.Sprint("r", i), "x")
			}
			return s
		},
	}
}

func BenchmarkDecide(b *testing.B) {
	for name, shape := range shapes() {
		b.Run(name, func(b *testing.B) {
			s := shape()
			b.ReportAllocs()
			for b.Loop() {
				autoscaler.Decide(s.Snapshot)
			}
			b.ReportMetric(float64(b.Elapsed().Microseconds())/1000/float64(b.N), "ms/decision")
		})
	}
}
