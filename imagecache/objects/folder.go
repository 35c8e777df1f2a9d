// SPDX-License-Identifier: MIT

package objects

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/minifleet/minifleet/internal/durable"
	"github.com/minifleet/minifleet/internal/flock"
)

// folder is a folder whose files are the objects, each with its content and nothing else:
// what is copied there by other means is as good.
//
// An object's time of modification is no time: its seconds are the generation, its
// nanoseconds the metageneration. So both change with the file itself, in one step of the
// kernel, and survive a crash with it. The time when it was written or touched last is the
// inode's own time of change, which no program sets. Processes take turns at changes by a
// lock on a file, whose own seconds are the highest generation of what was deleted, so
// that an object that comes back is another one. A new object is written and synced aside
// and renamed into place under the lock.
type folder struct {
	dir string

	mu   sync.Mutex // the turn within this process
	lock *os.File   // nil before the first change: a folder may be read-only
}

// Names in the folder that are no objects.
const (
	fileLock = ".lock"
	dirAside = ".tmp"
)

const lockPause = 2 * time.Millisecond

func openFolder(dir string) (*folder, error) {
	if !filepath.IsAbs(dir) || filepath.Clean(dir) != dir {
		return nil, fmt.Errorf("open file://%s: give an absolute path, without . or .. in it", dir)
	}
	f := &folder{dir: dir}
	info, err := os.Stat(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("open %s: there is no such folder: make it, or correct the address", f)
	case err != nil:
		return nil, f.explain("open", "", err)
	case !info.IsDir():
		return nil, fmt.Errorf("open %s: it is not a folder", f)
	}
	return f, nil
}

func (f *folder) String() string { return "file://" + f.dir }

func (f *folder) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.lock == nil {
		return nil
	}
	err := f.lock.Close()
	f.lock = nil
	return err
}

func (f *folder) path(name string) string { return filepath.Join(f.dir, filepath.FromSlash(name)) }

// explain says of an error what was tried on what, and what to do about it.
func (f *folder) explain(verb, name string, err error) error {
	what := strings.TrimSuffix(fmt.Sprintf("%s %s/%s", verb, f, name), "/")
	switch {
	case errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR):
		return fmt.Errorf("%s: %w", what, ErrNotFound)
	case errors.Is(err, fs.ErrPermission) || errors.Is(err, syscall.EROFS):
		return fmt.Errorf("%s: %w: let the user %d read it, and write to change images (%w)", what, ErrForbidden, os.Geteuid(), err)
	case errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT):
		return fmt.Errorf("%s: there is no room: free some on that volume (%w)", what, err)
	}
	return fmt.Errorf("%s: %w", what, err)
}

// open opens an object's file and says what it is now.
func (f *folder) open(name string) (*os.File, Attributes, error) {
	file, err := os.OpenFile(f.path(name), os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, syscall.ELOOP) {
		err = fs.ErrNotExist // a link is no object
	}
	if err != nil {
		return nil, Attributes{}, err
	}
	info, err := file.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fs.ErrNotExist
	}
	if err != nil {
		file.Close()
		return nil, Attributes{}, err
	}
	return file, attributesOf(name, info), nil
}

func attributesOf(name string, info fs.FileInfo) Attributes {
	at := info.ModTime()
	return Attributes{
		Name: name, Size: info.Size(), Touched: changed(info),
		Generation: max(1, at.Unix()), Metageneration: int64(at.Nanosecond()) + 1,
	}
}

// versionTime is the time of modification of an object of a version.
func versionTime(generation, metageneration int64) time.Time {
	return time.Unix(generation, metageneration-1)
}

func (f *folder) Get(ctx context.Context, name string) (io.ReadCloser, Attributes, error) {
	if err := errors.Join(check(name), ctx.Err()); err != nil {
		return nil, Attributes{}, err
	}
	file, attrs, err := f.open(name)
	if err != nil {
		return nil, Attributes{}, f.explain("read", name, err)
	}
	return file, attrs, nil
}

func (f *folder) Stat(ctx context.Context, name string) (Attributes, error) {
	r, attrs, err := f.Get(ctx, name)
	if err != nil {
		return Attributes{}, err
	}
	return attrs, r.Close()
}

func (f *folder) List(ctx context.Context, prefix string) iter.Seq2[Attributes, error] {
	return func(yield func(Attributes, error) bool) {
		err := f.walk(ctx, "", prefix, func(a Attributes) bool { return yield(a, nil) })
		if err != nil && !errors.Is(err, errStop) {
			yield(Attributes{}, err)
		}
	}
}

var errStop = errors.New("the caller has seen enough")

