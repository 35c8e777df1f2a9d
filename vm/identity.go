// SPDX-License-Identifier: MIT

package vm

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"github.com/minifleet/minifleet/internal/durable"
)

// ProcessID names one process for good: a pid is used again after the process has
// ended, a pid together with the start time is not. The start time is the system's
// own number and is only ever compared.
type ProcessID struct {
	PID   int    `json:"pid"`
	Start uint64 `json:"start"`
}

// IdentifyProcess returns the identity of the process that has this pid now.
func IdentifyProcess(pid int) (ProcessID, error) {
	info, err := lookUp(pid)
	if err != nil {
		return ProcessID{}, fmt.Errorf("process %d: %w", pid, err)
	}
	return ProcessID{PID: pid, Start: info.start}, nil
}

// Alive reports whether the process still runs. A zombie does not.
func (p ProcessID) Alive() bool {
	if p.PID <= 0 {
		return false
	}
	info, err := lookUp(p.PID)
	return err == nil && info.start == p.Start && !info.zombie
}

// procInfo is what the system tells of a process.
type procInfo struct {
	start  uint64
	parent int
	zombie bool
}

// identityFile is vmm.json and writer.json.
type identityFile struct {
	Schema int `json:"schema"`
	ProcessID
}

const maxIdentityBytes = 4 << 10

// WriteIdentity notes a process in the bundle, under FileVMM or FileWriter.
func WriteIdentity(dir, name string, id ProcessID) error {
	b, err := json.Marshal(identityFile{Schema: 1, ProcessID: id})
	if err != nil {
		return err
	}
	return writeFileSync(filepath.Join(dir, name), append(b, '\n'))
}

// ReadIdentity returns the process noted under name, and an error for which
// errors.Is(err, fs.ErrNotExist) holds if none is. A process of another user than the
// bundle's owner is none of the bundle's: the owner may have noted any, and the reader may
// be root, who can end all.
func ReadIdentity(dir, name string) (ProcessID, error) {
	path := filepath.Join(dir, name)
	b, err := readSmall(path, maxIdentityBytes)
	if err != nil {
		return ProcessID{}, err
	}
	id, err := parseIdentity(path, b)
	if err != nil {
		return ProcessID{}, err
	}
	owner, err := ownerOf(dir)
	if err != nil {
		return ProcessID{}, err
	}
	// Asked before the process is looked at again: a pid that passes on is not alive then.
	user, err := userOf(id.PID)
	if err == nil && user != owner && id.Alive() {
		return ProcessID{}, fmt.Errorf("%s: process %d is of user %d, and the bundle of user %d", path, id.PID, user, owner)
	}
	return id, nil
}

// ownerOf returns the user whose folder it is.
func ownerOf(dir string) (uint32, error) {
	info, err := os.Lstat(dir)
	if err != nil {
		return 0, err
	}
	s, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return 0, fmt.Errorf("%s: the system tells no owner", dir)
	}
	return s.Uid, nil
}

func parseIdentity(path string, b []byte) (ProcessID, error) {
	var f identityFile
	if err := json.Unmarshal(b, &f); err != nil {
		return ProcessID{}, fmt.Errorf("%s: %w", path, foreign{err})
	}
	// A pid of 0 or below would make a kill hit whole groups of processes.
	if f.Schema != 1 || f.PID <= 1 {
		return ProcessID{}, fmt.Errorf("%s: schema %d with pid %d is not understood", path, f.Schema, f.PID)
	}
	return f.ProcessID, nil
}

// writeFileSync writes a file so that after a crash it is there whole or not at all.
func writeFileSync(path string, b []byte) error {
	tmp := path + ".tmp" // one name: a bundle does not collect what is left over
	if err := durable.Create(tmp, b, 0o600); err != nil {
		return err
	}
	err := os.Rename(tmp, path)
	if err != nil {
		os.Remove(tmp)
	}
	return err
}
