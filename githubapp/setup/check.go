// SPDX-License-Identifier: MIT

package setup

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/minifleet/minifleet/fleet"
	"github.com/minifleet/minifleet/githubapp"
)

// Verdict is how grave a finding is.
type Verdict string

// The verdicts. Only faults keep jobs from being served.
const (
	OK    Verdict = "ok"
	Warn  Verdict = "warn"
	Fault Verdict = "fault"
)

// Finding is what one check found.
type Finding struct {
	Check   string  `json:"check"`
	Subject string  `json:"subject,omitempty"` // what was looked at, if there are several
	Verdict Verdict `json:"verdict"`
	Found   string  `json:"found"`
	Do      string  `json:"do,omitempty"` // what to do about it, and where
}

// Checker verifies an App against what a site wants of it.
type Checker struct {
	App    *githubapp.App
	AppID  int64
	API    string // REST base
	Client *http.Client
	Pools  []fleet.Pool
	// Pulls says that the site reads deliveries from GitHub's list.
	Pulls bool
	Now   func() time.Time // nil: time.Now
}

// inspection is a run of a Checker.
type inspection struct {
	Checker
	found  []Finding
	self   githubapp.Self
	places []githubapp.Place
}

func (i *inspection) add(v Verdict, check, subject, do, found string, args ...any) {
	i.found = append(i.found, Finding{Check: check, Subject: subject, Verdict: v, Found: fmt.Sprintf(found, args...), Do: do})
}

// Check looks at everything. What GitHub does not answer is a finding, never an error.
func (c Checker) Check(ctx context.Context) []Finding {
	if c.Now == nil {
		c.Now = time.Now
	}
	i := &inspection{Checker: c}
	i.clock(ctx)
	if !i.key(ctx) {
		return i.found
	}
	i.rights()
	i.hook(ctx)
	if i.installations(ctx) {
		i.scopes(ctx)
		i.groups(ctx)
		i.quotas(ctx)
	}
	i.deliveries(ctx)
	return i.found
}

// Faults counts the findings that keep jobs from being served.
func Faults(list []Finding) int {
	n := 0
	for _, f := range list {
		if f.Verdict == Fault {
			n++
		}
	}
	return n
}

// A clock that is wrong keeps nothing from working: the App signs in by GitHub's. But people
// compare its times, and guests get theirs from machines like this one.
const skewWorthNote = 20 * time.Second

func (i *inspection) clock(ctx context.Context) {
	const do = "set the time of this machine by NTP"
	ahead, err := githubapp.ClockAhead(ctx, i.Client, i.API)
	direction, off := "ahead of", ahead
	if ahead < 0 {
		direction, off = "behind", -ahead
	}
	switch {
	case err != nil:
		i.add(Fault, "clock", "", "see whether this machine reaches "+i.API+": name resolution, proxy (HTTPS_PROXY), firewall", "GitHub cannot be asked: %v", err)
	case off > skewWorthNote:
		i.add(Warn, "clock", "", do, "%s %s GitHub's: the App signs in by that", off.Round(time.Second), direction)
	default:
		i.add(OK, "clock", "", "", "within %s of GitHub's", skewWorthNote)
	}
}

func (i *inspection) key(ctx context.Context) bool {
	var err error
	if i.self, err = i.App.Self(ctx); err != nil {
		do := "see whether github.url is right and this machine reaches it"
		if errors.Is(err, githubapp.ErrRefused) {
			do = "compare github.app_id with the App's page, and generate a new private key there if the file's was deleted"
		}
		i.add(Fault, "key", "", do, "%v", err)
		return false
	}
	if i.self.ID != i.AppID {
		i.add(Fault, "key", "", "correct github.app_id", "the key belongs to App %d, %s; the configuration says %d", i.self.ID, i.self.Slug, i.AppID)
		return false
	}
	i.add(OK, "key", "", "", "App %d, %s, of %s", i.self.ID, i.self.Slug, i.self.Owner)
	return true
}

func (i *inspection) allScopes() []fleet.Scope {
	var out []fleet.Scope
	for _, p := range i.Pools {
		for _, s := range p.Scopes {
			if !slices.ContainsFunc(out, func(x fleet.Scope) bool { return x.Key() == s.Key() }) {
				out = append(out, s)
			}
		}
	}
	return out
}

