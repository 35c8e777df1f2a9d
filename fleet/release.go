// SPDX-License-Identifier: MIT

package fleet

import (
	"regexp"
	"strconv"
	"strings"
	"time"
)

// RunnerRelease is a version of GitHub's runner and when it came out.
type RunnerRelease struct {
	Version string // 2.336.0
	At      time.Time
}

// PoolRunner is what the guests of a pool's image say of the runner in them.
type PoolRunner struct {
	Pool, Image string
	Version     string    // as the runner names itself; "" if GitHub refused it before it did
	SeenAt      time.Time // when the last guest said so
	RefusedAt   time.Time // when GitHub last refused it as too old; zero once one had a job again
}

// GitHub gives no jobs to a runner that does not update itself within 30 days of a newer
// release (https://docs.github.com/en/actions/hosting-your-own-runners): time to act
// begins ten days before.
const (
	RunnerOldAfter    = 20 * 24 * time.Hour
	RunnerTooOldAfter = 30 * 24 * time.Hour
)

// RunnerAge says how a runner's version stands against GitHub's releases.
type RunnerAge string

// The ages.
const (
	RunnerUnknown RunnerAge = "unknown" // its version, or what is newer
	RunnerCurrent RunnerAge = "current"
	RunnerOld     RunnerAge = "old"     // for 20 days there has been a newer one
	RunnerTooOld  RunnerAge = "too_old" // for 30 days, or GitHub refuses it
)

// RunnerHealth is a pool's runner against GitHub's releases.
type RunnerHealth struct {
	Version     string
	Newest      string    // that GitHub offers, "" if that is not known
	BehindSince time.Time // when the first newer version came out; zero if there is none
	Age         RunnerAge
	Refused     bool // GitHub said so itself
}

// Behind is for how long there has been a newer version.
func (h RunnerHealth) Behind(now time.Time) time.Duration {
	if h.BehindSince.IsZero() {
		return 0
	}
	return max(0, now.Sub(h.BehindSince))
}

// HealthOf compares a pool's runner with the known releases, in any order.
func HealthOf(p PoolRunner, releases []RunnerRelease, now time.Time) RunnerHealth {
	h := RunnerHealth{Version: p.Version, Age: RunnerUnknown, Refused: !p.RefusedAt.IsZero()}
	for _, r := range releases {
		if h.Newest == "" || OlderRunner(h.Newest, r.Version) {
			h.Newest = r.Version
		}
		if p.Version != "" && OlderRunner(p.Version, r.Version) && (h.BehindSince.IsZero() || r.At.Before(h.BehindSince)) {
			h.BehindSince = r.At
		}
	}
	switch behind := h.Behind(now); {
	case h.Refused || behind >= RunnerTooOldAfter:
		h.Age = RunnerTooOld
	case behind >= RunnerOldAfter:
		h.Age = RunnerOld
	case p.Version != "" && h.Newest != "":
		h.Age = RunnerCurrent
	}
	return h
}

var runnerVersion = regexp.MustCompile(`^\d{1,6}(\.\d{1,6}){1,3}$`)

// ValidRunnerVersion reports whether a text is the version of a released runner.
func ValidRunnerVersion(s string) bool { return runnerVersion.MatchString(s) }

// OlderRunner reports whether version a comes before b. What is no version is older than
// nothing and newer than nothing.
func OlderRunner(a, b string) bool {
	if !ValidRunnerVersion(a) || !ValidRunnerVersion(b) {
		return false
	}
	as, bs := strings.Split(a, "."), strings.Split(b, ".")
	for i := range max(len(as), len(bs)) {
		if x, y := part(as, i), part(bs, i); x != y {
			return x < y
		}
	}
	return false
}

func part(list []string, i int) int {
	if i >= len(list) {
		return 0
	}
	n, _ := strconv.Atoi(list[i]) // at most six digits
	return n
}
