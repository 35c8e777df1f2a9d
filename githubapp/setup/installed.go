// SPDX-License-Identifier: MIT

package setup

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/minifleet/minifleet/fleet"
	"github.com/minifleet/minifleet/githubapp"
)

// ErrNotYet says that nobody installed the App in time. It can be installed later.
var ErrNotYet = errors.New("the App is not installed yet")

// AwaitInstallation asks every few seconds whether the App was installed, on the given
// account if one is given, and returns that installation. Errors of GitHub's are said
// and waited out.
func AwaitInstallation(ctx context.Context, app *githubapp.App, account string, every, limit time.Duration, say func(string, ...any)) (githubapp.Place, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("%w after %s", ErrNotYet, limit))
	defer cancel()
	elsewhere, complained := "", ""
	for {
		places, err := app.Places(ctx)
		if err != nil && ctx.Err() == nil && err.Error() != complained {
			complained = err.Error()
			say("GitHub does not tell of installations: %v; asking again", err)
		}
		for _, p := range places {
			if account == "" || strings.EqualFold(p.Account, account) {
				return p, nil
			}
			if elsewhere != p.Account {
				elsewhere = p.Account
				say("The App is installed on %s; waiting for %s", p.Account, account)
			}
		}
		if !sleep(ctx, every) {
			return githubapp.Place{}, context.Cause(ctx)
		}
	}
}

// FillScopes puts the repositories of a person's installation into the configuration
// that Create wrote, which had to leave them open.
func (c Creation) FillScopes(ctx context.Context, made Created, place githubapp.Place) error {
	if len(c.Scopes) > 0 || c.Org != "" {
		return nil
	}
	names, err := made.App.PlaceRepositories(ctx, place.ID, 50)
	if err != nil {
		return err
	}
	slices.Sort(names)
	var scopes []fleet.Scope
	for _, name := range names {
		if s, err := fleet.ParseScope(name); err == nil && s.Repo != "" {
			scopes = append(scopes, s)
		}
	}
	if len(scopes) == 0 {
		return nil
	}
	return rewrite(c.Dir, ConfigFile, configuration(c.Server, made.Self, c.Wish, scopes))
}
