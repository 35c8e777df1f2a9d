// SPDX-License-Identifier: MIT

package agent

import (
	"context"
	"slices"
	"time"
)

// imagesFirst is how long the first greeting waits for the list of images: a host with
// images that were never read before takes longer, and says so with a later report.
const imagesFirst = time.Second

// watchImages keeps the list of images; listed is called after each look.
func (a *Agent) watchImages(ctx context.Context, listed func()) {
	for {
		names, err := a.cfg.Machines.Images(ctx)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			a.trouble("images", "the images of this host cannot be listed: "+err.Error())
		} else {
			a.trouble("images", "")
			a.mu.Lock()
			if !slices.Equal(a.images, names) {
				a.images = names
				a.changed()
			}
			a.mu.Unlock()
		}
		listed()
		t := time.NewTimer(around(a.cfg.ImagesEvery))
		select {
		case <-ctx.Done():
		case <-t.C:
		case <-a.relook:
		}
		t.Stop()
		if ctx.Err() != nil {
			return
		}
	}
}

// lookAtImages has the list of images looked at now.
func (a *Agent) lookAtImages() {
	select {
	case a.relook <- struct{}{}:
	default:
	}
}

// awaitImages gives a short list the time to be in the greeting.
func (a *Agent) awaitImages(ctx context.Context, listed <-chan struct{}) {
	t := time.NewTimer(imagesFirst)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-listed:
	case <-t.C:
	}
}
