// SPDX-License-Identifier: MIT

package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
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
	s.queue([]string{"self-hosted", "windows"})
	s.delivered()
	if jobs := c.list("jobs"); len(jobs) != 2 {
		t.Errorf("jobs before the restore: %v", jobs)
	}
	c.stop()
	for _, suffix := range []string{"-wal", "-shm"} {
		if err := os.Remove(s.path("state.db" + suffix)); err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
	}
	if err := os.Rename(s.path("copy.db"), s.path("state.db")); err != nil {
		t.Fatal(err)
	}
	if ids := s.serve().list("jobs").column("id"); len(ids) != 1 || ids[0] != fmt.Sprint(first.JobIDs[0]) {
		t.Errorf("jobs after the restore: %v, want %d", ids, first.JobIDs[0])
	}
}
