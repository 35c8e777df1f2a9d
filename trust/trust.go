// SPDX-License-Identifier: MIT

// Package trust judges whose code a pool's machines run. The judgement is pure, and the
// same in the two places that ask for it: the controller before it arms a runner for a
// job, and the guest before that job's first step.
package trust

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// Policy says which jobs a pool runs. The zero value is the default: every private
// repository of the pool's scopes, and its own code alone.
type Policy struct {
	// Repositories are globs of owner/name in any case, where * stands for any part
	// without a slash. Without any, all repositories of the pool's scopes are allowed.
	Repositories []string `json:"repositories,omitempty"`
	// Deny has globs of repositories that are refused whatever else is allowed.
	Deny []string `json:"deny,omitempty"`
	// Public allows repositories that everybody can read.
	Public bool `json:"public,omitempty"`
	// Forks allows code that comes from another repository.
	Forks bool `json:"forks,omitempty"`
	// ForkActors are logins. A fork that belongs to one of them is allowed if it was also
	// one of them who began the run, and one of them who began this attempt.
	ForkActors []string `json:"fork_actors,omitempty"`
	// DenyEvents are names of events, such as pull_request_target, whose runs are refused.
	DenyEvents []string `json:"deny_events,omitempty"`
}

// Visibility says who can read a repository.
type Visibility string

// The visibilities. A repository that is internal to an enterprise counts as private.
const (
	Unknown Visibility = "" // nobody said
	Private Visibility = "private"
	Public  Visibility = "public"
)

// Facts are what is known of a job's origin.
type Facts struct {
	Repository string // owner/name that the job belongs to
	Visibility Visibility
	// Origin reports whether what follows is known.
	Origin          bool
	Event           string // push, pull_request, ...
	Head            string // owner/name that the code comes from, "" where GitHub has it no more
	Actor           string // who began the run
	TriggeringActor string // who began this attempt
}

// Verdict is what a policy says of a job. The zero value allows it.
type Verdict struct {
	Pending bool   // not known yet
	Refused bool   // never both
	Reason  string // names the rule that refuses, or what is not known
}

// Allowed reports whether the job may run.
func (v Verdict) Allowed() bool { return !v.Pending && !v.Refused }

func refused(format string, args ...any) Verdict {
	return Verdict{Refused: true, Reason: fmt.Sprintf(format, args...)}
}

func pending(format string, args ...any) Verdict {
	return Verdict{Pending: true, Reason: fmt.Sprintf(format, args...)}
}

// Judge returns the verdict on a job. What is not known allows nothing that a rule could
// refuse, and what is known refuses at once.
func (p Policy) Judge(f Facts) Verdict {
	if i := matching(p.Deny, f.Repository); i >= 0 {
		return refused("trust.deny has %s, and the repository is %s", p.Deny[i], f.Repository)
	}
	if len(p.Repositories) > 0 && matching(p.Repositories, f.Repository) < 0 {
		return refused("trust.repositories lists no %s", f.Repository)
	}
	if !p.Public && f.Visibility == Public {
		return refused("%s is public, and trust.public is false", f.Repository)
	}
	if f.Origin {
		if v := p.judgeOrigin(f); !v.Allowed() {
			return v
		}
	}
	switch {
	case !p.Public && f.Visibility != Private:
		return pending("whether %s is public is not known", f.Repository)
	case !f.Origin && (!p.Forks || len(p.DenyEvents) > 0):
		return pending("where the code of the run comes from is not known")
	}
	return Verdict{}
}

func (p Policy) judgeOrigin(f Facts) Verdict {
	switch {
	case contains(p.DenyEvents, f.Event):
		return refused("trust.deny_events has %s, by which the run was begun", f.Event)
	case f.Event == "" && len(p.DenyEvents) > 0:
		return pending("by which event the run was begun is not known")
	case p.Forks || strings.EqualFold(f.Head, f.Repository):
		return Verdict{}
	case f.Head == "":
		return refused("the code comes from a repository that is gone, which counts as a fork, and trust.forks is false")
	case len(p.ForkActors) == 0:
		return refused("the code comes from %s, and trust.forks is false", f.Head)
	}
	owner, _, _ := strings.Cut(f.Head, "/")
	for _, who := range []struct{ login, did string }{
		{owner, "owns the fork"}, {f.Actor, "began the run"}, {f.TriggeringActor, "began this attempt"},
	} {
		if !contains(p.ForkActors, who.login) {
			login := who.login
			if login == "" {
				login = "somebody unknown"
			}
			return refused("the code comes from %s, and %s, who %s, is not one of trust.fork_actors", f.Head, login, who.did)
		}
	}
	return Verdict{}
}

func contains(list []string, word string) bool {
	return word != "" && slices.ContainsFunc(list, func(have string) bool { return strings.EqualFold(have, word) })
}

// matching returns the index of the first glob that the repository matches, or -1.
func matching(globs []string, repository string) int {
	repository = strings.ToLower(repository)
	return slices.IndexFunc(globs, func(g string) bool { return match(strings.ToLower(g), repository) })
}

// match reports whether text is as the glob says. A star stands for any number of
// characters but the slash; time grows with the product of the lengths at most.
func match(glob, text string) bool {
	star, from := -1, 0 // the last star, and where what it stands for ends
	g, t := 0, 0
	for t < len(text) {
		switch {
		case g < len(glob) && glob[g] == '*':
			star, from = g, t
			g++
		case g < len(glob) && glob[g] == text[t]:
			g++
			t++
		case star >= 0 && text[from] != '/':
			from++
			g, t = star+1, from
		default:
			return false
		}
	}
	for g < len(glob) && glob[g] == '*' {
		g++
	}
	return g == len(glob)
}

// Bounds of a policy: one travels with each JIT config.
const (
	maxEntries = 100
	maxEntry   = 140
)

var (
	globPattern  = regexp.MustCompile(`^[A-Za-z0-9_*-]+/[A-Za-z0-9._*-]+$`)
	loginPattern = regexp.MustCompile(`^[A-Za-z0-9_-]+(\[bot\])?$`)
	eventPattern = regexp.MustCompile(`^[a-z_]+$`)
)

// Validate returns all that is wrong with the policy.
func (p Policy) Validate() error {
	var errs []error
	for _, list := range []struct {
		key, want string
		entries   []string
		pattern   *regexp.Regexp
	}{
		{"repositories", "owner/name, where * stands for any part of one of the two", p.Repositories, globPattern},
		{"deny", "owner/name, where * stands for any part of one of the two", p.Deny, globPattern},
		{"fork_actors", "a login", p.ForkActors, loginPattern},
		{"deny_events", "the name of an event, such as pull_request_target", p.DenyEvents, eventPattern},
	} {
		if len(list.entries) > maxEntries {
			errs = append(errs, fmt.Errorf("trust.%s has %d entries: at most %d are taken", list.key, len(list.entries), maxEntries))
			continue
		}
		for _, e := range list.entries {
			if len(e) > maxEntry || !list.pattern.MatchString(e) {
				errs = append(errs, fmt.Errorf("trust.%s has %.60q: give %s", list.key, e, list.want))
			}
		}
	}
	if p.Forks && len(p.ForkActors) > 0 {
		errs = append(errs, errors.New("trust.fork_actors says nothing where trust.forks is true: remove one of the two"))
	}
	return errors.Join(errs...)
}
