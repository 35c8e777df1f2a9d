// SPDX-License-Identifier: MIT

package states

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/minifleet/minifleet/vm"
)

// askTime bounds how long a program may take to say its version.
const askTime = 10 * time.Second

// HostBuild says all of the host that a state depends on: the build of its system, and for
// QEMU, whose program is given, also its version and the accelerator asked for.
func HostBuild(ctx context.Context, backend vm.BackendName, qemu, accelerator string) (string, error) {
	build, err := systemBuild()
	if err != nil {
		return "", fmt.Errorf("the build of the host's system: %w", err)
	}
	if backend != vm.BackendQEMU {
		return build, nil
	}
	ctx, cancel := context.WithTimeoutCause(ctx, askTime, errors.New("it does not say its version"))
	defer cancel()
	out, err := exec.CommandContext(ctx, qemu, "--version").Output()
	if err != nil {
		return "", fmt.Errorf("the version of %s: %w", qemu, errors.Join(err, context.Cause(ctx)))
	}
	version, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
	if version == "" {
		return "", fmt.Errorf("the version of %s: it says nothing", qemu)
	}
	return build + ", " + version + ", " + accelerator, nil
}

// ProgramVersion tells one build of a program from every other: its digest. A version that
// a program says of itself is the same for many builds while it is developed.
func ProgramVersion(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	sum := sha256.New()
	if _, err := io.Copy(sum, f); err != nil {
		return "", fmt.Errorf("read %s: %w", path, err)
	}
	return "sha256:" + hex.EncodeToString(sum.Sum(nil)), nil
}
