// SPDX-License-Identifier: MIT

//go:build arm64 && cgo

package vz

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/minifleet/minifleet/vm"
	"github.com/minifleet/minifleet/vm/options"
	"github.com/minifleet/minifleet/vm/vmtest"
)

// TestHardware runs the suite that every backend passes on real machines: `make test-vz
// IMAGE=DIR`, which signs the test's program. The image's guest agent powers its machine
// off at POST /v1/shutdown.
func TestHardware(t *testing.T) {
	image := os.Getenv("MINIFLEET_TEST_IMAGE")
	if image == "" {
		t.Skip("boots real machines: make test-vz IMAGE=DIR")
	}
	given := options.VZ{Guest: options.GuestMacOS, Identity: options.Identity{ECID: 0x6d66_7465_7374, MAC: "02:6d:66:00:00:01"}}
	if _, err := os.Stat(filepath.Join(image, options.FileHardwareModel)); errors.Is(err, fs.ErrNotExist) {
		given.Guest = options.GuestLinux
	}
	text, err := json.Marshal(given)
	if err != nil {
		t.Fatal(err)
	}
	// Beside the image, so that clones cost nothing.
	vms, err := os.MkdirTemp(filepath.Dir(image), "mf")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(vms)
	made := 0
	bundle := func(t *testing.T, from string) string {
		t.Helper()
		made++
		dir, err := vm.Create(t.Context(), vm.CreateConfig{Dir: vms, ImageDir: from, Spec: vm.Spec{
			ID: fmt.Sprintf("t-%d", made), Backend: vm.BackendVZ, CPUs: 4, MemoryMiB: 4096, MaxLife: time.Hour, Options: text,
		}})
		if err != nil {
			t.Fatal(err)
		}
		return dir
	}
	request := func(ctx context.Context, c net.Conn, method, path string) error {
		deadline, _ := ctx.Deadline()
		if err := c.SetDeadline(deadline); err != nil {
			return err
		}
		req, err := http.NewRequestWithContext(ctx, method, "http://guest"+path, nil)
		if err != nil {
			return err
		}
		if err := req.Write(c); err != nil {
			return err
		}
		resp, err := http.ReadResponse(bufio.NewReader(c), req)
		if err != nil {
			return err
		}
		_, err = io.Copy(io.Discard, resp.Body)
		if err == nil && resp.StatusCode/100 != 2 {
			err = fmt.Errorf("%s %s: %s", method, path, resp.Status)
		}
		return err
	}
	vmtest.Run(t, vmtest.Harness{
		Backend:   Backend(Config{}),
		NewBundle: func(t *testing.T) string { return bundle(t, image) },
		BadBundle: func(t *testing.T) string {
			dir := bundle(t, image)
			if err := os.Remove(filepath.Join(dir, options.FileDisk)); err != nil {
				t.Fatal(err)
			}
			return dir
		},
		Ask: func(ctx context.Context, c net.Conn) error { return request(ctx, c, http.MethodGet, "/v1/health") },
		End: func(ctx context.Context, c net.Conn) error { return request(ctx, c, http.MethodPost, "/v1/shutdown") },
		Twin: func(t *testing.T, dir string) string {
			disks, err := os.MkdirTemp(vms, ".disks-")
			if err != nil {
				t.Fatal(err)
			}
			if err := linkAll(dir, disks); err != nil {
				t.Fatal(err)
			}
			return bundle(t, disks)
		},
		Patience: 3 * time.Minute,
	})
}
