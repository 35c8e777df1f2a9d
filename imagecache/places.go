// SPDX-License-Identifier: MIT

package imagecache

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/minifleet/minifleet/crashpoint"
	"github.com/minifleet/minifleet/imagecache/assemble"
	"github.com/minifleet/minifleet/imagecache/manifest"
	"github.com/minifleet/minifleet/internal/durable"
)

// Images that are fetched live below dirCache in the folder of images, whose name can be
// no image's. An image is called by the hex digits of its digest everywhere there.
const (
	dirCache     = ".cache"
	dirWhole     = "images"    // its files, whole
	dirPartial   = "partial"   // its files while they are made
	dirManifests = "manifests" // HEX.json: its manifest
	dirRecords   = "records"   // HEX.json: what this host knows of it
	dirUses      = "uses"      // HEX: when it was used last, by the counter
	dirPinned    = "pinned"    // HEX is there: an operator has pinned it
	dirLocks     = "locks"     // HEX: held by who uses it, and alone by who changes it
	dirTrash     = "trash"     // what is being deleted
	fileHeld     = "held.json" // digests that the controller holds
	endJSON      = ".json"
)

// FetchedDir is the folder of the images that were fetched into a folder of images.
func FetchedDir(dir string) string { return filepath.Join(dir, dirCache, dirWhole) }

// places knows where things are on the disk.
type places struct{ root string }

func (p places) at(parts ...string) string {
	return filepath.Join(append([]string{p.root}, parts...)...)
}

func (p places) whole(hex string) string    { return p.at(dirWhole, hex) }
func (p places) partial(hex string) string  { return p.at(dirPartial, hex) }
func (p places) manifest(hex string) string { return p.at(dirManifests, hex+endJSON) }
func (p places) record(hex string) string   { return p.at(dirRecords, hex+endJSON) }
func (p places) use(hex string) string      { return p.at(dirUses, hex) }
func (p places) pin(hex string) string      { return p.at(dirPinned, hex) }
func (p places) lock(hex string) string     { return p.at(dirLocks, hex) }

// exists reports whether anything was ever fetched here.
func (p places) exists() bool {
	_, err := os.Lstat(p.root)
	return err == nil
}

// make makes the folders.
func (p places) make() error {
	for _, dir := range []string{dirWhole, dirPartial, dirManifests, dirRecords, dirUses, dirPinned, dirLocks, dirTrash} {
		if err := os.MkdirAll(p.at(dir), 0o755); err != nil {
			return fmt.Errorf("the folder of fetched images cannot be made: %w", err)
		}
	}
	return nil
}

// there reports whether there is a folder of this path.
func there(dir string) bool {
	info, err := os.Lstat(dir)
	return err == nil && info.IsDir()
}

func hexOf(digest string) string { return strings.TrimPrefix(digest, digestPrefix) }

func validHex(hex string) bool { return validDigest(digestPrefix + hex) }

const recordSchema = 1

// maxRecordBytes bounds a record: a stamp takes up to a KiB, and an image has few files.
const maxRecordBytes = 32 << 20

// record is what this host knows of an image that it has, or has begun to fetch.
type record struct {
	Schema int `json:"schema"`
	// Reference is that by which it was asked for first.
	Reference string `json:"reference"`
	// Manifest is the digest of the manifest's file here, which is the image's own unless
	// it is of another format.
	Manifest    string `json:"manifest,omitempty"`
	GuestOS     string `json:"guest_os,omitempty"`
	Description string `json:"description,omitempty"`
	Bytes       int64  `json:"bytes,omitempty"`  // the sum of its files' sizes
	Stored      int64  `json:"stored,omitempty"` // of that, what is not zeros
	// Stamps are what its files looked like when all of them were known to be right.
	Stamps []assemble.Stamp `json:"stamps,omitempty"`
	// Damage was found since. The image is given to nobody until it is made whole.
	Damage []assemble.Damage `json:"damage,omitempty"`
}

