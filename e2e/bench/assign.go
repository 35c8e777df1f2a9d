// SPDX-License-Identifier: MIT

package main

import (
	"context"
	"fmt"
	"slices"
	"time"
)

// vms are the times of simulated VMs whose runner listens and is given no job: the
// whole way to a registration is walked, and no slot is free again.
func vms(boot string) []string {
	return []string{"--register", "50ms", "--idle", "1h", "--boot", boot}
}

// assigned sends jobs by the given means, waits until each has its assignment, and
// returns the sending and the assigning.
func (s *site) assigned(ctx context.Context, first int64, n int, send func([][]byte) ([]sent, error)) (all []sent, at []time.Time, err error) {
	requests, err := s.requests(first, n, "queued")
	if err != nil {
		return nil, nil, err
	}
	before := len(s.receipts.of("assigned"))
	if all, err = send(requests); err != nil {
		return nil, nil, s.failed(err)
	}
	at, err = s.receipts.times(ctx, "assigned", before, n, patience)
	return all, at, s.failed(err)
}

// measureAssign is the way of a job to a host: at a steady rate, and many at once.
func measureAssign(ctx context.Context, b *bencher) error {
	s, err := newSite(ctx, b, siteOf{name: "assign"})
	if err != nil {
		return err
	}
	defer s.close()
	if err := s.simulate(ctx, b.of(200), 2, vms("50ms")...); err != nil {
		return err
	}
	if err := s.settled(ctx); err != nil {
		return err
	}
	profiled := s.profile(ctx, "assign-steady", 15)
	cpu := s.controller.cpu()
	all, at, err := s.assigned(ctx, 1, b.of(200), func(r [][]byte) ([]sent, error) { return s.steady(ctx, r, 10) })
	if err != nil {
		return err
	}
	cpu = s.controller.cpu() - cpu
	t := inOrder(writes(all), at)
	b.limit("webhook to assignment, 200 hosts, 10 jobs/s", "p50 < 10 ms", t.String(), t.at(0.5) < 10*time.Millisecond)
	b.limit("  the same", "p99 < 50 ms", short(t.at(0.99)), t.at(0.99) < 50*time.Millisecond)
	b.note("  the controller's CPU for one job", fmt.Sprintf("%.1f ms", float64(cpu)/1e6/float64(len(all))))
	if err := profiled(); err != nil {
		return err
	}
	if err := s.settled(ctx); err != nil {
		return err
	}
	all, at, err = s.assigned(ctx, 100_000, b.of(200), func(r [][]byte) ([]sent, error) { return s.burst(r, 64) })
	if err != nil {
		return err
	}
	slices.SortFunc(at, time.Time.Compare)
	spread := at[len(at)-1].Sub(at[0])
	first, _ := span(all)
	b.limit("200 jobs at once: first to last assignment", "<= 300 ms", short(spread), spread <= 300*time.Millisecond)
	b.note("  first delivery's write to last assignment", short(at[len(at)-1].Sub(first)))
	return nil
}

// measureThousand fills a fleet at once, and then looks at it at rest.
func measureThousand(ctx context.Context, b *bencher) error {
	s, err := newSite(ctx, b, siteOf{name: "thousand"})
	if err != nil {
		return err
	}
	defer s.close()
	hosts := b.of(500)
	// A VM of a real hypervisor boots for longer than all assignments take together.
	if err := s.simulate(ctx, hosts, 2, append(vms("3s"), "--jitter", "0.5")...); err != nil {
		return err
	}
	if err := s.settled(ctx); err != nil {
		return err
	}
	if err := b.idle(ctx, s, hosts); err != nil {
		return err
	}
	profiled := s.profile(ctx, "thousand", 5)
	cpu := s.controller.cpu()
	all, at, err := s.assigned(ctx, 1, 2*hosts, func(r [][]byte) ([]sent, error) { return s.burst(r, 64) })
	if err != nil {
		return err
	}
	first, last := span(all)
	took := slices.MaxFunc(at, time.Time.Compare).Sub(first)
	b.limit(fmt.Sprintf("%d jobs at once, %d hosts: all assigned", 2*hosts, hosts), "<= 1 s", short(took), took <= time.Second)
	b.note("  meanwhile deliveries were accepted at", fmt.Sprintf("%.0f/s", float64(len(all))/last.Sub(first).Seconds()))
	if _, err := s.receipts.times(ctx, "idle", 0, 2*hosts, patience); err != nil {
		return s.failed(err)
	}
	if err := s.settled(ctx); err != nil {
		return err
	}
	b.note("  all listening after", short(slices.MaxFunc(s.receipts.of("idle"), byTime).At.Sub(first)))
	b.note("  the controller's CPU for one job", fmt.Sprintf("%.1f ms", float64(s.controller.cpu()-cpu)/1e6/float64(len(all))))
	_, most := s.controller.memory()
	b.limit("  controller's memory at its peak", "< 100 MiB", mib(most), most < 100<<20)
	return profiled()
}

// idle looks at a fleet that has nothing to do.
func (b *bencher) idle(ctx context.Context, s *site, hosts int) error {
	rest := time.Duration(max(1, 60*b.scale)) * time.Second
	cpu := s.controller.cpu()
	if err := pause(ctx, rest); err != nil {
		return err
	}
	share := float64(s.controller.cpu()-cpu) / float64(rest)
	now, _ := s.controller.memory()
	b.limit(fmt.Sprintf("%d hosts idle: controller's memory", hosts), "< 60 MiB", mib(now), now < 60<<20)
	b.limit(fmt.Sprintf("  its CPU over %s", rest), "< 1 % of a core", fmt.Sprintf("%.2f %%", 100*share), share < 0.01)
	return nil
}

func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// measureGrowth asks what one more job costs on fleets of several sizes.
func measureGrowth(ctx context.Context, b *bencher) error {
	for _, hosts := range []int{100, 1000, 5000} {
		if err := b.growth(ctx, b.of(hosts)); err != nil {
			return err
		}
	}
	return nil
}

func (b *bencher) growth(ctx context.Context, hosts int) error {
	name := fmt.Sprintf("growth-%d", hosts)
	s, err := newSite(ctx, b, siteOf{name: name})
	if err != nil {
		return err
	}
	defer s.close()
	if err := s.simulate(ctx, hosts, 2, vms("50ms")...); err != nil {
		return err
	}
	if err := s.settled(ctx); err != nil {
		return err
	}
	// What the fleet costs at rest is no cost of a job.
	watched := time.Duration(max(1, 10*b.scale)) * time.Second
	rest := s.controller.cpu()
	if err := pause(ctx, watched); err != nil {
		return err
	}
	rest = s.controller.cpu() - rest
	profiled := s.profile(ctx, name, 10)
	cpu, began := s.controller.cpu(), time.Now()
	all, at, err := s.assigned(ctx, 1, b.of(100), func(r [][]byte) ([]sent, error) { return s.steady(ctx, r, 10) })
	if err != nil {
		return err
	}
	if err := s.settled(ctx); err != nil {
		return err
	}
	cpu = s.controller.cpu() - cpu - time.Duration(float64(rest)*time.Since(began).Seconds()/watched.Seconds())
	t := inOrder(writes(all), at)
	now, _ := s.controller.memory()
	b.note(fmt.Sprintf("one more job on %d hosts", hosts), fmt.Sprintf("%.1f ms CPU; %s; %s", float64(cpu)/1e6/float64(len(all)), t, mib(now)))
	return profiled()
}
