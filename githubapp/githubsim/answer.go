// SPDX-License-Identifier: MIT

package githubsim

import (
	"encoding/json"
	"net/http"
	"strconv"
	"strings"
	"time"
)

const docsURL = "https://docs.github.com/rest"

// answer is a REST answer before it is written. list, when set, is written in place of body.
type answer struct {
	status int
	body   object
	list   []object
	header http.Header
	raw    []byte // what was encoded of it
}

func ok(body object) *answer { return &answer{status: http.StatusOK, body: body} }

func fail(status int, message string) *answer {
	return &answer{status: status, body: object{"message": message, "documentation_url": docsURL, "status": strconv.Itoa(status)}}
}

func notFound() *answer { return fail(http.StatusNotFound, "Not Found") }

// unprocessable is GitHub's simple validation error.
func unprocessable(message string) *answer {
	return &answer{status: http.StatusUnprocessableEntity, body: object{"message": message, "documentation_url": docsURL}}
}

func (a *answer) encode() []byte {
	switch {
	case a.raw != nil:
	case a.list != nil:
		a.raw = marshal(a.list)
	case a.body != nil:
		a.raw = marshal(a.body)
	}
	return a.raw
}

func (f *Fault) answer() *answer {
	status := f.Status
	switch {
	case status != 0:
	case f.Kind == FaultRetryAfter:
		status = http.StatusTooManyRequests
	default:
		status = http.StatusBadGateway
	}
	if f.Kind != FaultRetryAfter {
		return fail(status, http.StatusText(status))
	}
	return secondary(status, time.Duration(f.retryAfter())*time.Second)
}

// under runs an endpoint under the Sim's lock.
func under(serve endpoint) endpoint {
	return func(c *call) *answer {
		c.sim.mu.Lock()
		defer c.sim.mu.Unlock()
		return serve(c)
	}
}

// decode reads a JSON body. An empty body is an empty object.
func (c *call) decode(into any) *answer {
	if len(c.body) == 0 {
		return nil
	}
	if err := json.Unmarshal(c.body, into); err != nil {
		return fail(http.StatusBadRequest, "Problems parsing JSON")
	}
	return nil
}

// page cuts one page out of a list and links its neighbours.
func page[T any](c *call, all []T) (items []T, header http.Header) {
	size, number := c.intQuery("per_page", 30), c.intQuery("page", 1)
	size, number = min(max(size, 1), 100), max(number, 1)
	from := min((number-1)*size, len(all))
	to := min(from+size, len(all))
	last := max(1, (len(all)+size-1)/size)
	var links []string
	link := func(rel string, n int) {
		u := *c.URL
		q := u.Query()
		q.Set("page", strconv.Itoa(n))
		q.Set("per_page", strconv.Itoa(size))
		u.RawQuery = q.Encode()
		links = append(links, "<"+c.base+u.RequestURI()+`>; rel="`+rel+`"`)
	}
	if number > 1 {
		link("prev", min(number-1, last))
		link("first", 1)
	}
	if number < last {
		link("next", number+1)
		link("last", last)
	}
	header = http.Header{}
	if len(links) > 0 {
		header.Set("Link", strings.Join(links, ", "))
	}
	return all[from:to], header
}

func (c *call) intQuery(name string, fallback int) int {
	n, err := strconv.Atoi(c.URL.Query().Get(name))
	if err != nil {
		return fallback
	}
	return n
}

// idPath reads a numeric part of the path; 0, which nothing has, if it is none.
func (c *call) idPath(name string) int64 {
	n, _ := strconv.ParseInt(c.PathValue(name), 10, 64)
	return n
}
