// SPDX-License-Identifier: MIT

package setup

import (
	"context"
	"errors"
	"net"
	"net/url"
	"os"
	"os/exec"
	"runtime"
	"strings"
)

// OpenBrowser shows a page in the browser of the person at this machine.
func OpenBrowser(ctx context.Context, page string) error {
	program := "xdg-open"
	if runtime.GOOS == "darwin" {
		program = "open"
	} else if os.Getenv("DISPLAY") == "" && os.Getenv("WAYLAND_DISPLAY") == "" {
		return errors.New("no display")
	}
	return exec.CommandContext(ctx, program, page).Run()
}

// RemoteLogin is user@address of this machine as the SSH client that this program runs
// under knows it, "" if it runs under none.
func RemoteLogin(getenv func(string) string) string {
	parts := strings.Fields(getenv("SSH_CONNECTION")) // client, its port, server, its port
	if len(parts) != 4 {
		return ""
	}
	if user := getenv("USER"); user != "" {
		return user + "@" + parts[2]
	}
	return parts[2]
}

// forward is the port of a local page as ssh -L takes it.
func forward(page string) string {
	u, err := url.Parse(page)
	if err != nil {
		return ""
	}
	return u.Port() + ":" + net.JoinHostPort(u.Hostname(), u.Port())
}

func readSecret(path string) (string, error) {
	b, err := os.ReadFile(path)
	return strings.TrimSpace(string(b)), err
}
