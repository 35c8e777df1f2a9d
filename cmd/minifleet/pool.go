// SPDX-License-Identifier: MIT

package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/minifleet/minifleet/admin/api"
	"github.com/minifleet/minifleet/admin/show"
)

type poolCommand struct {
	Images   poolImages   `cmd:"" help:"Show which image serves a pool, which is next and which was before."`
	Rollout  poolRollout  `cmd:"" help:"Roll out what the pool's tag names now, or another digest."`
	Promote  poolPromote  `cmd:"" help:"Let the image serve that is being rolled out."`
	Rollback poolRollback `cmd:"" help:"Go back: give up what is rolled out, or have the image before serve again."`
}

// onePool is what each command on a pool needs.
type onePool struct {
	client
	Name   string `arg:"" help:"Name of the pool."`
	Output string `short:"o" default:"table" enum:"table,json" help:"table or json."`
}

type poolImages struct{ onePool }

type poolRollout struct {
	onePool
	Digest string `help:"Digest of the image, in the place that the pool's reference names."`
	Now    bool   `help:"Serve at once, without a wait for hosts or canaries."`
}

type poolPromote struct{ onePool }

type poolRollback struct{ onePool }

// Run shows the pool's images.
func (c poolImages) Run(s *surroundings) error {
	a, err := c.connect(s)
	if err != nil {
		return err
	}
	return c.show(s, func() (*http.Response, error) { return a.GetPool(s.ctx, url.PathEscape(c.Name)) })
}

// Run rolls out.
func (c poolRollout) Run(s *surroundings) error {
	a, err := c.connect(s)
	if err != nil {
		return err
	}
	return c.show(s, func() (*http.Response, error) {
		return a.RollOut(s.ctx, url.PathEscape(c.Name), api.RolloutRequest{Digest: c.Digest, Now: c.Now})
	})
}

// Run promotes.
func (c poolPromote) Run(s *surroundings) error {
	a, err := c.connect(s)
	if err != nil {
		return err
	}
	return c.show(s, func() (*http.Response, error) { return a.Promote(s.ctx, url.PathEscape(c.Name)) })
}

// Run goes back from what is newest when it looks: if that is another image by the time it
// is to be done, nothing is.
func (c poolRollback) Run(s *surroundings) error {
	a, err := c.connect(s)
	if err != nil {
		return err
	}
	p, _, err := readPool(func() (*http.Response, error) { return a.GetPool(s.ctx, url.PathEscape(c.Name)) })
	if err != nil {
		return err
	}
	newest := p.Rollout.Next
	if newest == "" {
		newest = p.Rollout.Current
	}
	_, digest, _ := strings.Cut(newest, "@")
	return c.show(s, func() (*http.Response, error) {
		return a.RollBack(s.ctx, url.PathEscape(c.Name), api.RollbackRequest{Leave: digest})
	})
}

func (c onePool) connect(s *surroundings) (*api.ClientWithResponses, error) {
	token, err := c.token(s.getenv)
	if err != nil {
		return nil, err
	}
	return api.Connect(c.Server, token, nil)
}

// show prints the pool that an answer holds.
func (c onePool) show(s *surroundings, ask func() (*http.Response, error)) error {
	p, raw, err := readPool(ask)
	if err != nil {
		return fmt.Errorf("pool %s: %w", c.Name, err)
	}
	if c.Output == show.OutputJSON {
		e := json.NewEncoder(s.stdout)
		e.SetIndent("", "  ")
		e.SetEscapeHTML(false)
		return e.Encode(raw)
	}
	return show.Rollout(s.stdout, p, time.Now())
}

func readPool(ask func() (*http.Response, error)) (p api.Pool, raw json.RawMessage, err error) {
	res, err := ask()
	if err != nil {
		return p, nil, err
	}
	defer res.Body.Close()
	if res.StatusCode/100 != 2 {
		return p, nil, refused(res)
	}
	if err := json.NewDecoder(io.LimitReader(res.Body, 1<<20)).Decode(&raw); err != nil {
		return p, nil, fmt.Errorf("understand the controller's answer: %w", err)
	}
	return p, raw, json.Unmarshal(raw, &p)
}
