// SPDX-License-Identifier: MIT

package githubsim

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"strings"
	"time"
)

// object is a JSON object as GitHub shows it. The views are maps, not structs,
// because one thing has many shapes: REST shows more of it than webhooks, and a
// run shows less of its repository than the repository shows of itself.
type object = map[string]any

// marshal encodes what the Sim itself has built, which cannot fail.
func marshal(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("githubsim: encode own value: %v", err))
	}
	return b
}

func nodeID(kind string, id int64) string {
	return kind + "_" + base64.RawURLEncoding.EncodeToString(fmt.Appendf(nil, "%d", id))
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

func orNil(s string) any {
	if s == "" {
		return nil
	}
	return s
}

func (a *account) view(base string) object {
	api := base + "/users/" + a.login
	kind := "User"
	if a.org {
		kind = "Organization"
	}
	return object{
		"login": a.login, "id": a.id, "node_id": nodeID("U", a.id), "type": kind, "site_admin": false, "gravatar_id": "",
		"avatar_url": base + "/avatars/u/" + fmt.Sprint(a.id), "url": api, "html_url": base + "/" + a.login,
		"followers_url": api + "/followers", "following_url": api + "/following{/other_user}", "gists_url": api + "/gists{/gist_id}",
		"starred_url": api + "/starred{/owner}{/repo}", "subscriptions_url": api + "/subscriptions", "organizations_url": api + "/orgs",
		"repos_url": api + "/repos", "events_url": api + "/events{/privacy}", "received_events_url": api + "/received_events",
	}
}

func (a *account) organizationView(base string) object {
	api := base + "/orgs/" + a.login
	return object{
		"login": a.login, "id": a.id, "node_id": nodeID("O", a.id), "url": api, "repos_url": api + "/repos", "events_url": api + "/events",
		"hooks_url": api + "/hooks", "issues_url": api + "/issues", "members_url": api + "/members{/member}",
		"public_members_url": api + "/public_members{/member}", "avatar_url": base + "/avatars/u/" + fmt.Sprint(a.id), "description": "",
	}
}

// repoLinks are the URLs that every view of a repository has, by name, below its API URL.
const repoLinks = `archive /{archive_format}{/ref}
assignees /assignees{/user}
blobs /git/blobs{/sha}
branches /branches{/branch}
collaborators /collaborators{/collaborator}
comments /comments{/number}
commits /commits{/sha}
compare /compare/{base}...{head}
contents /contents/{+path}
contributors /contributors
deployments /deployments
downloads /downloads
events /events
forks /forks
git_commits /git/commits{/sha}
git_refs /git/refs{/sha}
git_tags /git/tags{/sha}
hooks /hooks
issue_comment /issues/comments{/number}
issue_events /issues/events{/number}
issues /issues{/number}
keys /keys{/key_id}
labels /labels{/name}
languages /languages
merges /merges
milestones /milestones{/number}
notifications /notifications{?since,all,participating}
pulls /pulls{/number}
releases /releases{/id}
stargazers /stargazers
statuses /statuses/{sha}
subscribers /subscribers
subscription /subscription
tags /tags
teams /teams
trees /git/trees{/sha}`

// minimalView is a repository as a workflow run shows it.
func (r *repository) minimalView(base string) object {
	api := base + "/repos/" + r.fullName()
	v := object{
		"id": r.id, "node_id": nodeID("R", r.id), "name": r.name, "full_name": r.fullName(), "private": r.private,
		"owner": r.owner.view(base), "html_url": base + "/" + r.fullName(), "description": nil, "fork": r.fork, "url": api,
	}
	for line := range strings.Lines(repoLinks) {
		name, path, _ := strings.Cut(strings.TrimSpace(line), " ")
		v[name+"_url"] = api + path
	}
	return v
}

// hookView is a repository as webhooks show it.
func (r *repository) hookView(base string) object {
	v := r.minimalView(base)
	visibility, html := "private", base+"/"+r.fullName()
	if !r.private {
		visibility = "public"
	}
	maps.Copy(v, object{
		"created_at": r.clock.stamp(r.createdAt), "updated_at": r.clock.stamp(r.createdAt), "pushed_at": r.clock.stamp(r.createdAt),
		"git_url": "git://" + strings.TrimPrefix(strings.TrimPrefix(html, "https://"), "http://") + ".git", "ssh_url": "git@github.invalid:" + r.fullName() + ".git",
		"clone_url": html + ".git", "svn_url": html, "homepage": nil, "size": 1, "stargazers_count": 0, "watchers_count": 0,
		"language": nil, "has_issues": true, "has_projects": true, "has_downloads": true, "has_wiki": true, "has_pages": false,
		"has_discussions": false, "forks_count": 0, "mirror_url": nil, "archived": false, "disabled": false, "open_issues_count": 0,
		"license": nil, "allow_forking": true, "is_template": false, "web_commit_signoff_required": false, "topics": []string{},
		"visibility": visibility, "forks": 0, "open_issues": 0, "watchers": 0, "default_branch": "main", "custom_properties": object{},
	})
	return v
}

// fullView is a repository as its own endpoint shows it.
func (r *repository) fullView(base string) object {
	v := r.hookView(base)
	maps.Copy(v, object{"network_count": 0, "subscribers_count": 0})
	return v
}

// shortView is a repository as installation events list it.
func (r *repository) shortView() object {
	return object{"id": r.id, "node_id": nodeID("R", r.id), "name": r.name, "full_name": r.fullName(), "private": r.private}
}