// walk goes through what is below the folder dir, "" or with a slash at its end, in the
// order of the whole names' bytes, and not into folders without the prefix.
func (f *folder) walk(ctx context.Context, dir, prefix string, yield func(Attributes) bool) error {
	if ctx.Err() != nil {
		return fmt.Errorf("list %s: %w", f, context.Cause(ctx))
	}
	entries, err := os.ReadDir(f.path(dir))
	if errors.Is(err, fs.ErrNotExist) && dir != "" {
		return nil
	}
	if err != nil {
		return f.explain("list", dir, err)
	}
	names := make([]string, 0, len(entries))
	for _, e := range entries {
		name := dir + e.Name()
		if e.IsDir() {
			name += "/"
		}
		if check(strings.TrimSuffix(name, "/")) == nil && (strings.HasPrefix(name, prefix) || strings.HasPrefix(prefix, name) && e.IsDir()) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	for _, name := range names {
		if strings.HasSuffix(name, "/") {
			if err := f.walk(ctx, name, prefix, yield); err != nil {
				return err
			}
			continue
		}
		info, err := os.Lstat(f.path(name))
		if errors.Is(err, fs.ErrNotExist) || err == nil && !info.Mode().IsRegular() {
			continue
		}
		if err != nil {
			return f.explain("list", name, err)
		}
		if !yield(attributesOf(name, info)) {
			return errStop
		}
	}
	return nil
}

func (f *folder) Put(ctx context.Context, name string, content []byte, c Condition) (Attributes, error) {
	if err := check(name); err != nil {
		return Attributes{}, err
	}
	attrs, err := f.put(ctx, name, content, c)
	if err != nil {
		return Attributes{}, f.explain("write", name, err)
	}
	return attrs, nil
}

func (f *folder) put(ctx context.Context, name string, content []byte, c Condition) (attrs Attributes, err error) {
	if ctx.Err() != nil {
		return Attributes{}, context.Cause(ctx)
	}
	// A refusal that is plain now need not be written first.
	if _, err := f.holds(name, c); err != nil {
		return Attributes{}, err
	}
	aside, err := f.aside(ctx)
	if err != nil {
		return Attributes{}, err
	}
	defer func() {
		if err != nil {
			os.Remove(aside.Name())
		}
		aside.Close()
	}()
	now := max(1, time.Now().Unix())
	if _, err := aside.Write(content); err != nil {
		return Attributes{}, err
	}
	if err := stamp(aside, now, 1); err != nil {
		return Attributes{}, err
	}
	target := f.path(name)
	if err := f.parents(filepath.Dir(target)); err != nil {
		return Attributes{}, err
	}
	done, err := f.turn(ctx)
	if err != nil {
		return Attributes{}, err
	}
	defer done()
	old, err := f.holds(name, c)
	if err != nil {
		return Attributes{}, err
	}
	deleted, err := f.lock.Stat()
	if err != nil {
		return Attributes{}, err
	}
	generation := max(now, old.Generation+1, deleted.ModTime().Unix()+1)
	if generation != now {
		if err := stamp(aside, generation, 1); err != nil {
			return Attributes{}, err
		}
	}
	if err := durable.Rename(aside.Name(), target); err != nil {
		return Attributes{}, err
	}
	info, err := aside.Stat()
	if err != nil {
		return Attributes{}, err
	}
	return attributesOf(name, info), nil
}

// holds returns what the object is now, zero if it is not there, or ErrPrecondition.
func (f *folder) holds(name string, c Condition) (Attributes, error) {
	file, attrs, err := f.open(name)
	if err == nil {
		err = file.Close()
	}
	absent := errors.Is(err, fs.ErrNotExist)
	if err != nil && !absent {
		return Attributes{}, err
	}
	if c.Absent && !absent || c.Generation != 0 && c.Generation != attrs.Generation || c.Metageneration != 0 && c.Metageneration != attrs.Metageneration {
		return Attributes{}, ErrPrecondition
	}
	return attrs, nil
}

func (f *folder) Touch(ctx context.Context, name string, c Condition) (Attributes, error) {
	if err := errors.Join(check(name), c.ofExisting()); err != nil {
		return Attributes{}, err
	}
	var attrs Attributes
	err := f.change(ctx, name, c, func(file *os.File, a Attributes) error {
		a.Metageneration++
		if versionTime(a.Generation, a.Metageneration).Unix() != a.Generation {
			a.Generation, a.Metageneration = a.Generation+1, 1 // after a billion touches it counts as another
		}
		if err := stamp(file, a.Generation, a.Metageneration); err != nil {
			return err
		}
		info, err := file.Stat()
		if err != nil {
			return err
		}
		attrs = attributesOf(name, info)
		return nil
	})
	if err != nil {
		return Attributes{}, f.explain("touch", name, err)
	}
	return attrs, nil
}

func (f *folder) Delete(ctx context.Context, name string, c Condition) error {
	if err := errors.Join(check(name), c.ofExisting()); err != nil {
		return err
	}
	err := f.change(ctx, name, c, func(file *os.File, a Attributes) error {
		highest, err := f.lock.Stat()
		if err != nil {
			return err
		}
		if a.Generation > highest.ModTime().Unix() {
			if err := stamp(f.lock, a.Generation, 1); err != nil {
				return err
			}
		}
		if err := os.Remove(file.Name()); err != nil {
			return err
		}
		return durable.Sync(filepath.Dir(file.Name()))
	})
	if err != nil {
		return f.explain("delete", name, err)
	}
	return nil
}

// change does something to an object that is there, and nobody else does meanwhile.
func (f *folder) change(ctx context.Context, name string, c Condition, do func(*os.File, Attributes) error) error {
	done, err := f.turn(ctx)
	if err != nil {
		return err
	}
	defer done()
	file, attrs, err := f.open(name)
	if err != nil {
		return err
	}
	defer file.Close()
	if c.Generation != 0 && c.Generation != attrs.Generation || c.Metageneration != 0 && c.Metageneration != attrs.Metageneration {
		return ErrPrecondition
	}
	return do(file, attrs)
}

// stamp gives a file its version, durably.
func stamp(file *os.File, generation, metageneration int64) error {
	at := versionTime(generation, metageneration)
	if err := os.Chtimes(file.Name(), time.Time{}, at); err != nil {
		return err
	}
	info, err := file.Stat()
	if err != nil {
		return err
	}
	if !info.ModTime().Equal(at) {
		return fmt.Errorf("the volume does not keep a file's time to the nanosecond (%s became %s): use another, or a bucket", at.UTC(), info.ModTime().UTC())
	}
	return file.Sync()
}

// turn waits for this process's turn at changes.
func (f *folder) turn(ctx context.Context) (done func(), err error) {
	f.mu.Lock()
	defer func() {
		if err != nil {
			f.mu.Unlock()
		}
	}()
	if f.lock == nil {
		if f.lock, err = f.prepare(ctx); err != nil {
			return nil, err
		}
	} else if err := await(ctx, f.lock); err != nil {
		return nil, err
	}
	return func() {
		_ = unix.Flock(int(f.lock.Fd()), unix.LOCK_UN) // it is held, so it can be given up
		f.mu.Unlock()
	}, nil
}

// prepare makes what changes need, and removes what a process left that was killed.
func (f *folder) prepare(ctx context.Context) (_ *os.File, err error) {
	path := filepath.Join(f.dir, fileLock)
	lock, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o666)
	if err == nil {
		err = lock.Close()
	}
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	if lock, err = os.OpenFile(path, os.O_RDWR|unix.O_NOFOLLOW, 0); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			lock.Close()
		}
	}()
	if err := await(ctx, lock); err != nil {
		return nil, err
	}
	if err := os.Mkdir(filepath.Join(f.dir, dirAside), 0o777); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	return lock, f.sweep()
}

