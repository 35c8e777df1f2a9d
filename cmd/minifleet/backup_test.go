// SPDX-License-Identifier: MIT

package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"testing"
)

// What docs/operations.md says of backups: one is taken while the controller runs, and
// put in the place of the database it brings back what was known at its moment.
func TestBackupAndRestore(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	c := s.serve()
	first := s.queue([]string{"self-hosted", "windows"})
	s.delivered()
	var out bytes.Buffer
	args := []string{"backup", "--config", s.path("controller.yaml"), "--to", s.path("copy.db")}
	if err := run(t.Context(), args, strings.NewReader(""), &out, io.Discard, nothing); err != nil || !strings.Contains(out.String(), "copy.db holds the whole database") {
		t.Fatalf("%q, %v", &out, err)
	}
	if err := run(t.Context(), args, strings.NewReader(""), io.Discard, io.Discard, nothing); err == nil || !strings.Contains(err.Error(), "exists") {
		t.Errorf("a second backup to the same file: %v", err)
	}
	ended, open := s.queue([]string{"self-hosted", "windows"}), s.queue([]string{"self-hosted", "windows"})
	s.delivered()
	if jobs := c.list("jobs"); len(jobs) != 3 {
		t.Errorf("jobs before the restore: %v", jobs)
	}
	c.stop()
	if err := s.sim.CancelRun(ended.ID); err != nil {
		t.Fatal(err)
	}
	s.delivered() // to nobody
	for _, suffix := range []string{"-wal", "-shm"} {
		if err := os.Remove(s.path("state.db" + suffix)); err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
	}
	if err := os.Rename(s.path("copy.db"), s.path("state.db")); err != nil {
		t.Fatal(err)
	}
	// The copy knows the first job alone; GitHub's lists bring back what is not over, and its
	// list of deliveries what it could not deliver meanwhile.
	c = s.serve()
	want := []string{fmt.Sprint(open.JobIDs[0]), fmt.Sprint(ended.JobIDs[0]), fmt.Sprint(first.JobIDs[0])}
	eventually(t, "the jobs that the copy lacks and GitHub has are known", func() bool { return len(c.list("jobs")) > 2 })
	if ids := c.list("jobs").column("id"); !slices.Equal(ids, want) {
		t.Errorf("jobs after the restore: %v, want %v", ids, want)
	}
}
