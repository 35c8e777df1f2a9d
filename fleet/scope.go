// SPDX-License-Identifier: MIT

package fleet

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// Scope is where a runner registers: an organization (Repo empty) or one
// repository. GitHub compares both names without regard to case.
type Scope struct{ Owner, Repo string }

// Logins and repository names as GitHub allows them; nothing that could change
// the meaning of a URL path.
var (
	ownerPattern = regexp.MustCompile(`^[A-Za-z0-9](?:[A-Za-z0-9-]{0,38})$|^[A-Za-z0-9][A-Za-z0-9_-]{0,98}$`)
	repoPattern  = regexp.MustCompile(`^[A-Za-z0-9._-]{1,100}$`)
)

// ParseScope reads "org" or "owner/repository".
func ParseScope(s string) (Scope, error) {
	owner, repo, hasRepo := strings.Cut(s, "/")
	switch {
	case !ownerPattern.MatchString(owner):
		return Scope{}, fmt.Errorf("scope %q: want an organization or owner/repository", s)
	case hasRepo && (!repoPattern.MatchString(repo) || repo == "." || repo == ".."):
		return Scope{}, fmt.Errorf("scope %q: %q is not a repository name", s, repo)
	}
	return Scope{Owner: owner, Repo: repo}, nil
}

// String returns what ParseScope reads; "" for the zero scope.
func (s Scope) String() string {
	if s.Repo == "" {
		return s.Owner
	}
	return s.Owner + "/" + s.Repo
}

// IsZero reports whether the scope names nothing.
func (s Scope) IsZero() bool { return s.Owner == "" }

// Covers reports whether a runner of this scope can be given a job of the
// repository.
func (s Scope) Covers(owner, repo string) bool {
	if s.Owner == "" || !strings.EqualFold(s.Owner, owner) {
		return false
	}
	return s.Repo == "" || strings.EqualFold(s.Repo, repo)
}

// Key returns the scope in lower case, fit for comparing.
func (s Scope) Key() string { return strings.ToLower(s.String()) }

// Labels is a set of runner labels: lower case, sorted, no repetition.
type Labels []string

// NewLabels normalises a list of labels.
func NewLabels(list ...string) Labels {
	out := make(Labels, 0, len(list))
	for _, l := range list {
		if l = strings.ToLower(strings.TrimSpace(l)); l != "" {
			out = append(out, l)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// Within reports whether every label is one of the other set. An empty set is
// within nothing: a job that asks for no label must match no pool.
func (l Labels) Within(other Labels) bool {
	if len(l) == 0 {
		return false
	}
	i := 0
	for _, want := range l {
		for i < len(other) && other[i] < want {
			i++
		}
		if i == len(other) || other[i] != want {
			return false
		}
	}
	return true
}

// String joins the labels with commas.
func (l Labels) String() string { return strings.Join(l, ",") }
