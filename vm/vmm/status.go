// SPDX-License-Identifier: MIT

package vmm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/minifleet/minifleet/vm"
)

// status is the machine's state, in memory and as lines in the bundle.
type status struct {
	file *os.File
	log  *slog.Logger

	mu      sync.Mutex // guards what follows
	size    int64      // of the file
	current vm.State
	changed chan struct{} // closed and replaced at each change
}

// openStatus begins the bundle's one life: the status file is made here and must not
// have been made before.
func openStatus(dir string, log *slog.Logger) (*status, error) {
	f, err := os.OpenFile(filepath.Join(dir, vm.FileStatus), os.O_WRONLY|os.O_CREATE|os.O_EXCL|os.O_APPEND, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return nil, vm.ErrSecondLife
	}
	if err != nil {
		return nil, err
	}
	return &status{
		file: f, log: log, changed: make(chan struct{}),
		current: vm.State{ID: filepath.Base(dir)},
	}, nil
}

func (s *status) close() { s.file.Close() }

// update changes the state, writes it down and wakes who waits for it, in this order.
// The first and the final line are forced to the disk: the one says that the bundle had
// its life, the other why it ended.
func (s *status) update(change func(*vm.State)) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	next := s.current
	change(&next)
	next.Revision++
	next.Time = time.Now()
	if len(next.Detail) > vm.MaxStatusDetail {
		next.Detail = strings.ToValidUTF8(next.Detail[:vm.MaxStatusDetail], "") + " ..."
	}
	b, err := json.Marshal(next)
	if err == nil {
		err = s.append(append(b, '\n'))
	}
	if err == nil && (next.Revision == 1 || next.Phase == vm.PhaseFinal) {
		err = s.file.Sync()
	}
	s.current = next
	close(s.changed)
	s.changed = make(chan struct{})
	if err != nil {
		return fmt.Errorf("write status %q: %w", next.Phase, err)
	}
	return nil
}

// append writes a line, or nothing: half a line on a full disk would make one with the
// next.
func (s *status) append(line []byte) error {
	n, err := s.file.Write(line)
	if err != nil && n > 0 {
		return errors.Join(err, s.file.Truncate(s.size))
	}
	s.size += int64(n)
	return err
}

func (s *status) get() (vm.State, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.current, s.changed
}

// wait returns the state as soon as its revision is not after, at the latest when ctx
// ends. A final state is not waited for: nothing follows it.
func (s *status) wait(ctx context.Context, after int64) vm.State {
	for {
		state, changed := s.get()
		if state.Revision != after || state.Phase == vm.PhaseFinal {
			return state
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return state
		}
	}
}
