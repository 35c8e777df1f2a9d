// SPDX-License-Identifier: MIT

package githubapp

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/google/go-github/v62/github"

	"github.com/minifleet/minifleet/fleet"
)

// Self is the App as GitHub knows it.
type Self struct {
	ID          int64
	Slug, Name  string
	Owner       string            // login
	OwnerIsUser bool              // not an organization
	HTMLURL     string            // its public page
	Permissions map[string]string // by name: read or write
	Events      []string          // that it subscribes to
}

// Place is an installation in full.
type Place struct {
	fleet.Installation
	User        bool // of a user's account, not of an organization
	Selected    bool // of selected repositories, not of all
	HTMLURL     string
	Permissions map[string]string // that its owner granted, which can lag behind the App's
	Events      []string
}

// Hook is the App's webhook as it is set at GitHub, which never tells the secret.
type Hook struct {
	URL         string // "" if there is none
	ContentType string // json or form
	InsecureTLS bool   // GitHub does not check the certificate
	HasSecret   bool
}

// Group is a runner group of an organization.
type Group struct {
	ID          int64
	Name        string
	Visibility  string // all, selected or private
	AllowPublic bool   // public repositories may use it
	Workflows   bool   // it is restricted to certain workflows
}

// wireApp and wirePlace name permissions as GitHub does: go-github knows a fixed set.
type wireApp struct {
	ID          int64             `json:"id"`
	Slug        string            `json:"slug"`
	Name        string            `json:"name"`
	HTMLURL     string            `json:"html_url"`
	Owner       wireAccount       `json:"owner"`
	Permissions map[string]string `json:"permissions"`
	Events      []string          `json:"events"`
}

type wireAccount struct {
	Login string `json:"login"`
	Slug  string `json:"slug"` // of an enterprise
	Type  string `json:"type"`
}

type wirePlace struct {
	ID          int64             `json:"id"`
	Account     wireAccount       `json:"account"`
	TargetType  string            `json:"target_type"`
	Selection   string            `json:"repository_selection"`
	HTMLURL     string            `json:"html_url"`
	Permissions map[string]string `json:"permissions"`
	Events      []string          `json:"events"`
	SuspendedAt *time.Time        `json:"suspended_at"`
}

func (w wireApp) self() Self {
	return Self{
		ID: w.ID, Slug: printable(w.Slug, 256), Name: printable(w.Name, 256), Owner: printable(w.Owner.Login, 256), OwnerIsUser: w.Owner.Type == "User",
		HTMLURL: printable(w.HTMLURL, 1024), Permissions: printableMap(w.Permissions), Events: printableList(w.Events),
	}
}

// Self asks GitHub whom the key belongs to.
func (a *App) Self(ctx context.Context) (Self, error) {
	var out wireApp
	if err := a.get(ctx, a.self, "get the App", "app", &out); err != nil {
		return Self{}, err
	}
	return out.self(), nil
}

