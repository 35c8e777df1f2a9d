// SPDX-License-Identifier: MIT

package setup

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"syscall"
	"time"

	"github.com/minifleet/minifleet/secret"
)

// Receiver stands in for a controller that does not run yet, so that a test delivery
// goes all the way to this machine. It checks signatures and keeps nothing.
type Receiver struct {
	server *http.Server
	served chan struct{}
}

// ErrTaken says that something listens already where the controller would: the
// controller itself, most likely.
var ErrTaken = errors.New("something listens there already")

// Receive listens where the controller will. Close ends it.
func Receive(ctx context.Context, address string, key secret.Text, log *slog.Logger) (*Receiver, error) {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address)
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, ErrTaken
	}
	if err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /webhook", func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 25<<20))
		if err != nil {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		mac := hmac.New(sha256.New, []byte(key.Reveal()))
		mac.Write(body)
		want := "sha256=" + hex.EncodeToString(mac.Sum(nil))
		if !hmac.Equal([]byte(r.Header.Get("X-Hub-Signature-256")), []byte(want)) {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		w.WriteHeader(http.StatusAccepted)
	})
	r := &Receiver{served: make(chan struct{}), server: &http.Server{
		Handler: mux, ReadHeaderTimeout: 10 * time.Second, ReadTimeout: 30 * time.Second, MaxHeaderBytes: 64 << 10,
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}}
	go func() {
		defer close(r.served)
		if err := r.server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			log.WarnContext(ctx, "test deliveries are not received", "error", err)
		}
	}()
	return r, nil
}

// Close ends the receiver.
func (r *Receiver) Close() error {
	err := r.server.Close()
	<-r.served
	return err
}
