// SPDX-License-Identifier: MIT

package fleet

import (
	"cmp"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/minifleet/minifleet/trust"
)

// Pool is what an operator defines: which jobs are served, by which machines, and
// how many at once.
type Pool struct {
	Name        string
	Labels      Labels   // on every runner, in full: GitHub adds none by itself
	LabelNames  []string // the same as the operator spells them, for GitHub
	Scopes      []Scope
	Image       string // a name, or a reference whose tag or digest names what is rolled out
	Canary      Canary
	Backend     string // "" = any backend that a host offers
	CPUs        int
	MemoryMiB   int
	MaxRunners  int // 0 = as many as there are slots
	Standby     int // VMs kept booted and clean beyond demand
	RunnerGroup string
	// ScaleSet is the name of the runner scale set whose message queue tells the pool's
	// demand, and which makes its registrations; "" where webhooks tell it.
	ScaleSet string
	// Guest says how the agent reaches the guest: "" by the guest program that the image
	// starts, GuestSSH by SSH alone.
	Guest string
	// Network of the VMs: "" = the backend's default.
	Network string
	// Runner, if set, is put into every guest instead of what the image has.
	Runner RunnerArchive
	// Trust says whose code the pool runs.
	Trust  trust.Policy
	Limits Limits
}

// GuestSSH is the guest of an image that has nothing but an SSH server.
const GuestSSH = "ssh"

// The networks of VMs.
const (
	NetworkIsolated = "isolated"
	NetworkNAT      = "nat"
)

// RunnerArchive is one version of the runner, as GitHub publishes it: a .tar.gz.
type RunnerArchive struct {
	URL    string // https, or file on every host
	SHA256 string // hex, of the archive
}

var digestPattern = regexp.MustCompile(`^[0-9a-f]{64}$`)

func (r RunnerArchive) validate() error {
	if r == (RunnerArchive{}) {
		return nil
	}
	if !strings.HasPrefix(r.URL, "https://") && !strings.HasPrefix(r.URL, "file:///") || len(r.URL) > 2048 {
		return fmt.Errorf("runner.url is %.80q: give the https or file address of the runner's archive", r.URL)
	}
	if !digestPattern.MatchString(r.SHA256) {
		return fmt.Errorf("runner.sha256 is %.80q: give the archive's digest, 64 hex digits, as its release page shows it", r.SHA256)
	}
	return nil
}

// Limits are how long a runner of a pool may take in each phase. Zero means the
// default.
type Limits struct {
	Placed      time.Duration // until the agent begins
	Preparing   time.Duration // without progress
	Booting     time.Duration
	Arming      time.Duration // granted, until the config is in the guest
	Registering time.Duration // until GitHub's side listens
	Ending      time.Duration // from the order to go until the slot is free
	Surplus     time.Duration // how long a runner nobody needs is kept
	Unnamed     time.Duration // how long a busy guest stands for a job that GitHub has not named
	Assignment  time.Duration // how long a listening runner stands for a job that GitHub does not give it
	Job         time.Duration // how long a job may run: its runner is ended then
}

// GitHub's own limits for jobs of self-hosted runners
// (https://docs.github.com/en/actions/reference/limits): after LongestJob it fails one that
// runs, after LongestQueue it cancels one that no runner took.
const (
	LongestJob   = 5 * 24 * time.Hour
	LongestQueue = 24 * time.Hour
)

// WithDefaults fills what is zero.
func (l Limits) WithDefaults() Limits {
	return Limits{
		Placed:      cmp.Or(l.Placed, time.Minute),
		Preparing:   cmp.Or(l.Preparing, 10*time.Minute),
		Booting:     cmp.Or(l.Booting, 5*time.Minute),
		Arming:      cmp.Or(l.Arming, 10*time.Minute),
		Registering: cmp.Or(l.Registering, 4*time.Minute),
		Ending:      cmp.Or(l.Ending, 5*time.Minute),
		Surplus:     cmp.Or(l.Surplus, time.Minute),
		Unnamed:     cmp.Or(l.Unnamed, 2*time.Minute),
		Assignment:  cmp.Or(l.Assignment, 3*time.Minute),
		Job:         cmp.Or(l.Job, LongestJob),
	}
}

var namePattern = regexp.MustCompile(`^[a-z0-9](?:[a-z0-9-]{0,30}[a-z0-9])?$`)

// ValidName reports whether a name of a pool, host or image is one: lower-case
// letters, digits and dashes, at most 32, so that it fits a runner's name, a
// path and a URL as it stands.
func ValidName(s string) bool { return namePattern.MatchString(s) }

