// SPDX-License-Identifier: MIT

package autoscaler

import (
	"cmp"
	"fmt"
	"maps"
	"slices"

	"github.com/minifleet/minifleet/fleet"
)

// shelves hold the hosts that could take a runner of one pool: those with its
// image first, then by free slots, most first, since a VM that is alone on its
// host is the quicker one.
type shelves struct {
	hosts [2][]*hostSheet // with the image, without
}

// serves reports whether the host could ever run the pool.
func (p *poolSheet) serves(h *hostSheet) bool {
	return p.FitsOn(h.Host)
}

// usable reports whether the host could run the pool as soon as it has a slot.
func (d *decision) usable(p *poolSheet, h *hostSheet) bool {
	return h.live && !h.resumes.After(d.Now) && p.serves(h)
}

// shelve looks for hosts that could take a runner with an image; only those that hold it,
// if others are of no use.
func (d *decision) shelve(p *poolSheet, image string, holding bool) *shelves {
	s := &shelves{}
	for i := range d.sheets {
		sheet := &d.sheets[i]
		if !p.serves(sheet) || !sheet.live || sheet.free <= 0 {
			continue
		}
		if sheet.resumes.After(d.Now) {
			d.wakeAt(sheet.resumes)
			continue
		}
		at := 1
		if sheet.Holds(image) {
			at = 0
		} else if holding {
			continue
		}
		s.hosts[at] = append(s.hosts[at], sheet)
	}
	for _, shelf := range s.hosts {
		arrange(shelf)
	}
	return s
}

// arrange sorts hosts by free slots, failures and name. Most of a large fleet is alike
// and comes by name: what is in order already is only looked through.
func arrange(shelf []*hostSheet) {
	byFree := map[int][]*hostSheet{}
	for _, h := range shelf {
		byFree[h.free] = append(byFree[h.free], h)
	}
	better := func(a, b *hostSheet) int {
		return cmp.Or(cmp.Compare(a.Failures, b.Failures), cmp.Compare(a.Name, b.Name))
	}
	all := shelf[:0]
	for _, free := range slices.Backward(slices.Sorted(maps.Keys(byFree))) {
		alike := byFree[free]
		if !slices.IsSortedFunc(alike, better) {
			slices.SortStableFunc(alike, better)
		}
		all = append(all, alike...)
	}
}

// next takes a slot of the best host. A host that was used goes behind those with
// as many free slots as it has left.
func (s *shelves) next() *hostSheet {
	for i := range s.hosts {
		for len(s.hosts[i]) > 0 {
			shelf := s.hosts[i]
			h := shelf[0]
			if h.free <= 0 {
				s.hosts[i] = shelf[1:]
				continue
			}
			if len(shelf) > 1 && shelf[1].free > h.free {
				s.sink(i)
				continue
			}
			h.free--
			s.sink(i)
			return h
		}
	}
	return nil
}

// sink moves the first host of a shelf to where its free slots put it.
func (s *shelves) sink(i int) {
	shelf := s.hosts[i]
	h := shelf[0]
	rest := shelf[1:]
	at, _ := slices.BinarySearchFunc(rest, h.free, func(o *hostSheet, free int) int {
		if o.free >= free {
			return -1
		}
		return 1
	})
	copy(shelf, rest[:at])
	shelf[at] = h
}

// hasRoom reports whether the pool may have one more runner.
func (p *poolSheet) hasRoom() bool {
	return p.image != "" && (p.MaxRunners == 0 || p.live < p.MaxRunners)
}

// room is where one more runner goes, and what it is made from.
type room struct {
	*hostSheet
	image string
}

// choose finds a host and an image for one more runner of a pool and takes the slot, or
// returns nil.
func (d *decision) choose(p *poolSheet) *room {
	if !p.hasRoom() {
		return nil
	}
	if p.resumes.After(d.Now) {
		d.wakeAt(p.resumes)
		return nil
	}
	if p.wantsCanary() {
		if p.trying == nil {
			p.trying = d.shelve(p, p.next, true)
		}
		if h := p.trying.next(); h != nil {
			p.live++
			p.canaries++
			return &room{h, p.next}
		}
	}
	if p.shelves == nil {
		p.shelves = d.shelve(p, p.image, false)
	}
	h := p.shelves.next()
	if h == nil {
		return nil
	}
	p.live++
	return &room{h, p.image}
}

// place turns the matched room into runners.
func (d *decision) place(m *matching) {
	for _, n := range m.nodes {
		if n.tier != tierNew {
			continue
		}
		for i, job := range n.taken {
			j := m.jobs[job]
			d.put(n.pool, n.placed[i], fmt.Sprintf("job %s of %s", j.Name, j.Repository()))
		}
	}
}

func (d *decision) put(p *poolSheet, at *room, why string) {
	with := "without the image"
	if at.Holds(at.image) {
		with = "with the image"
	}
	if fleet.RemoteImage(at.image) {
		with += " " + fleet.ImageShort(at.image)
	}
	tries := p.next != "" && at.image == p.next
	if tries {
		with += ", which it tries"
	}
	d.plan.Places = append(d.plan.Places, fleet.Place{
		Pool: p.Name, Image: at.image, Tries: tries, Host: at.ID,
		Reason: fmt.Sprintf("for %s; on %s, %s, %d of %d slots left", why, at.Name, with, at.free, at.Slots),
	})
}

// topUp keeps a pool's standbys beyond demand, where there is room for them.
func (d *decision) topUp(m *matching) {
	for _, p := range d.order {
		spare := 0
		for _, n := range m.nodes {
			if n.pool == p && (n.tier == tierStandby || n.tier == tierComing) {
				for _, r := range n.runners[len(n.taken):] {
					if !r.leaving {
						spare++
					}
				}
			}
		}
		for ; spare < p.Standby; spare++ {
			h := d.choose(p)
			if h == nil {
				break
			}
			d.put(p, h, "standby")
		}
	}
}
