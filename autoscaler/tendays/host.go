// SPDX-License-Identifier: MIT

package tendays

import (
	"slices"
	"strconv"
	"time"

	"github.com/minifleet/minifleet/fleet"
)

const (
	deadline = time.Minute // after which a silent host is unreachable
	lease    = 10 * time.Minute
)

// host is a machine with its agent.
type host struct {
	w        *world
	n        int
	id       fleet.HostID
	name     string
	vms      []*vm
	linked   bool
	powered  bool
	backAt   time.Duration // of the link, or of the power
	movedAt  time.Duration // when a VM took a slot or let it go
	seen     bool          // by the controller that runs
	instance int
	sequence int64
	news     bool // that is not reported
	syncing  bool // an exchange is under way
}

func (h *host) reachable() bool { return h.linked && h.powered && h.w.controller != nil }

func (h *host) facts() fleet.HostFacts {
	return fleet.HostFacts{Slots: h.slots(), Backends: []string{"vz"}, Images: []string{"macos"}}
}

// slots is how many VMs it may run.
func (h *host) slots() int {
	if h.w.openAt(Fewer, h.n) {
		return 1
	}
	return 2
}

// recount lets the agent find that it has other slots than before.
func (h *host) recount() {
	h.news = true
	for _, v := range h.vms {
		v.react()
	}
	h.soon(time.Second)
}

func (h *host) agent() string { return strconv.Itoa(h.instance) }

// boot starts the agent: what VMs the host had are over.
func (h *host) boot() {
	h.instance, h.sequence, h.news = h.instance+1, 0, true
	h.contact()
}

// contact lets the agent speak to the controller, some time after it can.
func (h *host) contact() {
	h.w.after(h.w.span(10*time.Millisecond, 30*time.Second, ofContact, uint64(h.n), uint64(h.w.t)), func() {
		if !h.reachable() || h.seen {
			return
		}
		h.seen, h.news = true, true
		b := h.w.books
		if known := b.Host(h.id); known.Instance != h.agent() {
			h.must(b.Hello(h.w.controller.ctx, h.id, h.agent(), "machine", h.facts(), deadline))
		} else {
			h.must(b.Heard(h.w.controller.ctx, h.id, h.agent(), deadline))
		}
		h.sync()
	})
}

func (h *host) must(err error) {
	if err != nil {
		h.w.fail("host %s: %v", h.name, err)
	}
}

// unseen is the end of what the controller hears of the host.
func (h *host) unseen() {
	if !h.seen {
		return
	}
	h.seen = false
	h.w.books.Host(h.id).SeenAt = h.w.now()
	since := h.instance
	ends := func(after time.Duration, also ...fleet.Observed) {
		at := h.w.t
		h.w.after(after, func() {
			if h.seen || h.instance != since || h.w.books.Host(h.id).SeenAt.After(h.w.began.Add(at)) {
				return
			}
			for _, v := range slices.Clone(h.vms) {
				if slices.Contains(also, v.state) {
					v.teardown("the controller was silent for longer than its lease", "")
				}
			}
		})
	}
	ends(lease, fleet.ObservedNone, fleet.ObservedPreparing, fleet.ObservedBooting)
	ends(5*lease/2, fleet.ObservedStandby)
}

// cut takes the link from a host.
func (h *host) cut(until time.Duration) {
	h.linked, h.backAt = false, max(h.backAt, until)
	h.unseen()
	h.w.changed("")
	h.w.after(until-h.w.t, h.back)
}

// lose takes its power.
func (h *host) lose(until time.Duration) {
	if h.powered {
		h.vms = slices.DeleteFunc(h.vms, func(v *vm) bool { return v.state == fleet.ObservedNone })
		for _, v := range h.vms {
			v.die()
		}
	}
	h.powered, h.backAt = false, max(h.backAt, until)
	h.unseen()
	h.w.changed("")
	h.w.after(until-h.w.t, h.back)
}

// crash ends one of the host's VMs.
func (h *host) crash(e Event) {
	var running []*vm
	for _, v := range h.vms {
		if v.slot && !v.ending {
			running = append(running, v)
		}
	}
	if len(running) == 0 || !h.powered {
		return
	}
	v := running[h.w.chance(ofEnd, uint64(e.At), 0)%uint64(len(running))]
	if v.job != nil {
		h.w.abandon(v.job)
		v.job = nil
	}
	v.teardown("the VM ended by itself", "")
}

func (h *host) back() {
	if h.w.t < h.backAt {
		return
	}
	h.linked = true
	if h.powered {
		h.contact()
		return
	}
	h.powered = true
	h.boot()
	for _, v := range slices.Clone(h.vms) {
		if v.state == fleet.ObservedDestroying {
			h.w.after(2*time.Second, func() { v.show(fleet.ObservedGone) })
		}
	}
}

// soon exchanges what is wanted and what is seen, in a moment.
func (h *host) soon(d time.Duration) {
	if h.syncing || !h.seen {
		return
	}
	h.syncing = true
	h.w.after(d+h.w.span(0, 200*time.Millisecond, ofContact, uint64(h.n), uint64(h.w.t)), func() {
		h.syncing = false
		if h.reachable() && h.seen {
			h.sync()
		}
	})
}

func (h *host) sync() {
	wanted := map[fleet.RunnerID]bool{}
	h.w.books.On(h.id, func(r *fleet.Runner) {
		if r.Observed == fleet.ObservedGone {
			return
		}
		wanted[r.ID] = true
		v := h.vm(r.ID)
		if v == nil {
			v = &vm{host: h, id: r.ID, n: number(r.ID), pool: h.w.pool(r.Pool)}
			h.vms = append(h.vms, v)
			if r.Wanted == fleet.WantGone || r.Wanted == fleet.WantDrain {
				v.state, h.news = fleet.ObservedGone, true
			}
		}
		v.want, v.never = r.Wanted, false
	})
	h.vms = slices.DeleteFunc(h.vms, func(v *vm) bool { return v.state == fleet.ObservedGone && !wanted[v.id] })
	for _, v := range slices.Clone(h.vms) {
		v.react()
	}
	if h.news {
		h.report()
	}
}

func (h *host) vm(id fleet.RunnerID) *vm {
	for _, v := range h.vms {
		if v.id == id {
			return v
		}
	}
	return nil
}

func (h *host) report() {
	h.news = false
	h.sequence++
	rep := fleet.HostReport{Instance: h.agent(), Sequence: h.sequence, Facts: h.facts()}
	for _, v := range h.vms {
		if v.state == fleet.ObservedNone {
			continue
		}
		if v.state == fleet.ObservedStandby && v.given {
			h.w.fail("runner %s is a standby and has held a config", v.id)
		}
		rep.Runners = append(rep.Runners, fleet.RunnerReport{
			ID: v.id, Observed: v.state, HoldsSlot: v.slot, HasConfig: v.given, Failure: v.failure, Result: v.result,
			Pool: v.pool.Name, Scope: v.scope, RunnerName: v.name, JobRepository: v.repository, JobRun: v.run, JobRefused: v.refused,
		})
	}
	c := h.w.controller
	h.w.books.Host(h.id).SeenAt = h.w.now() // it was heard of all the time
	h.must(h.w.books.Report(c.ctx, h.id, rep, deadline))
	c.loop.Reported(h.id)
	c.decideSoon()
}

func number(id fleet.RunnerID) int {
	n, _ := strconv.Atoi(string(id)[2:])
	return n
}

func (w *world) pool(name string) *fleet.Pool {
	return &w.pools[slices.IndexFunc(w.pools, func(p fleet.Pool) bool { return p.Name == name })]
}
