// SPDX-License-Identifier: MIT

package githubapp_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/minifleet/minifleet/fleet"
	"github.com/minifleet/minifleet/githubapp"
	"github.com/minifleet/minifleet/githubapp/githubsim"
	"github.com/minifleet/minifleet/secret"
)

// nowhere is a webhook's URL at which nobody is: on GitHub's side everything fails.
const nowhere = "http://127.0.0.1:1/"

// failing makes deliveries, which all fail, and waits for them.
func failing(t *testing.T, sim *githubsim.Sim, n int, faults ...githubsim.Fault) []githubsim.Delivery {
	t.Helper()
	if err := sim.SetWebhook(nowhere, secret.Text{}); err != nil {
		t.Fatal(err)
	}
	for _, f := range faults {
		if err := sim.Inject(f); err != nil {
			t.Fatal(err)
		}
	}
	for i := range n {
		sim.SendEvent("workflow_job", "queued", fmt.Appendf(nil, `{"action":"queued","n":%d}`, i))
	}
	if err := sim.WaitDelivered(t.Context()); err != nil {
		t.Fatal(err)
	}
	return sim.Deliveries()
}

// list reads all pages.
func listed(t *testing.T, a *githubapp.App) (all []fleet.Attempt, pages int) {
	t.Helper()
	for cursor := ""; ; pages++ {
		page, next, err := a.Deliveries(t.Context(), cursor)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, page...)
		if cursor = next; cursor == "" {
			return all, pages + 1
		}
	}
}

func TestDeliveriesAtSimulator(t *testing.T) {
	sim, a, _ := newSim(t)
	kept := failing(t, sim, 230, githubsim.Fault{Kind: githubsim.DeliverySwallowed, Path: "workflow_job"})
	all, pages := listed(t, a)
	if len(all) != len(kept) || pages != 3 {
		t.Fatalf("%d deliveries on %d pages, want %d", len(all), pages, len(kept))
	}
	slices.Reverse(all)
	for i, d := range kept {
		if got := all[i]; got.ID != d.ID || got.GUID != d.GUID || got.Event != d.Event || got.OK != (d.StatusCode == 200) || got.Redelivery || d.DeliveredAt.Sub(got.At).Abs() > 1e6 {
			t.Fatalf("got %+v, want %+v", got, d)
		}
	}
	last, payload := all[len(all)-1], []byte(kept[len(kept)-1].Payload)
	got, there, err := a.Delivery(t.Context(), last)
	if err != nil || !there || got.GUID != last.GUID || got.Event != "workflow_job" || got.TargetType != "integration" || got.TargetID != sim.AppID() || !bytes.Equal(got.Payload, payload) {
		t.Errorf("%+v, %t, %v", got, there, err)
	}
	if there, err := a.Redeliver(t.Context(), last); !there || err != nil { // GitHub says 202, which the library takes for a failure
		t.Errorf("redeliver: %t, %v", there, err)
	}
	if err := sim.WaitDelivered(t.Context()); err != nil {
		t.Fatal(err)
	}
	if page, _, err := a.Deliveries(t.Context(), ""); err != nil || page[0].GUID != last.GUID || !page[0].Redelivery {
		t.Errorf("%+v, %v", page[0], err)
	}
	last.ID = 1
	if _, there, err := a.Delivery(t.Context(), last); there || err != nil {
		t.Errorf("one that is no more: %t, %v", there, err)
	}
	if there, err := a.Redeliver(t.Context(), last); there || err != nil {
		t.Errorf("redeliver one that is no more: %t, %v", there, err)
	}
	if _, _, err := a.Deliveries(t.Context(), "nonsense"); !errors.Is(err, githubapp.ErrRefused) {
		t.Errorf("a cursor that is none: %v", err)
	}
}

