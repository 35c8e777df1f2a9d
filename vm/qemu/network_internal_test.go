// SPDX-License-Identifier: MIT

//go:build linux

package qemu

import (
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/minifleet/minifleet/vm/console"
	"github.com/minifleet/minifleet/vm/options"
)

// A guest sends what passt complains of. That must not fill the host's disk.
func TestWhatPasstSaysIsBounded(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	chatty := filepath.Join(dir, "passt")
	script := "#!/bin/sh\nhead -c 20000000 /dev/zero >&2\necho >&3\nexec sleep 600\n"
	if err := os.WriteFile(chatty, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	n, err := startPasst(slog.New(slog.DiscardHandler), plan{dir: dir, passt: chatty, options: options.QEMU{Network: options.NetworkNAT}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.wire.Read(make([]byte, 1)); err != nil { // all is said
		t.Error(err)
	}
	n.wire.Close()
	n.end()
	info, err := os.Stat(filepath.Join(dir, filePasstLog))
	if err != nil || info.Size() < console.Limit || info.Size() > console.Limit+100 {
		t.Errorf("%d bytes are kept, %v", info.Size(), err)
	}
}
