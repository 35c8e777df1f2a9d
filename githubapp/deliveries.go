// SPDX-License-Identifier: MIT

package githubapp

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"mime"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/google/go-github/v62/github"

	"github.com/minifleet/minifleet/fleet"
)

// delivery is one attempt of GitHub's to deliver, in its list or alone.
type delivery struct {
	ID          int64     `json:"id"`
	GUID        string    `json:"guid"`
	DeliveredAt time.Time `json:"delivered_at"`
	Redelivery  bool      `json:"redelivery"`
	Status      string    `json:"status"`
	StatusCode  int       `json:"status_code"`
	Event       string    `json:"event"`
	Action      string    `json:"action"`

	Request struct {
		Headers map[string]any  `json:"headers"`
		Payload json.RawMessage `json:"payload"`
	} `json:"request"`
}

// Deliveries returns one page of GitHub's list of the App's deliveries, the newest first,
// and the cursor of the next page, "" at the end. GitHub keeps them for three days, an
// Enterprise Server for seven. The list is not asked to hold failures alone: not every
// server can do that.
func (a *App) Deliveries(ctx context.Context, cursor string) (page []fleet.Attempt, next string, err error) {
	query := url.Values{"per_page": {"100"}}
	if cursor != "" {
		query.Set("cursor", cursor)
	} else {
		ctx = remembered(ctx) // it is read again and again, and mostly nothing is new
	}
	var list []json.RawMessage
	resp, err := a.asApp(ctx, "list the App's deliveries", http.MethodGet, "app/hook/deliveries?"+query.Encode(), &list)
	if err != nil {
		return nil, "", err
	}
	for _, raw := range list {
		var d delivery
		if err := json.Unmarshal(raw, &d); err != nil || d.ID <= 0 || d.GUID == "" {
			a.log.WarnContext(ctx, "delivery of a list not understood", "error", err)
			continue // it hides no other
		}
		page = append(page, fleet.Attempt{
			ID: d.ID, GUID: printable(d.GUID, 64), Event: printable(d.Event, 64), Action: printable(d.Action, 64),
			At: d.DeliveredAt.UTC(), OK: d.StatusCode/100 == 2, Code: d.StatusCode, Words: printable(d.Status, 300), Redelivery: d.Redelivery,
		})
	}
	if resp.Cursor == cursor {
		return page, "", nil
	}
	return page, resp.Cursor, nil
}

// Delivery returns what GitHub has sent, or would have, in one attempt, and false if it
// has that attempt no more. Where GitHub does not give the payload, or not all of it, the
// payload is nil.
func (a *App) Delivery(ctx context.Context, of fleet.Attempt) (fleet.Pulled, bool, error) {
	what := fmt.Sprintf("get delivery %s, attempt %d", of.GUID, of.ID)
	var d delivery
	out := fleet.Pulled{GUID: of.GUID, Event: of.Event}
	_, err := a.asApp(ctx, what, http.MethodGet, "app/hook/deliveries/"+strconv.FormatInt(of.ID, 10), &d)
	switch {
	case missing(err):
		return out, false, nil
	case errors.Is(err, errAnswerSize), notJSON(err):
		return out, true, nil
	case err != nil:
		return out, false, err
	case d.ID != of.ID || d.GUID != of.GUID || d.Event != of.Event:
		return out, false, fmt.Errorf("%s: GitHub's answer is about attempt %d of delivery %s", what, d.ID, printable(d.GUID, 64))
	}
	out.TargetType, out.TargetID = "integration", a.id // these are the App's own
	for name, value := range d.Request.Headers {
		text := fmt.Sprint(value)
		switch http.CanonicalHeaderKey(name) {
		case "X-Github-Hook-Installation-Target-Type":
			out.TargetType = printable(text, 64)
		case "X-Github-Hook-Installation-Target-Id":
			out.TargetID, _ = strconv.ParseInt(text, 10, 64)
		}
	}
	out.Payload, out.ContentType = payloadOf(d)
	return out, true, nil
}

// payloadOf returns the payload of a delivery, nil if there is none in it. GitHub shows an
// object in either of a webhook's content types; a text is taken for what was sent.
func payloadOf(d delivery) (payload []byte, contentType string) {
	payload = bytes.TrimSpace(d.Request.Payload)
	var text string
	switch {
	case len(payload) > 2 && payload[0] == '{':
		return payload, ""
	case len(payload) > 2 && payload[0] == '"' && json.Unmarshal(payload, &text) == nil && text != "":
		for name, value := range d.Request.Headers {
			if kind, _, err := mime.ParseMediaType(fmt.Sprint(value)); err == nil && strings.EqualFold(name, "Content-Type") {
				contentType = kind
			}
		}
		return []byte(text), contentType
	default:
		return nil, ""
	}
}

// Redeliver asks GitHub to try a delivery once more. It does so later, and keeps the GUID.
// False means that it has that attempt no more.
func (a *App) Redeliver(ctx context.Context, of fleet.Attempt) (bool, error) {
	what := fmt.Sprintf("ask for delivery %s again, attempt %d", of.GUID, of.ID)
	_, err := a.asApp(ctx, what, http.MethodPost, "app/hook/deliveries/"+strconv.FormatInt(of.ID, 10)+"/attempts", nil)
	if missing(err) {
		return false, nil
	}
	return err == nil, err
}

// asApp makes one call as the App itself. That GitHub does it later is success.
func (a *App) asApp(ctx context.Context, what, method, path string, into any) (resp *github.Response, err error) {
	err = a.request(ctx, what, a.callTimeout, func(ctx context.Context) error {
		req, err := a.self.NewRequest(method, path, nil)
		if err != nil {
			return err
		}
		resp, err = a.self.Do(ctx, req, into)
		if _, later := errors.AsType[*github.AcceptedError](err); later && into == nil {
			return nil
		}
		return err
	})
	return resp, err
}

// notJSON reports whether GitHub's answer could not be read at all.
func notJSON(err error) bool {
	_, syntax := errors.AsType[*json.SyntaxError](err)
	_, kind := errors.AsType[*json.UnmarshalTypeError](err)
	return syntax || kind
}
