// SPDX-License-Identifier: MIT

package guest

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// MaxFileBytes is the most that PutFile sends and the guest takes.
const MaxFileBytes = 8 << 30

// digestHeader has the SHA-256 of the body, in hexadecimal.
const digestHeader = "Minifleet-Sha256"

// fileTarget is where a file comes from or goes to.
type fileTarget struct {
	path   string
	mode   os.FileMode
	owner  string // empty leaves it to whom the guest program runs as
	digest []byte
	size   int64
}

// parseTarget reads what is to be done with the body of a PUT.
func parseTarget(r *http.Request) (fileTarget, error) {
	q := r.URL.Query()
	path, err := parsePath(q)
	if err != nil {
		return fileTarget{}, err
	}
	t := fileTarget{path: path, mode: 0o600, owner: q.Get("owner")}
	if v := q.Get("mode"); v != "" {
		mode, err := strconv.ParseUint(v, 8, 32)
		if err != nil || mode > 0o777 {
			return fileTarget{}, fmt.Errorf("mode=%q: give three octal digits", clip(v, 16))
		}
		t.mode = os.FileMode(mode)
	}
	if len(t.owner) > 64 || strings.ContainsRune(t.owner, 0) {
		return fileTarget{}, errors.New("owner is not a name")
	}
	t.size, t.digest, err = parseBody(r, MaxFileBytes)
	return t, err
}

func parsePath(q url.Values) (string, error) {
	path := q.Get("path")
	if !filepath.IsAbs(path) || path != filepath.Clean(path) || path == "/" || len(path) > 4096 || strings.ContainsRune(path, 0) {
		return "", fmt.Errorf("path=%q: give the absolute path of a file", clip(path, 128))
	}
	return path, nil
}

// parseBody returns what the headers say of a body.
func parseBody(r *http.Request, limit int64) (size int64, digest []byte, err error) {
	if r.ContentLength < 0 || r.ContentLength > limit {
		return 0, nil, fmt.Errorf("a body of %d bytes: its length must be told, and be at most %d", r.ContentLength, limit)
	}
	digest, err = hex.DecodeString(r.Header.Get(digestHeader))
	if err != nil || len(digest) != sha256.Size {
		return 0, nil, fmt.Errorf("%s: give the SHA-256 of the body in hexadecimal", digestHeader)
	}
	return r.ContentLength, digest, nil
}

// bodyReader reads a body that may be long: the host has bodyTimeout for each part of it.
type bodyReader struct {
	body io.Reader
	rc   *http.ResponseController
}

func readerOf(w http.ResponseWriter, r *http.Request) bodyReader {
	return bodyReader{r.Body, http.NewResponseController(w)}
}

func (b bodyReader) Read(p []byte) (int, error) {
	b.rc.SetReadDeadline(time.Now().Add(bodyTimeout))
	defer b.rc.SetReadDeadline(time.Time{})
	return b.body.Read(p)
}

func (a *Agent) servePutFile(w http.ResponseWriter, r *http.Request) {
	t, err := parseTarget(r)
	if err != nil {
		fail(w, http.StatusBadRequest, err)
		return
	}
	if err := t.put(readerOf(w, r)); err != nil {
		fail(w, http.StatusInternalServerError, err)
		return
	}
	w.WriteHeader(http.StatusCreated)
}

// put writes the body aside and, once it is whole, gives it its name.
func (t fileTarget) put(body io.Reader) (err error) {
	f, err := os.CreateTemp(filepath.Dir(t.path), ".minifleet-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(f.Name()) //nolint:errcheck // the first error tells more
		}
	}()
	hash := sha256.New()
	if _, err := io.CopyN(io.MultiWriter(f, hash), body, t.size); err != nil {
		return fmt.Errorf("%s: %w", t.path, noEOF(err))
	}
	if !bytes.Equal(hash.Sum(nil), t.digest) {
		return fmt.Errorf("%s: what came is not what was announced: its SHA-256 differs", t.path)
	}
	if t.owner != "" {
		who, err := lookupAccount(t.owner)
		if err != nil {
			return err
		}
		if err := f.Chown(int(who.uid), int(who.gid)); err != nil {
			return err
		}
	}
	if err := errors.Join(f.Chmod(t.mode), f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), t.path)
}

func (a *Agent) serveGetFile(w http.ResponseWriter, r *http.Request) {
	path, err := parsePath(r.URL.Query())
	if err != nil {
		fail(w, http.StatusBadRequest, err)
		return
	}
	// Without O_NONBLOCK a pipe in the file's place would hold us for ever.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		fail(w, http.StatusNotFound, err)
		return
	}
	defer f.Close()
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s is not a regular file", path)
	}
	if err != nil {
		fail(w, http.StatusBadRequest, err)
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Content-Length", strconv.FormatInt(info.Size(), 10))
	if _, err := io.CopyN(w, f, info.Size()); err != nil {
		// The answer has begun: only breaking it off tells the host so.
		panic(http.ErrAbortHandler)
	}
}
