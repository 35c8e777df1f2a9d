// SPDX-License-Identifier: MIT

package githubapp

import (
	"context"
	"time"
)

// Priority orders the calls of an App: where GitHub allows fewer than are wanted, those
// of a lower one wait, and end first.
type Priority int

// The priorities, highest first.
const (
	PriorityMint Priority = iota // registrations: a booted VM and a job wait for each
	PriorityEnd                  // deletions: a slot waits
	PriorityAsk                  // questions about one thing that is in doubt
	PriorityPoll                 // lists
	priorities
)

var priorityNames = [priorities]string{"mint", "end", "ask", "poll"}

// share says what a priority may use of GitHub's limits: what is left over is kept for
// those above it.
type share struct {
	hour     float64       // this part of the hourly limit has to be left for a call to begin
	minute   float64       // of a minute's points
	patience time.Duration // the longest wait in the queue
}

// A deletion does not wait: its guest may be given a job meanwhile.
var shares = [priorities]share{
	PriorityMint: {hour: 0, minute: 1, patience: 90 * time.Second},
	PriorityEnd:  {hour: 0.05, minute: 0.85, patience: 2 * time.Second},
	PriorityAsk:  {hour: 0.15, minute: 0.65, patience: 10 * time.Second},
	PriorityPoll: {hour: 0.40, minute: 0.35, patience: 30 * time.Second},
}

type priorityKey struct{}

// WithPriority has the calls that are made with the context go at a priority of their
// own, instead of that of what is called.
func WithPriority(ctx context.Context, p Priority) context.Context {
	return context.WithValue(ctx, priorityKey{}, p)
}

// prefer sets the priority unless the caller has.
func prefer(ctx context.Context, p Priority) context.Context {
	if _, set := ctx.Value(priorityKey{}).(Priority); set {
		return ctx
	}
	return WithPriority(ctx, p)
}

// priorityOf returns the priority of a call: the context's, or that of its class.
func priorityOf(ctx context.Context, c Class) Priority {
	if p, set := ctx.Value(priorityKey{}).(Priority); set && p >= 0 && p < priorities {
		return p
	}
	switch c {
	case ClassRegister:
		return PriorityMint
	case ClassDelete:
		return PriorityEnd
	case ClassRunners, ClassRuns, ClassJobs, ClassDeliveries:
		return PriorityPoll
	default:
		return PriorityAsk
	}
}

type timeoutKey struct{}

// withTimeout bounds each request that is made with the context, from when it is sent
// until its answer is read. The time in the queue does not count.
func withTimeout(ctx context.Context, d time.Duration) context.Context {
	return context.WithValue(ctx, timeoutKey{}, d)
}

func timeoutOf(ctx context.Context) time.Duration {
	d, _ := ctx.Value(timeoutKey{}).(time.Duration)
	return d
}