// Validate returns all that is wrong with the pool.
func (p Pool) Validate() error {
	var errs []error
	bad := func(format string, args ...any) {
		errs = append(errs, fmt.Errorf("pool %q: "+format, append([]any{p.Name}, args...)...))
	}
	if !ValidName(p.Name) {
		bad("the name must be 1 to 32 lower-case letters, digits and dashes")
	}
	if len(p.Labels) == 0 {
		bad("it needs at least one label")
	}
	if len(p.Labels) > 100 { // GitHub's limit for a JIT config
		bad("it has %d labels, GitHub takes at most 100", len(p.Labels))
	}
	for _, l := range p.LabelNames {
		if len(l) > 256 { // the runner's own validator
			bad("label %.20q... is longer than 256 characters", l)
		}
		if strings.TrimSpace(l) == "" || strings.ContainsFunc(l, unicode.IsControl) {
			bad("label %.20q is blank or has control characters", l)
		}
	}
	if len(p.Scopes) == 0 {
		bad("it needs at least one scope (an organization or owner/repository)")
	}
	if err := checkImage(p.Image); err != nil {
		bad("%w", err)
	}
	if err := p.Canary.validate(); err != nil {
		bad("%w", err)
	}
	if p.Canary.Percent > 0 && !RemoteImage(p.Image) {
		bad("canary_percent is for an image that is a reference (gs://, file:// or oci://): of %q there is one version", p.Image)
	}
	if p.CPUs < 0 || p.MemoryMiB < 0 || p.MaxRunners < 0 || p.Standby < 0 {
		bad("cpus, memory_mib, max_runners and standby must not be negative")
	}
	if p.Guest != "" && p.Guest != GuestSSH {
		bad("guest is %.40q: give %q, or nothing for an image that starts the guest program", p.Guest, GuestSSH)
	}
	if p.Network != "" && p.Network != NetworkIsolated && p.Network != NetworkNAT {
		bad("network is %.40q: give %s or %s", p.Network, NetworkIsolated, NetworkNAT)
	}
	if err := p.Runner.validate(); err != nil {
		bad("%w", err)
	}
	if err := p.Trust.Validate(); err != nil {
		bad("%w", err)
	}
	if p.ScaleSet != "" {
		if len(p.Scopes) > 1 {
			bad("it has %d scopes; a scale set is registered in one: make a pool for each", len(p.Scopes))
		}
		if len(p.ScaleSet) > 64 || strings.TrimSpace(p.ScaleSet) != p.ScaleSet || strings.ContainsFunc(p.ScaleSet, unicode.IsControl) {
			bad("scale_set %.80q: give a name of at most 64 characters, without blanks around it", p.ScaleSet)
		}
	}
	if p.MaxRunners > 0 && p.Standby > p.MaxRunners {
		bad("standby %d is more than max_runners %d", p.Standby, p.MaxRunners)
	}
	return errors.Join(errs...)
}

// ScopeFor returns the pool's scope that covers the repository, the repository
// itself rather than its organization, and false if none does.
func (p Pool) ScopeFor(owner, repo string) (Scope, bool) {
	var best Scope
	for _, s := range p.Scopes {
		if s.Covers(owner, repo) && (best.IsZero() || best.Repo == "") {
			best = s
		}
	}
	return best, !best.IsZero()
}

// FitsOn reports whether the host could ever run the pool.
func (p *Pool) FitsOn(h *Host) bool {
	return h.Slots > 0 && (p.Backend == "" || slices.Contains(h.Backends, p.Backend))
}

// Serves reports whether a runner of the pool could run the job. A pool serves jobs of
// one source of demand only: those that its scale set was given, or those of webhooks.
func (p Pool) Serves(j Job) bool {
	if p.ScaleSet != "" || j.Pool != "" {
		return p.ScaleSet != "" && j.Pool == p.Name
	}
	_, covered := p.ScopeFor(j.Owner, j.Repo)
	return covered && j.Labels.Within(p.Labels)
}

// ScopeOf returns where a runner registers that is to run the job, and false if none of
// the pool can.
func (p Pool) ScopeOf(j Job) (Scope, bool) {
	if !p.Serves(j) || len(p.Scopes) == 0 {
		return Scope{}, false
	}
	if p.ScaleSet != "" {
		return p.Scopes[0], true
	}
	return p.ScopeFor(j.Owner, j.Repo)
}

// Claims reports whether GitHub gives a job, as webhooks and lists show it, to the pool's
// scale set. Its demand is told by the scale set's queue, and is not counted twice.
func (p Pool) Claims(j Job) bool {
	_, covered := p.ScopeFor(j.Owner, j.Repo)
	return p.ScaleSet != "" && j.Pool == "" && covered && j.Labels.Within(p.Labels)
}

// Disjoint returns an error for each pool of a scale set that shares a label and a place
// with another pool: GitHub would give a job that asks for the label to either.
func Disjoint(pools []Pool) error {
	var errs []error
	for i, a := range pools {
		for _, b := range pools[i+1:] {
			if a.ScaleSet == "" && b.ScaleSet == "" || !overlap(a.Scopes, b.Scopes) {
				continue
			}
			if a.ScaleSet != "" && b.ScaleSet != "" && a.ScaleSet == b.ScaleSet {
				errs = append(errs, fmt.Errorf("pools %q and %q name the scale set %q in one place: give each its own", a.Name, b.Name, a.ScaleSet))
			}
			for _, l := range a.Labels {
				if slices.Contains(b.Labels, l) {
					errs = append(errs, fmt.Errorf("pools %q and %q share the label %q, and one is served by a scale set: GitHub would give a job that asks for it to either; give the scale set labels of its own", a.Name, b.Name, l))
				}
			}
		}
	}
	return errors.Join(errs...)
}

// overlap reports whether a repository can be within scopes of both lists.
func overlap(a, b []Scope) bool {
	for _, x := range a {
		for _, y := range b {
			if strings.EqualFold(x.Owner, y.Owner) && (x.Repo == "" || y.Repo == "" || strings.EqualFold(x.Repo, y.Repo)) {
				return true
			}
		}
	}
	return false
}
