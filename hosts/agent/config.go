// SPDX-License-Identifier: MIT

package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"time"

	"github.com/minifleet/minifleet/fleet"
	"github.com/minifleet/minifleet/secret"
)

// Config says whom an agent serves and with what.
type Config struct {
	// Controller is its address: https, or http on loopback. Required.
	Controller string
	// Name of the host, as operators see it. Required.
	Name string
	// StateDir keeps the host's identity and books; it is made if missing. Empty keeps
	// them in memory, for a host without VMs.
	StateDir string
	// OtherUser says that VMs run as another user, who must get through StateDir to them.
	OtherUser bool
	// EnrolmentToken is needed until the host has enrolled.
	EnrolmentToken secret.Text
	// CAFile holds PEM certificates to trust instead of the system's.
	CAFile string
	// Slots is how many VMs may run at once. Required.
	Slots int
	// Machines makes the VMs. Required.
	Machines Machines
	// Backends are the kinds of VM that Machines makes.
	Backends []string
	// Machine identifies the hardware, to tell a restart from a copy of the state
	// folder. Empty asks the system.
	Machine string
	// Version of the agent.
	Version string
	// BootTimeout bounds the time from a VM's start to the guest's first answer. Zero
	// means 5 min.
	BootTimeout time.Duration
	// RestoreTimeout bounds the time from the start of a VM that continues from a saved
	// state to its guest's first answer; then it boots instead. Zero means 1 min.
	RestoreTimeout time.Duration
	// EndGrace is how long a listener that must end may take, where the controller does
	// not say. Zero means 30 s.
	EndGrace time.Duration
	// GuestTimeout is how long the guest of a standby may stay silent. Zero means 1 min.
	GuestTimeout time.Duration
	// KeepFailures is how many failures' diagnostics are kept. Zero means 20.
	KeepFailures int
	// ReportEvery is the longest time between two reports. Zero means 1 min.
	ReportEvery time.Duration
	// ImagesEvery is the time between two looks at the list of images. Zero means 30 s.
	ImagesEvery time.Duration
	// LookEvery is the longest time between two looks at a VM and its guest, whose
	// changes tell of themselves. A guest that hangs is found out so. Zero means 25 s.
	LookEvery time.Duration
	// Peers are the hosts with which chunks of images are shared.
	Peers PeersConfig
	// Log receives what happens. Nil means nowhere.
	Log *slog.Logger

	// Dial opens connections to the controller. Nil means TCP.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Wall is the clock on the wall, which a sleep of the machine moves. Nil means the
	// system's.
	Wall func() time.Time
}

func (c Config) withDefaults() Config {
	c.BootTimeout = cmp.Or(c.BootTimeout, 5*time.Minute)
	c.RestoreTimeout = cmp.Or(c.RestoreTimeout, time.Minute)
	c.EndGrace = cmp.Or(c.EndGrace, 30*time.Second)
	c.GuestTimeout = cmp.Or(c.GuestTimeout, time.Minute)
	c.KeepFailures = cmp.Or(c.KeepFailures, 20)
	c.ReportEvery = cmp.Or(c.ReportEvery, time.Minute)
	c.ImagesEvery = cmp.Or(c.ImagesEvery, 30*time.Second)
	c.LookEvery = cmp.Or(c.LookEvery, 25*time.Second)
	c.Peers.Group = cmp.Or(c.Peers.Group, DefaultPeerGroup)
	c.Log = cmp.Or(c.Log, slog.New(slog.DiscardHandler))
	if c.Wall == nil {
		c.Wall = func() time.Time { return time.Now().Round(0) }
	}
	return c
}

// Validate returns everything that is wrong with the configuration.
func (c Config) Validate() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if _, err := controllerURL(c.Controller); err != nil {
		errs = append(errs, err)
	}
	if !fleet.ValidName(c.Name) {
		bad("name %.60q: want 1 to 32 lower-case letters, digits and dashes", c.Name)
	}
	if c.Slots < 1 || c.Slots > 1000 {
		bad("slots is %d: want 1 to 1000", c.Slots)
	}
	if c.Machines == nil {
		bad("machines is missing")
	}
	if c.BootTimeout < 0 || c.EndGrace < 0 || c.GuestTimeout < 0 || min(c.ReportEvery, c.ImagesEvery, c.LookEvery, c.RestoreTimeout) < 0 || c.KeepFailures < 0 {
		bad("times and counts must not be negative")
	}
	if err := c.Peers.Validate(); err != nil {
		bad("peers: %w", err)
	}
	return errors.Join(errs...)
}

// controllerURL refuses an address that would carry credentials in the clear.
func controllerURL(text string) (*url.URL, error) {
	u, err := url.Parse(text)
	switch {
	case text == "":
		return nil, errors.New("controller is missing: give its address, such as https://minifleet.example.com:8443")
	case err != nil:
		return nil, fmt.Errorf("controller %q is not a URL", text)
	case u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "":
		return nil, fmt.Errorf("controller %q: want only scheme, host, port and path", u.Redacted())
	case u.Scheme == "https":
		return u, nil
	case u.Scheme == "http" && isLoopback(u.Hostname()):
		return u, nil
	case u.Scheme == "http":
		return nil, fmt.Errorf("controller %q: plain http is allowed to loopback only, because it carries credentials: use https", text)
	default:
		return nil, fmt.Errorf("controller %q: the scheme must be https", text)
	}
}

func isLoopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}
