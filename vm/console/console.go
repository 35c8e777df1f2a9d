// SPDX-License-Identifier: MIT

// Package console keeps what a guest, or the program that runs it, prints: the first of it
// in a file. What exceeds the limit is read and dropped, so that nobody blocks on it and
// nobody fills the host's disk with it.
package console

import (
	"io"
	"os"
	"sync"
	"time"
)

// Limit is how many bytes of it are kept.
const Limit = 16 << 20

// Console is a pipe into a bounded file.
type Console struct {
	input   *os.File
	output  *os.File
	copying sync.WaitGroup
}

// Open begins to keep what is printed in the file, behind what is there already.
func Open(path string) (*Console, error) {
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	r, w, err := os.Pipe()
	if err != nil {
		file.Close()
		return nil, err
	}
	c := &Console{input: w, output: r}
	c.copying.Go(func() {
		defer file.Close()
		if n, _ := io.CopyN(file, r, Limit); n == Limit {
			_, _ = io.WriteString(file, "\n[the console's limit is reached: the rest is dropped]\n")
		}
		_, _ = io.Copy(io.Discard, r)
	})
	return c, nil
}

// Input is the end to print to, for a process to inherit.
func (c *Console) Input() *os.File { return c.input }

// Started gives up this process's share of Input, which the one that prints now has.
func (c *Console) Started() { c.input.Close() }

// Close ends the keeping. When everyone who had the pipe is dead it ends by itself, once
// what they wrote is read; a deadline of a second is for one who is out of reach.
func (c *Console) Close() {
	c.input.Close()
	_ = c.output.SetReadDeadline(time.Now().Add(time.Second))
	c.copying.Wait()
	c.output.Close()
}
