// SPDX-License-Identifier: MIT

package githubapp

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/google/go-github/v62/github"

	"github.com/minifleet/minifleet/fleet"
)

var (
	errTimeout = errors.New("GitHub did not answer in time")
	errPages   = errors.New("GitHub's pages do not end")
)

// maxPages is far beyond what GitHub can hold: 10,000 runners in a group.
const maxPages = 10_000

// request makes one call to GitHub under a time limit, which begins when it is sent.
func (a *App) request(ctx context.Context, what string, timeout time.Duration, fn func(context.Context) error) error {
	ctx = withTimeout(ctx, timeout)
	if err := explain(ctx, fn(ctx), a.now()); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

// at makes one call as the installation of a scope, and once again if the
// installation has turned out to be another.
func (a *App) at(ctx context.Context, scope fleet.Scope, what string, timeout time.Duration, fn func(context.Context, *installation) error) error {
	if err := checkScope(scope); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	for again := false; ; again = true {
		in, err := a.installationOf(ctx, scope)
		if err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		err = a.request(ctx, what, timeout, func(ctx context.Context) error { return fn(ctx, in) })
		if err == nil {
			return nil
		}
		if again || !a.stale(scope, in, err) {
			return a.noSignIn(scope, err)
		}
	}
}

// noSignIn marks a refused token as what it means: no installation to act for.
func (a *App) noSignIn(scope fleet.Scope, err error) error {
	switch status, token := statusOf(err); {
	case token && (status == http.StatusNotFound || status == http.StatusForbidden):
		return fmt.Errorf("%w, or is suspended in %s: %w", ErrNotInstalled, scope.Owner, err)
	default:
		return err
	}
}

// pages makes calls as the App itself until the last page.
func (a *App) pages(ctx context.Context, what string, fetch func(context.Context, github.ListOptions) (*github.Response, error)) error {
	return eachPage(what, func(page github.ListOptions) (resp *github.Response, err error) {
		err = a.request(ctx, what, a.callTimeout, func(ctx context.Context) (err error) {
			resp, err = fetch(ctx, page)
			return err
		})
		return resp, err
	})
}

// pagesAt makes calls as the installation of a scope until the last page.
func (a *App) pagesAt(ctx context.Context, scope fleet.Scope, what string, fetch func(context.Context, *github.Client, github.ListOptions) (*github.Response, error)) error {
	return eachPage(what, func(page github.ListOptions) (resp *github.Response, err error) {
		err = a.at(ctx, scope, what, a.callTimeout, func(ctx context.Context, in *installation) (err error) {
			resp, err = fetch(ctx, in.client, page)
			return err
		})
		return resp, err
	})
}

// errLastPage ends a listing early.
var errLastPage = errors.New("enough")

func eachPage(what string, fetch func(github.ListOptions) (*github.Response, error)) error {
	page := github.ListOptions{PerPage: 100}
	for range maxPages {
		resp, err := fetch(page)
		switch {
		case errors.Is(err, errLastPage):
			return nil
		case err != nil:
			return err
		case resp.NextPage == 0:
			return nil
		case resp.NextPage <= page.Page:
			return fmt.Errorf("%s: %w", what, errPages)
		}
		page.Page = resp.NextPage
	}
	return fmt.Errorf("%s: %w", what, errPages)
}

// checkScope refuses what could change the meaning of a URL's path.
func checkScope(s fleet.Scope) error {
	if parsed, err := fleet.ParseScope(s.String()); err != nil || parsed != s {
		return fmt.Errorf("%q is neither an organization nor owner/repository", s.String())
	}
	return nil
}
