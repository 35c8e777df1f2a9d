// SPDX-License-Identifier: MIT

package vz

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/minifleet/minifleet/vm"
	"github.com/minifleet/minifleet/vm/options"
)

// ProbeConfig says what to try on this host.
type ProbeConfig struct {
	// ImageDir is an image whose guest agent answers. "" looks at the host only.
	ImageDir string
	// Dir is an existing folder on the image's volume. Its path must be short. What the
	// probe makes in it, it removes.
	Dir string
	// AllowCopy copies the image where copy-on-write does not work.
	AllowCopy bool
	// CPUs and MemoryMiB are the machine's; zero means 4 and 8192.
	CPUs, MemoryMiB int
	// Patience bounds each step; zero means two minutes.
	Patience time.Duration
}

// Probe tries on this host what the backend needs: it boots a clone of the image, saves it,
// restores the state on a second clone, and prints what works and how long it took. It
// returns the first thing that does not.
func Probe(ctx context.Context, cfg ProbeConfig, w io.Writer) error {
	return probe(ctx, apple{}, cfg, w)
}

func probe(ctx context.Context, p platform, cfg ProbeConfig, w io.Writer) (err error) {
	if cfg.CPUs == 0 {
		cfg.CPUs = 4
	}
	if cfg.MemoryMiB == 0 {
		cfg.MemoryMiB = 8192
	}
	if cfg.Patience <= 0 {
		cfg.Patience = 2 * time.Minute
	}
	r := &prober{cfg: cfg, w: w, backend: newBackend(Config{}, p)}
	defer func() { err = errors.Join(err, r.clear()) }()
	err = r.step(ctx, "host", func(context.Context) error {
		h, err := p.host()
		if err != nil {
			return err
		}
		fmt.Fprintf(w, "      macOS %s, machines of %d to %d CPUs and %d to %d MiB\n", h.version, h.minCPUs, h.maxCPUs, h.minMemory>>20, h.maxMemory>>20)
		return h.check()
	})
	if err != nil {
		return err
	}
	if cfg.ImageDir == "" {
		fmt.Fprintln(w, "      no image was given: nothing was booted")
		return nil
	}
	return r.machines(ctx)
}

// prober runs the steps and remembers what it has to remove.
type prober struct {
	cfg     ProbeConfig
	w       io.Writer
	backend vm.Backend
	id      options.Identity
	running []*probed
	folders []string
}

// probed is one machine of the probe.
type probed struct {
	vm.Instance
	dir   string
	lock  *vm.Lock
	ended chan vm.Ending
}

// step runs one step within the patience and prints its outcome.
func (r *prober) step(ctx context.Context, name string, do func(context.Context) error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, r.cfg.Patience, fmt.Errorf("nothing within %v", r.cfg.Patience))
	defer cancel()
	began := time.Now()
	err := do(ctx)
	if err != nil {
		fmt.Fprintf(r.w, "FAIL  %s: %v\n", name, err)
		if s := vm.ReasonOf(err, "").Sentence(); s != "" {
			fmt.Fprintf(r.w, "      %s\n", s)
		}
		return fmt.Errorf("%s: %w", name, err)
	}
	fmt.Fprintf(r.w, "ok    %s (%d ms)\n", name, time.Since(began).Milliseconds())
	return nil
}

// machines boots a clone and, where states can be saved, restores its state on another.
func (r *prober) machines(ctx context.Context) error {
	var err error
	if r.id, err = options.NewIdentity(rand.Reader); err != nil {
		return err
	}
	first, err := r.open(ctx, "probe-1", r.cfg.ImageDir)
	if err != nil {
		return err
	}
	if err := r.boot(ctx, first, "start"); err != nil {
		return err
	}
	if !r.backend.SavesState {
		fmt.Fprintln(r.w, "skip  saved states: they need macOS 14 on the host")
		return r.step(ctx, "power off", first.Stop)
	}
	state, err := r.folder("state")
	if err != nil {
		return err
	}
	disks, err := r.folder("disks")
	if err != nil {
		return err
	}
	for _, s := range []struct {
		name string
		do   func(context.Context) error
	}{
		{"pause", first.Pause},
		{"save", func(ctx context.Context) error { return first.Save(ctx, state) }},
		{"keep the disks", func(context.Context) error { return linkAll(first.dir, disks) }},
	} {
		if err := r.step(ctx, s.name, s.do); err != nil {
			return err
		}
	}
	// Cloned before the first machine writes on: the state fits no other disks.
	second, err := r.open(ctx, "probe-2", disks)
	if err != nil {
		return err
	}
	if err := r.step(ctx, "power off", first.Stop); err != nil {
		return err
	}
	if err := r.step(ctx, "restore", func(ctx context.Context) error { return second.Restore(ctx, state) }); err != nil {
		return err
	}
	if err := r.boot(ctx, second, "resume"); err != nil {
		return err
	}
	return r.step(ctx, "power off", second.Stop)
}

