// SPDX-License-Identifier: MIT

package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/gofrs/flock"

	"github.com/minifleet/minifleet/crashpoint"
	"github.com/minifleet/minifleet/hosts/protocol"
	"github.com/minifleet/minifleet/internal/durable"
	"github.com/minifleet/minifleet/secret"
)

// The names of everything in the state folder.
const (
	fileLock       = "lock"            // held by the one live agent
	fileCredential = "credential"      // the host's secret
	fileIdentity   = "identity.json"   // what enrolment answered
	fileController = "controller.json" // the newest word of the controller that was obeyed
	filePlace      = "place.json"      // where this folder was used last, to know a copy of it
	filePeerKey    = "peer.key"        // by which other hosts know this one
	dirRunners     = "runners"         // records of runners that have, or may have, a VM
	dirTombstones  = "tombstones"      // last reports of runners whose VM is gone
	dirFailures    = "failures"        // diagnostics
	dirArchives    = "archives"        // of runners that pools pin

	tempPrefix = durable.Prefix // of files that are being written

	// DirVMs is the folder of all bundles.
	DirVMs = "vms"
)

// identity is what enrolment gave this host.
type identity struct {
	Host string `json:"host"`
	Name string `json:"name"`
	Site string `json:"site"`
	Pin  string `json:"pin,omitempty"` // of the controller's certificate
}

// obeyed is the newest word of the controller that this host acts on: nothing older
// is obeyed, not even after a restart.
type obeyed struct {
	Site     string `json:"site"`
	Host     string `json:"host"`
	Epoch    int64  `json:"epoch"`
	Revision int64  `json:"revision"` // the newest that allowed a tombstone to be forgotten
}

// record is what must be known of a runner after the agent's restart.
type record struct {
	Desire protocol.Desire `json:"desire"`
	// Given says that the guest was, or is about to be, handed a JIT config.
	Given bool `json:"given"`
	// Guest is the start of the guest program that this concerns: one that was started
	// since has forgotten a config, which is no sign that its VM never had one.
	Guest string `json:"guest,omitempty"`
	// RunnerName is the config's name at GitHub. A controller that was restored from
	// an older copy of its database learns it anew.
	RunnerName string `json:"runner_name,omitempty"`
	// Installed is the digest of the runner that was put into the guest.
	Installed string `json:"installed,omitempty"`
}

// tombstone is the last report of a runner, kept so that its id never lives again.
type tombstone struct {
	At     time.Time             `json:"at"`
	Report protocol.RunnerReport `json:"report"`
}

// state is the state folder. With an empty dir it forgets everything at once.
type state struct {
	dir  string
	lock *flock.Flock
}

// openState makes and locks the state folder. Where VMs run as another user, that one can
// pass through it.
func openState(dir string, otherUser bool) (*state, error) {
	if dir == "" {
		return &state{}, nil
	}
	for _, d := range []string{"", dirRunners, dirTombstones, dirFailures, DirVMs} {
		mode := fs.FileMode(0o700)
		if d == "" || d == DirVMs {
			mode = wayMode(otherUser)
		}
		if err := makePrivate(filepath.Join(dir, d), mode); err != nil {
			return nil, fmt.Errorf("state_dir: %w: give the agent's user a folder of its own that it can write to", err)
		}
	}
	lock := flock.New(filepath.Join(dir, fileLock), flock.SetPermissions(0o600))
	switch ok, err := lock.TryLock(); {
	case err != nil:
		return nil, fmt.Errorf("state_dir: lock %s: %w: give the agent's user a folder that it can write to", lock.Path(), err)
	case !ok:
		return nil, fmt.Errorf("state_dir: %s is locked: another agent runs with %s; stop it, or give this one a state_dir of its own", lock.Path(), dir)
	}
	s := &state{dir: dir, lock: lock}
	if err := errors.Join(s.takePlace(), s.sweep()); err != nil {
		return nil, errors.Join(fmt.Errorf("state_dir: %w", err), lock.Close())
	}
	return s, nil
}

