// SPDX-License-Identifier: MIT

package agent

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/minifleet/minifleet/imagecache"
)

func TestProgressOfAnImageSaysHowFast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var got []string
		show := imageProgress("gs://bucket/mac@sha256:00", func(s string) { got = append(got, s) })
		for _, mib := range []int64{0, 100, 300, 400} {
			show(imagecache.Progress{DoneBytes: mib << 20, TotalBytes: 500 << 20})
			time.Sleep(progressEvery * 3 / 4)
		}
		if diff := cmp.Diff([]string{
			"image gs://bucket/mac: 0 of 500 MiB", "image gs://bucket/mac: 100 of 500 MiB",
			"image gs://bucket/mac: 300 of 500 MiB, 100 MiB/s", "image gs://bucket/mac: 400 of 500 MiB, 100 MiB/s",
		}, got); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	})
}
