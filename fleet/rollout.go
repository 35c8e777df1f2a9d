// SPDX-License-Identifier: MIT

package fleet

import (
	"errors"
	"fmt"
	"time"
)

// Rollout is which image the runners of a pool are made from, and which they are to be
// made from next. A pool whose image is a name has none. All images in it are references
// with a digest, "" where there is none.
type Rollout struct {
	Pool      string
	Reference string // the pool's image, as configured
	Tagged    string // digest that the reference's tag named when it was last read

	Current  string // serves
	Next     string // is being rolled out: hosts fetch it, and canaries run it
	Previous string // served before Current: the one to go back to
	// Held was gone back from. It is not taken again by itself: only when the tag has
	// named another one, or when somebody asks for it.
	Held string

	Note       string    // why it is as it is: the last promotion or going back
	StartedAt  time.Time // Next began to be rolled out
	TriedAt    time.Time // the guest of a runner with Next answered for the first time
	PromotedAt time.Time // Current began to serve

	Failures int       // of runners with Next, since it began to be rolled out
	FailedAt time.Time // the last of them
	Failure  string    // and its reason

	Error   string    // why the tag could not be read, "" if it could
	ErrorAt time.Time // since when that is so

	Version int64 // compare-and-set
}

// Errors of what an operator asks of a rollout.
var (
	ErrNoRollout  = errors.New("no image is being rolled out")
	ErrNoPrevious = errors.New("no image is known that served before")
	// ErrLocalImage: the pool's image is a name, of which the controller knows no versions.
	ErrLocalImage = errors.New("the pool's image is a name and not a reference: there is nothing to roll out")
	// ErrNoImage: what a reference names is not there, or cannot be read.
	ErrNoImage = errors.New("the image was not found")
)

// NewRollout is the state of a pool at its first sight.
func NewRollout(pool, reference string, now time.Time) Rollout {
	return Rollout{Pool: pool}.Configured(reference, now)
}

// Configured returns the state after the configuration was read. Another reference is
// rolled out like another digest of the same: what serves goes on serving. One with a
// digest needs nobody to read a tag.
func (r Rollout) Configured(reference string, now time.Time) Rollout {
	if r.Reference == reference {
		return r
	}
	r.Reference, r.Tagged, r.Held = reference, "", ""
	r.Error, r.ErrorAt = "", time.Time{}
	if digest := ImageDigest(reference); digest != "" {
		return r.taken(digest, now)
	}
	return r
}

// Resolved returns the state after the tag was read. Only a tag that has moved starts
// anything: what an operator has decided since stands until then.
func (r Rollout) Resolved(digest string, now time.Time) Rollout {
	r.Error, r.ErrorAt = "", time.Time{}
	if r.Tagged == digest && r.Current != "" {
		return r
	}
	r.Tagged = digest
	if ImageKey(r.Held) == digest && r.Held != "" {
		return r
	}
	return r.taken(digest, now)
}

// Unresolved returns the state after the tag could not be read. What serves goes on
// serving.
func (r Rollout) Unresolved(why string, now time.Time) Rollout {
	if r.Error == "" {
		r.ErrorAt = now
	}
	r.Error = why
	return r
}

// Asked returns the state after an operator asked for a digest, held or not. tagged says
// that it is what the tag names.
func (r Rollout) Asked(digest string, tagged bool, now time.Time) Rollout {
	if tagged {
		r.Tagged, r.Error, r.ErrorAt = digest, "", time.Time{}
	}
	return r.taken(digest, now)
}

// taken begins to roll a digest out, or does without where that serves already.
func (r Rollout) taken(digest string, now time.Time) Rollout {
	image := ImageAt(r.Reference, digest)
	switch {
	case r.Current == "":
		r.Current, r.PromotedAt, r.Note = image, now, "the first image of the pool"
	case SameImage(image, r.Current):
		r.Current = image // the same content, perhaps from another place
		if r.Next != "" {
			r = r.without()
			r.Note = ImageShort(image) + " is asked for again, which serves"
		}
	case SameImage(image, r.Next):
		r.Next = image
	default:
		r = r.without()
		r.Next, r.StartedAt = image, now
	}
	r.Held = ""
	return r
}

// without forgets what was being rolled out.
func (r Rollout) without() Rollout {
	r.Next, r.StartedAt, r.TriedAt = "", time.Time{}, time.Time{}
	r.Failures, r.FailedAt, r.Failure = 0, time.Time{}, ""
	return r
}

