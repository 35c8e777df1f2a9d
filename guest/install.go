// SPDX-License-Identifier: MIT

package guest

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"strings"
)

// Bounds of a runner's archive. The official one has some 200 MB, 600 MB unpacked, and
// some ten thousand files.
const (
	MaxRunnerBytes      = 2 << 30 // the archive
	maxUnpackedBytes    = 8 << 30
	maxUnpackedEntries  = 200_000
	maxUnpackedNameSize = 1024
)

var errInstalling = errors.New("a runner is being installed: try again when that is done")

func (a *Agent) serveInstall(w http.ResponseWriter, r *http.Request) {
	size, digest, err := parseBody(r, MaxRunnerBytes)
	if err != nil {
		fail(w, http.StatusBadRequest, err)
		return
	}
	switch err := a.install(io.LimitReader(readerOf(w, r), size), digest); {
	case errors.Is(err, ErrHasConfig):
		fail(w, http.StatusConflict, err)
	case errors.Is(err, errInstalling) || errors.Is(err, errClosed):
		fail(w, http.StatusServiceUnavailable, err)
	case err != nil:
		fail(w, http.StatusInternalServerError, fmt.Errorf("install the runner: %w", err))
	default:
		w.WriteHeader(http.StatusCreated)
	}
}

// install puts the runner of an archive (.tar.gz) into the place of the one there is. No
// runner is started meanwhile, and none is replaced that was ever started.
func (a *Agent) install(body io.Reader, digest []byte) error {
	if err := a.beginInstall(); err != nil {
		return err
	}
	defer a.endInstall()
	// Beside the folder, so that a rename puts it there.
	aside, err := os.MkdirTemp(filepath.Dir(a.cfg.RunnerDir), ".minifleet-runner-*")
	if err != nil {
		return err
	}
	defer os.RemoveAll(aside)
	fresh, former := filepath.Join(aside, "new"), filepath.Join(aside, "old")
	if err := os.Mkdir(fresh, 0o755); err != nil {
		return err
	}
	if err := unpackArchive(body, digest, fresh, a.user); err != nil {
		return err
	}
	if info, err := os.Stat(filepath.Join(fresh, "bin", "Runner.Listener")); err != nil || !info.Mode().IsRegular() {
		return errors.New("the archive has no bin/Runner.Listener: give the runner's own archive")
	}
	if err := os.Rename(a.cfg.RunnerDir, former); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := os.Rename(fresh, a.cfg.RunnerDir); err != nil {
		return errors.Join(err, os.Rename(former, a.cfg.RunnerDir))
	}
	a.cfg.Log.Info("runner installed", slog.String("folder", a.cfg.RunnerDir))
	return nil
}

func (a *Agent) beginInstall() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case a.closed:
		return errClosed
	case a.status.HasConfig:
		return ErrHasConfig
	case a.renewed:
		return errInstalling
	}
	a.renewed = true
	return nil
}

func (a *Agent) endInstall() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.renewed = false
}

// unpackArchive unpacks a .tar.gz into dir and checks that the whole of it has the digest.
func unpackArchive(body io.Reader, digest []byte, dir string, owner *account) error {
	hash := sha256.New()
	body = io.TeeReader(body, hash)
	zip, err := gzip.NewReader(body)
	if err != nil {
		return fmt.Errorf("the archive is no .tar.gz: %w", noEOF(err))
	}
	if err := unpack(zip, dir, owner); err != nil {
		return err
	}
	// What follows the archive's end is no part of it, but of what was announced.
	if _, err := io.Copy(io.Discard, body); err != nil {
		return err
	}
	if !bytes.Equal(hash.Sum(nil), digest) {
		return errors.New("what came is not what was announced: its SHA-256 differs")
	}
	return nil
}

// unpacker writes the entries of one archive below a folder. Nothing is written or linked
// outside of it, and nothing through a link.
type unpacker struct {
	root  *os.Root
	owner *account
	kinds map[string]byte // of each name there is, as in a tar header
	room  int64
}

