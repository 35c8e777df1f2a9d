// SPDX-License-Identifier: MIT

package guest

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
	"unicode"
)

// The answer to exec is a row of frames: a byte that says what it is, the length of what
// follows as four bytes (the highest first), and that many bytes. The last is frameExit
// or frameError; an answer that ends without one was broken off.
const (
	frameStdout = 1
	frameStderr = 2
	frameExit   = 3 // JSON of execEnd
	frameError  = 4 // text: the command could not be run to its end

	frameHeader   = 5
	maxFrameBytes = 16 << 10
)

// execEnd says how a command ended.
type execEnd struct {
	Code   int    `json:"code"`             // -1 when a signal ended it
	Signal string `json:"signal,omitempty"` // which
}

// frameWriter writes the frames of one answer, from several goroutines.
type frameWriter struct {
	mu    sync.Mutex // guards the rest
	w     io.Writer
	flush func() error
}

func (f *frameWriter) write(kind byte, data []byte) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	head := [frameHeader]byte{kind}
	binary.BigEndian.PutUint32(head[1:], uint32(len(data)))
	if _, err := f.w.Write(append(head[:], data...)); err != nil {
		return err
	}
	return f.flush()
}

// output is an io.Writer that makes frames of one kind.
type output struct {
	frames *frameWriter
	kind   byte
}

func (o output) Write(p []byte) (int, error) {
	for sent := 0; sent < len(p); {
		n := min(len(p)-sent, maxFrameBytes)
		if err := o.frames.write(o.kind, p[sent:sent+n]); err != nil {
			return sent, err
		}
		sent += n
	}
	return len(p), nil
}

// readFrames reads an answer to exec that a guest wrote, passes at most limit bytes of
// output on, and returns how the command ended.
func readFrames(r io.Reader, stdout, stderr io.Writer, limit int64) (execEnd, error) {
	buf := make([]byte, maxFrameBytes)
	for {
		var head [frameHeader]byte
		if _, err := io.ReadFull(r, head[:]); err != nil {
			return execEnd{}, fmt.Errorf("the answer ends before the command: %w", noEOF(err))
		}
		n := binary.BigEndian.Uint32(head[1:])
		if n > maxFrameBytes {
			return execEnd{}, fmt.Errorf("a frame of %d bytes: at most %d are taken", n, maxFrameBytes)
		}
		data := buf[:n]
		if _, err := io.ReadFull(r, data); err != nil {
			return execEnd{}, fmt.Errorf("the answer ends within a frame: %w", noEOF(err))
		}
		w := stdout
		switch head[0] {
		case frameStdout:
		case frameStderr:
			w = stderr
		case frameExit:
			return decodeEnd(data)
		case frameError:
			return execEnd{}, errors.New(printable(string(data), maxReasonBytes, false))
		default:
			return execEnd{}, fmt.Errorf("a frame of the unknown kind %d", head[0])
		}
		if limit -= int64(n); limit < 0 {
			return execEnd{}, errors.New("the command's output is larger than the caller wants")
		}
		if w == nil {
			continue
		}
		if _, err := w.Write(data); err != nil {
			return execEnd{}, fmt.Errorf("the command's output: %w", err)
		}
	}
}

func decodeEnd(data []byte) (execEnd, error) {
	var end execEnd
	if err := json.Unmarshal(data, &end); err != nil {
		return execEnd{}, fmt.Errorf("the command's end: %w", err)
	}
	if end.Code < -1 || end.Code > 255 || (end.Code == -1) != (end.Signal != "") {
		return execEnd{}, fmt.Errorf("the command's end contradicts itself: code %d", end.Code)
	}
	if end.Signal = printable(end.Signal, 64, false); end.Code == -1 && !hasLetter(end.Signal) {
		return execEnd{}, errors.New("the command's end names no signal")
	}
	return end, nil
}

func hasLetter(s string) bool {
	for _, r := range s {
		if unicode.IsLetter(r) {
			return true
		}
	}
	return false
}

// noEOF says of a premature end that it is one.
func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
