// SPDX-License-Identifier: MIT

package store

import (
	"strconv"
	"strings"
	"time"

	"github.com/minifleet/minifleet/fleet"
)

// tookText writes how long a runner's steps took, as "image=1200 clone=31": in
// microseconds, without those that took none.
func tookText(t fleet.StepTimes) string {
	var b []byte
	for _, step := range fleet.Steps() {
		if t[step] <= 0 {
			continue
		}
		if b != nil {
			b = append(b, ' ')
		}
		b = append(append(b, step.String()...), '=')
		b = strconv.AppendInt(b, t[step].Microseconds(), 10)
	}
	return string(b)
}

// storedTook reads what tookText wrote. What it does not know is of another version, and
// left out.
func storedTook(text string) (t fleet.StepTimes) {
	for word := range strings.FieldsSeq(text) {
		name, number, _ := strings.Cut(word, "=")
		step, known := fleet.ParseStep(name)
		us, err := strconv.ParseInt(number, 10, 64)
		if known && err == nil {
			t[step] = time.Duration(us) * time.Microsecond
		}
	}
	return t
}