func unpack(r io.Reader, dir string, owner *account) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	u := &unpacker{root: root, owner: owner, kinds: map[string]byte{".": tar.TypeDir}, room: maxUnpackedBytes}
	if err := u.own("."); err != nil {
		return err
	}
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return u.checkLinks()
		}
		if err != nil {
			return fmt.Errorf("the archive cannot be read: %w", noEOF(err))
		}
		if err := u.entry(h, tr); err != nil {
			return fmt.Errorf("the archive's %q: %w", clip(h.Name, 128), err)
		}
	}
}

// checkLinks follows each link once all are there: one that looks harmless can lead out of
// the folder by way of another. A link to nothing is left alone.
func (u *unpacker) checkLinks() error {
	for name, kind := range u.kinds {
		if kind != tar.TypeSymlink {
			continue
		}
		if _, err := u.root.Stat(name); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("the archive's link %q: %w", clip(name, 128), err)
		}
	}
	return nil
}

// entry writes one entry.
func (u *unpacker) entry(h *tar.Header, data io.Reader) error {
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	name := path.Clean(h.Name)
	switch {
	case !filepath.IsLocal(h.Name) || len(name) > maxUnpackedNameSize || strings.ContainsRune(name, 0):
		return errors.New("its name leads out of the folder or is none")
	case sparse(h):
		return errors.New("a file with holes can be of any size: pack it without")
	case len(u.kinds) > maxUnpackedEntries:
		return fmt.Errorf("more than %d entries", maxUnpackedEntries)
	}
	if h.Typeflag == tar.TypeDir {
		return u.mkdir(name)
	}
	if _, there := u.kinds[name]; there {
		return errors.New("it is there twice")
	}
	if err := u.mkdir(path.Dir(name)); err != nil {
		return err
	}
	u.kinds[name] = h.Typeflag
	switch h.Typeflag {
	case tar.TypeReg:
		return u.file(name, h, data)
	case tar.TypeSymlink:
		if path.IsAbs(h.Linkname) || !filepath.IsLocal(path.Join(path.Dir(name), h.Linkname)) || strings.ContainsRune(h.Linkname, 0) {
			return errors.New("its link leads out of the folder")
		}
		if err := u.root.Symlink(h.Linkname, name); err != nil {
			return err
		}
		return u.own(name)
	case tar.TypeLink:
		target := path.Clean(h.Linkname)
		if u.kinds[target] != tar.TypeReg {
			return errors.New("it links to no file of the archive")
		}
		u.kinds[name] = tar.TypeReg
		return u.root.Link(target, name)
	}
	return fmt.Errorf("entries of type %q are not unpacked", h.Typeflag)
}

// sparse reports whether an entry is larger than what the archive has of it.
func sparse(h *tar.Header) bool {
	for key := range h.PAXRecords {
		if strings.HasPrefix(key, "GNU.sparse.") {
			return true
		}
	}
	return h.Typeflag == tar.TypeGNUSparse
}

// mkdir makes a folder and those above it.
func (u *unpacker) mkdir(name string) error {
	switch kind, there := u.kinds[name]; {
	case there && kind != tar.TypeDir:
		return fmt.Errorf("%q is no folder", clip(name, 128))
	case there:
		return nil
	}
	if err := u.mkdir(path.Dir(name)); err != nil {
		return err
	}
	u.kinds[name] = tar.TypeDir
	if err := u.root.Mkdir(name, 0o755); err != nil {
		return err
	}
	return u.own(name)
}

// file writes a regular file. Of its mode only whether it can be executed is taken.
func (u *unpacker) file(name string, h *tar.Header, data io.Reader) error {
	if u.room -= h.Size; u.room < 0 {
		return fmt.Errorf("more than %d bytes", int64(maxUnpackedBytes))
	}
	mode := os.FileMode(0o644)
	if h.Mode&0o111 != 0 {
		mode = 0o755
	}
	f, err := u.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	_, err = io.CopyN(f, data, h.Size)
	if err := errors.Join(err, f.Chmod(mode), f.Close()); err != nil {
		return noEOF(err)
	}
	return u.own(name)
}

// own gives a name to the owner, if there is one.
func (u *unpacker) own(name string) error {
	if u.owner == nil {
		return nil
	}
	return u.root.Lchown(name, int(u.owner.uid), int(u.owner.gid))
}
