// SPDX-License-Identifier: MIT

package githubsim

import (
	"cmp"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
)

// FaultKind says how a Fault misbehaves.
type FaultKind string

// The first group applies to calls, the second to webhook deliveries.
const (
	FaultStatus              FaultKind = "status"                // answers Status (default 502); the call has no effect
	FaultRetryAfter          FaultKind = "retry-after"           // answers Status (default 429) with Retry-After: Delay; no effect
	FaultTimeoutAfterSuccess FaultKind = "timeout-after-success" // the call takes effect; after Delay the answer is Status, or with none the connection closes
	FaultDrop                FaultKind = "drop"                  // the connection closes without an answer; no effect
	FaultDelay               FaultKind = "delay"                 // the call takes Delay longer

	DeliveryLost   FaultKind = "delivery-lost"   // the event is never sent, and leaves no trace
	DeliveryFailed FaultKind = "delivery-failed" // kept as failed with Status (default 502), not sent; redelivery works
	DeliveryLate   FaultKind = "delivery-late"   // sent after Delay
	// DeliveryBare is DeliveryFailed whose payload GitHub does not show.
	DeliveryBare FaultKind = "delivery-bare"
	// DeliveryThrottled is DeliveryFailed that was held back instead of being sent.
	DeliveryThrottled FaultKind = "delivery-throttled"
	// DeliverySwallowed is kept as answered with 200, and was not sent: somebody before
	// the receiver has said yes.
	DeliverySwallowed FaultKind = "delivery-swallowed"

	MessageLost FaultKind = "message-lost" // news for a scale set's queue, of the type Path, is never queued
)

// Fault is one piece of misbehaviour. Empty conditions match everything.
type Fault struct {
	Kind   FaultKind                `json:"kind"`
	Method string                   `json:"method,omitempty"`
	Path   string                   `json:"path,omitempty"`   // a part of the path; of a delivery: "event" or "event.action"; of a message: its type
	Match  func(*http.Request) bool `json:"-"`                // of calls only, in addition to Method and Path
	Rate   float64                  `json:"rate,omitempty"`   // share of what matches that it happens to; 0: all
	Count  int                      `json:"count,omitempty"`  // how often; 0: once; negative: for ever
	Status int                      `json:"status,omitempty"` // see the kinds
	Delay  time.Duration            `json:"delay,omitempty"`  // see the kinds
}

func (f Fault) onDelivery() bool { return strings.HasPrefix(string(f.Kind), "delivery-") }

// Validate reports what is wrong with the fault.
func (f Fault) Validate() error {
	switch f.Kind {
	case FaultStatus, FaultRetryAfter, FaultTimeoutAfterSuccess, FaultDrop, FaultDelay, DeliveryLost, DeliveryFailed, DeliveryLate, DeliveryBare, DeliveryThrottled, DeliverySwallowed, MessageLost:
	default:
		return fmt.Errorf("fault kind %q is not known", f.Kind)
	}
	if (f.Kind == FaultDelay || f.Kind == DeliveryLate) && f.Delay <= 0 {
		return fmt.Errorf("fault %s: give a delay", f.Kind)
	}
	if f.Status != 0 && (f.Status < 400 || f.Status > 599) {
		return fmt.Errorf("fault %s: status %d is not an error; use 400 to 599", f.Kind, f.Status)
	}
	if f.Rate < 0 || f.Rate > 1 {
		return fmt.Errorf("fault %s: rate %v is not a share between 0 and 1", f.Kind, f.Rate)
	}
	return nil
}

// Inject adds a fault. Faults are tried in the order of their injection.
func (s *Sim) Inject(f Fault) error {
	if err := f.Validate(); err != nil {
		return fmt.Errorf("inject: %w", err)
	}
	s.faults.add(f)
	return nil
}

// FaultsTaken counts how often the faults of Inject and of Options.Faults have happened.
func (s *Sim) FaultsTaken() map[FaultKind]int {
	s.faults.mu.Lock()
	defer s.faults.mu.Unlock()
	return maps.Clone(s.faults.taken)
}

// ClearFaults removes every fault that is still to come.
func (s *Sim) ClearFaults() { s.faults.clear() }

type faults struct {
	rng  *random
	rate float64 // share of REST calls that fail at random

	mu    sync.Mutex // guards the rest
	list  []*Fault
	taken map[FaultKind]int
}

func (f *faults) add(fault Fault) {
	if fault.Count == 0 {
		fault.Count = 1
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.list = append(f.list, &fault)
}

func (f *faults) clear() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.list = nil
}

// take finds the first fault that matches and uses it up by one.
func (f *faults) take(match func(*Fault) bool) *Fault {
	f.mu.Lock()
	defer f.mu.Unlock()
	i := slices.IndexFunc(f.list, match)
	if i < 0 {
		return nil
	}
	found := f.list[i]
	if f.taken == nil {
		f.taken = map[FaultKind]int{}
	}
	f.taken[found.Kind]++
	if found.Count--; found.Count == 0 {
		f.list = slices.Delete(f.list, i, i+1)
	}
	return new(*found)
}

func (f *faults) forDelivery(out outgoing) *Fault {
	return f.take(func(fault *Fault) bool {
		return fault.onDelivery() && !out.redelivery && (fault.Path == "" || fault.Path == out.event || fault.Path == out.event+"."+out.action) &&
			f.happens(fault)
	})
}

func (f *faults) happens(fault *Fault) bool { return fault.Rate == 0 || f.rng.chance(fault.Rate) }

// forCall finds the fault of a call. REST calls also fail at random.
func (f *faults) forCall(r *http.Request, rest bool) *Fault {
	fault := f.take(func(fault *Fault) bool {
		return !fault.onDelivery() && fault.Kind != MessageLost && (fault.Method == "" || strings.EqualFold(fault.Method, r.Method)) &&
			strings.Contains(r.URL.Path, fault.Path) && (fault.Match == nil || fault.Match(r)) && f.happens(fault)
	})
	if fault != nil || !rest || !f.rng.chance(f.rate) {
		return fault
	}
	kinds := []Fault{
		{Kind: FaultStatus, Status: http.StatusBadGateway},
		{Kind: FaultStatus, Status: http.StatusServiceUnavailable},
		{Kind: FaultRetryAfter, Status: http.StatusTooManyRequests, Delay: time.Second},
		{Kind: FaultTimeoutAfterSuccess, Status: http.StatusGatewayTimeout},
		{Kind: FaultTimeoutAfterSuccess},
	}
	return &kinds[f.rng.intn(len(kinds))]
}

// retryAfter is the whole seconds that a fault asks a client to wait.
func (f *Fault) retryAfter() int {
	return max(1, int((cmp.Or(f.Delay, time.Second)+time.Second-1)/time.Second))
}