// Promoted returns the state in which what was being rolled out serves.
func (r Rollout) Promoted(why string, now time.Time) (Rollout, error) {
	if r.Next == "" {
		return r, ErrNoRollout
	}
	r.Previous, r.Current = r.Current, r.Next
	r = r.without()
	r.PromotedAt, r.Note, r.Held = now, why, ""
	return r, nil
}

// WentBack returns the state after going back: what is being rolled out is given up, or
// else what served before serves again. What was left is held.
func (r Rollout) WentBack(why string, now time.Time) (Rollout, error) {
	switch {
	case r.Next != "":
		r.Held = r.Next
		r = r.without()
	case r.Previous != "":
		r.Held, r.Current, r.Previous = r.Current, r.Previous, ""
		r.PromotedAt = now
	default:
		return r, ErrNoPrevious
	}
	r.Note = why
	return r, nil
}

// Tried returns the state after the guest of a runner with an image answered.
func (r Rollout) Tried(image string, now time.Time) Rollout {
	if SameImage(image, r.Next) && r.TriedAt.IsZero() {
		r.TriedAt = now
	}
	return r
}

// Failed returns the state after a runner with an image failed, and whether that is the
// image's affair alone: it is being tried, and the pool is not to rest for it.
func (r Rollout) Failed(image, why string, now time.Time) (Rollout, bool) {
	if !SameImage(image, r.Next) {
		return r, false
	}
	r.Failures, r.FailedAt, r.Failure = r.Failures+1, now, why
	return r, true
}

// RolloutAct is what a decision does to a rollout.
type RolloutAct string

// The acts.
const (
	ActPromote RolloutAct = "promote"
	ActBack    RolloutAct = "go back"
)

// Acted returns the state after an act.
func (r Rollout) Acted(act RolloutAct, why string, now time.Time) (Rollout, error) {
	switch act {
	case ActPromote:
		return r.Promoted(why, now)
	case ActBack:
		return r.WentBack(why, now)
	default:
		return r, fmt.Errorf("%q is nothing that is done to a rollout", act)
	}
}

// Canary is how a pool tries an image before all of its runners have it.
type Canary struct {
	Percent  int           // of the pool's runners that are made from Next, at least one; 0 tries nothing
	For      time.Duration // without a failure, until Next is promoted; 0 leaves that to an operator
	Failures int           // of runners with Next at which the pool goes back by itself; 0 is the default
}

// DefaultCanaryFailures is how many failures of canaries are too many: one may be
// chance.
const DefaultCanaryFailures = 3

// TooMany is the number of failures at which a pool goes back by itself.
func (c Canary) TooMany() int {
	if c.Failures > 0 {
		return c.Failures
	}
	return DefaultCanaryFailures
}

func (c Canary) validate() error {
	if c.Percent < 0 || c.Percent > 100 {
		return fmt.Errorf("canary_percent is %d: want 0 to 100", c.Percent)
	}
	if c.For < 0 || c.Failures < 0 {
		return errors.New("canary_for and canary_failures must not be negative")
	}
	if c.Percent == 0 && (c.For != 0 || c.Failures != 0) {
		return errors.New("canary_for and canary_failures are for a pool with a canary_percent: set that too")
	}
	return nil
}

// Prefetch is an image that a host is to have before any VM needs it.
type Prefetch struct {
	Image          string
	BytesPerSecond int64 // 0 sets no limit
	// Hold keeps it from being begun, and from being evicted once it is there.
	Hold bool
	// Turn is when the host's turn to fetch it began, or ended without it; zero if it never
	// had one.
	Turn time.Time
}

// CachedImage is what a host's agent observes of one image in its cache.
type CachedImage struct {
	Image        string // the reference by which it was asked for first
	Digest       string
	State        CacheState
	DoneBytes    int64 // of TotalBytes
	TotalBytes   int64
	FetchedBytes int64 // of DoneBytes, over the network
	Failure      string
	MovedAt      time.Time // state or done bytes changed, as far as this controller has seen
}

// CacheState is how far an image in a host's cache is.
type CacheState string

// The states.
const (
	CacheWhole    CacheState = "whole"
	CacheFetching CacheState = "fetching"
	CacheWaiting  CacheState = "waiting"
	CacheFailed   CacheState = "failed"
)

// CacheStates lists all of them.
func CacheStates() []CacheState {
	return []CacheState{CacheWhole, CacheFetching, CacheWaiting, CacheFailed}
}
