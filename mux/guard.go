// SPDX-License-Identifier: MIT

package mux

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"net"
)

// A frame's header and what of it matters here, from yamux's specification (spec.md of
// v0.1.2).
const (
	headerBytes = 12 // version, type, two bytes of flags, four of the stream, four of the length

	typeData         = 0
	typeWindowUpdate = 1
	typePing         = 2

	flagSYN = 1 // opens a stream, or asks for the answer to a ping
)

// guard is the host's end of a channel, over which a guest may only answer. Yamux is made
// for peers that trust each other: each stream that a peer opens is kept for half a minute
// with all that was sent on it, and each ping that it sends takes a goroutine until the
// answer is written. A guest could have the host hold gigabytes so. Nothing of ours in a
// guest does either, so a channel ends with the first such frame, and with a farewell.
type guard struct {
	net.Conn
	frames *bufio.Reader
	header [headerBytes]byte
	passed int    // of the header, to the reader
	load   uint32 // that follows it, and was not read yet
}

func newGuard(channel net.Conn) *guard {
	return &guard{Conn: channel, frames: bufio.NewReader(channel), passed: headerBytes}
}

func (g *guard) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if g.passed == headerBytes && g.load > 0 {
		n, err := g.frames.Read(p[:min(uint64(len(p)), uint64(g.load))])
		g.load -= uint32(n) //nolint:gosec // at most load
		return n, err
	}
	if g.passed == headerBytes {
		if _, err := io.ReadFull(g.frames, g.header[:]); err != nil {
			return 0, err
		}
		if err := g.check(); err != nil {
			return 0, err
		}
		g.passed = 0
	}
	n := copy(p, g.header[g.passed:])
	g.passed += n
	return n, nil
}

// check refuses a frame of the guest's own accord, and notes how much follows the others.
func (g *guard) check() error {
	kind, flags := g.header[1], binary.BigEndian.Uint16(g.header[2:])
	switch kind {
	case typeData, typeWindowUpdate, typePing:
	default:
		return fmt.Errorf("the guest ends the channel (frame of type %d)", kind)
	}
	if flags&flagSYN != 0 {
		return fmt.Errorf("the guest asks the host for something (frame of type %d): it is only to answer", kind)
	}
	if kind == typeData {
		g.load = binary.BigEndian.Uint32(g.header[8:])
	}
	return nil
}
