// SPDX-License-Identifier: MIT

package scalesets

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

// What a stop finds under way has some time more, and no more than that.
func TestSeenThrough(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, stop := context.WithCancel(t.Context())
		through, over := seenThrough(ctx)
		defer over()
		time.Sleep(time.Hour)
		stop()
		time.Sleep(closeWithin - time.Millisecond)
		if through.Err() != nil {
			t.Errorf("it was broken off: %v", context.Cause(through))
		}
		time.Sleep(2 * time.Millisecond)
		if !errors.Is(context.Cause(through), errTimeout) {
			t.Errorf("it goes on, with %v", context.Cause(through))
		}
	})
}