// Places lists all installations in full.
func (a *App) Places(ctx context.Context) ([]Place, error) {
	var out []Place
	err := a.pages(ctx, "list installations", func(ctx context.Context, page github.ListOptions) (*github.Response, error) {
		var list []wirePlace
		resp, err := get(ctx, a.self, fmt.Sprintf("app/installations?per_page=%d&page=%d", page.PerPage, page.Page), &list)
		for _, p := range list {
			if p.ID <= 0 {
				continue
			}
			account := p.Account.Login
			if account == "" {
				account = p.Account.Slug
			}
			out = append(out, Place{
				Installation: fleet.Installation{ID: p.ID, Account: printable(account, 256), Suspended: p.SuspendedAt != nil},
				User:         p.TargetType == "User", Selected: p.Selection == "selected", HTMLURL: printable(p.HTMLURL, 1024),
				Permissions: printableMap(p.Permissions), Events: printableList(p.Events),
			})
		}
		return resp, err
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// PlaceRepositories lists up to limit repositories that an installation covers, as owner/name.
func (a *App) PlaceRepositories(ctx context.Context, installationID int64, limit int) ([]string, error) {
	in, err := a.installation(installationID)
	if err != nil {
		return nil, err
	}
	var list struct {
		Repositories []struct {
			FullName string `json:"full_name"`
		} `json:"repositories"`
	}
	if err := a.get(ctx, in.client, "list the repositories of the installation", fmt.Sprintf("installation/repositories?per_page=%d", min(limit, 100)), &list); err != nil {
		return nil, err
	}
	var out []string
	for _, r := range list.Repositories {
		out = append(out, printable(r.FullName, 256))
	}
	return out, nil
}

// Hook reads how the App's webhook is set.
func (a *App) Hook(ctx context.Context) (Hook, error) {
	var out struct {
		URL         string `json:"url"`
		ContentType string `json:"content_type"`
		InsecureSSL any    `json:"insecure_ssl"` // a string or a number
		Secret      string `json:"secret"`
	}
	if err := a.get(ctx, a.self, "get the webhook's configuration", "app/hook/config", &out); err != nil {
		return Hook{}, err
	}
	return Hook{
		URL: printable(out.URL, 1024), ContentType: printable(out.ContentType, 64),
		InsecureTLS: fmt.Sprint(out.InsecureSSL) == "1", HasSecret: out.Secret != "",
	}, nil
}

// SetHookSecret changes the secret that deliveries are signed with.
func (a *App) SetHookSecret(ctx context.Context, value string) error {
	return a.request(ctx, "set the webhook's secret", a.callTimeout, func(ctx context.Context) error {
		_, _, err := a.self.Apps.UpdateHookConfig(ctx, &github.HookConfig{Secret: &value})
		return err
	})
}

// Repeat asks GitHub to make a delivery again. That it was asked for is all that
// GitHub answers.
func (a *App) Repeat(ctx context.Context, attempt int64) error {
	_, err := a.asApp(ctx, fmt.Sprintf("redeliver %d", attempt), http.MethodPost, fmt.Sprintf("app/hook/deliveries/%d/attempts", attempt), nil)
	return err
}

// Groups lists the runner groups of an organization.
func (a *App) Groups(ctx context.Context, org fleet.Scope) ([]Group, error) {
	var out []Group
	err := a.pagesAt(ctx, org, fmt.Sprintf("list runner groups of %s", org), func(ctx context.Context, c *github.Client, page github.ListOptions) (*github.Response, error) {
		list, resp, err := c.Actions.ListOrganizationRunnerGroups(ctx, org.Owner, &github.ListOrgRunnerGroupOptions{ListOptions: page})
		if err != nil {
			return nil, err
		}
		for _, g := range list.RunnerGroups {
			out = append(out, Group{
				ID: g.GetID(), Name: printable(g.GetName(), 256), Visibility: printable(g.GetVisibility(), 32),
				AllowPublic: g.GetAllowsPublicRepositories(), Workflows: g.GetRestrictedToWorkflows(),
			})
		}
		return resp, nil
	})
	return out, err
}

// Quota is what is left of a rate limit.
type Quota struct {
	Resource         string
	Limit, Remaining int
	Reset            time.Time
}

// Quotas asks for an installation's rate limits, which costs nothing. A server that
// limits nothing has none.
func (a *App) Quotas(ctx context.Context, installationID int64) ([]Quota, error) {
	in, err := a.installation(installationID)
	if err != nil {
		return nil, err
	}
	var out struct {
		Resources map[string]struct {
			Limit     int   `json:"limit"`
			Remaining int   `json:"remaining"`
			Reset     int64 `json:"reset"`
		} `json:"resources"`
	}
	err = a.get(ctx, in.client, "get rate limits", "rate_limit", &out)
	if missing(err) { // an Enterprise Server with rate limits switched off
		return nil, nil
	}
	var quotas []Quota
	for _, name := range []string{"core", "actions_runner_registration"} {
		if q, ok := out.Resources[name]; ok {
			quotas = append(quotas, Quota{Resource: name, Limit: q.Limit, Remaining: q.Remaining, Reset: time.Unix(q.Reset, 0)})
		}
	}
	return quotas, err
}

// get reads one thing that go-github has no fitting type for.
func (a *App) get(ctx context.Context, c *github.Client, what, path string, into any) error {
	return a.request(ctx, what, a.callTimeout, func(ctx context.Context) error {
		_, err := get(ctx, c, path, into)
		return err
	})
}

func get(ctx context.Context, c *github.Client, path string, into any) (*github.Response, error) {
	req, err := c.NewRequest(http.MethodGet, path, nil)
	if err != nil {
		return nil, err
	}
	return c.Do(ctx, req, into)
}

func printableMap(m map[string]string) map[string]string {
	out := make(map[string]string, len(m))
	for k, v := range m {
		out[printable(k, 128)] = printable(v, 32)
	}
	return out
}

func printableList(list []string) []string {
	out := make([]string, 0, len(list))
	for _, s := range list {
		out = append(out, printable(s, 128))
	}
	return out
}