// boot starts a machine and waits for its guest.
func (r *prober) boot(ctx context.Context, m *probed, name string) error {
	if err := r.step(ctx, name, m.Start); err != nil {
		return err
	}
	return r.step(ctx, "guest answers", func(ctx context.Context) error {
		c, err := m.Connect(ctx)
		if err != nil {
			return err
		}
		return c.Close()
	})
}

// open clones a folder into a bundle and opens its machine.
func (r *prober) open(ctx context.Context, id, from string) (*probed, error) {
	m := &probed{ended: make(chan vm.Ending, 1)}
	guest := options.GuestMacOS
	if _, err := os.Stat(filepath.Join(from, options.FileHardwareModel)); errors.Is(err, fs.ErrNotExist) {
		guest = options.GuestLinux
	}
	options, err := json.Marshal(options.VZ{Guest: guest, Identity: r.id})
	if err != nil {
		return nil, err
	}
	spec := vm.Spec{ID: id, Backend: vm.BackendVZ, CPUs: r.cfg.CPUs, MemoryMiB: r.cfg.MemoryMiB, MaxLife: time.Hour, Options: options}
	clone := vm.CloneReflink
	if r.cfg.AllowCopy {
		clone = vm.CloneAllowCopy
	}
	err = r.step(ctx, "clone to "+id, func(ctx context.Context) (err error) {
		m.dir, err = vm.Create(ctx, vm.CreateConfig{Dir: r.cfg.Dir, ImageDir: from, Spec: spec, Clone: clone})
		return err
	})
	if err != nil {
		return nil, err
	}
	r.running = append(r.running, m)
	if m.lock, err = vm.AcquireLock(ctx, m.dir); err != nil {
		return nil, err
	}
	return m, r.step(ctx, "configure "+id, func(ctx context.Context) (err error) {
		m.Instance, err = r.backend.Open(ctx, vm.OpenConfig{
			Dir: m.dir, Spec: spec, Lock: m.lock.File(), Log: slog.New(slog.DiscardHandler),
			RecordWriter: func(int) error { return nil }, // the machine lives in this process
			Publish:      func(vm.Facts) {},
			Ended:        func(e vm.Ending) { m.ended <- e },
		})
		return err
	})
}

func (r *prober) folder(name string) (string, error) {
	dir, err := os.MkdirTemp(r.cfg.Dir, ".probe-"+name+"-")
	if err == nil {
		r.folders = append(r.folders, dir)
	}
	return dir, err
}

// linkAll gives the machine's own files a second name, so that they can be cloned as an
// image is.
func linkAll(from, to string) error {
	for _, name := range []string{options.FileDisk, options.FileNVRAM, options.FileHardwareModel, options.FileKernel, options.FileInitrd, options.FileCommandLine, options.FileMachineID} {
		if err := os.Link(filepath.Join(from, name), filepath.Join(to, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// clear powers off and removes whatever the probe made.
func (r *prober) clear() error {
	ctx, cancel := context.WithTimeout(context.Background(), r.cfg.Patience)
	defer cancel()
	var errs []error
	for _, m := range r.running {
		if m.Instance != nil {
			errs = append(errs, m.Stop(ctx))
		}
		if m.lock != nil {
			m.lock.Close()
		}
		errs = append(errs, vm.Remove(ctx, m.dir))
	}
	for _, dir := range r.folders {
		errs = append(errs, os.RemoveAll(dir))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("the probe left something behind: %w", err)
	}
	return nil
}