// place is where a state folder is used: a copy has another.
type place struct {
	Dir   string `json:"dir"`
	Inode uint64 `json:"inode"`
}

func placeOf(dir string) (place, error) {
	real, err := filepath.EvalSymlinks(dir)
	if err == nil {
		real, err = filepath.Abs(real)
	}
	if err != nil {
		return place{}, err
	}
	info, err := os.Stat(real)
	if err != nil {
		return place{}, err
	}
	p := place{Dir: real}
	if sys, ok := info.Sys().(*syscall.Stat_t); ok {
		p.Inode = sys.Ino
	}
	return p, nil
}

// takePlace refuses a copy of a state folder beside its original: its agent would take
// the host over, see none of the VMs that run from the original, and report them gone.
// A folder that was moved, or whose original is not there any more, is none.
func (s *state) takePlace() error {
	here, err := placeOf(s.dir)
	if err != nil {
		return err
	}
	var last place
	known, err := s.read(filePlace, &last)
	switch {
	case err != nil:
		return err
	case known && last == here:
		return nil
	case known && last.Dir != here.Dir:
		if original, err := placeOf(last.Dir); err == nil && original == last {
			return fmt.Errorf("%s is a copy of %s, which is still there: delete the copy and enrol anew for a host of its own, or move the original away if the copy shall take its place", s.dir, last.Dir)
		}
	}
	if err := s.write(filePlace, here); !full(err) {
		return err
	}
	return nil
}

// sweep deletes files whose writing was cut short.
func (s *state) sweep() error {
	for _, d := range []string{"", dirRunners, dirTombstones} {
		left, err := filepath.Glob(filepath.Join(s.dir, d, tempPrefix+"*"))
		if err != nil {
			return err
		}
		for _, path := range left {
			if err := os.Remove(path); err != nil {
				return err
			}
		}
	}
	return nil
}

// makePrivate makes a folder that is nobody else's to read, and checks that it can be
// written to: better now than with the first VM. A full volume is no reason to stay
// away: what an earlier agent left there may be what fills it.
func makePrivate(dir string, mode fs.FileMode) error {
	if err := os.MkdirAll(dir, mode); err != nil {
		return err
	}
	if err := os.Chmod(dir, mode); err != nil {
		return err
	}
	if err := probe(dir); !full(err) {
		return err
	}
	return nil
}

// wayMode is the mode of the folders above the bundles: another user whose VMs they are can
// pass through, and neither list nor change them.
func wayMode(otherUser bool) fs.FileMode {
	if otherUser {
		return 0o711
	}
	return 0o700
}

// probe finds out whether the state folder has room for a record.
func (s *state) probe() error {
	if s.dir == "" {
		return nil
	}
	return probe(filepath.Join(s.dir, dirRunners))
}

// probe writes to a folder.
func probe(dir string) error {
	f, err := os.CreateTemp(dir, tempPrefix)
	if err != nil {
		return err
	}
	_, err = f.Write(make([]byte, 4<<10))
	return errors.Join(err, f.Close(), os.Remove(f.Name()))
}

// full reports whether an error comes of a volume without room, or without room for
// another file.
func full(err error) bool { return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) }

func (s *state) close() error {
	if s.lock == nil {
		return nil
	}
	return s.lock.Close()
}

// credential returns the host's secret. A new one is on disk before anybody hears of
// it, so that an enrolment whose answer was lost can be repeated.
func (s *state) credential() (secret.Text, error) {
	if s.dir == "" {
		return secret.Generate(), nil
	}
	path := filepath.Join(s.dir, fileCredential)
	raw, err := os.ReadFile(path)
	switch {
	case err == nil && strings.TrimSpace(string(raw)) != "":
		return secret.New(strings.TrimSpace(string(raw))), nil
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return secret.Text{}, fmt.Errorf("credential: %w", err)
	}
	made := secret.Generate()
	if err := writeFile(path, []byte(made.Reveal()+"\n")); err != nil {
		return secret.Text{}, fmt.Errorf("credential: %w", err)
	}
	crashpoint.Reached(crashpoint.CredentialWritten)
	return made, nil
}

