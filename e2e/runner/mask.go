// SPDX-License-Identifier: MIT

package main

import (
	"bytes"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/ChristopherHX/github-act-runner/protocol"
	"github.com/ChristopherHX/github-act-runner/protocol/logger"
)

// mask hides the job's secrets in its log.
type mask struct {
	values   []string // longest first, so that no part of one stays
	patterns []*regexp.Regexp
}

// newMask takes the secret variables and the patterns that the job names.
func newMask(req *protocol.AgentJobRequestMessage) (*mask, error) {
	m := &mask{}
	for _, v := range req.Variables {
		if v.IsSecret {
			m.add(v.Value)
		}
	}
	for _, hint := range req.MaskHints {
		if !strings.EqualFold(hint.Type, "regex") {
			continue
		}
		re, err := regexp.Compile(hint.Value)
		if err != nil {
			return nil, fmt.Errorf("a mask of the job is not a pattern: %w", err)
		}
		m.patterns = append(m.patterns, re)
	}
	return m, nil
}

// add hides every line of a value, for the log is hidden line by line.
func (m *mask) add(value string) {
	for line := range strings.Lines(value) {
		if line = strings.TrimSpace(line); line != "" {
			m.values = append(m.values, line)
		}
	}
	slices.SortFunc(m.values, func(a, b string) int { return len(b) - len(a) })
}

func (m *mask) hide(line string) string {
	for _, v := range m.values {
		line = strings.ReplaceAll(line, v, "***")
	}
	for _, re := range m.patterns {
		line = re.ReplaceAllLiteralString(line, "***")
	}
	return line
}

// maxPending bounds an output line: a longer one is broken.
const maxPending = 64 << 10

// maskedLog writes a step's output to the job's log, line by line, masked and
// with the time in front. The step's own add-mask commands are obeyed.
type maskedLog struct {
	log  *logger.JobLogger
	mask *mask

	mu      sync.Mutex // guards pending
	pending []byte
}

func (l *maskedLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.pending = append(l.pending, p...)
	var lines []string
	for {
		i := bytes.IndexByte(l.pending, '\n')
		if i < 0 && len(l.pending) > maxPending {
			i = maxPending
			l.pending = slices.Insert(l.pending, i, '\n')
		}
		if i < 0 {
			break
		}
		lines = l.line(lines, string(l.pending[:i]))
		l.pending = l.pending[i+1:]
	}
	l.send(lines)
	return len(p), nil
}

// flush writes what has no line break yet.
func (l *maskedLog) flush() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.pending) > 0 {
		l.send(l.line(nil, string(l.pending)))
		l.pending = nil
	}
}

func (l *maskedLog) line(lines []string, line string) []string {
	line = strings.TrimSuffix(line, "\r")
	if value, ok := strings.CutPrefix(line, "::add-mask::"); ok {
		l.mask.add(value)
		return lines
	}
	if line == "" {
		return lines
	}
	return append(lines, time.Now().UTC().Format(protocol.TimestampOutputFormat)+" "+l.mask.hide(line))
}

func (l *maskedLog) send(lines []string) {
	if len(lines) > 0 {
		l.log.Log(strings.Join(lines, "\n"))
	}
}
