// SPDX-License-Identifier: MIT

package guest

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/minifleet/minifleet/trust"
)

// JobStartedCommand is the argument with which the runner's job-started hook starts the
// guest program; the socket that it asks through follows.
const JobStartedCommand = "job-started"

// ErrJobRefused is what JobStarted returns where this machine does not run the job.
var ErrJobRefused = errors.New("this machine does not run the job")

// maxEventBytes is more than any event that GitHub sends.
const maxEventBytes = 64 << 20

// held is how long the hook of a refused job waits for its end.
const held = time.Hour

// JobStarted tells the guest program of the job that the runner is about to run, and returns
// nil if it may. Where it may not, it says so in the job's log and does not return: the
// guest program ends the runner, and this with it. The runner gives the hook its own variables
// and none of the workflow's.
func JobStarted(args []string, getenv func(string) string, stdout io.Writer) error {
	if len(args) != 1 {
		return fmt.Errorf("%s: give the socket to ask through: the runner's hook starts this", JobStartedCommand)
	}
	refused, told, err := askGuest(args[0], readJob(getenv))
	if err != nil {
		refused = "the guest program could not be asked: " + err.Error()
	}
	if refused == "" {
		return nil
	}
	fmt.Fprintf(stdout, "::error title=Minifleet::This machine does not run the job: %s\n", printable(refused, maxReasonBytes, false))
	told()
	time.Sleep(held)
	return ErrJobRefused
}

// askGuest returns why the job is refused, "" if it is not, and what to call when the job's
// log says so.
func askGuest(socket string, job jobAsk) (refused string, told func(), err error) {
	told = func() {}
	conn, err := net.Dial("unix", socket) //nolint:noctx // it takes no time
	if err != nil {
		return "", told, err
	}
	if err := conn.SetDeadline(time.Now().Add(2 * askTimeout)); err != nil {
		return "", told, errors.Join(err, conn.Close())
	}
	if err := json.NewEncoder(conn).Encode(job); err != nil {
		return "", told, errors.Join(err, conn.Close())
	}
	var answer *jobAnswer
	if err := json.NewDecoder(io.LimitReader(conn, maxAskBytes)).Decode(&answer); err != nil || answer == nil {
		return "", told, errors.Join(errors.New("no answer"), err, conn.Close())
	}
	return answer.Refused, func() { conn.Close() }, nil // its end is the word
}

// readJob reads what the runner tells its hook, see
// https://docs.github.com/actions/hosting-your-own-runners/managing-self-hosted-runners/running-scripts-before-or-after-a-job
func readJob(getenv func(string) string) jobAsk {
	job := jobAsk{
		Repository: clip(getenv("GITHUB_REPOSITORY"), 200), Event: clip(getenv("GITHUB_EVENT_NAME"), 64),
		Actor: clip(getenv("GITHUB_ACTOR"), 100), TriggeringActor: clip(getenv("GITHUB_TRIGGERING_ACTOR"), 100),
	}
	job.Head = job.Repository
	job.Run, _ = strconv.ParseInt(getenv("GITHUB_RUN_ID"), 10, 64) // 0 names none
	event, err := readEvent(getenv("GITHUB_EVENT_PATH"))
	if err != nil {
		job.Unread = "the event that began the run could not be read: " + printable(err.Error(), 300, false)
		return job
	}
	event.apply(&job)
	return job
}

// jobEvent is the part of an event that is looked at.
type jobEvent struct {
	Repository *struct {
		Private *bool `json:"private"`
	} `json:"repository"`
	PullRequest *struct {
		Head struct {
			Repo *struct {
				FullName string `json:"full_name"`
			} `json:"repo"`
		} `json:"head"`
	} `json:"pull_request"`
}

func readEvent(path string) (event jobEvent, err error) {
	if path == "" {
		return event, errors.New("GITHUB_EVENT_PATH is not set")
	}
	f, err := os.Open(path)
	if err != nil {
		return event, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxEventBytes))
	if err != nil {
		return event, err
	}
	return event, json.Unmarshal(text, &event)
}

// apply adds what the event tells. The code of a pull request's events comes from its head,
// which is gone if the event has none; that of all others is the repository's own.
func (e jobEvent) apply(job *jobAsk) {
	if r := e.Repository; r != nil && r.Private != nil {
		job.Visibility = trust.Public
		if *r.Private {
			job.Visibility = trust.Private
		}
	}
	if e.PullRequest == nil && !strings.HasPrefix(job.Event, "pull_request") {
		return
	}
	job.Head = ""
	if e.PullRequest != nil && e.PullRequest.Head.Repo != nil {
		job.Head = clip(e.PullRequest.Head.Repo.FullName, 200)
	}
}
