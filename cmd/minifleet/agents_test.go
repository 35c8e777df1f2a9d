// SPDX-License-Identifier: MIT

package main

import (
	"context"
	"encoding/json"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/minifleet/minifleet/guest"
	"github.com/minifleet/minifleet/hosts/agent"
	"github.com/minifleet/minifleet/secret"
	"github.com/minifleet/minifleet/trust"
)

// gates hold a host's simulated VMs at each step of their way until they are
// opened, so that a test sees every phase.
type gates struct{ create, start, config gate }

func newGates() *gates { return &gates{newGate(), newGate(), newGate()} }

type gate struct {
	open func()
	wait <-chan struct{}
}

func newGate() gate {
	c := make(chan struct{})
	return gate{sync.OnceFunc(func() { close(c) }), c}
}

func (g gate) pass(ctx context.Context) error {
	select {
	case <-g.wait:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// gatedMachines are simulated VMs behind gates.
type gatedMachines struct {
	agent.Machines
	*gates
	seen *configs
}

// configs collects the JIT configs that guests were given, to look for them where
// they must not be.
type configs struct {
	mu  sync.Mutex // guards all
	all []secret.Text
}

func (g gatedMachines) Create(ctx context.Context, o agent.Order, progress func(string)) (agent.Machine, error) {
	progress("waiting at the gate")
	if err := g.create.pass(ctx); err != nil {
		return nil, err
	}
	m, err := g.Machines.Create(ctx, o, progress)
	return gatedMachine{m, g}, err
}

type gatedMachine struct {
	agent.Machine
	host gatedMachines
}

// Start boots at once: what waits is the guest's first answer.
func (m gatedMachine) Start(ctx context.Context) error { return m.Machine.Start(ctx) }

func (m gatedMachine) Guest() agent.Guest { return gatedGuest{m.Machine.Guest(), m.host} }

type gatedGuest struct {
	agent.Guest
	host gatedMachines
}

func (g gatedGuest) Status(ctx context.Context, after uint64, wait time.Duration) (guest.Status, error) {
	if err := g.host.start.pass(ctx); err != nil {
		return guest.Status{}, err
	}
	return g.Guest.Status(ctx, after, wait)
}

func (g gatedGuest) Run(ctx context.Context, jit secret.Text, env map[string]string, policy *trust.Policy) error {
	g.host.seen.mu.Lock()
	g.host.seen.all = append(g.host.seen.all, jit)
	g.host.seen.mu.Unlock()
	if err := g.host.config.pass(ctx); err != nil {
		return err
	}
	return g.Guest.Run(ctx, jit, env, policy)
}

// host is an agent in this process, over the real protocol.
type host struct {
	t      *testing.T
	log    *buffer
	gates  *gates
	seen   *configs
	cancel context.CancelFunc
	ended  chan struct{}
	err    error // when ended is closed
}

// hostToken makes an enrolment token as an operator does.
func (c *served) hostToken(name string) secret.Text {
	c.t.Helper()
	out, err := c.cli("host", "token", "--name", name)
	if err != nil {
		c.t.Fatalf("minifleet host token: %v", err)
	}
	return secret.New(strings.TrimSpace(out))
}

// hostConfig is that of a host with two slots which has the pools' image and whose
// runners take no job by themselves.
func hostConfig(t *testing.T, controller, name, dir string, token secret.Text) agent.Config {
	t.Helper()
	machines, err := agent.NewSimulated(agent.SimulatedConfig{Idle: time.Hour, Images: []string{"sonoma"}})
	if err != nil {
		t.Fatal(err)
	}
	return agent.Config{
		Controller: controller, Name: name, StateDir: dir, EnrolmentToken: token, Slots: 2,
		Machines: machines, Backends: []string{"process"}, Machine: "machine-of-" + name,
	}
}

// startHost runs an agent until the test ends or stop is called.
func startHost(t *testing.T, cfg agent.Config, g *gates) *host {
	t.Helper()
	h := &host{t: t, log: &buffer{}, gates: g, seen: &configs{}, ended: make(chan struct{})}
	if g != nil {
		cfg.Machines = gatedMachines{cfg.Machines, g, h.seen}
	}
	cfg.Log = slog.New(slog.NewTextHandler(h.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	a, err := agent.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background()) // stop ends it, at the latest in a cleanup
	h.cancel = cancel
	go func() {
		defer close(h.ended)
		h.err = a.Run(ctx)
	}()
	t.Cleanup(func() {
		h.stop()
		if t.Failed() {
			t.Logf("the log of the agent of %s:\n%s", cfg.Name, tail(h.log.String(), 8000))
		}
	})
	return h
}

// stop ends the agent and returns what it ended with.
func (h *host) stop() error {
	h.t.Helper()
	h.cancel()
	return h.end()
}

// end waits until the agent has ended by itself.
func (h *host) end() error {
	h.t.Helper()
	select {
	case <-h.ended:
		return h.err
	case <-time.After(patience):
		h.t.Fatalf("the agent does not end:\n%s", tail(h.log.String(), 5000))
		return nil
	}
}

// one returns the single row of a listing that is expected to become one with the
// given field.
func (c *served) one(field, value string, listing ...string) map[string]any {
	c.t.Helper()
	var row map[string]any
	eventually(c.t, strings.Join(listing, " ")+" has one row whose "+field+" is "+value, func() bool {
		all := c.list(listing...)
		if len(all) == 1 {
			row = all[0]
		}
		return row != nil && row[field] == value
	})
	return row
}

// explain returns the code and the words of why a job waits.
func (c *served) explain(id string) (code, reason string) {
	c.t.Helper()
	var e struct {
		Reason string `json:"reason"`
		Job    struct {
			Wait struct {
				Code string `json:"code"`
			} `json:"wait"`
		} `json:"job"`
	}
	text := c.get("explain", id, "-o", "json")
	if err := json.Unmarshal([]byte(text), &e); err != nil {
		c.t.Fatalf("explain %s: %v in %s", id, err, text)
	}
	return e.Job.Wait.Code, e.Reason
}
