// SPDX-License-Identifier: MIT

package githubapp

import (
	"net/http"
	"strings"
	"time"
)

// Class is the kind of an endpoint: few enough to count by.
type Class string

// The classes of calls.
const (
	ClassToken        Class = "token"        // an installation's sign-in
	ClassRegister     Class = "register"     // a just-in-time config
	ClassDelete       Class = "delete"       // of a registration
	ClassRunner       Class = "runner"       // one registration
	ClassRunners      Class = "runners"      // a list of registrations
	ClassGroups       Class = "groups"       // runner groups
	ClassJob          Class = "job"          // one job
	ClassJobs         Class = "jobs"         // the jobs of a run
	ClassRun          Class = "run"          // one run
	ClassRuns         Class = "runs"         // a list of runs
	ClassInstallation Class = "installation" // where the App is installed
	ClassDeliveries   Class = "deliveries"   // of webhooks
	ClassOther        Class = "other"
)

// classOf returns the class of a request by its path, below whatever base.
func classOf(method, path string) Class {
	parts := strings.Split(strings.Trim(path, "/"), "/")
	last := parts[len(parts)-1]
	before := func(n int) string { // the part so many before the last
		if n >= len(parts) {
			return ""
		}
		return parts[len(parts)-1-n]
	}
	switch {
	case last == "access_tokens":
		return ClassToken
	case last == "generate-jitconfig":
		return ClassRegister
	case before(2) == "hook" && before(1) == "deliveries", before(1) == "hook" && last == "deliveries", before(2) == "deliveries" && last == "attempts":
		return ClassDeliveries
	case before(2) == "actions" && before(1) == "runners" && method == http.MethodDelete:
		return ClassDelete
	case before(2) == "actions" && before(1) == "runners":
		return ClassRunner
	case before(1) == "actions" && last == "runners":
		return ClassRunners
	case before(1) == "actions" && last == "runner-groups":
		return ClassGroups
	case before(2) == "actions" && before(1) == "jobs":
		return ClassJob
	case before(2) == "runs" && last == "jobs":
		return ClassJobs
	case before(2) == "actions" && before(1) == "runs":
		return ClassRun
	case before(1) == "actions" && last == "runs":
		return ClassRuns
	case last == "installation", last == "installations" && before(1) == "app":
		return ClassInstallation
	}
	return ClassOther
}

// Call is one request that was sent to GitHub, for who counts them.
type Call struct {
	AppID        int64
	Installation int64 // 0: as the App itself
	Class        Class
	Status       int  // 0: there was no answer
	Held         bool // it was not sent: GitHub's limits, or an outage
	Took         time.Duration
}
