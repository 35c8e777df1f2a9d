// SPDX-License-Identifier: MIT

package githubsim

import (
	"encoding/json"
	"fmt"
	"html/template"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/minifleet/minifleet/secret"
)

// identity is what can change of the App: a Sim has one, with one id and one key.
type identity struct {
	slug, name  string
	owner       string // login
	ownerIsUser bool
	permissions map[string]string
	events      []string
}

// appManifest is what a form posts to have an App made
// (https://docs.github.com/en/apps/sharing-github-apps/registering-a-github-app-from-a-manifest).
type appManifest struct {
	Name           string `json:"name"`
	URL            string `json:"url"`
	HookAttributes struct {
		URL    string `json:"url"`
		Active *bool  `json:"active"`
	} `json:"hook_attributes"`
	RedirectURL        string            `json:"redirect_url"`
	Public             bool              `json:"public"`
	DefaultEvents      []string          `json:"default_events"`
	DefaultPermissions map[string]string `json:"default_permissions"`
}

// objection says what is wrong with a manifest, "" if nothing is.
func (m appManifest) objection() string {
	_, redirect := url.ParseRequestURI(m.RedirectURL)
	_, home := url.ParseRequestURI(m.URL)
	hook, errHook := url.ParseRequestURI(m.HookAttributes.URL)
	switch {
	case m.Name == "" || len(m.Name) > 34:
		return "name is missing or longer than 34 characters"
	case home != nil:
		return "url is missing"
	case redirect != nil:
		return "redirect_url is missing"
	case errHook != nil || hook.Scheme != "https" && hook.Scheme != "http":
		return "hook_attributes.url is missing"
	case slices.Contains(m.DefaultEvents, "workflow_job") && m.DefaultPermissions["actions"] == "":
		return "default_events: workflow_job needs the permission actions"
	}
	return ""
}

// grant is a code that can be exchanged for the App's credentials, once.
type grant struct {
	app      identity
	hook     string
	active   bool
	issuedAt time.Time
}

// webPages serves the pages of GitHub's that a person's browser visits: the form
// that makes an App of a manifest, and the one that installs it.
func (s *Sim) webPages() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /settings/apps/new", s.newApp)
	mux.HandleFunc("POST /organizations/{org}/settings/apps/new", s.newApp)
	mux.HandleFunc("POST /settings/apps", s.createApp)
	mux.HandleFunc("POST /organizations/{org}/settings/apps", s.createApp)
	mux.HandleFunc("GET /apps/{slug}/installations/new", s.newInstallation)
	mux.HandleFunc("POST /apps/{slug}/installations", s.createInstallation)
	return mux
}

// isPage reports whether a path is one of webPages and not of the API.
func isPage(path string) bool {
	return strings.HasPrefix(path, "/settings/apps") || strings.HasPrefix(path, "/organizations/") ||
		strings.HasPrefix(path, "/apps/") && strings.Contains(path, "/installations")
}

var newAppPage = template.Must(template.New("").Parse(`<!doctype html><meta charset="utf-8"><title>Create GitHub App</title>
<h1>Create GitHub App for {{.Owner}}</h1>
<form method="post" action="{{.Action}}">
<input type="hidden" name="manifest" value="{{.Manifest}}"><input type="hidden" name="state" value="{{.State}}">
<label>GitHub App name <input name="name" value="{{.Name}}"></label>
<button type="submit">Create GitHub App for {{.Owner}}</button>
</form>
`))

