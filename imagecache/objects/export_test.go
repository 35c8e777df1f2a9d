// SPDX-License-Identifier: MIT

package objects

import (
	"context"
	"net"
)

// WithDial returns options whose connections dial makes.
func (o Options) WithDial(dial func(ctx context.Context, network, addr string) (net.Conn, error)) Options {
	o.dial = dial
	return o
}
