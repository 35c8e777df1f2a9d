// SPDX-License-Identifier: MIT

package githubsim

import (
	"fmt"
	"net/http"
	"strings"
)

// enterprisePrefix is where an Enterprise Server has its REST API.
const enterprisePrefix = "/api/v3"

// Just-in-time configs came with Enterprise Server 3.10.
const jitMinor = 10

func enterpriseVersion(s string) (major, minor int, ok bool) {
	_, err := fmt.Sscanf(s, "%d.%d", &major, &minor)
	return major, minor, err == nil
}

// enterprise makes the REST API that of an Enterprise Server.
func (s *Sim) enterprise(rest http.Handler) http.Handler {
	major, minor, _ := enterpriseVersion(s.opt.Enterprise)
	old := major < 3 || major == 3 && minor < jitMinor
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !strings.HasPrefix(r.URL.Path, enterprisePrefix+"/") {
			w.Header().Set("Content-Type", "text/html; charset=utf-8")
			w.WriteHeader(http.StatusNotFound) // the web site's
			return
		}
		w.Header().Set("X-GitHub-Enterprise-Version", s.opt.Enterprise)
		if old && strings.HasSuffix(r.URL.Path, "/generate-jitconfig") {
			s.serveREST(w, r, route{access: anyone, serve: func(*call) *answer { return notFound() }})
			return
		}
		rest.ServeHTTP(w, r)
	})
}
