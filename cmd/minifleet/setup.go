// SPDX-License-Identifier: MIT

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/minifleet/minifleet/fleet"
	"github.com/minifleet/minifleet/githubapp"
	"github.com/minifleet/minifleet/githubapp/setup"
	"github.com/minifleet/minifleet/program"
)

type setupCommand struct {
	Create setupCreate `cmd:"" default:"withargs" help:"Make a GitHub App in the browser, keep its key, write a configuration."`
	Check  setupCheck  `cmd:"" help:"Verify the App of a configuration and say what is missing."`
}

type setupCreate struct {
	Org            string        `help:"Organization that owns the App and has the runners; without it, your own account."`
	Repo           []string      `help:"Repository (owner/name) that has runners of its own; may be repeated. Needs the permission Administration."`
	Name           string        `help:"Name of the App: at most 34 characters, unlike all others at GitHub. You can change it in the browser."`
	WebhookURL     string        `help:"Where GitHub delivers: https://HOST/webhook. Without it nothing has to reach the controller: it pulls deliveries from GitHub."`
	WebhookAddress string        `default:"127.0.0.1:8080" help:"Where the controller takes deliveries; the URL leads here."`
	GitHub         string        `name:"github" default:"https://github.com" help:"Enterprise Server or tenant of GHE.com: https://HOST."`
	Dir            string        `default:"." help:"Folder for minifleet.yaml and the files with secrets."`
	Listen         string        `default:"127.0.0.1:0" help:"Loopback address of the local page."`
	NoBrowser      bool          `help:"Print the page's URL only."`
	Public         bool          `help:"Let others install the App too."`
	Force          bool          `help:"Replace files that are there."`
	Wait           time.Duration `default:"15m" help:"How long to wait until the App is installed."`
	Every          time.Duration `default:"3s" hidden:"" help:"Pause between two questions to GitHub."`
}

// Help says what comes of it.
func (setupCreate) Help() string {
	return "Makes app.pem, webhook.secret, admin.token (each of mode 0600) and minifleet.yaml in --dir.\n\n" +
		"Examples:\n  minifleet setup --org acme --webhook-url https://minifleet.acme.example/webhook --dir /etc/minifleet\n" +
		"  minifleet setup --repo me/project\n  minifleet setup --org acme --github https://github.acme.example"
}