// sweep removes objects half written: those that nobody holds a lock on.
func (f *folder) sweep() error {
	entries, err := os.ReadDir(filepath.Join(f.dir, dirAside))
	if err != nil {
		return err
	}
	for _, e := range entries {
		path := filepath.Join(f.dir, dirAside, e.Name())
		file, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
		if err != nil {
			continue // somebody else's, or gone
		}
		if flock.Try(file, unix.LOCK_EX) == nil {
			os.Remove(path)
		}
		file.Close()
	}
	return nil
}

// aside makes a file to write an object into, locked as long as it is open.
func (f *folder) aside(ctx context.Context) (*os.File, error) {
	done, err := f.turn(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	file, err := os.OpenFile(filepath.Join(f.dir, dirAside, rand.Text()), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o666)
	if err != nil {
		return nil, err
	}
	if err := flock.Try(file, unix.LOCK_EX); err != nil {
		return nil, errors.Join(err, file.Close(), os.Remove(file.Name()))
	}
	return file, nil
}

// await waits for a lock between processes, within the context.
func await(ctx context.Context, file *os.File) error {
	for {
		err := flock.Try(file, unix.LOCK_EX)
		if !errors.Is(err, flock.ErrHeld) {
			return err
		}
		timer := time.NewTimer(lockPause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return fmt.Errorf("another process holds %s: %w", file.Name(), context.Cause(ctx))
		}
	}
}

// parents makes the folders that an object needs, durably.
func (f *folder) parents(dir string) error {
	if _, err := os.Stat(dir); err == nil {
		return nil
	}
	if err := os.MkdirAll(dir, 0o777); err != nil {
		return err
	}
	for ; dir != f.dir; dir = path.Dir(dir) {
		if err := durable.Sync(path.Dir(dir)); err != nil {
			return err
		}
	}
	return nil
}