// What GitHub does not show, or not so that it could be used, has no payload.
func TestOddDeliveries(t *testing.T) {
	const whole = `{"id":7,"guid":"g","event":"workflow_job","request":{"headers":%s,"payload":%s}}`
	for name, c := range map[string]struct {
		answer          string
		payload, kind   string
		target          string
		missing, failed bool
	}{
		"whole":                     {answer: fmt.Sprintf(whole, `{"X-GitHub-Hook-Installation-Target-Type":"integration","X-GitHub-Hook-Installation-Target-ID":"31337"}`, `{"a":1}`), payload: `{"a":1}`},
		"no headers":                {answer: fmt.Sprintf(whole, `null`, `{"a":1}`), payload: `{"a":1}`},
		"headers that are no texts": {answer: fmt.Sprintf(whole, `{"X":1,"Y":null}`, `{"a":1}`), payload: `{"a":1}`},
		"of a repository's hook":    {answer: fmt.Sprintf(whole, `{"x-github-hook-installation-target-type":"repository"}`, `{"a":1}`), payload: `{"a":1}`, target: "repository"},
		"a form":                    {answer: fmt.Sprintf(whole, `{"content-type":"application/x-www-form-urlencoded"}`, `"payload=x"`), payload: "payload=x", kind: "application/x-www-form-urlencoded"},
		"null":                      {answer: fmt.Sprintf(whole, `{}`, `null`), missing: true},
		"empty":                     {answer: fmt.Sprintf(whole, `{}`, `{}`), missing: true},
		"an empty text":             {answer: fmt.Sprintf(whole, `{}`, `""`), missing: true},
		"a number":                  {answer: fmt.Sprintf(whole, `{}`, `12345`), missing: true},
		"no request":                {answer: `{"id":7,"guid":"g","event":"workflow_job"}`, missing: true},
		"a request that is a text":  {answer: `{"id":7,"guid":"g","event":"workflow_job","request":"x"}`, missing: true},
		"not JSON":                  {answer: `<html>`, missing: true},
		"cut off":                   {answer: fmt.Sprintf(whole, `{}`, `{"a":1}`)[:60], failed: true},
		"endless":                   {answer: fmt.Sprintf(whole, `{}`, `{"a":"`+strings.Repeat("x", 9<<20)+`"}`), missing: true},
		"another":                   {answer: strings.Replace(fmt.Sprintf(whole, `{}`, `{"a":1}`), `"g"`, `"h"`, 1), failed: true},
	} {
		t.Run(name, func(t *testing.T) {
			a := oddApp(t, func(*http.Request) (int, string) { return http.StatusOK, c.answer })
			got, there, err := a.Delivery(t.Context(), fleet.Attempt{ID: 7, GUID: "g", Event: "workflow_job"})
			if c.target == "" {
				c.target = "integration"
			}
			switch {
			case c.failed:
				if err == nil {
					t.Errorf("%+v", got)
				}
			case err != nil || !there || (got.Payload == nil) != c.missing:
				t.Errorf("%+v, %t, %v", got, there, err)
			case !c.missing && (string(got.Payload) != c.payload || got.ContentType != c.kind || got.TargetType != c.target || c.target == "integration" && got.TargetID != 31337):
				t.Errorf("%+v: %s", got, got.Payload)
			}
		})
	}
}

// One line of the list that is not understood hides no other.
func TestOddListOfDeliveries(t *testing.T) {
	a := oddApp(t, func(*http.Request) (int, string) {
		return http.StatusOK, `[{"id":"x"},7,null,{},{"id":3,"guid":"g\u001b","delivered_at":"2026-11-22T10:00:00.123Z","status_code":0,"event":"workflow_job","action":null}]`
	})
	page, next, err := a.Deliveries(t.Context(), "")
	if err != nil || next != "" || len(page) != 1 || page[0].ID != 3 || page[0].GUID != "g " || page[0].OK || page[0].At.Nanosecond() != 123e6 {
		t.Errorf("%+v, %q, %v", page, next, err)
	}
}

func FuzzDelivery(f *testing.F) {
	f.Fuzz(func(t *testing.T, answer []byte) {
		a := oddApp(t, func(*http.Request) (int, string) { return http.StatusOK, string(answer) })
		got, there, err := a.Delivery(t.Context(), fleet.Attempt{ID: 7, GUID: "g", Event: "workflow_job"})
		if err == nil && (!there || got.GUID != "g" || got.Payload != nil && len(got.Payload) > len(answer)) {
			t.Errorf("%+v, %t", got, there)
		}
		if err == nil && got.Payload != nil && got.ContentType == "" && got.Payload[0] == '{' && !json.Valid(got.Payload) {
			t.Errorf("payload %q", got.Payload)
		}
		page, _, err := a.Deliveries(t.Context(), "")
		for _, d := range page {
			if err != nil || d.ID <= 0 || d.GUID == "" || len(d.GUID) > 64 {
				t.Errorf("%+v, %v", d, err)
			}
		}
	})
}

// oddApp is an App at a server that answers as it is told.
func oddApp(t *testing.T, answer func(*http.Request) (int, string)) *githubapp.App {
	t.Helper()
	a, err := githubapp.New(githubapp.Config{
		AppID: 31337, PrivateKey: keyPEM(), BaseURL: "http://127.0.0.1:1",
		Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
			status, body := answer(r)
			return &http.Response{StatusCode: status, Body: io.NopCloser(strings.NewReader(body)), Header: http.Header{}, Request: r}, nil
		}),
	})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }
