// SPDX-License-Identifier: MIT

package githubsim

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"

	"github.com/minifleet/minifleet/secret"
)

func (s *Sim) hookRoutes() []route {
	return []route{
		{"GET /app/hook/config", appOnly, false, s.getHookConfig},
		{"PATCH /app/hook/config", appOnly, false, s.patchHookConfig},
		{"GET /app/hook/deliveries", appOnly, false, s.listDeliveries},
		{"GET /app/hook/deliveries/{id}", appOnly, false, s.getDelivery},
		{"POST /app/hook/deliveries/{id}/attempts", appOnly, false, s.attemptDelivery},
	}
}

func (s *Sim) getHookConfig(*call) *answer {
	s.hooks.mu.Lock()
	defer s.hooks.mu.Unlock()
	body := object{"content_type": orString(s.hooks.content, "json"), "insecure_ssl": "0", "secret": "********"}
	if s.hooks.insecure {
		body["insecure_ssl"] = "1"
	}
	if s.hooks.url != "" {
		body["url"] = s.hooks.url
	}
	return ok(body)
}

func (s *Sim) patchHookConfig(c *call) *answer {
	var in struct {
		URL         string `json:"url"`
		Secret      string `json:"secret"`
		ContentType string `json:"content_type"`
		InsecureSSL any    `json:"insecure_ssl"` // a string, or a number
	}
	if bad := c.decode(&in); bad != nil {
		return bad
	}
	if in.ContentType != "" {
		_ = s.SetHook("content_type", in.ContentType) // a field that there is
	}
	if in.InsecureSSL != nil {
		_ = s.SetHook("insecure_ssl", fmt.Sprint(in.InsecureSSL))
	}
	if in.URL == "" {
		s.hooks.mu.Lock()
		if in.Secret != "" {
			s.hooks.secret = secret.New(in.Secret)
		}
		s.hooks.mu.Unlock()
	} else if err := s.SetWebhook(in.URL, secret.New(in.Secret)); err != nil {
		return invalid("Validation Failed: url is not valid")
	}
	return s.getHookConfig(c)
}

// cursorPrefix makes a cursor something else than the id of a delivery, as GitHub's is.
const cursorPrefix = "v1_"

// listDeliveries pages by cursor, newest first, as GitHub does.
func (s *Sim) listDeliveries(c *call) *answer {
	q := c.URL.Query()
	before := int64(0)
	if cursor := q.Get("cursor"); cursor != "" {
		n, err := strconv.ParseInt(strings.TrimPrefix(cursor, cursorPrefix), 10, 64)
		if err != nil || !strings.HasPrefix(cursor, cursorPrefix) {
			return invalid("Invalid cursor")
		}
		before = n
	}
	filter := q.Get("status")
	if s.opt.OldServer {
		filter = ""
	}
	size := min(max(c.intQuery("per_page", 30), 1), 100)
	list, header := []object{}, http.Header{}
	for _, d := range s.hooks.listed() {
		failed := d.StatusCode >= 400
		switch {
		case before != 0 && d.ID >= before, filter == "success" && failed, filter == "failure" && !failed:
			continue
		case len(list) == size:
			u := *c.URL
			q.Set("cursor", cursorPrefix+strconv.FormatInt(list[size-1]["id"].(int64), 10))
			u.RawQuery = q.Encode()
			header.Set("Link", "<"+c.base+u.RequestURI()+`>; rel="next"`)
			return &answer{status: http.StatusOK, list: list, header: header}
		}
		list = append(list, d.view(s.clock))
	}
	return &answer{status: http.StatusOK, list: list, header: header}
}

func (d *delivery) view(clock clock) object {
	v := object{
		"id": d.ID, "guid": d.GUID, "delivered_at": clock.of(d.DeliveredAt).UTC().Format("2006-01-02T15:04:05.000Z"), "redelivery": d.Redelivery,
		"duration": float64(d.Duration.Milliseconds()) / 1000, "status": d.Status, "status_code": d.StatusCode, "event": d.Event,
		"action": orNil(d.Action), "installation_id": nil, "repository_id": nil, "throttled_at": nil,
	}
	if d.install != 0 {
		v["installation_id"] = d.install
	}
	if d.repo != 0 {
		v["repository_id"] = d.repo
	}
	if !d.throttledAt.IsZero() {
		v["throttled_at"] = clock.stamp(d.throttledAt)
	}
	return v
}

func (s *Sim) getDelivery(c *call) *answer {
	s.hooks.mu.Lock()
	d := s.hooks.find(c.idPath("id"))
	s.hooks.mu.Unlock()
	if d == nil {
		return notFound()
	}
	v := d.view(s.clock)
	v["url"] = ""
	v["request"] = object{"headers": d.requestHeaders, "payload": json.RawMessage(d.Payload)}
	if d.bare {
		v["request"] = object{"headers": nil, "payload": nil}
	}
	v["response"] = object{"headers": d.responseHeaders, "payload": d.response}
	return ok(v)
}

func (s *Sim) attemptDelivery(c *call) *answer {
	if !s.hooks.redeliver(c.idPath("id")) {
		return notFound()
	}
	return &answer{status: http.StatusAccepted, body: object{}}
}
