// SPDX-License-Identifier: MIT

package agent_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"testing"

	"github.com/minifleet/minifleet/hosts/protocol"
)

// runnerArchive is a runner's .tar.gz with one script in it.
func runnerArchive(t *testing.T, script string) string {
	t.Helper()
	var b bytes.Buffer
	zip := gzip.NewWriter(&b)
	files := tar.NewWriter(zip)
	err := files.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "./bin/Runner.Listener", Mode: 0o755, Size: int64(len(script))})
	if err == nil {
		_, err = files.Write([]byte(script))
	}
	for _, step := range []func() error{files.Close, zip.Close} {
		if err == nil {
			err = step()
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// The runner of an old image would be refused by GitHub; the pool's is not.
func TestAnOldImageWithAPinnedRunnerWorks(t *testing.T) {
	s := newSite(t)
	s.image("old", map[string]string{"root/runner/bin/Runner.Listener": "#!/bin/sh\necho 'An error occurred: Runner version v2 is deprecated and cannot receive messages.'\nexit 1\n"})
	s.start()
	d := pin(t, "r1", runnerArchive(t, listenerScript))
	d.Image, d.Pool, d.Wanted, d.Scope = "old", "mac", protocol.WantArmed, "octo/demo"
	s.c.want(d)
	s.c.awaitObserved("r1", "idle")
	s.tell("r1", "job")
	s.c.awaitObserved("r1", "busy")
	s.tell("r1", "finish")
	got := s.c.awaitObserved("r1", "gone")
	if got.Result != "succeeded" || got.Failure != "" {
		t.Errorf("gone is reported as %+v", got)
	}
	took := got.Took
	for name, us := range map[string]int64{
		"runner": took.Runner, "image": took.Image, "clone": took.Clone, "boot": took.Boot, "install": took.Install,
		"listener": took.Listener, "job": took.Job, "stop": took.Stop, "delete": took.Delete,
	} {
		if us <= 0 {
			t.Errorf("the step %s was not measured: %+v", name, took)
		}
	}
	if took.Restore != 0 || took.Session != 0 {
		t.Errorf("steps that were not taken: %+v", took)
	}
}
