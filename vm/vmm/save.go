// SPDX-License-Identifier: MIT

package vmm

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"

	"github.com/minifleet/minifleet/vm"
)

// saveOrder is a request to save the machine, on its way to the goroutine that alone
// makes calls to the instance.
type saveOrder struct {
	ctx     context.Context //nolint:containedctx // of the request: its client may go
	request vm.SaveRequest
	done    chan error // takes one answer without waiting
}

// Why a save is not even begun.
var (
	errNoSaving   = errors.New("this backend saves no machines")
	errSavedOnce  = errors.New("the machine was saved once already, or it was tried: make a new one for another state")
	errNotRunning = errors.New("the machine does not run")
)

// serveSave answers when the machine runs again.
func (s *supervisor) serveSave(w http.ResponseWriter, r *http.Request) {
	req, err := vm.ReadSaveRequest(r.Body)
	if err != nil {
		answer(w, http.StatusBadRequest, vm.ErrorBody{Error: err.Error()})
		return
	}
	if err := s.orderSave(r.Context(), req); err != nil {
		code := http.StatusInternalServerError
		switch {
		case errors.Is(err, errNoSaving):
			code = http.StatusNotImplemented
		case errors.Is(err, errSavedOnce), errors.Is(err, errNotRunning):
			code = http.StatusConflict
		}
		answer(w, code, vm.ErrorBody{Error: err.Error()})
		return
	}
	state, _ := s.status.get()
	answer(w, http.StatusOK, state)
}

// orderSave has the machine saved by the goroutine that owns it.
func (s *supervisor) orderSave(ctx context.Context, req vm.SaveRequest) error {
	if state, _ := s.status.get(); state.Phase != vm.PhaseRunning {
		return errNotRunning
	}
	order := saveOrder{ctx: ctx, request: req, done: make(chan error, 1)}
	select {
	case s.saves <- order:
		return <-order.done // each one that is taken is answered
	case <-s.over:
		return errNotRunning
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// save saves the machine once in its life: it is paused, its state is written, its disks
// are cloned, and it goes on. The end of the machine's life, and that of the client, call
// it off. A failed save leaves nothing in the folder.
func (s *supervisor) save(life context.Context, inst vm.Instance, order saveOrder) error {
	dir := order.request.Dir
	switch {
	case !s.backend.SavesState:
		return errNoSaving
	case s.saved:
		return errSavedOnce
	}
	if err := vm.CheckSaveDir(s.dir, dir); err != nil {
		return err
	}
	release, err := vm.HoldSaved(dir, true)
	if err != nil {
		return err
	}
	defer release()
	s.saved = true

	if err := s.pause(life, inst); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(life, vm.SaveTime, fmt.Errorf("the machine was not saved within %v", vm.SaveTime))
	defer cancel()
	gone := context.AfterFunc(order.ctx, cancel)
	defer gone()
	err = s.write(ctx, inst, order.request)
	err = errors.Join(err, s.resume(life, inst))
	if err != nil {
		err = errors.Join(err, empty(dir))
		s.log.Warn("machine not saved", "error", err)
		return err
	}
	s.log.Info("machine saved", "folder", dir)
	return nil
}

// pause halts the machine. One of which nobody knows whether it stands still ends.
func (s *supervisor) pause(life context.Context, inst vm.Instance) error {
	ctx, cancel := context.WithTimeoutCause(life, vm.ContinueTime, fmt.Errorf("the machine did not stand still within %v", vm.ContinueTime))
	defer cancel()
	err := inst.Pause(ctx)
	if err == nil {
		return nil
	}
	err = fmt.Errorf("the machine could not be paused to be saved: %w", err)
	if ctx.Err() != nil {
		s.end(failure(err, vm.ReasonBackendFailed))
	}
	s.log.Warn("machine not saved", "error", err)
	return err
}

// write fills the folder of the request while the machine stands still.
func (s *supervisor) write(ctx context.Context, inst vm.Instance, req vm.SaveRequest) error {
	state, disks := filepath.Join(req.Dir, vm.DirState), filepath.Join(req.Dir, vm.DirDisks)
	for _, dir := range []string{state, disks} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			return err
		}
	}
	if err := inst.Save(ctx, state); err != nil {
		return fmt.Errorf("save: %w", err)
	}
	mode := vm.CloneReflink
	if req.AllowCopy {
		mode = vm.CloneAllowCopy
	}
	return vm.CloneDisks(ctx, s.dir, disks, mode)
}

// resume has the machine run again after a save, whatever became of it. A machine that
// cannot go on ends: one that stands still would be of no use to anybody.
func (s *supervisor) resume(life context.Context, inst vm.Instance) error {
	if life.Err() != nil {
		return fmt.Errorf("the machine ends: %w", context.Cause(life))
	}
	ctx, cancel := context.WithTimeoutCause(life, vm.ContinueTime, fmt.Errorf("the machine did not go on within %v", vm.ContinueTime))
	defer cancel()
	err := inst.Start(ctx)
	if err == nil {
		return nil
	}
	err = fmt.Errorf("the machine could not be continued after it was paused to be saved: %w", err)
	s.end(failure(err, vm.ReasonBackendFailed))
	return err
}

// empty deletes what a failed save has left.
func empty(dir string) error {
	entries, err := os.ReadDir(dir)
	errs := []error{err}
	for _, e := range entries {
		errs = append(errs, os.RemoveAll(filepath.Join(dir, e.Name())))
	}
	return errors.Join(errs...)
}

// restore loads the saved state that the spec names, if it names one.
func (s *supervisor) restore(life context.Context, inst vm.Instance) error {
	dir := s.spec.Restore
	if dir == "" {
		return nil
	}
	release, err := vm.HoldSaved(dir, false)
	if err != nil {
		return vm.WithReason(vm.ReasonRestoreFailed, err)
	}
	defer release()
	if err := inst.Restore(life, filepath.Join(dir, vm.DirState)); err != nil {
		return vm.WithReason(vm.ReasonOf(err, vm.ReasonRestoreFailed), fmt.Errorf("restore the state in %s: %w", dir, err))
	}
	s.log.Info("state restored", "folder", dir)
	return nil
}
