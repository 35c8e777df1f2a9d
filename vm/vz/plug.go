// SPDX-License-Identifier: MIT

package vz

import (
	"fmt"
	"sync"

	"golang.org/x/sys/unix"
)

// plug keeps a descriptor that is closed once too often from being anybody's.
//
// In vz v3.7.1, socket.go:268-284, newVirtioSocketConnection wraps the descriptor of
// Apple's VZVirtioSocketConnection in an os.File, duplicates it (net.FileConn) and closes
// it. But the descriptor is the object's own, which closes it again when it is freed, some
// time after Connect has returned. Whatever was given the number in between would be closed
// under its owner: a stream to the agent, the status file, the disk. So after each
// connection every free number, and some beyond the highest in use, is taken by a
// placeholder that nobody reads or writes and nobody else closes: the late close hits one
// of them, and happens once for each connection.
//
// What another goroutine opens between the library's close and fill, microseconds, is not
// protected. That is why connections are rare (one for a machine's life, see package mux),
// made one at a time, and why prepare comes before the first one: the number is then the
// lowest that is free, and fill takes it first.
type plug struct {
	mu   sync.Mutex   // guards what follows
	mine map[int]bool // the placeholders; one of them may have been closed and be another's
	top  int          // all numbers up to this one were taken by the last fill
}

// plugMargin is how far above the highest descriptor in use the placeholders reach: more
// than other goroutines open and close during one connection.
const plugMargin = 32

// plugLimit bounds the numbers of a process that connects again and again.
const plugLimit = 4096

// prepare fills for the first time.
func (p *plug) prepare() error {
	p.mu.Lock()
	filled := p.top > 0
	p.mu.Unlock()
	if filled {
		return nil
	}
	return p.fill()
}

// fill takes every free descriptor up to plugMargin above the highest that others use.
func (p *plug) fill() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.mine == nil {
		p.mine = map[int]bool{}
	}
	if err := p.take(p.top + 1); err != nil {
		return err
	}
	for n := plugLimit; n > p.top; n-- {
		// Asked one by one, since to list them one would have to open something.
		if _, err := unix.FcntlInt(uintptr(n), unix.F_GETFD, 0); err == nil && !p.mine[n] {
			p.top = n + plugMargin
			return p.take(p.top)
		}
	}
	return nil
}

// take opens placeholders until none below upTo is free. They are numbers and no files of
// package os, which would close them when they are collected, and each is opened by itself,
// so that none depends on one that has been closed.
func (p *plug) take(upTo int) error {
	for n := -1; n < upTo; {
		var err error
		if n, err = unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0); err != nil {
			return fmt.Errorf("plug free descriptors: %w", err)
		}
		p.mine[n] = true
		if n > plugLimit {
			return fmt.Errorf("plug free descriptors: all up to %d are taken: the guest was connected too often", plugLimit)
		}
	}
	return nil
}
