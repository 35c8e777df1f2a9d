// SPDX-License-Identifier: MIT

package emulator

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"
)

// Kind is what can be wrong with an answer.
type Kind int

// The kinds.
const (
	Status   Kind = iota // another status, with an error's body
	Stall                // the connection stays open, and nothing comes after the first half
	Cut                  // the connection ends after the first half
	Garbage              // content of the right length is another
	Shorter              // the content is shorter, and its length says so
	Longer               // the content has more behind it, and its length says so
	Vanished             // 404, as GCS says it
)

// Fault is one thing that is wrong.
type Fault struct {
	Kind   Kind
	Status int    // goes with Status
	Method string // "" is any
	// Part must be in the path, unescaped, for the fault to strike; "" strikes always.
	Part string
	// Count is how often it strikes; 0 is until it is cleared.
	Count int
}

// Faults are what is wrong at the moment. A struck request may count for several.
type Faults struct {
	mu     sync.Mutex // guards the rest
	list   []*Fault
	struck map[Kind]int
	more   chan struct{} // closed and replaced when one strikes
	heal   chan struct{} // closed and replaced by Clear
}

func newFaults() *Faults {
	return &Faults{struck: map[Kind]int{}, more: make(chan struct{}), heal: make(chan struct{})}
}

// Add adds a fault, which strikes from the next request on.
func (f *Faults) Add(one Fault) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.list = append(f.list, &one)
}

// Clear ends all faults, and the stalls too.
func (f *Faults) Clear() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.list = nil
	close(f.heal)
	f.heal = make(chan struct{})
}

// Struck returns how often faults of a kind have struck.
func (f *Faults) Struck(k Kind) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.struck[k]
}

// Await waits until faults of a kind have struck so many times.
func (f *Faults) Await(ctx context.Context, k Kind, n int) error {
	for {
		f.mu.Lock()
		struck, more := f.struck[k], f.more
		f.mu.Unlock()
		if struck >= n {
			return nil
		}
		select {
		case <-more:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// strike finds the fault that meets a request.
func (f *Faults) strike(r *http.Request) (*Fault, <-chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i, one := range f.list {
		if one.Method != "" && one.Method != r.Method || !strings.Contains(r.URL.Path, one.Part) {
			continue
		}
		f.struck[one.Kind]++
		close(f.more)
		f.more = make(chan struct{})
		if one.Count > 0 {
			if one.Count--; one.Count == 0 {
				f.list = append(f.list[:i:i], f.list[i+1:]...)
			}
		}
		return one, f.heal
	}
	return nil, nil
}

// before puts the faults before a server.
func (f *Faults) before(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		one, heal := f.strike(r)
		if one == nil {
			next.ServeHTTP(w, r)
			return
		}
		switch one.Kind {
		case Status, Vanished:
			status := one.Status
			if one.Kind == Vanished {
				status = http.StatusNotFound
			}
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(status)
			fmt.Fprintf(w, `{"error": {"code": %d, "message": "a fault of the test: %s"}}`, status, http.StatusText(status))
			return
		}
		a := &answer{header: http.Header{}, status: http.StatusOK}
		next.ServeHTTP(a, r)
		body := bytes.Clone(a.body.Bytes())
		half := body[:len(body)/2]
		for name, values := range a.header {
			w.Header()[name] = values
		}
		whole := func(b []byte) {
			w.Header().Set("Content-Length", strconv.Itoa(len(b)))
			w.WriteHeader(a.status)
			_, _ = w.Write(b) // the client is gone, or not
		}
		switch one.Kind {
		case Garbage:
			for i := range body {
				body[i] ^= 0x5a
			}
			whole(body)
		case Shorter:
			whole(half)
		case Longer:
			whole(append(body, body...))
		default: // Stall, Cut
			w.Header().Set("Content-Length", strconv.Itoa(len(body)))
			w.WriteHeader(a.status)
			_, _ = w.Write(half)
			_ = http.NewResponseController(w).Flush()
			if one.Kind == Stall {
				select {
				case <-heal:
				case <-r.Context().Done():
				}
			}
			panic(http.ErrAbortHandler) // ends the connection
		}
	})
}
