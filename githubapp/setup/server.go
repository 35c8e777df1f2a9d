// SPDX-License-Identifier: MIT

package setup

import (
	"fmt"
	"net"
	"net/url"
	"strings"

	"github.com/minifleet/minifleet/githubapp"
)

// Server is a GitHub: github.com, a tenant of GHE.com, or an Enterprise Server.
type Server struct {
	Web string // for browsers, without a slash at the end
	API string // REST base
}

// ParseServer returns the addresses of the GitHub at a URL as browsers know it; "" is
// github.com. A name alone is taken for https.
func ParseServer(text string) (Server, error) {
	if text == "" {
		text = "https://github.com"
	}
	if !strings.Contains(text, "://") {
		text = "https://" + text
	}
	u, err := url.Parse(text)
	if err != nil || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || strings.Trim(u.Path, "/") != "" {
		return Server{}, fmt.Errorf("GitHub at %q: want https://HOST, as in the browser's address bar", text)
	}
	ip := net.ParseIP(u.Hostname())
	if u.Scheme != "https" && (u.Scheme != "http" || u.Hostname() != "localhost" && (ip == nil || !ip.IsLoopback())) {
		return Server{}, fmt.Errorf("GitHub at %q: use https; plain http would show the App's key to the network", text)
	}
	u.Path = ""
	host := strings.ToLower(u.Host)
	switch {
	case host == "github.com" || host == "www.github.com" || host == "api.github.com":
		return Server{Web: "https://github.com", API: githubapp.DefaultBaseURL}, nil
	case strings.HasSuffix(host, ".ghe.com"):
		tenant := strings.TrimPrefix(host, "api.")
		return Server{Web: "https://" + tenant, API: "https://api." + tenant}, nil
	default:
		return Server{Web: u.String(), API: u.String() + "/api/v3"}, nil
	}
}

// appSettings is where an owner sets what an App may do and hear.
func appSettings(app githubapp.Self) string {
	web := app.HTMLURL // https://HOST/apps/SLUG, or https://HOST/github-apps/SLUG on an Enterprise Server
	if u, err := url.Parse(app.HTMLURL); err == nil {
		u.Path, u.RawQuery, u.Fragment = "", "", ""
		web = u.String()
	}
	if app.OwnerIsUser {
		return web + "/settings/apps/" + url.PathEscape(app.Slug)
	}
	return web + "/organizations/" + url.PathEscape(app.Owner) + "/settings/apps/" + url.PathEscape(app.Slug)
}
