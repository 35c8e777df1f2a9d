// SPDX-License-Identifier: MIT

package vmm

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"sync"
	"time"
)

// maxStreams bounds how many streams to the guest are open at once; more wait.
const maxStreams = 128

// proxy makes each connection to guest.sock a stream to the guest agent.
type proxy struct {
	listener net.Listener
	connect  func(context.Context) (net.Conn, error)
	log      *slog.Logger
	cancel   context.CancelFunc // ends all streams
	streams  sync.WaitGroup
}

func newProxy(l net.Listener, connect func(context.Context) (net.Conn, error), log *slog.Logger) *proxy {
	ctx, cancel := context.WithCancel(context.Background())
	p := &proxy{listener: l, connect: connect, log: log, cancel: cancel}
	p.streams.Go(func() { p.accept(ctx) })
	return p
}

// close ends all streams and returns when they have ended.
func (p *proxy) close() {
	p.cancel()
	p.listener.Close()
	p.streams.Wait()
}

func (p *proxy) accept(ctx context.Context) {
	room := make(chan struct{}, maxStreams)
	for {
		select {
		case room <- struct{}{}:
		case <-ctx.Done():
			return
		}
		c, err := p.listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // out of descriptors, most likely: that passes
			<-room
			p.log.Error("guest connection not accepted", "error", err)
			pause := time.NewTimer(100 * time.Millisecond)
			select {
			case <-pause.C:
			case <-ctx.Done():
			}
			pause.Stop()
			continue
		}
		p.streams.Go(func() {
			defer func() { <-room }()
			p.stream(ctx, c)
		})
	}
}

// stream joins one client with one stream to the guest until both directions are over.
func (p *proxy) stream(ctx context.Context, client net.Conn) {
	ctx, cancel := context.WithCancel(ctx)
	var reader sync.WaitGroup
	defer reader.Wait()
	defer client.Close()
	defer cancel()
	hangUp := context.AfterFunc(ctx, func() { _ = client.SetDeadline(time.Unix(1, 0)) })
	defer hangUp()

	// The client is read from the start: one that hangs up while the guest still boots
	// must not keep waiting for it.
	guests := make(chan net.Conn, 1)
	reader.Go(func() {
		b := make([]byte, 32<<10)
		n, err := client.Read(b)
		var guest net.Conn
		if err != nil {
			select {
			case guest = <-guests:
			default:
				cancel() // no stream yet
				return
			}
		} else {
			select {
			case guest = <-guests:
			case <-ctx.Done():
				return
			}
		}
		if _, err := guest.Write(b[:n]); err != nil {
			cancel()
			return
		}
		pass(guest, client, cancel)
	})

	guest, err := p.connect(ctx)
	if err != nil {
		if ctx.Err() == nil {
			p.log.Warn("no stream to the guest", "error", err)
		}
		return
	}
	defer guest.Close()
	end := context.AfterFunc(ctx, func() { guest.Close() })
	defer end()
	guests <- guest
	pass(client, guest, cancel)
	reader.Wait()
}

// pass copies one direction and passes its end on. An error ends both directions.
func pass(dst, src net.Conn, cancel context.CancelFunc) {
	_, err := io.Copy(dst, src)
	half, ok := dst.(interface{ CloseWrite() error })
	if err != nil || !ok || half.CloseWrite() != nil {
		cancel()
	}
}
