// SPDX-License-Identifier: MIT

package setup

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"path/filepath"
	"time"

	"github.com/minifleet/minifleet/fleet"
	"github.com/minifleet/minifleet/githubapp"
	"github.com/minifleet/minifleet/secret"
)

// Creation says how an App is made.
type Creation struct {
	Wish
	Dir    string // of the files
	Force  bool   // replace files that are there
	Listen string // loopback address of the local page
	// Open shows a page in the person's browser; nil where there is none.
	Open func(ctx context.Context, url string) error
	// Remote is how others reach this machine by SSH, "" if the browser is here.
	Remote    string
	Client    *http.Client // without following redirects
	UserAgent string
	// Pause is the time before what failed is tried again, doubled up to a minute.
	Pause time.Duration
	Say   func(format string, args ...any)
	Log   *slog.Logger
}

// Created is an App that was made and whose secrets are in files.
type Created struct {
	App         *githubapp.App
	Self        githubapp.Self
	Config      string // path of the configuration file
	Credentials githubapp.Credentials
}

// Create makes an App and returns when its key and webhook secret are on the disk and
// the configuration is written.
func Create(ctx context.Context, c Creation) (Created, error) {
	if err := c.Validate(); err != nil {
		return Created{}, err
	}
	if err := prepare(c.Dir, c.Force, KeyFile, SecretFile, TokenFile, ConfigFile); err != nil {
		return Created{}, err
	}
	if err := reach(ctx, c.Client, c.Server); err != nil {
		return Created{}, err
	}
	var out Created
	w, err := newWizard(ctx, c.Wish, c.Listen, func(work context.Context, code string) (string, error) {
		// What GitHub answers comes only once: not even a stop of this program may come between.
		made, err := c.exchange(ctx, work, code)
		if err != nil {
			return "", err
		}
		out.Credentials, out.Self = made, made.Self
		c.Say("GitHub made App %d, %s", made.ID, made.HTMLURL)
		if err := c.store(ctx, made); err != nil {
			return "", err
		}
		c.Say("Its key is in %s and its webhook secret in %s", filepath.Join(c.Dir, KeyFile), filepath.Join(c.Dir, SecretFile))
		return InstallPage(made.Self), nil
	})
	if err != nil {
		return Created{}, err
	}
	c.announce(ctx, w.url())
	if err := w.run(ctx, c.Log); err != nil {
		return Created{}, err
	}
	out.Config = filepath.Join(c.Dir, ConfigFile)
	if out.App, err = githubapp.New(githubapp.Config{
		AppID: out.Self.ID, PrivateKey: out.Credentials.PrivateKey, BaseURL: c.Server.API, UserAgent: c.UserAgent, Log: c.Log,
	}); err != nil {
		return Created{}, err
	}
	if err := c.ownSecret(ctx, &out); err != nil {
		out.App.Close()
		return Created{}, err
	}
	return out, nil
}

// InstallPage is where an owner of an account installs an App.
func InstallPage(app githubapp.Self) string { return app.HTMLURL + "/installations/new" }

func (c Creation) announce(ctx context.Context, url string) {
	opened := false
	if c.Open != nil && c.Remote == "" {
		if err := c.Open(ctx, url); err != nil {
			c.Log.DebugContext(ctx, "browser not opened", "error", err)
		} else {
			opened = true
		}
	}
	if opened {
		c.Say("The browser shows the next step. If it does not, open\n\n    %s\n", url)
	} else {
		c.Say("Open in a browser on this machine\n\n    %s\n", url)
	}
	if c.Remote != "" {
		c.Say("The browser is elsewhere? There, in another terminal, forward the port first, and leave it open:\n\n    ssh -N -L %s %s\n", forward(url), c.Remote)
	}
}

// exchange asks for the credentials, again where there was no answer, until ctx ends.
func (c Creation) exchange(ctx, work context.Context, code string) (githubapp.Credentials, error) {
	lost := false
	for pause := c.Pause; ; pause = min(2*pause, time.Minute) {
		made, err := githubapp.ConvertManifest(work, c.Client, c.Server.API, code, c.UserAgent)
		switch {
		case err == nil:
			return made, nil
		case errors.Is(err, githubapp.ErrCode) && lost:
			return made, fmt.Errorf("%w. An answer before was lost, and the App's key with it: the App may be there. "+
				"Delete it at %s and begin anew, or generate a private key on its page and set a webhook secret there", err, c.Server.Web+ownerApps(c.Org))
		case !errors.Is(err, githubapp.ErrTryAgain):
			return made, err
		}
		lost = lost || errors.Is(err, githubapp.ErrAnswerLost)
		c.Say("%v; trying again in %s", err, pause)
		if !sleep(ctx, pause) {
			return made, fmt.Errorf("%w. The App may be there without anybody having its key: see %s", err, c.Server.Web+ownerApps(c.Org))
		}
	}
}

func ownerApps(org string) string {
	if org == "" {
		return "/settings/apps"
	}
	return "/organizations/" + org + "/settings/apps"
}

// store keeps the secrets, and does not give up before ctx ends: nobody else has them.
func (c Creation) store(ctx context.Context, made githubapp.Credentials) error {
	hook := made.WebhookSecret
	if hook.Empty() {
		hook = secret.Generate() // GitHub is told of it below
	}
	files := []kept{
		{KeyFile, made.PrivateKey},
		{SecretFile, hook},
		{TokenFile, secret.Generate()},
		{ConfigFile, secret.New(configuration(c.Server, made.Self, c.Wish, c.scopes(made.Self)))},
	}
	for pause := c.Pause; ; pause = min(2*pause, time.Minute) {
		// The key first: what comes after can be made again.
		err := keep(c.Dir, c.Force, files[:2]...)
		if err == nil {
			err = keep(c.Dir, c.Force, files[2:]...)
		}
		if err == nil {
			return nil
		}
		c.Say("THE APP'S KEY IS NOT ON THE DISK YET: %v\nGitHub gives it once. Mend that and leave this program running: it tries again in %s", err, pause)
		if !sleep(ctx, pause) {
			return fmt.Errorf("the key of App %d is lost: %w. Generate a new private key and set a webhook secret at %s, or delete the App there", made.ID, err, appSettings(made.Self))
		}
	}
}

// ownSecret gives the hook the secret that was made here, where GitHub made none, as
// it may for a hook that is switched off.
func (c Creation) ownSecret(ctx context.Context, out *Created) error {
	if !out.Credentials.WebhookSecret.Empty() {
		return nil
	}
	value, err := readSecret(filepath.Join(c.Dir, SecretFile))
	if err != nil {
		return err
	}
	if err := out.App.SetHookSecret(ctx, value); err != nil {
		return fmt.Errorf("%w: set the content of %s as the webhook secret at %s", err, filepath.Join(c.Dir, SecretFile), appSettings(out.Self))
	}
	out.Credentials.WebhookSecret = secret.New(value)
	return nil
}

// scopes are where the runners of the first pool register.
func (c Creation) scopes(app githubapp.Self) []fleet.Scope {
	switch {
	case len(c.Scopes) > 0:
		return c.Scopes
	case c.Org != "":
		return []fleet.Scope{{Owner: c.Org}}
	default:
		return []fleet.Scope{{Owner: app.Owner, Repo: "REPOSITORY"}}
	}
}

// sleep returns false if ctx ended first.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
