// SPDX-License-Identifier: MIT

package agent

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
)

// hardwareID identifies this machine without saying what the system's own id is.
// Where the system has none, the network cards stand in.
func hardwareID(ctx context.Context) (string, error) {
	id := systemID(ctx)
	if id == "" {
		name, err := os.Hostname()
		if err != nil {
			return "", fmt.Errorf("identity of this machine: %w", err)
		}
		cards, err := net.Interfaces()
		if err != nil {
			return "", fmt.Errorf("identity of this machine: %w", err)
		}
		var parts []string
		for _, c := range cards {
			if len(c.HardwareAddr) > 0 {
				parts = append(parts, c.HardwareAddr.String())
			}
		}
		slices.Sort(parts)
		id = name + " " + strings.Join(parts, " ")
	}
	sum := sha256.Sum256([]byte("minifleet machine " + id))
	return hex.EncodeToString(sum[:16]), nil
}
