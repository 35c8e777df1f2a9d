// SPDX-License-Identifier: MIT

package dev

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestStop(t *testing.T) {
	for name, tt := range map[string]struct{ script, want string }{
		"it obeys":                 {"trap 'exit 0' TERM; echo; while :; do sleep 0.01; done", ""},
		"it does not listen yet":   {"echo; exec sleep 1000", ""},
		"it ends with an error":    {"trap 'exit 3' TERM; echo; while :; do sleep 0.01; done", "exit status 3"},
		"it was killed before":     {"echo; kill -KILL $$", "signal: killed"},
		"it has ended well before": {"echo", ""},
	} {
		t.Run(name, func(t *testing.T) {
			p := &process{name: "it", cmd: exec.CommandContext(t.Context(), "sh", "-c", tt.script), done: make(chan struct{}), log: filepath.Join(t.TempDir(), "log")}
			out, err := p.cmd.StdoutPipe()
			if err == nil {
				err = p.cmd.Start()
			}
			if err != nil {
				t.Fatal(err)
			}
			if _, err := out.Read(make([]byte, 1)); err != nil {
				t.Error(err)
			}
			go func() {
				p.err = p.cmd.Wait()
				close(p.done)
			}()
			if tt.want == "signal: killed" {
				<-p.done
			}
			switch err := p.stop(time.Minute); {
			case tt.want == "" && err != nil:
				t.Error(err)
			case tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)):
				t.Errorf("%v, want %s", err, tt.want)
			}
		})
	}
}
