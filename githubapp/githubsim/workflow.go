// SPDX-License-Identifier: MIT

package githubsim

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/minifleet/minifleet/secret"
)

// Workflow describes a run to be queued.
type Workflow struct {
	Repo     string    `json:"repo"`                // owner/name; must belong to an installation
	Name     string    `json:"name,omitempty"`      // default "ci"
	Event    string    `json:"event,omitempty"`     // default "push"
	Branch   string    `json:"branch,omitempty"`    // default "main"
	HeadRepo string    `json:"head_repo,omitempty"` // a fork, as owner/name; default: Repo
	Actor    string    `json:"actor,omitempty"`     // default "octocat"
	Jobs     []JobSpec `json:"jobs"`
}

// JobSpec describes one job of a Workflow.
type JobSpec struct {
	Name    string                 `json:"name"`
	Labels  []string               `json:"labels"`
	Env     map[string]string      `json:"env,omitempty"`
	Secrets map[string]secret.Text `json:"-"` // variables of the job message, masked
	Steps   []Step                 `json:"steps"`
	Gated   bool                   `json:"gated,omitempty"`   // waits for Approve
	Skipped bool                   `json:"skipped,omitempty"` // completes as skipped without ever being queued
}

// Step is one shell step of a job.
type Step struct {
	Name string            `json:"name,omitempty"` // default "Run <first line of the script>"
	Run  string            `json:"run"`
	Env  map[string]string `json:"env,omitempty"`
}

func (w Workflow) withDefaults() Workflow {
	w.Name = orString(w.Name, "ci")
	w.Event = orString(w.Event, "push")
	w.Branch = orString(w.Branch, "main")
	w.Actor = orString(w.Actor, "octocat")
	w.HeadRepo = orString(w.HeadRepo, w.Repo)
	w.Jobs = slices.Clone(w.Jobs)
	for i := range w.Jobs {
		j := &w.Jobs[i]
		j.Labels, j.Env, j.Steps = slices.Clone(j.Labels), maps.Clone(j.Env), slices.Clone(j.Steps)
		for k := range j.Steps {
			first, _, _ := strings.Cut(strings.TrimSpace(j.Steps[k].Run), "\n")
			j.Steps[k].Name = orString(j.Steps[k].Name, "Run "+first)
		}
	}
	return w
}

// Validate reports everything that is wrong with the workflow.
func (w Workflow) Validate() error {
	var errs []error
	if _, _, err := splitRepo(w.Repo); err != nil {
		errs = append(errs, err)
	}
	if w.HeadRepo != "" {
		if _, _, err := splitRepo(w.HeadRepo); err != nil {
			errs = append(errs, fmt.Errorf("head repository: %w", err))
		}
	}
	if len(w.Jobs) == 0 {
		errs = append(errs, errors.New("workflow without jobs: give at least one"))
	}
	for i, j := range w.Jobs {
		if j.Name == "" {
			errs = append(errs, fmt.Errorf("job %d: give it a name", i+1))
		}
		if j.Gated && j.Skipped {
			errs = append(errs, fmt.Errorf("job %q: a skipped job cannot be gated", j.Name))
		}
	}
	return errors.Join(errs...)
}

func splitRepo(full string) (owner, name string, err error) {
	owner, name, ok := strings.Cut(full, "/")
	if !ok || owner == "" || name == "" || strings.Contains(name, "/") {
		return "", "", fmt.Errorf("repository %q: use owner/name", full)
	}
	return owner, name, nil
}

func orString(s, fallback string) string {
	if s == "" {
		return fallback
	}
	return s
}
