// SPDX-License-Identifier: MIT

//go:build linux

package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/minifleet/minifleet/vm"
)

// idState is the name under which QEMU knows the descriptor of a state.
const idState = "state"

// Save has QEMU write the paused machine's state into a file that was opened for it, so that
// QEMU needs no other process and no path.
func (m *machine) Save(ctx context.Context, dir string) error {
	if err := m.runs(); err != nil {
		return fmt.Errorf("save: %w", err)
	}
	if !m.paused {
		return errors.New("save: the machine is not paused")
	}
	// A name of its own first: what has the right name is whole.
	part, whole := filepath.Join(dir, fileState+".part"), filepath.Join(dir, fileState)
	f, err := os.OpenFile(part, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("save: %w", err)
	}
	err = m.qemu.save(ctx, f)
	if err == nil {
		err = f.Sync()
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(part, whole)
	}
	if err != nil {
		os.Remove(part)
		return m.qemu.explain("save", err)
	}
	return nil
}

func (r *process) save(ctx context.Context, f *os.File) error {
	r.forgetMigration()
	err := r.call(ctx, "getfd", obj{"fdname": idState}, nil, int(f.Fd()))
	if err != nil {
		return err
	}
	// The network's default, of 128 MiB a second, is not the disk's.
	if err := r.call(ctx, "migrate-set-parameters", obj{"max-bandwidth": int64(1) << 40}, nil); err != nil {
		return errors.Join(err, r.call(context.WithoutCancel(ctx), "closefd", obj{"fdname": idState}, nil))
	}
	err = r.call(ctx, "migrate", obj{"uri": "fd:" + idState}, nil)
	if _, refused := errors.AsType[*qmpError](err); refused {
		return err
	}
	unheard := err != nil // it may have begun all the same
	if err == nil {
		err = r.awaitMigration(ctx)
	}
	if unheard || err != nil && ctx.Err() != nil {
		// Nobody waits any more: QEMU must not go on writing, and halt the machine in the end.
		end, cancel := context.WithTimeout(context.WithoutCancel(ctx), callLimit)
		defer cancel()
		err = errors.Join(err, r.call(end, "migrate_cancel", nil, nil))
		_ = r.awaitMigration(end) // cancelled is what it is to say
	}
	return err
}

// Restore starts a QEMU that loads what Save wrote and then waits, paused, for Start.
func (m *machine) Restore(ctx context.Context, dir string) error {
	if m.qemu != nil || m.isStopped() {
		return errors.New("restore: the machine is not a new one")
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("restore: %w", context.Cause(ctx))
	}
	path := filepath.Join(dir, fileState)
	err := regular(path)
	var f *os.File
	if err == nil {
		f, err = os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	}
	if err != nil {
		return vm.WithReason(vm.ReasonRestoreFailed, fmt.Errorf("restore: %w", err))
	}
	defer f.Close()
	if m.qemu, err = spawn(ctx, m.cfg, m.plan, m.accelerator, true); err != nil {
		m.qemu = nil
		return fmt.Errorf("restore: %w", err)
	}
	if err := m.qemu.load(ctx, f); err != nil {
		q := m.qemu
		undone := m.discard(ctx) // so that it has said what it has to say
		return vm.WithReason(vm.ReasonRestoreFailed, errors.Join(q.explain("restore", err), undone))
	}
	m.used = true // the saved guest had a connection
	return nil
}

func (r *process) load(ctx context.Context, f *os.File) error {
	err := r.call(ctx, "getfd", obj{"fdname": idState}, nil, int(f.Fd()))
	if err != nil {
		return err
	}
	if err := r.call(ctx, "migrate-incoming", obj{"uri": "fd:" + idState}, nil); err != nil {
		return err
	}
	return r.awaitMigration(ctx)
}

func (r *process) forgetMigration() {
	for {
		select {
		case <-r.migration:
		default:
			return
		}
	}
}

// awaitMigration waits until a state is written or read as a whole.
func (r *process) awaitMigration(ctx context.Context) error {
	for {
		select {
		case status := <-r.migration:
			switch status {
			case "completed":
				return nil
			case "failed", "cancelled":
				return r.migrationError(ctx, status)
			}
		case <-r.gone:
			return errEnded
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// migrationError asks for more than the event tells.
func (r *process) migrationError(ctx context.Context, status string) error {
	var info struct {
		Desc string `json:"error-desc"`
	}
	_ = r.call(ctx, "query-migrate", nil, &info) // it may have ended of it
	return fmt.Errorf("QEMU's copy of the state %s: %.400q", status, info.Desc)
}
