// SPDX-License-Identifier: MIT

package setup

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strings"

	"github.com/minifleet/minifleet/fleet"
)

// maxName is how long the name of an App may be.
const maxName = 34

// nowhere is where GitHub delivers to when its deliveries are pulled: of a hook that is
// switched off it makes none (assumed, not seen). No such name exists (RFC 6761), so
// that nobody reads them there.
const nowhere = "https://webhook.invalid/"

// Needs are the permissions that an App must have to serve scopes, each by what it
// is for (https://docs.github.com/en/rest/authentication/permissions-required-for-github-apps).
func Needs(scopes []fleet.Scope) map[string]string {
	needs := map[string]string{"actions": "read", "metadata": "read"}
	for _, s := range scopes {
		if s.Repo == "" {
			needs["organization_self_hosted_runners"] = "write"
		} else {
			needs["administration"] = "write"
		}
	}
	return needs
}

// Events are what an App must subscribe to. What happens to its installations it
// hears without.
func Events() []string { return []string{"workflow_job", "workflow_run"} }

// enough reports whether a permission that is held covers one that is needed.
func enough(have, need string) bool {
	return have == need || have == "admin" || have == "write" && need == "read"
}

// Wish says what App is to be made.
type Wish struct {
	Server  Server
	Org     string        // organization that will own the App; "" is the person's own account
	Scopes  []fleet.Scope // where its runners will register; empty: repositories of the person's account
	Name    string        // at most 34 characters, unlike all Apps of that GitHub
	Hook    string        // URL that GitHub delivers to; "" where deliveries are pulled
	Address string        // where the controller takes deliveries; "" is 127.0.0.1:8080
	Public  bool          // others may install it too
}

// Validate returns all that is wrong with the wish.
func (w Wish) Validate() error {
	var errs []error
	if w.Name == "" || len(w.Name) > maxName {
		errs = append(errs, fmt.Errorf("name %q: GitHub wants 1 to %d characters", w.Name, maxName))
	}
	if s, err := fleet.ParseScope(w.Org); w.Org != "" && (err != nil || s.Repo != "") {
		errs = append(errs, fmt.Errorf("organization %q: want its name, as in its address", w.Org))
	}
	for _, s := range w.Scopes {
		if w.Org != "" && !w.Public && !strings.EqualFold(s.Owner, w.Org) {
			errs = append(errs, fmt.Errorf("%s is not of organization %s, which would own the App: only an App that others may install (--public) can be installed there", s, w.Org))
		}
	}
	if _, port, err := net.SplitHostPort(w.Address); w.Address != "" && (err != nil || port == "") {
		errs = append(errs, fmt.Errorf("address for deliveries %q: want HOST:PORT, such as 127.0.0.1:8080", w.Address))
	}
	if w.Hook != "" {
		u, err := url.Parse(w.Hook)
		switch {
		case err != nil || u.Host == "" || u.User != nil || u.Fragment != "" || u.Scheme != "https" && u.Scheme != "http":
			errs = append(errs, fmt.Errorf("webhook URL %q: want https://HOST/webhook, as GitHub reaches it", w.Hook))
		case u.Path == "" || u.Path == "/":
			errs = append(errs, fmt.Errorf("webhook URL %q has no path: the controller answers at /webhook", w.Hook))
		}
	}
	return errors.Join(errs...)
}

// page is where the manifest is posted to.
func (w Wish) page(state string) string {
	path := "/settings/apps/new"
	if w.Org != "" {
		path = "/organizations/" + url.PathEscape(w.Org) + path
	}
	return w.Server.Web + path + "?state=" + url.QueryEscape(state)
}

// needs are the permissions to ask for.
func (w Wish) needs() map[string]string {
	switch {
	case len(w.Scopes) > 0:
		return Needs(w.Scopes)
	case w.Org != "":
		return Needs([]fleet.Scope{{Owner: w.Org}})
	default: // a user has runners of single repositories only
		return Needs([]fleet.Scope{{Owner: "o", Repo: "r"}})
	}
}

type hookAttributes struct {
	URL    string `json:"url"`
	Active bool   `json:"active"`
}

// manifest is the App as GitHub's form takes it.
func (w Wish) manifest(redirect string) (string, error) {
	hook := hookAttributes{URL: cmp.Or(w.Hook, nowhere), Active: true}
	text, err := json.Marshal(struct {
		Name        string            `json:"name"`
		URL         string            `json:"url"`
		Description string            `json:"description"`
		Hook        hookAttributes    `json:"hook_attributes"`
		Redirect    string            `json:"redirect_url"`
		Public      bool              `json:"public"`
		Events      []string          `json:"default_events"`
		Permissions map[string]string `json:"default_permissions"`
	}{
		w.Name, "https://github.com/minifleet/minifleet", "Ephemeral runners on our own Macs",
		hook, redirect, w.Public, Events(), w.needs(),
	})
	return string(text), err
}

// missingRights names what an App or an installation lacks.
func missingRights(have map[string]string, events []string, needs map[string]string) (permissions, subscriptions []string) {
	for _, name := range sortedKeys(needs) {
		if !enough(have[name], needs[name]) {
			permissions = append(permissions, fmt.Sprintf("%s: %s", rightNames[name], needs[name]))
		}
	}
	for _, name := range Events() {
		if !slices.Contains(events, name) {
			subscriptions = append(subscriptions, eventNames[name])
		}
	}
	return permissions, subscriptions
}

// rightNames and eventNames are the words of GitHub's settings pages.
var (
	rightNames = map[string]string{
		"actions": "Repository permission Actions", "metadata": "Repository permission Metadata",
		"administration":                   "Repository permission Administration",
		"organization_self_hosted_runners": "Organization permission Self-hosted runners",
	}
	eventNames = map[string]string{"workflow_job": "Workflow job", "workflow_run": "Workflow run"}
)