// rights compares the App's own permissions and events with what the pools need.
func (i *inspection) rights() {
	permissions, events := missingRights(i.self.Permissions, i.self.Events, Needs(i.allScopes()))
	for _, p := range permissions {
		i.add(Fault, "permissions", "", "set it at "+appSettings(i.self)+"/permissions; owners of installations then have to accept it", "the App lacks %s", p)
	}
	for _, e := range events {
		i.add(Fault, "events", "", "tick it at "+appSettings(i.self)+"/permissions, under Subscribe to events", "the App does not subscribe to %s", e)
	}
	if len(permissions) == 0 {
		i.add(OK, "permissions", "", "", "all that the pools need")
	}
	if len(events) == 0 {
		i.add(OK, "events", "", "", "%s", strings.Join(i.self.Events, ", "))
	}
}

func (i *inspection) hook(ctx context.Context) {
	h, err := i.App.Hook(ctx)
	at := appSettings(i.self)
	if err != nil {
		i.add(Fault, "webhook", "", "set it at "+at, "%v", err)
		return
	}
	before := len(i.found)
	u, err := url.Parse(h.URL)
	switch {
	case i.Pulls && h.URL == nowhere:
		i.add(OK, "webhook", "", "", "leads nowhere: deliveries are read from GitHub's list")
		return
	case i.Pulls && h.URL == "":
		i.add(Fault, "webhook", "", "make it active with the URL "+nowhere+" at "+at, "there is none, so that GitHub makes no deliveries that could be pulled")
		return
	case i.Pulls:
		i.add(Warn, "webhook", "", "set the URL "+nowhere+" at "+at, "whoever answers at %s reads what the controller pulls", h.URL)
		return
	case h.URL == "" || h.URL == nowhere:
		i.add(Fault, "webhook", "", "set the controller's at "+at+", or github.deliveries: pull", "its URL leads nowhere: jobs are found in GitHub's lists alone, which takes minutes")
		return
	case err != nil || u.Host == "":
		i.add(Fault, "webhook", "", "set it at "+at, "%q is no URL", h.URL)
	case u.Scheme != "https":
		i.add(Warn, "webhook", "", "use https at "+at, "%s goes in clear over the network", h.URL)
	}
	if !h.HasSecret {
		i.add(Fault, "webhook", "", "put the content of github.webhook_secret_file at "+at, "it has no secret: the controller refuses what is not signed")
	}
	if h.ContentType != "" && h.ContentType != "json" {
		i.add(Warn, "webhook", "", "choose application/json at "+at, "its content type is %s: large events are larger still", h.ContentType)
	}
	if h.InsecureTLS {
		i.add(Warn, "webhook", "", "enable SSL verification at "+at, "GitHub does not check the receiver's certificate")
	}
	if len(i.found) == before {
		i.add(OK, "webhook", "", "", "%s", h.URL)
	}
}

func (i *inspection) installations(ctx context.Context) bool {
	var err error
	if i.places, err = i.App.Places(ctx); err != nil {
		i.add(Fault, "installation", "", "", "%v", err)
		return false
	}
	if len(i.places) == 0 {
		i.add(Fault, "installation", "", "install it: "+InstallPage(i.self), "the App is installed nowhere")
		return false
	}
	return true
}

// scopes holds each scope of the pools to the installation that covers it.
func (i *inspection) scopes(ctx context.Context) {
	for _, s := range i.allScopes() {
		subject := s.String()
		at := slices.IndexFunc(i.places, func(p githubapp.Place) bool { return strings.EqualFold(p.Account, s.Owner) })
		if at < 0 {
			i.add(Fault, "installation", subject, "install it: "+InstallPage(i.self), "the App is not installed on %s", s.Owner)
			continue
		}
		p := i.places[at]
		switch {
		case p.Suspended:
			i.add(Fault, "installation", subject, "an owner of "+s.Owner+" can unsuspend it at "+p.HTMLURL, "it is suspended: GitHub refuses all calls for it")
			continue
		case s.Repo == "" && p.User:
			i.add(Fault, "installation", subject, "use scopes of the form "+s.Owner+"/REPOSITORY", "%s is a user: GitHub has runners of single repositories only for it", s.Owner)
			continue
		}
		if s.Repo != "" {
			if _, err := i.App.InstallationID(ctx, s); errors.Is(err, githubapp.ErrNotInstalled) {
				found := "there is no such repository"
				if p.Selected {
					found = "the repository is not among those selected for the App, or does not exist"
				}
				i.add(Fault, "installation", subject, "add it at "+p.HTMLURL+", or correct the pool's scopes", "%s", found)
				continue
			} else if err != nil {
				i.add(Fault, "installation", subject, "", "%v", err)
				continue
			}
		}
		i.granted(s, p)
	}
}

