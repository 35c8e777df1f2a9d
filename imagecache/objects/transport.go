// SPDX-License-Identifier: MIT

package objects

import (
	"context"
	"net"
	"net/http"
	"time"
)

// Connections to a bucket. Each request has one to itself, as HTTP/1.1 does: with HTTP/2 all
// would share one, which takes about twice the CPU for each byte (BenchmarkConnections),
// has one reader for all, and has all of them wait when it loses a packet.
const (
	idleConnections = 64
	bufferBytes     = 64 << 10
)

func newTransport(dial func(ctx context.Context, network, addr string) (net.Conn, error)) *http.Transport {
	if dial == nil {
		dial = (&net.Dialer{Timeout: 15 * time.Second, KeepAlive: 15 * time.Second}).DialContext
	}
	one := &http.Protocols{}
	one.SetHTTP1(true)
	return &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           dial,
		Protocols:             one,
		MaxIdleConns:          idleConnections,
		MaxIdleConnsPerHost:   idleConnections,
		IdleConnTimeout:       90 * time.Second,
		TLSHandshakeTimeout:   15 * time.Second,
		ExpectContinueTimeout: time.Second,
		ReadBufferSize:        bufferBytes,
		WriteBufferSize:       bufferBytes,
		DisableCompression:    true, // what is stored is what is wanted
	}
}
