// SPDX-License-Identifier: MIT

package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/minifleet/minifleet/guest"
	"github.com/minifleet/minifleet/hosts/agent"
	"github.com/minifleet/minifleet/secret"
)

// dayHost is a host: its VMs, and the agent that comes and goes. It is agent.Machines.
type dayHost struct {
	day   *day
	name  string
	slots int
	plug  *plug
	token secret.Text

	mu   sync.Mutex // guards the rest
	rng  *rand.Rand
	vms  map[string]*dayVM
	runs map[*dayVM]bool // those that hold a slot for macOS
	stop context.CancelFunc
	over chan struct{} // closed when the agent has ended
	down bool          // it has no power, or nobody is to start its agent
}

func newDayHost(d *day, n, slots int) *dayHost {
	name := fmt.Sprintf("mini-%d", n)
	return &dayHost{
		day: d, name: name, slots: slots, plug: d.wires.plug(), rng: rand.New(rand.NewPCG(d.seed, uint64(1000+n))),
		vms: map[string]*dayVM{}, runs: map[*dayVM]bool{},
	}
}

// begin starts the agent.
func (h *dayHost) begin() {
	a, err := agent.New(agent.Config{
		Controller: "http://" + dayAgents, Name: h.name, StateDir: filepath.Join(h.day.dir, h.name), EnrolmentToken: h.token,
		Slots: h.slots, Machines: h, Backends: []string{"process"}, Machine: "machine-of-" + h.name, Dial: h.plug.dial,
		Log: h.day.log.With("host", h.name),
	})
	if err != nil {
		h.day.broken("agent of %s: %v", h.name, err)
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	over := make(chan struct{})
	h.mu.Lock()
	h.stop, h.over, h.down = cancel, over, false
	h.mu.Unlock()
	go func() {
		defer close(over)
		if err := a.Run(ctx); err != nil {
			h.day.broken("the agent of %s ended with: %v", h.name, err)
		}
	}()
}

// end ends the agent, which hears of it no sooner than its wires are cut.
func (h *dayHost) end(abruptly bool) {
	h.mu.Lock()
	stop, over := h.stop, h.over
	h.mu.Unlock()
	if abruptly {
		h.plug.pull()
	}
	stop()
	<-over
	h.plug.push()
}

// restart ends the agent and starts it again after some time.
func (h *dayHost) restart(abruptly bool, after time.Duration) {
	h.end(abruptly)
	time.Sleep(after)
	h.begin()
}

// cut takes the host's network away for some time.
func (h *dayHost) cut(d time.Duration) {
	h.plug.pull()
	time.Sleep(d)
	h.plug.push()
}

// blackout takes its power: whatever runs is gone, jobs too.
func (h *dayHost) blackout(d time.Duration) {
	h.end(true)
	h.mu.Lock()
	var vms []*dayVM
	for _, v := range h.vms {
		vms = append(vms, v)
	}
	h.mu.Unlock()
	for _, v := range vms {
		v.mu.Lock()
		id := v.running
		v.mu.Unlock()
		if id != 0 {
			h.day.lose(id, h.name+" had no power")
		}
		v.end("the host had no power")
	}
	time.Sleep(d)
	h.begin()
}

// start counts a VM that runs from now on.
func (h *dayHost) start(v *dayVM) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.runs[v] = true
	return len(h.runs)
}

func (h *dayHost) stopped(v *dayVM) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.runs, v)
}

func (h *dayHost) forget(v *dayVM) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.vms, v.id)
}

// left names the VMs that are there.
func (h *dayHost) left() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	var out []string
	for _, v := range h.vms {
		v.mu.Lock()
		out = append(out, v.String())
		v.mu.Unlock()
	}
	slices.Sort(out)
	return out
}

// idle names the registrations whose listeners wait for a job.
func (h *dayHost) idle() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	var out []string
	for _, v := range h.vms {
		v.mu.Lock()
		if v.status.Phase == guest.PhaseIdle {
			out = append(out, v.agent)
		}
		v.mu.Unlock()
	}
	slices.Sort(out)
	return out
}

func (h *dayHost) Scan(context.Context) ([]agent.Found, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	var out []agent.Found
	for _, v := range h.vms {
		f := agent.Found{ID: v.id, Pool: v.pool, Slot: v.slot, Machine: v, Running: true}
		select {
		case <-v.ended:
			f.Running, f.Ending = false, v.why
		default:
		}
		if !v.started {
			f.Running, f.Ending = false, "it was never started"
		}
		out = append(out, f)
	}
	slices.SortFunc(out, func(a, b agent.Found) int { return strings.Compare(a.ID, b.ID) })
	return out, nil
}

func (h *dayHost) IsMac(context.Context, string) (bool, error) { return false, nil }
func (h *dayHost) EndLeftovers(context.Context) (int, error)   { return 0, nil }
func (h *dayHost) Images(context.Context) ([]string, error)    { return []string{"sonoma"}, nil }

func (h *dayHost) Create(ctx context.Context, o agent.Order, progress func(string)) (agent.Machine, error) {
	h.mu.Lock()
	seed, slow := h.rng.Uint64(), between(h.rng, 300*time.Millisecond, 3*time.Second)
	h.mu.Unlock()
	v := &dayVM{
		host: h, id: o.ID, pool: o.Pool, slot: o.Slot, rng: rand.New(rand.NewPCG(h.day.seed, seed)),
		changed: make(chan struct{}), ended: make(chan struct{}), told: make(chan struct{}),
		status: guest.Status{Protocol: guest.Protocol, Revision: 1, Phase: guest.PhaseReady},
	}
	v.status.Instance = v.instance()
	v.tell = sync.OnceFunc(func() { close(v.told) })
	v.flaw = h.day.flawOf(v.rng)
	progress("cloning")
	if !pauseFor(ctx, slow) {
		return nil, context.Cause(ctx)
	}
	if v.flaw == noClone {
		return nil, errors.New("simulated: the clone cannot be made")
	}
	v.life, v.kill = context.WithCancel(context.Background())
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.vms[o.ID] != nil {
		h.day.broken("invariant 4: VM %s is made a second time", o.ID)
	}
	h.vms[o.ID] = v
	return v, nil
}
