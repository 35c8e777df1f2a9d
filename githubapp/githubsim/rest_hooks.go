// SPDX-License-Identifier: MIT

package githubsim

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strconv"

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

// listDeliveries pages by cursor, newest first, as GitHub does.
func (s *Sim) listDeliveries(c *call) *answer {
	kept := s.hooks.all()
	slices.SortFunc(kept, func(a, b delivery) int { return int(b.ID - a.ID) })
	q := c.URL.Query()
	before := int64(0)
	if cursor := q.Get("cursor"); cursor != "" {
		n, err := strconv.ParseInt(cursor, 10, 64)
		if err != nil {
			return invalid("Invalid cursor")
		}
		before = n
	}
	size := min(max(c.intQuery("per_page", 30), 1), 100)
	list, header := []object{}, http.Header{}
	for _, d := range kept {
		failed := d.StatusCode >= 400
		switch status := q.Get("status"); {
		case before != 0 && d.ID >= before, status == "success" && failed, status == "failure" && !failed:
			continue
		case len(list) == size:
			u := *c.URL
			q.Set("cursor", strconv.FormatInt(list[size-1]["id"].(int64), 10))
			u.RawQuery = q.Encode()
			header.Set("Link", "<"+c.base+u.RequestURI()+`>; rel="next"`)
			return &answer{status: http.StatusOK, list: list, header: header}
		}
		list = append(list, d.view())
	}
	return &answer{status: http.StatusOK, list: list, header: header}
}

func (d delivery) view() object {
	v := object{
		"id": d.ID, "guid": d.GUID, "delivered_at": d.DeliveredAt.UTC().Format("2006-01-02T15:04:05.000Z"), "redelivery": d.Redelivery,
		"duration": float64(d.Duration.Milliseconds()) / 1000, "status": d.Status, "status_code": d.StatusCode, "event": d.Event,
		"action": orNil(d.Action), "installation_id": nil, "repository_id": nil, "throttled_at": nil,
	}
	if d.install != 0 {
		v["installation_id"] = d.install
	}
	if d.repo != 0 {
		v["repository_id"] = d.repo
	}
	return v
}

func (s *Sim) delivery(c *call) *delivery {
	id := c.idPath("id")
	for _, d := range s.hooks.all() {
		if d.ID == id {
			return &d
		}
	}
	return nil
}

func (s *Sim) getDelivery(c *call) *answer {
	d := s.delivery(c)
	if d == nil {
		return notFound()
	}
	v := d.view()
	v["url"] = ""
	v["request"] = object{"headers": d.requestHeaders, "payload": json.RawMessage(d.Payload)}
	v["response"] = object{"headers": d.responseHeaders, "payload": d.response}
	return ok(v)
}

func (s *Sim) attemptDelivery(c *call) *answer {
	if !s.hooks.redeliver(c.idPath("id")) {
		return notFound()
	}
	return &answer{status: http.StatusAccepted, body: object{}}
}
