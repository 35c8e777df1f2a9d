// SPDX-License-Identifier: MIT

package site_test

import (
	"context"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/minifleet/minifleet/githubapp/githubsim"
)

// Eight jobs that end only once all eight run, on eight runners.
func TestEightInParallel(t *testing.T) {
	turn(t)
	dir := folder(t)
	meeting := t.TempDir()
	p := launch(t, dir, "minifleet", []string{"CI=true"}, "dev", "--agents", "2", "--slots", "4", "--seed", "31", "--runner", os.Getenv(runnerEnv))
	p.await("the site is up", func(out string) bool { return strings.Contains(out, "Press Ctrl-C") })
	sim := githubsim.Control{BaseURL: p.announced("simulated GitHub")}
	w := githubsim.Workflow{Repo: "octo/demo"}
	for i := range 8 {
		w.Jobs = append(w.Jobs, githubsim.JobSpec{
			Name: fmt.Sprintf("meets-%d", i), Labels: []string{"self-hosted", "demo"}, Env: map[string]string{"MEETING": meeting, "ME": fmt.Sprint(i)},
			Steps: []githubsim.Step{
				{Name: "Arrive", Run: `touch "$MEETING/$ME"`},
				{Name: "Wait for all", Run: `until [ "$(ls "$MEETING" | wc -l)" -eq 8 ]; do sleep 0.1; done; echo "all 8 are here"`},
			},
		})
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	run, err := sim.QueueRun(ctx, w)
	if err != nil {
		t.Fatal(err)
	}
	runners := map[string]bool{}
	for _, id := range run.JobIDs {
		j, err := sim.WaitJob(ctx, id, "completed")
		if err != nil {
			t.Fatalf("job %d: %v", id, err)
		}
		runners[j.RunnerName] = true
		if j.Conclusion != "success" || !strings.Contains(j.Logs, "all 8 are here") {
			t.Errorf("%s: %s\n%s", j.Name, j.Conclusion, j.Logs)
		}
	}
	if len(runners) != 8 {
		t.Errorf("%d runners for 8 jobs: %v", len(runners), runners)
	}
	eventually(t, "every registration is gone from GitHub", func() bool {
		all, err := sim.Runners(ctx)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range all {
			if r.RemovedAt.IsZero() {
				return false
			}
		}
		return true
	})
	p.signal(syscall.SIGINT)
	if code, _ := p.exit(); code != 0 {
		t.Errorf("a site that is told to end ends with status %d", code)
	}
	empty(t, dir)
}
