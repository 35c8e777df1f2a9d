// SPDX-License-Identifier: MIT

package githubapp

import (
	"context"
	"fmt"
	"net/url"
	"strings"

	"github.com/minifleet/minifleet/fleet"
	"github.com/minifleet/minifleet/secret"
)

// Token returns an installation token for a scope, for a client that signs its own
// requests: that of runner scale sets. It is good for some minutes at least.
func (a *App) Token(ctx context.Context, scope fleet.Scope) (secret.Text, error) {
	var token string
	err := a.at(ctx, scope, fmt.Sprintf("sign in at %s", scope), a.callTimeout, func(ctx context.Context, in *installation) (err error) {
		token, err = in.sign.Token(ctx)
		return err
	})
	return secret.New(token), err
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