func (s *Sim) newApp(w http.ResponseWriter, r *http.Request) {
	r.Body = http.MaxBytesReader(w, r.Body, 1<<20)
	var m appManifest
	text := r.PostFormValue("manifest")
	if err := json.Unmarshal([]byte(text), &m); err != nil || m.objection() != "" {
		http.Error(w, "Invalid GitHub App configuration: "+orString(m.objection(), "error parsing manifest"), http.StatusUnprocessableEntity)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	_ = newAppPage.Execute(w, map[string]string{ // the browser may have gone; there is nobody else to tell
		"Owner": orString(r.PathValue("org"), "octocat"), "Action": strings.TrimSuffix(r.URL.Path, "/new"),
		"Manifest": text, "State": r.FormValue("state"), "Name": m.Name,
	})
}

func (s *Sim) createApp(w http.ResponseWriter, r *http.Request) {
	r.Body = http.MaxBytesReader(w, r.Body, 1<<20)
	var m appManifest
	err := json.Unmarshal([]byte(r.PostFormValue("manifest")), &m)
	if name := r.PostFormValue("name"); name != "" {
		m.Name = name // the person may change it
	}
	back, badURL := url.ParseRequestURI(m.RedirectURL)
	if err != nil || m.objection() != "" || badURL != nil {
		http.Error(w, "Invalid GitHub App configuration", http.StatusUnprocessableEntity)
		return
	}
	org := r.PathValue("org")
	g := grant{
		app: identity{
			slug: strings.ToLower(strings.ReplaceAll(m.Name, " ", "-")), name: m.Name, owner: orString(org, "octocat"), ownerIsUser: org == "",
			permissions: maps.Clone(m.DefaultPermissions), events: m.DefaultEvents,
		},
		hook: m.HookAttributes.URL, active: m.HookAttributes.Active == nil || *m.HookAttributes.Active, issuedAt: time.Now(),
	}
	if g.app.permissions == nil {
		g.app.permissions = map[string]string{}
	}
	g.app.permissions["metadata"] = "read" // which every App has
	code := strings.TrimPrefix(newToken("code_"), "code_")
	s.mu.Lock()
	s.grants[code] = g
	s.mu.Unlock()
	q := back.Query()
	q.Set("code", code)
	if state := r.PostFormValue("state"); state != "" {
		q.Set("state", state)
	}
	back.RawQuery = q.Encode()
	http.Redirect(w, r, back.String(), http.StatusFound)
}

// convertManifest hands out the App's credentials, once for each code. The Sim's
// App becomes what the manifest asked for, with a new webhook secret.
func (s *Sim) convertManifest(c *call) *answer {
	code := c.PathValue("code")
	s.mu.Lock()
	g, found := s.grants[code]
	delete(s.grants, code)
	if !found || c.now.Sub(g.issuedAt) > s.timing.ManifestCode {
		s.mu.Unlock()
		return notFound()
	}
	key := secret.Generate()
	s.app = g.app
	s.account(g.app.owner, !g.app.ownerIsUser)
	body := s.appView(c.base)
	s.mu.Unlock()
	body["client_secret"], body["webhook_secret"], body["pem"] = newToken(""), key.Reveal(), s.appPEM.Reveal()
	s.hooks.mu.Lock()
	s.hooks.url, s.hooks.secret, s.hooks.inactive = g.hook, key, !g.active
	s.hooks.mu.Unlock()
	s.ping()
	return &answer{status: http.StatusCreated, body: body}
}

// ChangeApp gives the App other permissions and events, as its owner can on its
// settings page. Installations keep what they were granted.
func (s *Sim) ChangeApp(permissions map[string]string, events []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.app.permissions, s.app.events = maps.Clone(permissions), slices.Clone(events)
}

// SetHook changes one field of the webhook's configuration, content_type or
// insecure_ssl, as the App's owner can.
func (s *Sim) SetHook(field, value string) error {
	s.hooks.mu.Lock()
	defer s.hooks.mu.Unlock()
	switch field {
	case "content_type":
		s.hooks.content = value
	case "insecure_ssl":
		s.hooks.insecure = value == "1"
	default:
		return fmt.Errorf("set hook: no field %q", field)
	}
	return nil
}

func (s *Sim) newInstallation(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	owner, slug := s.app.owner, s.app.slug
	s.mu.Unlock()
	if r.PathValue("slug") != slug {
		http.NotFound(w, r)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	_, _ = io.WriteString(w, `<!doctype html><meta charset="utf-8"><title>Install</title><form method="post" action="/apps/`+url.PathEscape(slug)+
		`/installations"><input name="account" value="`+template.HTMLEscapeString(owner)+`"><input name="repository"><button type="submit">Install</button></form>`)
}

// createInstallation installs the App on an account, on all of its repositories;
// those of the form are made if they are new.
func (s *Sim) createInstallation(w http.ResponseWriter, r *http.Request) {
	r.Body = http.MaxBytesReader(w, r.Body, 1<<20)
	login := r.PostFormValue("account")
	s.mu.Lock()
	permissions := maps.Clone(s.app.permissions)
	user := s.app.ownerIsUser && strings.EqualFold(s.app.owner, login)
	s.mu.Unlock()
	in := Installation{Account: login, User: user, Permissions: permissions}
	for _, name := range r.PostForm["repository"] {
		if name != "" {
			in.Repositories = append(in.Repositories, name)
		}
	}
	if _, err := s.AddInstallation(in); err != nil {
		http.Error(w, err.Error(), http.StatusUnprocessableEntity)
		return
	}
	http.Redirect(w, r, "/apps/"+url.PathEscape(r.PathValue("slug")), http.StatusFound)
}
