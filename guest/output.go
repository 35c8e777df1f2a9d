// SPDX-License-Identifier: MIT

package guest

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"regexp"
	"strings"
)

// event is what one line of the listener's output means to us.
type event struct {
	kind   eventKind
	result Result // eventResult
	text   string // eventVersion
}

type eventKind int

const (
	eventNone         eventKind = iota
	eventListening              // a session is open: the runner waits for a job
	eventRunning                // a job was taken
	eventResult                 // the job ended
	eventVersion                // the runner named its version
	eventGone                   // the registration does not exist any more
	eventConflict               // another session exists for the registration
	eventDeprecated             // the service refuses this version
	eventClock                  // the clock is too far from the server's
	eventDisconnected           // the service cannot be reached; the runner retries
	eventReconnected            // it can again
)

// stamp is the time with which the official listener begins its lines.
var stamp = regexp.MustCompile(`^\d{4}-\d\d-\d\d \d\d:\d\d:\d\dZ: `)

// parseLine reads a line of either runner that we know: the official one and
// github-act-runner. A job's name is in some lines, and its author chose it:
// so the words around it count only where the runner itself puts them, at the
// start of the line and at its end.
func parseLine(line string) event {
	line = strings.TrimRight(line, " \r\n")
	line = line[len(stamp.FindString(line)):]
	if e, ok := parseOfficial(line); ok {
		return e
	}
	// github-act-runner puts "NAME ( URL ): " before what concerns a job.
	// Names and URLs of runners are ours, not the author's.
	if _, rest, ok := strings.Cut(line, " ): "); ok && strings.Contains(line[:len(line)-len(rest)], " ( ") {
		return parsePrefixed(rest)
	}
	return event{}
}

func parseOfficial(line string) (event, bool) {
	switch {
	case hasPrefix(line, "Listening for Jobs"):
		if rest := line[len("Listening for Jobs"):]; rest == "" || rest[0] == ':' {
			return event{kind: eventListening}, true
		}
	case hasPrefix(line, "Running job:"): // a blank name leaves no space behind it
		return event{kind: eventRunning}, true
	case hasPrefix(line, "Job "):
		if r, ok := trailingResult(line[len("Job "):], " completed with result: "); ok {
			return event{kind: eventResult, result: r}, true
		}
	case hasPrefix(line, "Current runner version: '"):
		if v := strings.TrimSuffix(line[len("Current runner version: '"):], "'"); versionPattern.MatchString(v) {
			return event{kind: eventVersion, text: v}, true
		}
	case hasPrefix(line, "A session for this runner already exists"):
		return event{kind: eventConflict}, true
	case hasPrefix(line, "The runner no longer exists on the server"),
		hasPrefix(line, "Failed to create a session. The runner registration has been deleted"),
		hasPrefix(line, "An error occurred: Get next message failed with non-retryable error"), // its session counts no more
		hasPrefix(line, "Fatal: It looks like this runner has been removed"):
		return event{kind: eventGone}, true
	case hasPrefix(line, "An error occurred: Runner version "), hasPrefix(line, "Runner version "),
		hasPrefix(line, "An error occured: Runner version "): // as the official runner spells it in one place
		if strings.Contains(line, " is deprecated") {
			return event{kind: eventDeprecated}, true
		}
	case hasPrefix(line, "The local machine's clock may be out of sync"):
		return event{kind: eventClock}, true
	case hasPrefix(line, "Runner connect error"):
		return event{kind: eventDisconnected}, true
	case hasPrefix(line, "Runner reconnected"):
		return event{kind: eventReconnected}, true
	}
	return event{}, false
}

func parsePrefixed(rest string) event {
	switch {
	case hasPrefix(rest, "Running Job '"):
		return event{kind: eventRunning}
	case hasPrefix(rest, "Finished Job '"):
		if r, ok := trailingResult(rest, "' with Status "); ok {
			return event{kind: eventResult, result: r}
		}
	}
	return event{}
}

// trailingResult reads the result after the last sep, up to the line's end.
func trailingResult(line, sep string) (Result, bool) {
	i := strings.LastIndex(line, sep)
	if i < 0 {
		return "", false
	}
	return resultOf(line[i+len(sep):])
}

func resultOf(word string) (Result, bool) {
	switch strings.ToLower(word) {
	case "succeeded", "succeededwithissues":
		return ResultSucceeded, true
	case "failed":
		return ResultFailed, true
	case "canceled", "cancelled":
		return ResultCanceled, true
	case "abandoned":
		return ResultAbandoned, true
	case "skipped":
		return ResultSkipped, true
	}
	return "", false
}

// hasPrefix compares without regard to case, for the two runners differ in it.
func hasPrefix(s, prefix string) bool {
	return len(s) >= len(prefix) && strings.EqualFold(s[:len(prefix)], prefix)
}

// maxLine is where a line is cut; what follows up to its end is dropped.
const maxLine = 64 << 10

// readLines calls use for every line of r until it ends, and says whether the
// line was cut. It holds one line at a time however long or fast the output is.
func readLines(r io.Reader, use func(line []byte, cut bool)) {
	br := bufio.NewReaderSize(r, maxLine)
	for {
		line, err := br.ReadSlice('\n')
		if len(line) > 0 {
			use(bytes.TrimSuffix(line, []byte("\n")), errors.Is(err, bufio.ErrBufferFull))
		}
		for errors.Is(err, bufio.ErrBufferFull) {
			_, err = br.ReadSlice('\n')
		}
		if err != nil {
			return
		}
	}
}
