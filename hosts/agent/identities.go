// SPDX-License-Identifier: MIT

package agent

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"

	"github.com/minifleet/minifleet/internal/durable"
	"github.com/minifleet/minifleet/vm/options"
)

// fileSlots keeps the identities of the slots, in the state folder.
const fileSlots = "slots.json"

// Limits of fileSlots.
const (
	slotsSchema   = 1
	maxSlotNumber = 1 << 16
	maxSlotsBytes = 4 << 20
)

// identities are what guests take their machines for, by the numbers of the slots. Each
// is made once, and on the disk before a VM has it.
type identities struct {
	path string

	mu    sync.Mutex // guards the rest
	known map[int]options.Identity
}

// slotsFile is slots.json.
type slotsFile struct {
	Schema int                      `json:"schema"`
	Slots  map[int]options.Identity `json:"slots"`
}

// openIdentities reads what was kept; there need not be anything. A file that is damaged
// is laid aside: slots get new identities, but for those of VMs that run, see keep.
func openIdentities(path string, log *slog.Logger) (*identities, error) {
	ids := &identities{path: path, known: map[int]options.Identity{}}
	raw, err := readSlots(path)
	if errors.Is(err, fs.ErrNotExist) {
		return ids, nil
	}
	if err != nil {
		return nil, fmt.Errorf("identities of the slots: %w", err)
	}
	known, damage := parseSlots(raw)
	if damage == nil {
		ids.known = known
		return ids, nil
	}
	log.Warn("the identities of the slots are damaged and made anew", slog.String("file", path), slog.Any("error", damage))
	if err := os.Rename(path, path+".damaged"); err != nil {
		return nil, fmt.Errorf("identities of the slots: %s is damaged (%w): move it away: %w", path, damage, err)
	}
	return ids, durable.Sync(filepath.Dir(path))
}

// readSlots reads the file, or so much of it that parseSlots refuses it.
func readSlots(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxSlotsBytes+1))
}

// parseSlots reads a slots.json: known schema, no unknown key, nothing after it, each
// identity valid, and none twice.
func parseSlots(raw []byte) (map[int]options.Identity, error) {
	if len(raw) > maxSlotsBytes {
		return nil, fmt.Errorf("it is larger than %d bytes", maxSlotsBytes)
	}
	var f slotsFile
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&f); err != nil {
		return nil, err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("something follows the slots")
	}
	if f.Schema != slotsSchema {
		return nil, fmt.Errorf("schema %d is not understood: this version has %d", f.Schema, slotsSchema)
	}
	macs, ecids := map[string]bool{}, map[uint64]bool{}
	for n, id := range f.Slots {
		if n < 1 || n > maxSlotNumber {
			return nil, fmt.Errorf("there is no slot %d", n)
		}
		if err := id.Validate(true); err != nil {
			return nil, fmt.Errorf("slot %d: %w", n, err)
		}
		if macs[id.MAC] || ecids[id.ECID] {
			return nil, fmt.Errorf("slot %d has the identity of another one", n)
		}
		macs[id.MAC], ecids[id.ECID] = true, true
	}
	if f.Slots == nil {
		f.Slots = map[int]options.Identity{}
	}
	return f.Slots, nil
}

// of returns the identity of a slot. A new one is on the disk before it is returned.
func (ids *identities) of(slot int) (options.Identity, error) {
	ids.mu.Lock()
	defer ids.mu.Unlock()
	if id, ok := ids.known[slot]; ok {
		return id, nil
	}
	id, err := options.NewIdentity(rand.Reader)
	if err != nil {
		return options.Identity{}, err
	}
	next := ids.with(slot, id)
	if err := ids.write(slot, next); err != nil {
		return options.Identity{}, err
	}
	ids.known = next
	return id, nil
}

// keep takes over the identity with which a VM runs in a slot: what runs is right, and
// the file is older or was damaged. That holds even where it cannot be written down; the
// bundle tells the next agent again.
func (ids *identities) keep(slot int, id options.Identity) error {
	ids.mu.Lock()
	defer ids.mu.Unlock()
	if ids.known[slot] == id {
		return nil
	}
	next := ids.with(slot, id)
	ids.known = next
	return ids.write(slot, next)
}

// with returns what is known and one identity more. A slot that had the same one, which can
// only be by an older copy of the file, gets a new one when it is needed.
func (ids *identities) with(slot int, id options.Identity) map[int]options.Identity {
	next := map[int]options.Identity{slot: id}
	for n, other := range ids.known {
		if n != slot && other.MAC != id.MAC && other.ECID != id.ECID {
			next[n] = other
		}
	}
	return next
}

// write writes all identities down, because of one slot's.
func (ids *identities) write(slot int, all map[int]options.Identity) error {
	raw, err := json.MarshalIndent(slotsFile{Schema: slotsSchema, Slots: all}, "", "  ")
	if err == nil {
		err = writeFile(ids.path, append(raw, '\n'))
	}
	if err != nil {
		return fmt.Errorf("keep the identity of slot %d: %w", slot, err)
	}
	return nil
}