func (p places) readRecord(hex string) (*record, error) {
	b, err := readFile(p.record(hex), maxRecordBytes)
	if err != nil {
		return nil, err
	}
	r := &record{}
	if err := json.Unmarshal(b, r); err != nil {
		return nil, fmt.Errorf("%s: %w", p.record(hex), err)
	}
	if r.Schema != recordSchema {
		return nil, fmt.Errorf("%s has schema %d and this program reads %d", p.record(hex), r.Schema, recordSchema)
	}
	return r, nil
}

func (p places) writeRecord(hex string, r *record) error {
	r.Schema = recordSchema
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return durable.WriteFile(p.record(hex), b, 0o644)
}

// holds reports whether the image's files are as they were when they were right.
func (r *record) holds(dir string) bool {
	if len(r.Stamps) == 0 || len(r.Damage) > 0 {
		return false
	}
	for _, s := range r.Stamps {
		if !r.fileHolds(dir, s.Path) {
			return false
		}
	}
	return true
}

func (r *record) fileHolds(dir, path string) bool {
	for _, s := range r.Stamps {
		if s.Path == path {
			now, err := assemble.StampOf(dir, path)
			return err == nil && now == s
		}
	}
	return false
}

// describe takes over from the manifest what is asked for often.
func (r *record) describe(m *manifest.Manifest, digest string) {
	r.Manifest, r.GuestOS, r.Description, r.Bytes = digest, m.GuestOS, m.Description, m.Bytes()
	_, r.Stored = assemble.Shared(m, nil)
}

// readManifest returns the image's manifest as it was kept, if it is that.
func (p places) readManifest(hex, digest string) (*manifest.Manifest, error) {
	b, err := readFile(p.manifest(hex), manifest.MaxBytes)
	if err != nil {
		return nil, err
	}
	if have := manifest.Digest(b); have != digest {
		return nil, fmt.Errorf("%s has the digest %s instead of %s", p.manifest(hex), have, digest)
	}
	return manifest.Parse(b)
}

// lastUse returns when an image was used last, 0 if that is not known.
func (p places) lastUse(hex string) int64 {
	b, err := readFile(p.use(hex), 32)
	if err != nil {
		return 0
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
	if err != nil || n < 0 {
		return 0
	}
	return n
}

// latest returns the newest use of all.
func (p places) latest() int64 {
	latest := int64(0)
	entries, _ := os.ReadDir(p.at(dirUses)) // the order of eviction suffers, and nothing else
	for _, e := range entries {
		latest = max(latest, p.lastUse(e.Name()))
	}
	return latest
}

// setUse notes a use. It survives the end of the process at once, and a power cut a moment
// later: the caller syncs the file that it gets.
func (p places) setUse(hex string, at int64) (*os.File, error) {
	f, err := os.OpenFile(p.use(hex), os.O_WRONLY|os.O_CREATE, 0o644)
	if err != nil {
		return nil, err
	}
	// One write of always the same length, so that there is never half a number.
	if _, err := f.WriteAt(fmt.Appendf(nil, "%019d\n", at), 0); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// held returns the digests that the controller holds.
func (p places) held() map[string]bool {
	held := map[string]bool{}
	var list []string
	if b, err := readFile(p.at(fileHeld), 1<<20); err == nil && json.Unmarshal(b, &list) == nil {
		for _, d := range list {
			held[d] = true
		}
	}
	return held
}

// throwAway renames a folder aside, from where emptyTrash deletes it.
func (p places) throwAway(dir string) error {
	err := os.Rename(dir, p.at(dirTrash, rand.Text()))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	crashpoint.Reached(crashpoint.ImageTrashed)
	return err
}

func (p places) emptyTrash() error {
	entries, err := os.ReadDir(p.at(dirTrash))
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		errs = append(errs, os.RemoveAll(p.at(dirTrash, e.Name())))
	}
	return errors.Join(errs...)
}

// forget removes all that is known of an image whose files are gone.
func (p places) forget(hex string) error {
	var errs []error
	for _, path := range []string{p.manifest(hex), p.record(hex), p.use(hex), p.pin(hex)} {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func readFile(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return readLimited(f, limit)
}

func readLimited(r io.Reader, limit int64) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = fmt.Errorf("the file is larger than %d bytes", limit)
	}
	return b, err
}
