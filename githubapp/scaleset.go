// SPDX-License-Identifier: MIT

package githubapp

import (
	"context"
	"fmt"
	"net/url"
	"strings"

	"github.com/google/go-github/v62/github"

	"github.com/minifleet/minifleet/fleet"
	"github.com/minifleet/minifleet/secret"
)

// RegistrationToken returns a token by which runners are registered in a scope, for a client
// that does so at another service of GitHub's: that of runner scale sets.
func (a *App) RegistrationToken(ctx context.Context, scope fleet.Scope) (secret.Text, error) {
	what := fmt.Sprintf("get a registration token for %s", scope)
	var made *github.RegistrationToken
	err := a.at(ctx, scope, what, a.callTimeout, func(ctx context.Context, in *installation) (err error) {
		if scope.Repo == "" {
			made, _, err = in.client.Actions.CreateOrganizationRegistrationToken(ctx, scope.Owner)
		} else {
			made, _, err = in.client.Actions.CreateRegistrationToken(ctx, scope.Owner, scope.Repo)
		}
		return err
	})
	if err != nil {
		return secret.Text{}, err
	}
	if made.GetToken() == "" {
		return secret.Text{}, fmt.Errorf("%s: GitHub's answer holds none", what)
	}
	return secret.New(made.GetToken()), nil
}

// RunJobs returns the jobs of a run, in its latest attempt; none if there is no such run.
func (a *App) RunJobs(ctx context.Context, repo fleet.Scope, run int64) ([]fleet.JobNews, error) {
	jobs, err := a.jobsOf(ctx, repo, run)
	if missing(err) {
		return nil, nil
	}
	return jobs, err
}

// WebURL returns where people find GitHub, for the base URL of its API: runner scale sets
// are registered under it.
func WebURL(base string) (string, error) {
	text, err := baseURL(base)
	if err != nil {
		return "", err
	}
	u, err := url.Parse(text)
	if err != nil {
		return "", fmt.Errorf("base URL: %w", err)
	}
	u.Host = strings.TrimPrefix(u.Host, "api.") // api.github.com, api.SUBDOMAIN.ghe.com
	u.Path = strings.TrimSuffix(u.Path, "/api/v3")
	return strings.TrimSuffix(u.String(), "/"), nil
}
