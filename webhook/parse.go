// SPDX-License-Identifier: MIT

package webhook

import (
	"encoding/json"
	"errors"
	"fmt"
	"mime"
	"net/url"

	"github.com/minifleet/minifleet/fleet"
	"github.com/minifleet/minifleet/trust"
)

// reading is what a payload says. At most one of the pointers is set.
type reading struct {
	action         string
	repo           fleet.Scope // zero where the event has no repository
	visibility     trust.Visibility
	installationID int64
	appID          int64 // of the installation, 0 where the event does not tell

	job          *fleet.JobNews
	run          *fleet.Run
	installation *fleet.Installation
}

// verdict says what becomes of a delivery, and why.
type verdict struct {
	status fleet.DeliveryStatus
	reason string
}

func processed() verdict { return verdict{status: fleet.DeliveryProcessed} }

func ignored(format string, args ...any) verdict {
	return verdict{fleet.DeliveryIgnored, fmt.Sprintf(format, args...)}
}

func failed(format string, args ...any) verdict {
	return verdict{fleet.DeliveryFailed, fmt.Sprintf(format, args...)}
}

// event is the part of every payload that is looked at. Everything else is left
// unread: GitHub adds fields at any time.
type event struct {
	Action       string            `json:"action"`
	Installation *installationPart `json:"installation"`
	Repository   *repositoryPart   `json:"repository"`
	Job          json.RawMessage   `json:"workflow_job"`
	Run          json.RawMessage   `json:"workflow_run"`
}

type repositoryPart struct {
	FullName string `json:"full_name"`
	Private  *bool  `json:"private"` // also where it is internal to an enterprise
}

// visibility is what GitHub says of who can read the repository.
func (r repositoryPart) visibility() trust.Visibility {
	switch {
	case r.Private == nil:
		return trust.Unknown
	case *r.Private:
		return trust.Private
	default:
		return trust.Public
	}
}

// Handles reports whether deliveries of an event can mean anything here.
func Handles(event string) bool {
	switch event {
	case "workflow_job", "workflow_run", "installation", "installation_repositories", "ping":
		return true
	default:
		return false
	}
}

// parse reads a payload. It depends on nothing else, so what it makes of a
// delivery is the same whenever and however that comes.
func parse(env Envelope) (reading, verdict) {
	known := Handles(env.Event)
	payload, err := jsonPart(env)
	var e event
	if err == nil {
		if err = json.Unmarshal(payload, &e); err != nil {
			err = fmt.Errorf("the payload is not the JSON of an event: %w", err)
		}
	}
	switch {
	case !known: // whatever could be read of it helps the operator
		read, _ := e.head()
		return read, ignored("event %s is not one that Minifleet handles", env.Event)
	case err != nil:
		return reading{}, failed("%v", err)
	case env.Event == "ping":
		return reading{action: clean(e.Action, maxWord)}, processed()
	}
	read, err := e.head()
	if err != nil {
		return read, failed("%v", err)
	}
	var v verdict
	switch env.Event {
	case "workflow_job":
		v = e.readJob(&read)
	case "workflow_run":
		v = e.readRun(&read)
	case "installation":
		v = e.readInstallation(&read)
	default:
		v = e.readInstallationRepositories(&read)
	}
	return read, v
}

// formType is the older of the two content types of a webhook.
const formType = "application/x-www-form-urlencoded"

// jsonPart returns the JSON of a payload in either of GitHub's content types.
func jsonPart(env Envelope) ([]byte, error) {
	if env.ContentType == "" {
		return env.Payload, nil
	}
	kind, _, err := mime.ParseMediaType(env.ContentType)
	switch {
	case err == nil && kind == "application/json":
		return env.Payload, nil
	case err == nil && kind == formType:
		form, err := url.ParseQuery(string(env.Payload))
		if err != nil {
			return nil, errors.New("the payload is not a form")
		}
		if len(form["payload"]) != 1 {
			return nil, fmt.Errorf("the form has %d fields named payload, want 1", len(form["payload"]))
		}
		return []byte(form.Get("payload")), nil
	default:
		return nil, fmt.Errorf("content type %q: set application/json in the GitHub App's webhook settings", clean(env.ContentType, maxWord))
	}
}

// head reads what all events have in common, as far as it is there.
func (e event) head() (reading, error) {
	read := reading{action: clean(e.Action, maxWord)}
	var errs []error
	if e.Repository != nil {
		repo, err := repository(e.Repository.FullName)
		if err != nil {
			errs = append(errs, err)
		}
		read.repo, read.visibility = repo, e.Repository.visibility()
	}
	if e.Installation != nil {
		if e.Installation.ID <= 0 {
			errs = append(errs, fmt.Errorf("installation id %d is not an id", e.Installation.ID))
		}
		read.installationID = max(e.Installation.ID, 0)
		read.appID = max(e.Installation.AppID, 0)
	}
	return read, errors.Join(errs...)
}

// atRepository checks what an event about a repository must have.
func (r reading) atRepository() error {
	switch {
	case r.repo.IsZero():
		return errors.New("the payload names no repository")
	case r.installationID == 0:
		return errors.New("the payload names no installation: it does not come from a GitHub App's webhook")
	default:
		return nil
	}
}
