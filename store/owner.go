// SPDX-License-Identifier: MIT

package store

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/gofrs/flock"
)

// lockSuffix makes the name of the file beside the database whose lock its one
// controller holds. The file stays: only the lock says anything, and the kernel
// ends it with the process, however that ends.
const lockSuffix = ".lock"

// owner is what the lock file tells of who holds it, and of what lies beside it.
type owner struct {
	PID   int       `json:"pid"`
	Since time.Time `json:"since"`
	Site  string    `json:"site,omitempty"` // whose state has been in the database
}

// hold keeps every other controller away from the database at path: two would
// each carry out plans that the other does not know of.
func hold(path string) (*flock.Flock, owner, error) {
	lock := flock.New(path+lockSuffix, flock.SetFlag(os.O_RDWR|os.O_CREATE), flock.SetPermissions(0o600))
	free, err := lock.TryLock()
	if err != nil {
		return nil, owner{}, notWritable(err)
	}
	o := readOwner(lock.Path())
	if free {
		return lock, o, nil
	}
	who := "another controller"
	if o.PID != 0 {
		who = fmt.Sprintf("another controller (process %d, since %s)", o.PID, o.Since.Format(time.DateTime))
	}
	return nil, o, errors.Join(fmt.Errorf("%s serves it and holds %s: stop that one first, or set another database for this one", who, lock.Path()), lock.Close())
}

// readOwner returns what the lock file says, as far as it can be read.
func readOwner(path string) owner {
	var o owner
	if raw, err := os.ReadFile(path); err != nil || json.Unmarshal(raw, &o) != nil {
		return owner{}
	}
	return o
}

// sign writes into the held lock file who holds it. The new text takes the place of
// the old one, which a full disk allows.
func sign(path, site string) error {
	raw, err := json.Marshal(owner{PID: os.Getpid(), Since: time.Now().UTC().Truncate(time.Second), Site: site})
	if err != nil {
		return err
	}
	raw = append(raw, '\n')
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(raw, 0)
	return errors.Join(err, f.Truncate(int64(len(raw))), f.Close())
}

// lost reports that the database of a site is not where it was: nothing may take
// its place unasked, for a new site would disown every runner of the old one.
func lost(path string, o owner) error {
	info, err := os.Stat(path)
	switch {
	case o.Site == "":
		return nil // there never was one
	case errors.Is(err, fs.ErrNotExist):
		err = errors.New("is gone")
	case err == nil && info.Size() == 0:
		err = errors.New("is empty")
	default:
		return err
	}
	return fmt.Errorf("the state of site %s was here and %w: %s; to begin a new site instead, delete %s", o.Site, err, restore, path+lockSuffix)
}
