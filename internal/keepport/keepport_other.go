// SPDX-License-Identifier: MIT

//go:build !linux

package keepport

import "net"

// keep finds a port that is free now: elsewhere than on Linux a socket that has it would be
// in the way of the one that is to listen.
func keep() (address string, release func(), err error) {
	l, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // it never waits
	if err != nil {
		return "", nil, err
	}
	return l.Addr().String(), func() {}, l.Close()
}
