// SPDX-License-Identifier: MIT

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/minifleet/minifleet/admin/api"
	"github.com/minifleet/minifleet/admin/show"
	"github.com/minifleet/minifleet/secret"
)

// client is how the CLI finds the controller.
type client struct {
	Server    string `default:"http://127.0.0.1:8090" env:"MINIFLEET_SERVER" help:"URL of the controller's admin listener."`
	TokenFile string `env:"MINIFLEET_TOKEN_FILE" help:"File with the operator's token; or set MINIFLEET_TOKEN."`
}

// token reads the operator's token: never from a flag, which others could see.
func (c client) token(getenv func(string) string) (secret.Text, error) {
	if c.TokenFile == "" {
		t := secret.New(strings.TrimSpace(getenv("MINIFLEET_TOKEN")))
		if t.Empty() {
			return t, errors.New("no token: set MINIFLEET_TOKEN, or --token-file to a file that holds the controller's admin.token")
		}
		return t, nil
	}
	f, err := os.Open(c.TokenFile)
	if err != nil {
		return secret.Text{}, fmt.Errorf("token file: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, 64<<10))
	return secret.New(strings.TrimSpace(string(b))), err
}

type getCommand struct {
	client
	Kind   string `arg:"" enum:"jobs,runners,hosts,pools,deliveries,explain,timeline" help:"What to list: jobs, runners, hosts, pools, deliveries; or explain JOB, timeline RUNNER."`
	ID     string `arg:"" optional:"" name:"id" help:"Job for explain, runner for timeline."`
	Output string `short:"o" default:"table" enum:"table,wide,json" help:"table, wide (more of runners) or json."`
	Limit  int    `default:"100" help:"Most rows."`

	State  []string `help:"Jobs or hosts in these states."`
	Repo   string   `help:"Jobs of owner/repository."`
	RunID  int64    `name:"run-id" help:"Jobs of one workflow run."`
	Pool   string   `help:"Runners of a pool."`
	Host   string   `help:"Runners of a host."`
	Phase  []string `help:"Runners in these phases."`
	All    bool     `help:"Runners of the past too."`
	Status string   `help:"Deliveries with this fate: processed, ignored, failed."`
}

// Help says what the listing shows.
func (getCommand) Help() string {
	return "Examples:\n  minifleet get jobs --state queued\n  minifleet get explain 29679449\n  minifleet get runners -o json\n  minifleet get deliveries --status failed"
}

// Run lists.
func (c getCommand) Run(s *surroundings) error {
	token, err := c.token(s.getenv)
	if err != nil {
		return err
	}
	return show.Get(s.ctx, show.Options{
		Server: c.Server, Token: token, TokenSetting: "MINIFLEET_TOKEN or --token-file", Kind: c.Kind, ID: c.ID, Limit: c.Limit,
		Filters: show.Filters{State: c.State, Repository: c.Repo, RunID: c.RunID, Pool: c.Pool, Host: c.Host, Phase: c.Phase, All: c.All, Status: c.Status},
		Output:  c.Output, Out: s.stdout,
	})
}

type hostCommand struct {
	Token  hostToken  `cmd:"" help:"Make a one-time token with which a host can join."`
	Remove hostRemove `cmd:"" help:"Forget a host: its credential stops working at once."`
}

type hostToken struct {
	client
	Name string        `help:"Name that the host will have; without it the host chooses."`
	TTL  time.Duration `default:"1h" help:"How long the token is good."`
	Uses int           `default:"1" help:"How many hosts can join with it."`
}

// Run prints the token alone, so that it can be piped into a file.
func (c hostToken) Run(s *surroundings) error {
	token, err := c.token(s.getenv)
	if err != nil {
		return err
	}
	made, err := newEnrolment(s.ctx, c.Server, token, c.Name, c.TTL, c.Uses)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(s.stdout, made.Reveal())
	return err
}

type hostRemove struct {
	client
	ID string `arg:"" help:"Id of the host, as get hosts shows it."`
}

// Run removes a host.
func (c hostRemove) Run(s *surroundings) error {
	token, err := c.token(s.getenv)
	if err != nil {
		return err
	}
	a, err := api.Connect(c.Server, token, nil)
	if err != nil {
		return err
	}
	res, err := a.RemoveHost(s.ctx, url.PathEscape(c.ID))
	if err != nil {
		return fmt.Errorf("remove host %s: %w", c.ID, err)
	}
	defer res.Body.Close()
	if res.StatusCode/100 != 2 {
		return refused(res)
	}
	_, err = fmt.Fprintf(s.stdout, "host %s removed\n", c.ID)
	return err
}

// newEnrolment asks the controller for a token.
func newEnrolment(ctx context.Context, server string, token secret.Text, name string, ttl time.Duration, uses int) (secret.Text, error) {
	a, err := api.Connect(server, token, nil)
	if err != nil {
		return secret.Text{}, err
	}
	res, err := a.CreateEnrolmentToken(ctx, api.EnrolmentRequest{HostName: name, TTLSeconds: new(int(ttl / time.Second)), Uses: &uses})
	if err != nil {
		return secret.Text{}, fmt.Errorf("enrolment token: %w", err)
	}
	defer res.Body.Close()
	if res.StatusCode/100 != 2 {
		return secret.Text{}, refused(res)
	}
	var out struct {
		Token string `json:"token"`
	}
	if err := json.NewDecoder(io.LimitReader(res.Body, 64<<10)).Decode(&out); err != nil {
		return secret.Text{}, fmt.Errorf("enrolment token: %w", err)
	}
	return secret.New(out.Token), nil
}

// refused turns an answer of the API into an error.
func refused(res *http.Response) error {
	var body struct {
		Error string `json:"error"`
	}
	b, _ := io.ReadAll(io.LimitReader(res.Body, 64<<10))
	if json.Unmarshal(b, &body) != nil || body.Error == "" {
		body.Error = strings.TrimSpace(string(b))
	}
	return fmt.Errorf("the controller answered %s: %s", res.Status, body.Error)
}
