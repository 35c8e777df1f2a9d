// SPDX-License-Identifier: MIT

package main

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/minifleet/minifleet/hosts/agent"
	"github.com/minifleet/minifleet/hosts/doctor"
	"github.com/minifleet/minifleet/imagecache"
	"github.com/minifleet/minifleet/program"
	"github.com/minifleet/minifleet/vm"
)

type doctorCommand struct {
	Config string `placeholder:"FILE" help:"Configuration file (YAML) of the agent. Without it only what is the same for every agent is looked at."`
	Output string `short:"o" enum:"text,json" default:"text" help:"text or json."`
}

// Help tells what is asked.
func (doctorCommand) Help() string {
	return "Changes nothing but a file or two that it makes and removes in state_dir. Run it as the user who runs the agent: " +
		"with sudo where that is root. Ends with status 1 if something fails. What it reads on a Mac was not yet verified there."
}

// Run examines the host.
func (c doctorCommand) Run(s *surroundings) error {
	host := &doctor.Host{
		System: runtime.GOOS, Arch: runtime.GOARCH, UID: os.Geteuid(),
		Run: runProgram, Clones: clones, Space: spaceOf, ImageSize: largestImage, Now: time.Now,
	}
	if c.Config != "" {
		cfg, err := load(c.Config, s.getenv)
		if err != nil {
			return err
		}
		if host.Target, err = target(cfg); err != nil {
			return err
		}
		host.Reach = reachOnce(cfg)
	}
	found := doctor.Examine(s.ctx, host)
	if err := s.ctx.Err(); err != nil {
		return err
	}
	var err error
	if c.Output == "json" {
		lines := json.NewEncoder(s.stdout)
		lines.SetIndent("", "  ")
		err = lines.Encode(found)
	} else {
		err = doctor.Print(s.stdout, found)
	}
	if err == nil && doctor.Failed(found) {
		err = program.Exit(1)
	}
	return err
}

func target(cfg settings) (doctor.Target, error) {
	t := doctor.Target{
		Backend: string(cfg.backend()), StateDir: cfg.StateDir, ImagesDir: cfg.ImagesDir, VMM: cfg.VMM,
		AllowCopy: cfg.AllowCopy, Slots: cfg.Slots, SessionUser: cfg.SessionUser,
		Reserve: int64(cfg.DiskReserve) << 20, Accelerator: cfg.QEMU.Accelerator,
	}
	account, err := cfg.account()
	if account != nil {
		t.SessionUID = account.UID
	}
	return t, err
}

// reachOnce asks the controller once, however many checks want to know.
func reachOnce(cfg settings) func(context.Context) (doctor.Reached, error) {
	var once sync.Once
	var found agent.Reached
	var err error
	return func(ctx context.Context) (doctor.Reached, error) {
		once.Do(func() { found, err = agent.Reach(ctx, cfg.agentConfig(nil)) })
		return doctor.Reached(found), err
	}
}

// standing returns the first of dir and the folders above it that is there: state_dir is
// made by the agent's first start.
func standing(dir string) string {
	for {
		if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) || filepath.Dir(dir) == dir {
			return dir
		}
		dir = filepath.Dir(dir)
	}
}

func clones(dir string) (bool, error) {
	dir = standing(dir)
	err := vm.ProbeClone(dir, dir)
	if errors.Is(err, vm.ErrCloneUnsupported) {
		return false, nil
	}
	return err == nil, err
}

func spaceOf(dir string) (doctor.Space, error) {
	dir = standing(dir)
	var volume unix.Statfs_t
	if err := unix.Statfs(dir, &volume); err != nil {
		return doctor.Space{}, &fs.PathError{Op: "statfs", Path: dir, Err: err}
	}
	info, err := os.Stat(dir)
	if err != nil {
		return doctor.Space{}, err
	}
	s := doctor.Space{Free: int64(volume.Bavail) * int64(volume.Bsize)}
	if sys, ok := info.Sys().(*syscall.Stat_t); ok {
		s.Volume = uint64(sys.Dev)
	}
	return s, nil
}

// largestImage returns what the largest image takes on its volume, of those put there by
// hand and those that were fetched; 0 if there is none.
func largestImage(dir string) (int64, error) {
	local, err := largestFolder(dir)
	fetched, fetchedErr := largestFolder(imagecache.FetchedDir(dir))
	return max(local, fetched), errors.Join(err, fetchedErr)
}

func largestFolder(dir string) (int64, error) {
	images, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	largest := int64(0)
	for _, image := range images {
		if !image.IsDir() || strings.HasPrefix(image.Name(), ".") {
			continue
		}
		size := int64(0)
		walk := filepath.WalkDir(filepath.Join(dir, image.Name()), func(_ string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return err
			}
			info, err := d.Info()
			if err != nil {
				return err
			}
			if sys, ok := info.Sys().(*syscall.Stat_t); ok {
				size += sys.Blocks * 512
			}
			return nil
		})
		err = errors.Join(err, walk)
		largest = max(largest, size)
	}
	return largest, err
}
