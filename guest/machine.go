// SPDX-License-Identifier: MIT

package guest

import (
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"time"
)

// Machine is the machine that a guest program has for itself.
type Machine interface {
	// SetClock sets the wall clock.
	SetClock(time.Time) error
	// Resize lets the root file system fill its disk, and says what it did.
	Resize() error
	// CanPowerOff reports why PowerOff would not work.
	CanPowerOff() error
	// PowerOff ends the system in order. It returns when that has begun, or failed.
	PowerOff() error
}

// sharedMachine is what a guest program has that runs beside others.
type sharedMachine struct{}

var errShared = errors.New("this guest program has no machine of its own: inside a VM start it with --own-machine, or listen on vsock or serial")

func (sharedMachine) SetClock(time.Time) error { return errShared }
func (sharedMachine) Resize() error            { return errShared }
func (sharedMachine) CanPowerOff() error       { return errShared }
func (sharedMachine) PowerOff() error          { return errShared }

var errNoRoot = errors.New("this needs root: start the guest program as root")

// needRoot fails where this program may not change the system.
func needRoot() error {
	if os.Geteuid() != 0 {
		return errNoRoot
	}
	return nil
}

type clockRequest struct {
	UnixNanos int64 `json:"unix_nanos"`
}

// earliest and latest bound what is believed to be the present time.
var (
	earliest = time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC)
	latest   = time.Date(2200, 1, 1, 0, 0, 0, 0, time.UTC)
)

func (r clockRequest) check() error {
	if at := time.Unix(0, r.UnixNanos); at.Before(earliest) || at.After(latest) {
		return fmt.Errorf("unix_nanos: %s is not the present time", at.UTC().Format(time.RFC3339))
	}
	return nil
}

func (a *Agent) serveClock(w http.ResponseWriter, r *http.Request) {
	var req clockRequest
	err := decode(w, r, &req)
	if err == nil {
		err = req.check()
	}
	if err != nil {
		fail(w, http.StatusBadRequest, err)
		return
	}
	if err := a.cfg.Machine.SetClock(time.Unix(0, req.UnixNanos)); err != nil {
		fail(w, http.StatusInternalServerError, fmt.Errorf("set the clock: %w", err))
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

func (a *Agent) serveResize(w http.ResponseWriter, r *http.Request) {
	if err := decode(w, r, &struct{}{}); err != nil {
		fail(w, http.StatusBadRequest, err)
		return
	}
	if err := a.cfg.Machine.Resize(); err != nil {
		fail(w, http.StatusInternalServerError, fmt.Errorf("resize the root file system: %w", err))
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

func (a *Agent) servePowerOff(w http.ResponseWriter, r *http.Request) {
	if err := decode(w, r, &struct{}{}); err != nil {
		fail(w, http.StatusBadRequest, err)
		return
	}
	if err := a.cfg.Machine.CanPowerOff(); err != nil {
		fail(w, http.StatusInternalServerError, fmt.Errorf("power off: %w", err))
		return
	}
	w.WriteHeader(http.StatusAccepted)
	http.NewResponseController(w).Flush() //nolint:errcheck // the host sees the end itself
	a.cfg.Log.Info("powering off")
	if err := a.cfg.Machine.PowerOff(); err != nil {
		a.cfg.Log.Error("power off failed", slog.Any("error", err))
	}
}
