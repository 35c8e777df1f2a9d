// SPDX-License-Identifier: MIT

package githubapp

import (
	"cmp"
	"errors"
	"fmt"
	"net/url"
	"strings"
)

// baseURL checks where an API is. GitHub has it at https://api.github.com, GHE.com at
// https://api.SUBDOMAIN.ghe.com, and an Enterprise Server at https://HOST/api/v3.
func baseURL(s string) (string, error) {
	s = cmp.Or(s, DefaultBaseURL)
	u, err := url.Parse(s)
	if err != nil {
		return "", errors.New("base URL: not a URL, want for instance " + DefaultBaseURL)
	}
	switch {
	case u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "":
		return "", fmt.Errorf("base URL %s: want scheme, host and path only, for instance %s or https://HOST/api/v3", u.Redacted(), DefaultBaseURL)
	case u.Scheme == "http" && loopback(u.Hostname()):
		return strings.TrimRight(s, "/"), nil
	case u.Scheme != "https":
		return "", fmt.Errorf("base URL %s: use https; plain http would show the App's credentials to the network and is taken for loopback only", s)
	}
	if want := apiOf(u); want != "" {
		return "", fmt.Errorf("base URL %s: that is no API: want %s", s, want)
	}
	return strings.TrimRight(s, "/"), nil
}

// apiOf returns the API's URL that must be meant by one that is none, or "".
func apiOf(u *url.URL) string {
	host, path := strings.ToLower(u.Host), strings.TrimRight(u.Path, "/")
	name := strings.ToLower(u.Hostname())
	switch {
	case name == "github.com" || name == "www.github.com" || name == "api.github.com" && path != "":
		return DefaultBaseURL
	case name == "api.github.com" || loopback(name):
		return ""
	case strings.HasSuffix(name, ".ghe.com"):
		sub := strings.TrimPrefix(host, "api.")
		if want := "https://api." + sub; host == sub || path != "" {
			return want
		}
		return ""
	case strings.HasSuffix(path, "/api/v3"):
		return ""
	default:
		return "https://" + host + "/api/v3"
	}
}

// atGitHub reports whether a base URL is of GitHub's own service, which has limits.
func atGitHub(base string) bool {
	u, err := url.Parse(base)
	return err == nil && (strings.EqualFold(u.Hostname(), "api.github.com") || strings.HasSuffix(strings.ToLower(u.Hostname()), ".ghe.com"))
}

// noteVersion remembers the version that an Enterprise Server tells with each answer.
func (a *App) noteVersion(v string) {
	if v = printable(v, 32); v != "" && v != a.enterprise() {
		a.version.Store(&v)
	}
}

// enterprise returns the Enterprise Server's version, "" elsewhere.
func (a *App) enterprise() string {
	if v := a.version.Load(); v != nil {
		return *v
	}
	return ""
}

// tooOld reports whether the server is one without just-in-time runners.
func (a *App) tooOld() bool {
	var major, minor int
	if _, err := fmt.Sscanf(a.enterprise(), "%d.%d", &major, &minor); err != nil {
		return false
	}
	return major < 3 || major == 3 && minor < 10
}
