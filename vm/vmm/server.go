// SPDX-License-Identifier: MIT

package vmm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/minifleet/minifleet/vm"
)

// server is the vmm's two sockets, and the commands on one of them.
type server struct {
	http    *http.Server
	serving sync.WaitGroup
	guest   net.Listener
}

// lastAnswers bounds how long clients that wait for the state have to take the final
// one. It holds up the end of the vmm, so it is short.
const lastAnswers = 500 * time.Millisecond

// listen opens both sockets and serves the commands.
func (s *supervisor) listen() (*server, error) {
	commands, err := listenPrivate(filepath.Join(s.dir, vm.FileVMMSocket))
	if err != nil {
		return nil, err
	}
	guest, err := listenPrivate(filepath.Join(s.dir, vm.FileGuestSocket))
	if err != nil {
		commands.Close()
		return nil, err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+vm.PathState, s.serveState)
	mux.HandleFunc("POST "+vm.PathStop, s.serveStop)
	mux.HandleFunc("POST "+vm.PathSave, s.serveSave)
	srv := &server{guest: guest, http: &http.Server{
		Handler:           mux,
		ReadHeaderTimeout: 10 * time.Second,
		MaxHeaderBytes:    16 << 10,
	}}
	srv.serving.Go(func() {
		if err := srv.http.Serve(commands); !errors.Is(err, http.ErrServerClosed) {
			s.log.Error("commands no longer served", "error", err)
		}
	})
	return srv, nil
}

// listenPrivate opens a socket for this user alone. The bundle lets nobody else in, so
// nothing can happen between the two calls.
func listenPrivate(path string) (net.Listener, error) {
	l, err := net.Listen("unix", path) //nolint:noctx // opening a local socket does not wait
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

// close answers what is still asked and closes both sockets.
func (s *server) close() {
	s.guest.Close()
	ctx, cancel := context.WithTimeout(context.Background(), lastAnswers)
	defer cancel()
	if s.http.Shutdown(ctx) != nil {
		s.http.Close()
	}
	s.serving.Wait()
}

func (s *supervisor) serveState(w http.ResponseWriter, r *http.Request) {
	after, wait, err := stateQuery(r)
	if err != nil {
		answer(w, http.StatusBadRequest, vm.ErrorBody{Error: err.Error()})
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), min(wait, vm.MaxStateWait))
	defer cancel()
	answer(w, http.StatusOK, s.status.wait(ctx, after))
}

func stateQuery(r *http.Request) (after int64, wait time.Duration, err error) {
	if v := r.FormValue("after"); v != "" {
		if after, err = strconv.ParseInt(v, 10, 64); err != nil {
			return 0, 0, fmt.Errorf("after is %.40q: give a revision, a whole number", v)
		}
	}
	if v := r.FormValue("wait"); v != "" {
		if wait, err = time.ParseDuration(v); err != nil || wait < 0 {
			return 0, 0, fmt.Errorf("wait is %.40q: give a duration such as 20s", v)
		}
	}
	return after, wait, nil
}

// serveStop asks for the end and does not wait for it: the state tells.
func (s *supervisor) serveStop(w http.ResponseWriter, _ *http.Request) {
	s.end(&ending{vm.ReasonStopped, "the agent asked for it"})
	state, _ := s.status.get()
	answer(w, http.StatusAccepted, state)
}

func answer(w http.ResponseWriter, code int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(body) // a client that has gone needs no answer
}
