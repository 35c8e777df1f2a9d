// SPDX-License-Identifier: MIT

package githubapp

import (
	"log/slog"
	"strings"
	"testing"
	"time"
)

const (
	appsMint = "/orgs/acme/actions/runners/generate-jitconfig"
	place    = 7 // an installation
)

// emptyGate is a gate that nothing went through yet, at a GitHub with limits.
func emptyGate() *gate {
	a := &App{now: time.Now, log: slog.New(slog.DiscardHandler), changed: func() {}, limits: LimitsAuto}
	a.gate = gate{app: a, paced: true, registrations: &Registrations{}, lanes: map[int64]*lane{}}
	return &a.gate
}

// used fills a window with uses that count until a time.
func used(w *window, until time.Time, points ...int) {
	for _, n := range points {
		w.sum += n
		w.past = append(w.past, use{n, until})
	}
}

// What keeps a request from going, of each kind and at its very edge.
func TestObstacle(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	later := now.Add(20 * time.Second)
	call := func(c Class, p Priority, points int) *pass {
		return &pass{lane: place, class: c, path: "/orgs/acme/actions/runners/1", priority: p, points: points}
	}
	read := func(p Priority) *pass { return call(ClassJob, p, readPoints) }
	mint := func(path string) *pass {
		return &pass{lane: place, class: ClassRegister, path: path, priority: PriorityMint, points: writePoints}
	}
	const registrations = "actions_runner_registration"
	hour := func(resource string, limit, remaining int, reset time.Time) func(*gate) {
		return func(g *gate) {
			g.app.rates.last = map[rateKey]Rate{{place, resource}: {Resource: resource, Limit: limit, Remaining: remaining, Reset: reset}}
		}
	}
	minute := func(points int) func(*gate) {
		return func(g *gate) { used(&g.lane(place).minute, later, points) }
	}
	registered := func(g *gate) { used(g.registrations.of(appsMint), later, registrationsAtMost-1) }
	for name, c := range map[string]struct {
		set    func(*gate)
		pass   *pass
		at     time.Time
		wait   bool
		points bool
	}{
		"nothing": {pass: read(PriorityPoll)},

		"an outage":                      {set: func(g *gate) { g.breaker = breaker{open: true, next: later} }, pass: mint(appsMint), at: later, wait: true},
		"an outage, and the question":    {set: func(g *gate) { g.breaker = breaker{open: true, next: later} }, pass: &pass{lane: place, probe: true, points: 1}},
		"a secondary limit":              {set: func(g *gate) { g.lane(place).shut = later }, pass: mint(appsMint), at: later, wait: true},
		"a secondary limit that is over": {set: func(g *gate) { g.lane(place).shut = now }, pass: mint(appsMint)},
		"another's secondary limit":      {set: func(g *gate) { g.lane(8).shut = later }, pass: mint(appsMint)},

		"the resource is used up":     {set: func(g *gate) { g.lane(place).spent["core"] = later }, pass: read(PriorityMint), at: later, wait: true},
		"another resource is used up": {set: func(g *gate) { g.lane(place).spent[registrations] = later }, pass: read(PriorityMint)},
		"the resource of its class": {set: func(g *gate) {
			g.lane(place).spent[registrations] = later
			g.lane(place).resource[ClassRegister] = registrations
		}, pass: mint(appsMint), at: later, wait: true},
		"a class that is charged to another": {set: func(g *gate) {
			g.lane(place).spent["core"] = later
			g.lane(place).resource[ClassRegister] = registrations
		}, pass: mint(appsMint)},
		"used up where no limits are assumed": {set: func(g *gate) { g.paced = false; g.lane(place).spent["core"] = later }, pass: mint(appsMint), at: later, wait: true},

		"as much is left as is kept":           {set: hour("core", 1000, 400, later), pass: read(PriorityPoll), at: later, wait: true},
		"one more is left than is kept":        {set: hour("core", 1000, 401, later), pass: read(PriorityPoll)},
		"all that is more is under way":        {set: func(g *gate) { hour("core", 1000, 401, later)(g); g.lane(place).calls["core"] = 1 }, pass: read(PriorityPoll), at: later, wait: true},
		"nothing is left, for registrations":   {set: hour("core", 1000, 0, later), pass: mint(appsMint), at: later, wait: true},
		"one is left, for registrations":       {set: hour("core", 1000, 1, later), pass: mint(appsMint)},
		"nothing was left in the last hour":    {set: hour("core", 1000, 0, now), pass: read(PriorityPoll)},
		"nothing is left of another resource":  {set: hour(registrations, 1000, 0, later), pass: read(PriorityPoll)},
		"an answer that told of no limit":      {set: hour("core", 0, 0, later), pass: read(PriorityPoll)},
		"nothing left, but no limits are held": {set: func(g *gate) { g.paced = false; hour("core", 1000, 0, later)(g) }, pass: read(PriorityPoll)},

		"the minute, for a registration":      {set: minute(895), pass: mint(appsMint)},
		"beyond it, for a registration":       {set: minute(896), pass: mint(appsMint), at: later, wait: true, points: true},
		"the minute, for a deletion":          {set: minute(760), pass: call(ClassDelete, PriorityEnd, writePoints)},
		"beyond it, for a deletion":           {set: minute(761), pass: call(ClassDelete, PriorityEnd, writePoints), at: later, wait: true, points: true},
		"the minute, for a question":          {set: minute(584), pass: read(PriorityAsk)},
		"beyond it, for a question":           {set: minute(585), pass: read(PriorityAsk), at: later, wait: true, points: true},
		"the minute, for a list":              {set: minute(314), pass: read(PriorityPoll)},
		"beyond it, for a list":               {set: minute(315), pass: read(PriorityPoll), at: later, wait: true, points: true},
		"beyond it where no limits are held":  {set: func(g *gate) { g.paced = false; minute(900)(g) }, pass: mint(appsMint)},
		"beyond it in another lane":           {set: func(g *gate) { used(&g.lane(8).minute, later, 900) }, pass: mint(appsMint)},
		"beyond it by what is under way":      {set: func(g *gate) { g.lane(place).minute.open = 896 }, pass: mint(appsMint), at: now.Add(time.Minute), wait: true, points: true},
		"the last registration of five min":   {set: registered, pass: mint(appsMint)},
		"one beyond it":                       {set: func(g *gate) { registered(g); g.registrations.begin(appsMint) }, pass: mint(appsMint), at: later, wait: true},
		"one beyond it, by another spelling":  {set: func(g *gate) { registered(g); g.registrations.begin(appsMint) }, pass: mint(strings.Replace(appsMint, "acme", "ACME", 1)), at: later, wait: true},
		"beyond it in another organization":   {set: func(g *gate) { registered(g); g.registrations.begin(appsMint) }, pass: mint("/orgs/beta/actions/runners/generate-jitconfig")},
		"beyond it, for what registers none":  {set: func(g *gate) { registered(g); g.registrations.begin(appsMint) }, pass: read(PriorityPoll)},
		"beyond it where no limits are held.": {set: func(g *gate) { g.paced = false; registered(g); g.registrations.begin(appsMint) }, pass: mint(appsMint)},

		"as many at once as GitHub takes":  {set: func(g *gate) { g.open = maxConcurrent }, pass: mint(appsMint), wait: true},
		"one less":                         {set: func(g *gate) { g.open = maxConcurrent - 1 }, pass: mint(appsMint)},
		"as many, where no limits are set": {set: func(g *gate) { g.open, g.paced = maxConcurrent, false }, pass: mint(appsMint), wait: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := emptyGate()
			if c.set != nil {
				c.set(g)
			}
			at, wait, points := g.obstacle(c.pass, now)
			if wait != c.wait || points != c.points || !at.Equal(c.at) {
				t.Errorf("until %s, waits: %t, for points: %t; want until %s, %t, %t", at, wait, points, c.at, c.wait, c.points)
			}
		})
	}
}