func (s *state) identity() (id identity, ok bool, err error) {
	ok, err = s.read(fileIdentity, &id)
	return id, ok, err
}

func (s *state) saveIdentity(id identity) error { return s.write(fileIdentity, id) }

func (s *state) obeyed() (o obeyed, err error) {
	_, err = s.read(fileController, &o)
	return o, err
}

func (s *state) saveObeyed(o obeyed) error { return s.write(fileController, o) }

func (s *state) record(id string) (r record, ok bool, err error) {
	ok, err = s.read(filepath.Join(dirRunners, id+".json"), &r)
	return r, ok, err
}

func (s *state) saveRecord(id string, r record) error {
	return s.write(filepath.Join(dirRunners, id+".json"), r)
}

func (s *state) dropRecord(id string) error { return s.remove(filepath.Join(dirRunners, id+".json")) }

// bury writes a runner's tombstone.
func (s *state) bury(t tombstone) error {
	return s.write(filepath.Join(dirTombstones, t.Report.ID+".json"), t)
}

// layAside makes a runner's record its tombstone, which takes no room. It tells no more
// than that the id has lived.
func (s *state) layAside(id string) error {
	if s.dir == "" {
		return nil
	}
	return os.Rename(filepath.Join(s.dir, dirRunners, id+".json"), filepath.Join(s.dir, dirTombstones, id+".json"))
}

func (s *state) dropTombstone(id string) error {
	return s.remove(filepath.Join(dirTombstones, id+".json"))
}

// tombstones returns all that are kept. One that cannot be read still keeps its id.
func (s *state) tombstones() ([]tombstone, error) {
	ids, err := s.list(dirTombstones)
	if err != nil {
		return nil, err
	}
	var out []tombstone
	for _, id := range ids {
		var t tombstone
		if _, err := s.read(filepath.Join(dirTombstones, id+".json"), &t); err != nil || t.Report.ID != id {
			t = tombstone{Report: protocol.RunnerReport{ID: id, Failure: "its last report cannot be read"}}
		}
		out = append(out, t)
	}
	return out, nil
}

// records returns the ids of all records.
func (s *state) records() ([]string, error) { return s.list(dirRunners) }

func (s *state) list(dir string) ([]string, error) {
	if s.dir == "" {
		return nil, nil
	}
	entries, err := os.ReadDir(filepath.Join(s.dir, dir))
	if err != nil {
		return nil, err
	}
	var ids []string
	for _, e := range entries {
		if id, ok := strings.CutSuffix(e.Name(), ".json"); ok && validID(id) {
			ids = append(ids, id)
		}
	}
	return ids, nil
}

func (s *state) read(name string, out any) (bool, error) {
	if s.dir == "" {
		return false, nil
	}
	raw, err := os.ReadFile(filepath.Join(s.dir, name))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if err := json.Unmarshal(raw, out); err != nil {
		return false, fmt.Errorf("%s is damaged (%w): move it away and start again", filepath.Join(s.dir, name), err)
	}
	return true, nil
}

func (s *state) write(name string, v any) error {
	if s.dir == "" {
		return nil
	}
	raw, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	return writeFile(filepath.Join(s.dir, name), append(raw, '\n'))
}

func (s *state) remove(name string) error {
	if s.dir == "" {
		return nil
	}
	if err := os.Remove(filepath.Join(s.dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// writeFile replaces a file so that after a crash there is the old one or the new.
func writeFile(path string, content []byte) error {
	next, err := durable.Aside(path, content, 0o600)
	if err != nil {
		return err
	}
	crashpoint.Reached(crashpoint.FileWritten)
	return durable.Place(next, path)
}

// validID reports whether a runner's id is safe as a file's name, and as a VM's.
func validID(id string) bool {
	if id == "" || len(id) > 40 || id[0] == '-' || id[len(id)-1] == '-' {
		return false
	}
	return strings.Trim(id, "abcdefghijklmnopqrstuvwxyz0123456789-") == ""
}
