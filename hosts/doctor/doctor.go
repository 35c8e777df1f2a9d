// SPDX-License-Identifier: MIT

// Package doctor looks a host over and says what will keep VMs from running on it, before
// one fails: a list of checks, each of which asks one thing and says what to do. Whatever
// they ask goes through a Host, so all of them run on any system in tests.
//
// The texts that macOS's tools print were taken from manuals and from other projects'
// sources; which of them were not yet seen on a Mac is said where they are read.
package doctor

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"
)

// Level says how bad a finding is.
type Level string

// The levels. What needs a configuration and what the host's backend does not need are
// skipped.
const (
	OK   Level = "ok"
	Warn Level = "warn"
	Fail Level = "FAIL"
	Skip Level = "skip"
)

// Finding is what one check found.
type Finding struct {
	Check  string `json:"check"`
	Level  Level  `json:"level"`
	Detail string `json:"detail"`           // what was found
	Advice string `json:"advice,omitempty"` // what to do about it
}

// Host is the machine, as the checks ask it.
type Host struct {
	System string // runtime.GOOS
	Arch   string // runtime.GOARCH
	UID    int    // of this process
	Target Target

	// Run runs a program and returns what it printed. Its error contains that too.
	Run func(ctx context.Context, command ...string) (string, error)
	// Clones reports whether files in a folder can be cloned copy-on-write.
	Clones func(dir string) (bool, error)
	// Space looks at the volume of a folder.
	Space func(dir string) (Space, error)
	// ImageSize returns the bytes that the largest image in a folder takes on its volume.
	ImageSize func(dir string) (int64, error)
	// Reach looks at the controller; nil without a configuration.
	Reach func(ctx context.Context) (Reached, error)
	Now   func() time.Time
}

// Target is what the host is to be, out of the agent's configuration. With an empty StateDir
// there was none.
type Target struct {
	Backend, StateDir, ImagesDir, VMM string
	AllowCopy                         bool
	Slots                             int
	// Reserve is how many bytes have to be free for what a new VM will write; 0 means a
	// quarter of its image.
	Reserve int64
	// Accelerator is QEMU's: "kvm", "tcg", or "" for kvm where it works.
	Accelerator string
	// SessionUser is the user as whom VMs run, and SessionUID its number; "" means
	// whoever runs the agent, which is this process's user.
	SessionUser string
	SessionUID  int
}

// Space is what a volume has.
type Space struct {
	Volume uint64 // tells volumes apart
	Free   int64  // bytes
}

// Reached is what a look at the controller found.
type Reached struct {
	Trust           string
	Enrolled, Token bool
	Date            time.Time
}

// check asks one thing.
type check struct {
	name string
	// system and backend say where it matters: "" everywhere.
	system, backend string
	// configured checks need the agent's configuration.
	configured bool
	look       func(ctx context.Context, h *Host) Finding
}

// perCheck bounds each check: a tool that waits for somebody at the screen waits in vain.
const perCheck = 45 * time.Second

// Examine runs all checks that this host's system has, in order.
func Examine(ctx context.Context, h *Host) []Finding {
	var all []Finding
	for _, c := range checks() {
		if c.system == "" || c.system == h.System {
			all = append(all, c.run(ctx, h))
		}
	}
	return all
}

func (c check) run(ctx context.Context, h *Host) Finding {
	if c.configured && h.Target.StateDir == "" {
		return Finding{Check: c.name, Level: Skip, Detail: "needs the agent's configuration: --config FILE"}
	}
	if c.backend != "" && h.Target.Backend != "" && h.Target.Backend != c.backend {
		return Finding{Check: c.name, Level: Skip, Detail: fmt.Sprintf("the backend %s does not need it", h.Target.Backend)}
	}
	ctx, cancel := context.WithTimeoutCause(ctx, perCheck, fmt.Errorf("no answer within %v", perCheck))
	defer cancel()
	f := c.look(ctx, h)
	f.Check = c.name
	return f
}

func checks() []check {
	return append(append(macChecks(), linuxChecks()...), commonChecks()...)
}

func ok(format string, args ...any) Finding {
	return Finding{Level: OK, Detail: fmt.Sprintf(format, args...)}
}

func warn(advice, format string, args ...any) Finding {
	return Finding{Level: Warn, Detail: fmt.Sprintf(format, args...), Advice: advice}
}

func fail(advice, format string, args ...any) Finding {
	return Finding{Level: Fail, Detail: fmt.Sprintf(format, args...), Advice: advice}
}

// Failed reports whether a finding is one that keeps the host from work.
func Failed(all []Finding) bool {
	for _, f := range all {
		if f.Level == Fail {
			return true
		}
	}
	return false
}

// Print writes a line for each finding, and what to do below it. Whatever tools printed is
// put on one line, without control characters.
func Print(w io.Writer, all []Finding) error {
	var b strings.Builder
	for _, f := range all {
		fmt.Fprintf(&b, "%-5s %-12s %s\n", f.Level, f.Check, oneLine(f.Detail))
		if f.Advice != "" {
			fmt.Fprintf(&b, "%-18s → %s\n", "", oneLine(f.Advice))
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func oneLine(text string) string {
	text = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(text, "?"))
	return strings.Join(strings.Fields(text), " ")
}
