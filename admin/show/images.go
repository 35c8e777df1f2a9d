// SPDX-License-Identifier: MIT

package show

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/minifleet/minifleet/admin/api"
)

// shortDigest is as much of a digest as tells images apart in a table.
func shortDigest(image string) string {
	_, digest, ok := strings.Cut(image, "sha256:")
	if !ok {
		return image
	}
	return digest[:min(12, len(digest))]
}

// images lists what a host has, and what is on its way there.
func images(h api.Host) string {
	parts := make([]string, len(h.Images))
	for i, name := range h.Images {
		parts[i] = shortDigest(name)
	}
	for _, c := range h.Cache {
		switch {
		case slices.Contains(h.Images, c.Digest) || c.State == api.CacheStateWhole:
		case c.State == api.CacheStateFetching:
			parts = append(parts, shortDigest(c.Digest)+" "+percent(c.DoneBytes, c.TotalBytes))
		case c.State == api.CacheStateFailed:
			parts = append(parts, shortDigest(c.Digest)+" failed")
		default:
			parts = append(parts, shortDigest(c.Digest)+" waits")
		}
	}
	return strings.Join(parts, ",")
}

// failedImages says why images could not be fetched to a host, such as what has their room.
func failedImages(h api.Host) string {
	var parts []string
	for _, c := range h.Cache {
		if c.State == api.CacheStateFailed && c.Failure != "" {
			parts = append(parts, "image "+shortDigest(c.Digest)+": "+c.Failure)
		}
	}
	return strings.Join(parts, "; ")
}

func percent(part, whole int64) string {
	if whole <= 0 {
		return "0%"
	}
	return fmt.Sprintf("%d%%", int64(100*float64(part)/float64(whole)))
}

// rolling is a rollout in a few words.
func rolling(r api.Rollout) string {
	var parts []string
	switch {
	case r.Current == "" && r.Error == "" && r.Hosts == 0 && r.Tagged == "":
	case r.Current == "":
		parts = append(parts, "no image yet")
	default:
		parts = append(parts, shortDigest(r.Current))
	}
	if r.Next != "" {
		next := fmt.Sprintf("next %s on %d of %d hosts", shortDigest(r.Next), r.HostsWithNext, r.Hosts)
		if r.CanaryPercent > 0 {
			next += fmt.Sprintf(", tried by %d%%", r.CanaryPercent)
		}
		if r.Failures > 0 {
			next += fmt.Sprintf(", failures: %d", r.Failures)
		}
		parts = append(parts, next)
	}
	if r.Held != "" {
		parts = append(parts, "held "+shortDigest(r.Held))
	}
	if r.Error != "" {
		parts = append(parts, r.Error)
	}
	return strings.Join(parts, "; ")
}

// Rollout prints all that is known of a pool's image.
func Rollout(w io.Writer, p api.Pool, now time.Time) error {
	r := p.Rollout
	lines := []string{fmt.Sprintf("pool %s: image %s", p.Name, p.Image)}
	add := func(value, format string, args ...any) {
		if value != "" {
			lines = append(lines, fmt.Sprintf(format, args...))
		}
	}
	since := func(t time.Time) string {
		if t.IsZero() {
			return ""
		}
		return ", " + age(t, now) + " ago"
	}
	add(r.Current, "current: %s%s: %s; on %d of %d hosts", r.Current, since(r.PromotedAt), r.Note, r.HostsWithCurrent, r.Hosts)
	add(r.Next, "next: %s%s; on %d of %d hosts", r.Next, since(r.StartedAt), r.HostsWithNext, r.Hosts)
	if r.Next != "" && r.CanaryPercent > 0 {
		until := "until an operator promotes it"
		if r.CanaryFor != "" {
			until = "for " + r.CanaryFor + " without a failure"
		}
		tried := "no guest with it has answered yet"
		if !r.TriedAt.IsZero() {
			tried = "its first guest answered " + age(r.TriedAt, now) + " ago"
		}
		lines = append(lines, fmt.Sprintf("canary: %d%% of the runners, %s; %s", r.CanaryPercent, until, tried))
	}
	if r.Failures > 0 {
		lines = append(lines, fmt.Sprintf("failures of next: %d, the last%s: %s", r.Failures, since(r.FailedAt), r.Failure))
	}
	add(r.Previous, "previous: %s", r.Previous)
	add(r.Held, "held: %s: not taken again until the tag moves or it is asked for", r.Held)
	if r.Tagged != "" && !strings.Contains(r.Current+r.Next+r.Held, r.Tagged) {
		lines = append(lines, "the tag names: "+r.Tagged)
	}
	add(r.Error, "the tag cannot be read%s: %s", strings.TrimSuffix(strings.Replace(since(r.ErrorAt), ", ", " since ", 1), " ago"), r.Error)
	if r.Current == "" && r.Error == "" {
		line := "nothing of it is known yet"
		if !strings.Contains(p.Image, "://") {
			line = "it is a name: each host has it, or not, by that name"
		}
		lines = append(lines, line)
	}
	for _, line := range lines {
		if err := say(w, line); err != nil {
			return err
		}
	}
	return nil
}

// madeFrom names a runner's image at the end of a line.
func madeFrom(r api.Runner) string {
	if r.Image == "" {
		return ""
	}
	return ", made from " + r.Image
}