// noRedirects is how setup asks: nobody else gets the code.
func noRedirects() *http.Client {
	return &http.Client{
		Transport:     &http.Transport{Proxy: http.ProxyFromEnvironment, ForceAttemptHTTP2: true, DisableKeepAlives: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// Run makes the App and leads the person on until a test delivery has arrived.
func (c setupCreate) Run(s *surroundings) error {
	server, err := setup.ParseServer(c.GitHub)
	if err != nil {
		return err
	}
	var scopes []fleet.Scope
	for _, text := range c.Repo {
		scope, err := fleet.ParseScope(text)
		if err != nil || scope.Repo == "" {
			return fmt.Errorf("--repo %q: want owner/name", text)
		}
		scopes = append(scopes, scope)
	}
	if c.Org != "" && len(scopes) == 0 {
		scopes = []fleet.Scope{{Owner: c.Org}}
	}
	log, err := program.NewLog(s.stderr, "warn", "text")
	if err != nil {
		return err
	}
	creation := setup.Creation{
		Wish: setup.Wish{Server: server, Org: c.Org, Scopes: scopes, Name: c.appName(), Hook: c.WebhookURL, Address: c.WebhookAddress, Public: c.Public},
		Dir:  c.Dir, Force: c.Force, Listen: c.Listen, Client: noRedirects(), UserAgent: "minifleet/" + program.Version(), Pause: min(c.Every, 2*time.Second), Log: log,
		Say: func(format string, args ...any) { fmt.Fprintf(s.stdout, format+"\n", args...) },
	}
	if !c.NoBrowser {
		creation.Open, creation.Remote = setup.OpenBrowser, setup.RemoteLogin(s.getenv)
	} else {
		creation.Remote = setup.RemoteLogin(s.getenv)
	}
	made, err := setup.Create(s.ctx, creation)
	if err != nil {
		return err
	}
	defer made.App.Close()
	if _, err := loadSettings(made.Config, s.getenv); err != nil {
		return fmt.Errorf("the App is made, but its configuration is not good: %w", err)
	}
	creation.Say("%s is the controller's configuration", made.Config)
	return c.install(s, creation, made, log)
}

// appName is a name that nobody else is likely to have.
func (c setupCreate) appName() string {
	if c.Name != "" {
		return c.Name
	}
	suffix := c.Org
	if suffix == "" && len(c.Repo) > 0 {
		suffix, _, _ = strings.Cut(c.Repo[0], "/")
	}
	if suffix == "" {
		suffix = strings.ToLower(githubapp.RunnerName("x", "m")[len("x-m-"):])
	}
	name := "minifleet-" + suffix
	return name[:min(len(name), 34)]
}

// install waits for the App's installation and looks whether all is well.
func (c setupCreate) install(s *surroundings, creation setup.Creation, made setup.Created, log *slog.Logger) error {
	later := fmt.Sprintf("when it is, run\n\n    minifleet setup check --config %s --test-delivery\n", made.Config)
	owner := made.Self.Owner
	if len(creation.Scopes) > 0 {
		owner = creation.Scopes[0].Owner
	}
	creation.Say("Install the App on %s (the browser leads there):\n\n    %s\n\nWaiting for that ...", owner, setup.InstallPage(made.Self))
	place, err := setup.AwaitInstallation(s.ctx, made.App, owner, c.Every, c.Wait, creation.Say)
	if err != nil {
		return fmt.Errorf("%w: %s", err, later)
	}
	creation.Say("The App is installed on %s", place.Account)
	if err := creation.FillScopes(s.ctx, made, place); err != nil {
		return err
	}
	cfg, err := loadSettings(made.Config, s.getenv)
	if err != nil {
		return err
	}
	var problems []error
	if c.WebhookURL != "" {
		problems = append(problems, c.deliver(s.ctx, creation, made, cfg, log))
	}
	list := checker(cfg, made.App, creation.Client).Check(s.ctx)
	fmt.Fprintln(s.stdout)
	if err := printFindings(s.stdout, "table", list); err != nil {
		return err
	}
	if n := setup.Faults(list); n > 0 {
		problems = append(problems, fmt.Errorf("%d of the checks found a fault: mend it, then run minifleet setup check --config %s", n, made.Config))
	}
	if err := errors.Join(problems...); err != nil {
		return err
	}
	creation.Say("\nStart the controller:\n\n    minifleet serve --config %s", made.Config)
	return nil
}

// deliver has GitHub deliver its ping, to the controller or to what stands in for it.
func (c setupCreate) deliver(ctx context.Context, creation setup.Creation, made setup.Created, cfg settings, log *slog.Logger) error {
	stand, err := setup.Receive(ctx, cfg.Webhook.Address, cfg.GitHub.WebhookSecret, log)
	switch {
	case errors.Is(err, setup.ErrTaken):
		creation.Say("Something listens at %s already: the test delivery is left to it", cfg.Webhook.Address)
	case err != nil:
		return fmt.Errorf("no test delivery can be received: %w", err)
	default:
		defer stand.Close() //nolint:errcheck // nothing of it is kept
	}
	return testDelivery(ctx, made.App, creation.Client, c.WebhookURL, c.Every, creation.Say)
}

// testDelivery says how a delivery fares, and is an error if it does not arrive.
func testDelivery(ctx context.Context, app *githubapp.App, client *http.Client, url string, every time.Duration, say func(string, ...any)) error {
	say("Asking GitHub for a test delivery to %s ...", url)
	a, err := setup.TestDelivery(ctx, app, every, time.Minute)
	if err == nil && a.OK {
		say("The test delivery arrived: %d", a.Code)
		return nil
	}
	seen, _ := setup.Probe(ctx, client, url)
	if err != nil {
		return fmt.Errorf("test delivery to %s: %w. Seen from this machine: %s", url, err, seen)
	}
	why, do := setup.Explain(a)
	return fmt.Errorf("the test delivery to %s failed: %s. Seen from this machine: %s. To do: %s", url, why, seen, do)
}

type setupCheck struct {
	Config       string        `short:"c" required:"" type:"existingfile" help:"Configuration file (YAML)."`
	Output       string        `short:"o" default:"table" enum:"table,json" help:"table or json."`
	TestDelivery bool          `help:"Have GitHub deliver once more, and see how that fares. The controller, or what stands in for it, must listen."`
	Timeout      time.Duration `default:"2m" help:"How long all of it may take."`
	Every        time.Duration `default:"3s" hidden:"" help:"Pause between two questions to GitHub."`
}

// Run checks.
func (c setupCheck) Run(s *surroundings) error {
	cfg, err := loadSettings(c.Config, s.getenv)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(s.ctx, c.Timeout, fmt.Errorf("GitHub was too slow: not done within %s", c.Timeout))
	defer cancel()
	app, err := githubapp.New(githubapp.Config{
		AppID: cfg.GitHub.AppID, PrivateKey: cfg.GitHub.PrivateKey, BaseURL: cfg.GitHub.URL, UserAgent: "minifleet/" + program.Version(),
	})
	if err != nil {
		return err
	}
	defer app.Close()
	client := noRedirects()
	var delivered error
	if c.TestDelivery {
		hook, err := app.Hook(ctx)
		if err != nil {
			return err
		}
		if hook.URL == "" {
			return errors.New("the App has no webhook, so nothing can be delivered: set its URL on the App's page, or check without --test-delivery where github.deliveries is pull")
		}
		delivered = testDelivery(ctx, app, client, hook.URL, c.Every, func(format string, args ...any) { fmt.Fprintf(s.stderr, format+"\n", args...) })
	}
	list := append(readable(cfg, filepath.Dir(c.Config)), checker(cfg, app, client).Check(ctx)...)
	if err := printFindings(s.stdout, c.Output, list); err != nil {
		return err
	}
	if n := setup.Faults(list); n > 0 {
		return errors.Join(delivered, fmt.Errorf("faults: %d, see above what to do", n))
	}
	return delivered
}

// readable warns of the files with secrets that others on this machine can read. Their paths
// are relative to the configuration file.
func readable(cfg settings, beside string) (out []setup.Finding) {
	for _, path := range []string{cfg.GitHub.PrivateKeyFile, cfg.GitHub.WebhookSecretFile, cfg.GitHub.PreviousSecretFile, cfg.Admin.TokenFile} {
		if path != "" && !filepath.IsAbs(path) {
			path = filepath.Join(beside, path)
		}
		if info, err := os.Stat(path); err == nil && info.Mode().Perm()&0o077 != 0 {
			out = append(out, setup.Finding{
				Check: "secrets", Subject: path, Verdict: setup.Warn,
				Found: fmt.Sprintf("others on this machine can read or change it (mode %04o)", info.Mode().Perm()), Do: "chmod 600 " + path,
			})
		}
	}
	return out
}

func checker(cfg settings, app *githubapp.App, client *http.Client) setup.Checker {
	return setup.Checker{App: app, AppID: cfg.GitHub.AppID, API: cfg.GitHub.URL, Client: client, Pools: cfg.pools(), Pulls: cfg.GitHub.Deliveries == byPull}
}

func printFindings(w io.Writer, output string, list []setup.Finding) error {
	if output == "json" {
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		return e.Encode(map[string]any{"findings": list, "faults": setup.Faults(list)})
	}
	t := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	fmt.Fprintln(t, "CHECK\tVERDICT\tSUBJECT\tFOUND")
	for _, f := range list {
		subject := f.Subject
		if subject == "" {
			subject = "-"
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", f.Check, f.Verdict, subject, f.Found)
		if f.Do != "" && f.Verdict != setup.OK {
			fmt.Fprintf(t, "\t\t\t  to do: %s\n", f.Do)
		}
	}
	return t.Flush()
}
