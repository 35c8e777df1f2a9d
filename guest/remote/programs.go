// SPDX-License-Identifier: MIT

package remote

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// Programs is a folder with minifleet-guest for the systems of guests: as
// minifleet-guest-OS-ARCH, or OS-ARCH/minifleet-guest as `make build` leaves it, with Go's
// names of systems and architectures.
type Programs struct{ Dir string }

// open returns the program that fits, and its SHA-256 in hex.
func (p Programs) open(goos, goarch string) (*os.File, string, error) {
	fit := goos + "-" + goarch
	f, err := os.Open(filepath.Join(p.Dir, "minifleet-guest-"+fit))
	if errors.Is(err, fs.ErrNotExist) {
		f, err = os.Open(filepath.Join(p.Dir, fit, "minifleet-guest"))
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil, "", fmt.Errorf("there is no minifleet-guest for %s/%s: put it into %s as minifleet-guest-%s (make build makes bin/%s/minifleet-guest)", goos, goarch, p.Dir, fit, fit)
	}
	if err != nil {
		return nil, "", err
	}
	sum := sha256.New()
	_, err = io.Copy(sum, f)
	if err == nil {
		_, err = f.Seek(0, io.SeekStart)
	}
	if err != nil {
		return nil, "", errors.Join(err, f.Close())
	}
	return f, hex.EncodeToString(sum.Sum(nil)), nil
}
