// SPDX-License-Identifier: MIT

package remote

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"path"
	"regexp"
	"strings"
)

// survey is what has to be known of a guest.
type survey struct {
	goos, goarch string
	boot         string // names this boot of the guest's kernel
	home         string // the user's folder
}

// surveyPrefix begins the lines that count: a user's shell may print others.
const surveyPrefix = "minifleet:"

const surveyScript = `echo "minifleet:system $(uname -s) $(uname -m)"; ` +
	`echo "minifleet:boot $(cat /proc/sys/kernel/random/boot_id 2>/dev/null || sysctl -n kern.bootsessionuuid)"; ` +
	`echo "minifleet:home $HOME"`

var (
	bootPattern = regexp.MustCompile(`^[0-9A-Fa-f]{8}[0-9A-Fa-f-]{4,56}$`)
	// homePattern has no character that a shell or a log would take for anything else.
	homePattern = regexp.MustCompile(`^/[A-Za-z0-9._@+/-]{0,60}$`)
)

var (
	systems = map[string]string{"Linux": "linux", "Darwin": "darwin"}
	archs   = map[string]string{"x86_64": "amd64", "amd64": "amd64", "aarch64": "arm64", "arm64": "arm64"}
)

// parseSurvey reads what surveyScript printed.
func parseSurvey(out []byte) (survey, error) {
	var s survey
	var system string
	lines := bufio.NewScanner(bytes.NewReader(out))
	for lines.Scan() {
		rest, ok := strings.CutPrefix(lines.Text(), surveyPrefix)
		if !ok {
			continue
		}
		key, value, _ := strings.Cut(strings.TrimRight(rest, "\r"), " ")
		switch key {
		case "system":
			system = value
		case "boot":
			s.boot = value
		case "home":
			s.home = value
		}
	}
	if err := lines.Err(); err != nil {
		return survey{}, fmt.Errorf("what the guest's shell prints cannot be read: %w", err)
	}
	kernel, machine, _ := strings.Cut(system, " ")
	s.goos, s.goarch = systems[kernel], archs[machine]
	switch {
	case system == "":
		return survey{}, errors.New("the guest's shell ran no command: give the user of the image an ordinary login shell")
	case s.goos == "" || s.goarch == "":
		return survey{}, fmt.Errorf("uname -sm says %q: minifleet-guest runs on Linux and Darwin, on x86_64 and arm64", clean(system, 60))
	case !bootPattern.MatchString(s.boot):
		return survey{}, fmt.Errorf("the guest's kernel names its boot %q: want an id from /proc/sys/kernel/random/boot_id or kern.bootsessionuuid", clean(s.boot, 80))
	case !homePattern.MatchString(s.home):
		return survey{}, fmt.Errorf("the user's folder is %q: want an absolute path of at most 60 letters, digits and . _ @ + / -, as there is a socket in it", clean(s.home, 80))
	}
	return s, nil
}

// folder is where everything of ours is in a guest.
func (s survey) folder() string { return path.Join(s.home, ".minifleet") }

// run is the folder of this boot: its existence says that minifleet-guest was started.
func (s survey) run() string {
	return path.Join(s.folder(), strings.ToLower(s.boot[:8]))
}

// socket is where minifleet-guest listens. Its path has at most 92 bytes; macOS allows 103.
func (s survey) socket() string { return path.Join(s.run(), "guest.sock") }

// within makes a path of the configuration absolute: in the user's folder, if it is not.
func (s survey) within(dir string) string {
	if path.IsAbs(dir) {
		return dir
	}
	return path.Join(s.home, dir)
}
