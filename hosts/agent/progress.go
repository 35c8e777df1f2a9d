// SPDX-License-Identifier: MIT

package agent

import (
	"fmt"
	"strings"
	"time"

	"github.com/minifleet/minifleet/imagecache"
)

// imageProgress tells how far an image is, and how fast it has come lately.
func imageProgress(image string, show func(string)) func(imagecache.Progress) {
	name, _, _ := strings.Cut(image, "@") // a digest says nothing to anybody
	var since time.Time
	var bytes int64
	rate := ""
	return func(p imagecache.Progress) {
		now := time.Now()
		switch took := now.Sub(since); {
		case since.IsZero():
			since, bytes = now, p.DoneBytes
		case took >= progressEvery:
			rate = fmt.Sprintf(", %d MiB/s", int64(float64(p.DoneBytes-bytes)/took.Seconds())>>20)
			since, bytes = now, p.DoneBytes
		}
		show(fmt.Sprintf("image %s: %d of %d MiB%s", name, p.DoneBytes>>20, p.TotalBytes>>20, rate))
	}
}