// granted looks at what the owner of an installation has accepted.
func (i *inspection) granted(s fleet.Scope, p githubapp.Place) {
	permissions, events := missingRights(p.Permissions, p.Events, Needs([]fleet.Scope{s}))
	if missing := slices.Concat(permissions, events); len(missing) > 0 {
		i.add(Fault, "installation", s.String(), "an owner of "+s.Owner+" accepts the App's new permissions at "+p.HTMLURL, "not granted: %s", strings.Join(missing, "; "))
		return
	}
	reach := "all repositories"
	if p.Selected {
		reach = "selected repositories"
	}
	i.add(OK, "installation", s.String(), "", "installation %d, %s", p.ID, reach)
}

// groups looks for the runner groups of the pools, and whom they admit.
func (i *inspection) groups(ctx context.Context) {
	type listing struct {
		groups []githubapp.Group
		err    error
	}
	known, done := map[string]listing{}, map[string]bool{}
	for _, p := range i.Pools {
		for _, s := range p.Scopes {
			subject := s.Owner + "/" + p.RunnerGroup
			if s.Repo != "" || done[strings.ToLower(subject)] {
				continue
			}
			done[strings.ToLower(subject)] = true
			l, ok := known[s.Key()]
			if !ok {
				l.groups, l.err = i.App.Groups(ctx, s)
				known[s.Key()] = l
			}
			if l.err != nil {
				i.add(Warn, "runner group", subject, "", "cannot be seen: %v", l.err)
				continue
			}
			i.group(p, s, subject, l.groups)
		}
	}
}

func (i *inspection) group(p fleet.Pool, s fleet.Scope, subject string, all []githubapp.Group) {
	at := slices.IndexFunc(all, func(g githubapp.Group) bool {
		return g.Name == p.RunnerGroup || strings.EqualFold(p.RunnerGroup, "default") && g.ID == 1
	})
	if at < 0 {
		i.add(Fault, "runner group", subject, "make it in the organization's settings, Actions, Runner groups, or correct runner_group of pool "+p.Name, "%s has no runner group of that name", s.Owner)
		return
	}
	g := all[at]
	const where = "see the organization's settings, Actions, Runner groups"
	switch {
	case g.Workflows:
		i.add(Warn, "runner group", subject, where, "it is for selected workflows: jobs of all others wait for ever")
	case g.AllowPublic:
		i.add(Warn, "runner group", subject, where, "public repositories may use it: with them anybody's pull requests may reach your machines")
	case g.Visibility == "all":
		i.add(OK, "runner group", subject, "", "for all private repositories")
	default:
		i.add(OK, "runner group", subject, "", "for %s repositories: jobs of others are not given to it", g.Visibility)
	}
}

// quotas warns of rate limits that are nearly used up.
func (i *inspection) quotas(ctx context.Context) {
	for _, p := range i.places {
		if p.Suspended {
			continue
		}
		list, err := i.App.Quotas(ctx, p.ID)
		if err != nil {
			i.add(Warn, "rate limit", p.Account, "", "%v", err)
			continue
		}
		if len(list) == 0 {
			i.add(OK, "rate limit", p.Account, "", "none on this server")
		}
		for _, q := range list {
			v, do := OK, ""
			if q.Limit > 0 && q.Remaining*10 < q.Limit {
				v, do = Warn, "look what else uses this App's installation; the controller waits until then"
			}
			i.add(v, "rate limit", p.Account, do, "%s: %d of %d left until %s", q.Resource, q.Remaining, q.Limit, q.Reset.UTC().Format(time.TimeOnly))
		}
	}
}
