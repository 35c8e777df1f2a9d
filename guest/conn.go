// SPDX-License-Identifier: MIT

package guest

import (
	"net"
	"sync"
)

// asked is a connection on which nothing is heard before something was asked: the HTTP
// client puts what comes earlier into the program's log, in whatever amount.
type asked struct {
	net.Conn
	open func()
	wait <-chan struct{}
}

func askFirst(c net.Conn) net.Conn {
	wait := make(chan struct{})
	return asked{Conn: c, open: sync.OnceFunc(func() { close(wait) }), wait: wait}
}

func (a asked) Read(p []byte) (int, error) {
	<-a.wait
	return a.Conn.Read(p)
}

func (a asked) Write(p []byte) (int, error) {
	a.open()
	return a.Conn.Write(p)
}

func (a asked) Close() error {
	a.open()
	return a.Conn.Close()
}
