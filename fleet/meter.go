// SPDX-License-Identifier: MIT

package fleet

import (
	"context"
	"time"
)

// Rate is GitHub's word on a limit: how many calls may be made until Reset, of Limit in
// an hour. One without a limit is zero.
type Rate struct {
	Limit, Remaining int
	Reset            time.Time
}

// Meter watches over the calls to GitHub that are made for one purpose. Its methods are
// called by whoever makes the calls, possibly by several at once.
type Meter interface {
	// Begin comes before each call, and can make it wait for a moment. Its error is the
	// call's, which is then not made.
	Begin(ctx context.Context) error
	// End comes after each call that Begin allowed. It is free if GitHub does not count
	// it: nothing had changed since the answer before. The rate is what the answer says
	// of the limit, and known is false if there was no answer.
	End(free bool, rate Rate, known bool)
}

type meterKey struct{}

// WithMeter returns a context whose calls to GitHub are metered.
func WithMeter(ctx context.Context, m Meter) context.Context {
	return context.WithValue(ctx, meterKey{}, m)
}

// MeterOf returns the meter of a context, nil if it has none.
func MeterOf(ctx context.Context) Meter {
	m, _ := ctx.Value(meterKey{}).(Meter)
	return m
}
