// SPDX-License-Identifier: MIT

package process

import (
	"io"
	"os"
	"sync"
	"time"
)

// maxConsole bounds the console's log: a guest that prints for ever must not fill the
// host's disk with it.
const maxConsole = 16 << 20

// console takes what the guest prints and keeps the first of it in a file. What exceeds
// the limit is read and dropped, so that the guest never blocks on it.
type console struct {
	input   *os.File // the guest's standard output and error
	output  *os.File
	copying sync.WaitGroup
}

func openConsole(path string) (*console, error) {
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	r, w, err := os.Pipe()
	if err != nil {
		file.Close()
		return nil, err
	}
	c := &console{input: w, output: r}
	c.copying.Go(func() {
		defer file.Close()
		if n, _ := io.CopyN(file, r, maxConsole); n == maxConsole {
			_, _ = io.WriteString(file, "\n[the console's limit is reached: the rest is dropped]\n")
		}
		_, _ = io.Copy(io.Discard, r)
	})
	return c, nil
}

// started gives up this process's end of the pipe, which the guest now has.
func (c *console) started() { c.input.Close() }

// close ends the copying. When everyone who had the pipe is dead it ends by itself, once
// what they wrote is read; the deadline is for one who is out of reach.
func (c *console) close() {
	_ = c.output.SetReadDeadline(time.Now().Add(time.Second))
	c.copying.Wait()
	c.output.Close()
}
