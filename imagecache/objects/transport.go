// SPDX-License-Identifier: MIT

package objects

import (
	"context"
	"net"
	"net/http"
	"time"
)

// Connections to a bucket. One request at a time has one: with HTTP/2 all would share one,
// whose flow control and single reader are slower than a fast line
// (BenchmarkConnections), and which all stall together when it loses a packet.
const (
	idleConnections = 64
	bufferBytes     = 128 << 10
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
