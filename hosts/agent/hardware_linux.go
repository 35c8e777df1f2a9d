// SPDX-License-Identifier: MIT

package agent

import (
	"context"
	"os"
	"strings"
)

// systemID is what systemd or dbus made when the system was installed.
func systemID(context.Context) string {
	for _, path := range []string{"/etc/machine-id", "/var/lib/dbus/machine-id"} {
		if raw, err := os.ReadFile(path); err == nil && len(strings.TrimSpace(string(raw))) > 0 {
			return strings.TrimSpace(string(raw))
		}
	}
	return ""
}
