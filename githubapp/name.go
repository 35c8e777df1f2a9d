// SPDX-License-Identifier: MIT

package githubapp

import (
	"crypto/rand"
	"strings"
)

const (
	// maxRunnerName is GitHub's limit.
	maxRunnerName = 64
	randomLength  = 16 // of 32 symbols: 80 bits, so that no two attempts ever meet
)

// RunnerName returns a new name for a runner of a pool: site id, pool, and a
// random part, at most 64 characters. The site id is never cut, because a name is
// known as one's own by it; the pool is there for people and gives way. It expects
// a site id of at most 40 letters and digits, without a dash.
func RunnerName(site, pool string) string {
	random := strings.ToLower(rand.Text()[:randomLength])
	room := maxRunnerName - len(site) - len(random) - 2
	if len(pool) > room {
		pool = strings.TrimRight(pool[:max(room, 0)], "-")
	}
	if pool == "" {
		return site + "-" + random
	}
	return site + "-" + pool + "-" + random
}

// OfSite reports whether a runner's name is one that RunnerName makes for the
// site. GitHub keeps the case of names and does not tell names apart by it.
func OfSite(site, name string) bool {
	name = strings.ToLower(name)
	rest, ok := strings.CutPrefix(name, strings.ToLower(site)+"-")
	if !ok || site == "" {
		return false
	}
	random := rest[strings.LastIndexByte(rest, '-')+1:]
	return len(random) == randomLength && strings.Trim(random, "abcdefghijklmnopqrstuvwxyz234567") == ""
}
