// SPDX-License-Identifier: MIT

package githubapp

import (
	"context"
	"fmt"
	"regexp"
	"time"

	"github.com/minifleet/minifleet/fleet"
)

// downloadName is the file of a runner: actions-runner-osx-arm64-2.336.0.tar.gz.
var downloadName = regexp.MustCompile(`^actions-runner-[a-z0-9]+-[a-z0-9]+-(\d{1,6}(?:\.\d{1,6}){1,3})\.(?:tar\.gz|zip)$`)

// OfferedRunners returns the versions of the runner that GitHub offers to a scope, each
// once: usually the newest alone. It does not tell when they came out.
func (a *App) OfferedRunners(ctx context.Context, scope fleet.Scope) ([]string, error) {
	base := "orgs/" + scope.Owner
	if scope.Repo != "" {
		base = "repos/" + scope.Owner + "/" + scope.Repo
	}
	var list []struct {
		Filename string `json:"filename"`
	}
	err := a.at(ctx, scope, fmt.Sprintf("list the runners that GitHub offers to %s", scope), a.callTimeout, func(ctx context.Context, in *installation) error {
		_, err := get(ctx, in.client, base+"/actions/runners/downloads", &list)
		return err
	})
	var out []string
	seen := map[string]bool{}
	for _, f := range list {
		if m := downloadName.FindStringSubmatch(f.Filename); m != nil && !seen[m[1]] {
			seen[m[1]] = true
			out = append(out, m[1])
		}
	}
	return out, err
}

// RunnerReleases returns the newest releases of the runner with their dates, asked for as
// the installation of a scope. A server that has not the repository actions/runner, as
// an Enterprise Server, has none.
func (a *App) RunnerReleases(ctx context.Context, scope fleet.Scope) ([]fleet.RunnerRelease, error) {
	var list []struct {
		Tag        string    `json:"tag_name"`
		At         time.Time `json:"published_at"`
		Draft      bool      `json:"draft"`
		Prerelease bool      `json:"prerelease"`
	}
	err := a.at(ctx, scope, "list the runner's releases", a.callTimeout, func(ctx context.Context, in *installation) error {
		_, err := get(ctx, in.client, "repos/actions/runner/releases?per_page=30", &list)
		return err
	})
	if missing(err) {
		return nil, nil
	}
	var out []fleet.RunnerRelease
	for _, r := range list {
		if len(r.Tag) > 1 && r.Tag[0] == 'v' && fleet.ValidRunnerVersion(r.Tag[1:]) && !r.At.IsZero() && !r.Draft && !r.Prerelease {
			out = append(out, fleet.RunnerRelease{Version: r.Tag[1:], At: r.At})
		}
	}
	return out, err
}
