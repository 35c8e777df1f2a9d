// SPDX-License-Identifier: MIT

package imagecache

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// fileHash is the hash of a file's content, and what the file looked like then. If it
// still looks like that, it is not read again.
type fileHash struct {
	size    int64
	inode   uint64
	written int64 // mtime in nanoseconds
	changed int64 // ctime in nanoseconds, which a program cannot set back
	sum     [sha256.Size]byte
}

func (h fileHash) stillHolds(now fileHash) bool {
	now.sum = h.sum
	return h == now
}

// digested is what reading an image gives.
type digested struct {
	digest string
	bytes  int64
	stored int64
	hashes map[string]fileHash // by path
}

// digest returns the digest of an image: SHA-256 over a listing of its content in the
// order of the paths, which has for each folder its path and mode, for each link its
// path and target, and for each file its path, mode, size and the SHA-256 of its
// content. Paths and targets are quoted, so that no name can look like another line.
// Only files that changed since known are read.
func digest(ctx context.Context, dir string, known map[string]fileHash, progress func(Progress)) (digested, error) {
	files, err := list(ctx, dir)
	if err != nil {
		return digested{}, err
	}
	stored := int64(0)
	r := reader{known: known, hashes: map[string]fileHash{}, progress: progress}
	for _, f := range files {
		if f.mode.IsRegular() {
			r.at.TotalBytes += f.size
			stored += f.stored
		}
	}
	listing := sha256.New()
	for _, f := range files {
		switch f.mode.Type() {
		case fs.ModeDir:
			fmt.Fprintf(listing, "dir %q %04o\n", f.path, f.mode.Perm())
		case fs.ModeSymlink:
			fmt.Fprintf(listing, "link %q %q\n", f.path, f.target)
		default:
			h, err := r.file(ctx, dir, f.path)
			if err != nil {
				return digested{}, err
			}
			fmt.Fprintf(listing, "file %q %04o %d %x\n", f.path, f.mode.Perm(), h.size, h.sum)
		}
	}
	return digested{
		digest: digestPrefix + hex.EncodeToString(listing.Sum(nil)),
		bytes:  r.at.TotalBytes,
		stored: stored,
		hashes: r.hashes,
	}, nil
}

type listed struct {
	path   string // relative, with slashes
	mode   fs.FileMode
	size   int64
	stored int64
	target string
}

// list walks an image. The order is lexical within each folder, everywhere the same.
func list(ctx context.Context, dir string) ([]listed, error) {
	var files []listed
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		rel, err := filepath.Rel(dir, path)
		if err != nil || rel == "." {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		f := listed{path: filepath.ToSlash(rel), mode: info.Mode(), size: info.Size()}
		if s, ok := info.Sys().(*syscall.Stat_t); ok {
			f.stored = s.Blocks * 512 // whatever the size of the volume's own blocks
		}
		switch f.mode.Type() {
		case 0, fs.ModeDir:
		case fs.ModeSymlink:
			if f.target, err = os.Readlink(path); err != nil {
				return err
			}
		default:
			return fmt.Errorf("%s is neither a file, a folder nor a link: remove it from the image", rel)
		}
		files = append(files, f)
		return nil
	})
	return files, err
}

// reader hashes files that are not known.
type reader struct {
	known    map[string]fileHash
	hashes   map[string]fileHash
	progress func(Progress)
	at       Progress
}

func (r *reader) file(ctx context.Context, dir, rel string) (fileHash, error) {
	f, err := os.OpenFile(filepath.Join(dir, rel), os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return fileHash{}, err
	}
	defer f.Close()
	before, err := look(f)
	if err != nil {
		return fileHash{}, err
	}
	if old, ok := r.known[rel]; ok && old.stillHolds(before) {
		r.hashes[rel] = old
		r.add(before.size)
		return old, nil
	}
	sum := sha256.New()
	if err := r.read(ctx, sum, f); err != nil {
		return fileHash{}, fmt.Errorf("read %s: %w", rel, err)
	}
	after, err := look(f)
	if err != nil {
		return fileHash{}, err
	}
	if !before.stillHolds(after) {
		return fileHash{}, fmt.Errorf("%s changed while it was read: an image in the cache must not change", rel)
	}
	copy(before.sum[:], sum.Sum(nil))
	r.hashes[rel] = before
	return before, nil
}

// read hashes a file piece by piece, so that it can be called off and tell how far it is.
func (r *reader) read(ctx context.Context, sum hash.Hash, f *os.File) error {
	for {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		n, err := io.CopyN(sum, f, 8<<20)
		r.add(n)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func (r *reader) add(n int64) {
	r.at.DoneBytes += n
	if r.progress != nil && n > 0 {
		r.progress(r.at)
	}
}

func look(f *os.File) (fileHash, error) {
	info, err := f.Stat()
	if err != nil {
		return fileHash{}, err
	}
	s, ok := info.Sys().(*syscall.Stat_t)
	if !ok || !info.Mode().IsRegular() {
		return fileHash{}, fmt.Errorf("%s is no longer a file", f.Name())
	}
	return fileHash{size: s.Size, inode: s.Ino, written: info.ModTime().UnixNano(), changed: changeTime(s)}, nil
}
