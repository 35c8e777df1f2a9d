// SPDX-License-Identifier: MIT

package agent

import (
	"context"
	"os/exec"
	"strings"
	"time"
)

// systemID is the Mac's hardware UUID.
func systemID(ctx context.Context) string {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, "/usr/sbin/ioreg", "-rd1", "-c", "IOPlatformExpertDevice").Output()
	if err != nil {
		return ""
	}
	_, rest, ok := strings.Cut(string(out), `"IOPlatformUUID" = "`)
	if !ok {
		return ""
	}
	uuid, _, _ := strings.Cut(rest, `"`)
	return uuid
}
