// SPDX-License-Identifier: MIT

package dev

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/minifleet/minifleet/githubapp/githubsim"
)

// leftovers names everything that should be gone and is not.
func (s *site) leftovers(ctx context.Context) ([]string, error) {
	var left []string
	registered, err := s.sim.Runners(ctx)
	if err != nil {
		return nil, err
	}
	for _, r := range registered {
		if r.RemovedAt.IsZero() {
			left = append(left, fmt.Sprintf("registration %s at GitHub (%s)", r.Name, r.Status))
		}
	}
	booked, err := s.runners(ctx, false)
	if err != nil {
		return nil, err
	}
	for _, r := range booked {
		left = append(left, fmt.Sprintf("runner %s in the books (%s)", r.ID, r.Phase))
	}
	for i := range s.Agents {
		vms := filepath.Join(s.agentDir(i), "vms")
		entries, err := os.ReadDir(vms)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
		for _, e := range entries {
			left = append(left, "bundle "+filepath.Join(vms, e.Name()))
		}
		for _, pid := range processesWith(func(arg string) bool { return strings.Contains(arg, vms+"/") }) {
			left = append(left, "process "+pid+" of a VM of "+filepath.Base(s.agentDir(i)))
		}
	}
	for _, pid := range processesWith(isNap) {
		left = append(left, "process "+pid+" of a job that was cancelled")
	}
	return left, nil
}

// processesWith lists the processes with such an argument, where the system shows
// them as files.
func processesWith(such func(arg string) bool) []string {
	var pids []string
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, f := range files {
		b, _ := os.ReadFile(f)
		if slices.ContainsFunc(strings.Split(string(b), "\x00"), such) {
			pids = append(pids, filepath.Base(filepath.Dir(f)))
		}
	}
	return pids
}

// summary prints the account of the demo and returns what was wrong in it.
func (s *site) summary(ctx context.Context, took time.Duration) error {
	ctx, cancel := context.WithTimeoutCause(ctx, patience, errors.New("the summary cannot be had"))
	defer cancel()
	jobs, err := s.sim.Jobs(ctx)
	if err != nil {
		return err
	}
	left, err := s.leftovers(ctx)
	if err != nil {
		return err
	}
	var (
		wrong             []string
		listening, begins []time.Duration
		counts            = map[string]int{}
	)
	for _, j := range jobs {
		counts[j.Conclusion]++
		if want := expected(j.Name); j.Conclusion != want {
			wrong = append(wrong, fmt.Sprintf("job %s: %s, want %s %s", j.Name, orWord(j.Conclusion, j.Status), want, j.Reason))
		}
		wrong = append(wrong, incomplete(j)...)
		if !j.OnlineAt.IsZero() && !j.WebhookAt.IsZero() {
			listening = append(listening, max(0, j.OnlineAt.Sub(j.WebhookAt)))
		}
		if !j.StartedAt.IsZero() && !j.WebhookAt.IsZero() {
			begins = append(begins, j.StartedAt.Sub(j.WebhookAt))
		}
	}
	for _, l := range left {
		wrong = append(wrong, "left over: "+l)
	}
	p := func(format string, args ...any) { fmt.Fprintf(s.Out, format+"\n", args...) }
	p("")
	p("%d jobs on %d slots in %.1f s: %d succeeded, %d failed, %d cancelled", len(jobs), s.Agents*s.Slots, took.Seconds(),
		counts["success"], counts["failure"], counts["cancelled"])
	p("runner client                 %s", s.client)
	p("webhook -> listener started   p50 %s, p99 %s (%d jobs; a job that waits for a slot counts its wait)", quantile(listening, 0.5), quantile(listening, 0.99), len(listening))
	p("webhook -> job running        p50 %s, p99 %s (%d jobs)", quantile(begins, 0.5), quantile(begins, 0.99), len(begins))
	p("leftovers                     %d at GitHub, in the books and on the hosts", len(left))
	if len(wrong) == 0 {
		return nil
	}
	return fmt.Errorf("the demo went wrong:\n  %s", strings.Join(wrong, "\n  "))
}

// incomplete says what the log of a job lacks: a job that was interrupted would
// have lost some of its ticks.
func incomplete(j githubsim.Job) []string {
	if j.Conclusion != "success" {
		return nil
	}
	var wrong []string
	if j.Name == jobLong || j.Name == jobSecond {
		for i := range longTicks {
			if !strings.Contains(j.Logs, fmt.Sprintf("tick %d of %s", i+1, j.Name)) {
				wrong = append(wrong, fmt.Sprintf("job %s: tick %d is not in its log", j.Name, i+1))
				break
			}
		}
	}
	return wrong
}

func orWord(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

// quantile returns the smallest value that at least q of all are not above.
func quantile(d []time.Duration, q float64) time.Duration {
	if len(d) == 0 {
		return 0
	}
	slices.Sort(d)
	at := int(q*float64(len(d))+0.999999) - 1
	return d[min(max(at, 0), len(d)-1)].Round(time.Millisecond)
}
