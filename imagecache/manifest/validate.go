// SPDX-License-Identifier: MIT

package manifest

import (
	"errors"
	"fmt"
	"math/bits"
	"strings"
	"unicode"
	"unicode/utf8"
)

const (
	maxDescription   = 4 << 10
	maxHardwareModel = 64 << 10
	maxCPUs          = 1 << 10
	maxMemoryMiB     = 16 << 20 // 16 TiB
	maxPixels        = 1 << 14
	maxPPI           = 1 << 10
)

// validate checks everything but the schema.
func (m *Manifest) validate() error {
	var errs []error
	refuse := func(bad bool, format string, args ...any) {
		if bad {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	refuse(m.GuestOS != "darwin" && m.GuestOS != "linux", "guest_os is %.40q: give darwin or linux", m.GuestOS)
	refuse(m.Arch != "" && m.Arch != "arm64" && m.Arch != "amd64", "arch is %.40q: give arm64 or amd64, or nothing", m.Arch)
	refuse(len(m.Description) > maxDescription || !oneLine(m.Description),
		"description: give one line of UTF-8, at most %d bytes, that can be printed", maxDescription)
	refuse(m.MinHostOS != "" && !validVersion(m.MinHostOS), "min_host_os is %.40q: give a version like 14 or 15.1, or nothing", m.MinHostOS)
	refuse(m.MinCPUs < 0 || m.MinCPUs > maxCPUs, "min_cpus is %d: give 0 to %d", m.MinCPUs, maxCPUs)
	refuse(m.MinMemoryMiB < 0 || m.MinMemoryMiB > maxMemoryMiB, "min_memory_mib is %d: give 0 to %d", m.MinMemoryMiB, maxMemoryMiB)
	if d := m.Display; d != nil {
		refuse(d.Width < 1 || d.Width > maxPixels || d.Height < 1 || d.Height > maxPixels || d.PPI < 0 || d.PPI > maxPPI,
			"display is %d x %d at %d ppi: give 1 to %d pixels and 0 to %d ppi", d.Width, d.Height, d.PPI, maxPixels, maxPPI)
	}
	refuse(len(m.HardwareModel) > maxHardwareModel, "hardware_model has %d bytes: at most %d are read", len(m.HardwareModel), maxHardwareModel)
	refuse(len(m.HardwareModel) > 0 && m.GuestOS != "darwin", "hardware_model is of macOS guests only, and guest_os is %.40q", m.GuestOS)
	if len(errs) > 0 {
		return errors.Join(errs...)
	}
	return m.validateFiles()
}

// validateFiles stops at the first error: there may be as many as files.
func (m *Manifest) validateFiles() error {
	if m.ChunkBytes < MinChunkBytes || m.ChunkBytes > MaxChunkBytes || bits.OnesCount64(uint64(m.ChunkBytes)) != 1 {
		return fmt.Errorf("chunk_bytes is %d: give a power of two from %d to %d", m.ChunkBytes, MinChunkBytes, MaxChunkBytes)
	}
	if len(m.Files) == 0 || len(m.Files) > MaxFiles {
		return fmt.Errorf("the image has %d files: it must have 1 to %d", len(m.Files), MaxFiles)
	}
	bytes, chunks := int64(0), int64(0)
	for i := range m.Files {
		f := &m.Files[i]
		if err := ValidatePath(f.Path); err != nil {
			return err
		}
		if i > 0 && m.Files[i-1].Path >= f.Path {
			return fmt.Errorf("the file %s stands behind %s: list each once, in the order of their bytes", f.Path, m.Files[i-1].Path)
		}
		if f.Mode&^0o777 != 0 || f.Mode&0o400 == 0 {
			return fmt.Errorf("the file %s has mode %o: only permissions are kept, and its owner must be able to read it", f.Path, f.Mode)
		}
		if f.Size < 0 || f.Size > MaxImageBytes {
			return fmt.Errorf("the file %s has %d bytes: at most %d are possible", f.Path, f.Size, int64(MaxImageBytes))
		}
		if n := chunksOf(f.Size, m.ChunkBytes); n != int64(len(f.Chunks)) {
			return fmt.Errorf("the file %s has %d bytes and %d chunks of %d: it must have %d", f.Path, f.Size, len(f.Chunks), m.ChunkBytes, n)
		}
		for n, c := range f.Chunks {
			if most := MaxStored(f.ChunkSize(n, m)); c.Stored < 0 || c.Stored > most || c.Zero() && c.Stored != 0 {
				return fmt.Errorf("the file %s's chunk %d takes %d bytes in the bucket: at most %d are possible, and none for zeros", f.Path, n, c.Stored, most)
			}
		}
		bytes += f.Size
		chunks += int64(len(f.Chunks))
	}
	if bytes > MaxImageBytes || chunks > MaxChunks {
		return fmt.Errorf("the image has %d bytes in %d chunks: at most %d and %d are possible: use larger chunks", bytes, chunks, int64(MaxImageBytes), MaxChunks)
	}
	return m.validateTree()
}

// validateTree refuses paths of which one is another's folder, and those that are one and
// the same where case does not count, as on a Mac's volume by default.
func (m *Manifest) validateTree() error {
	files := make(map[string]string, len(m.Files))
	for i := range m.Files {
		path := m.Files[i].Path
		folded := strings.ToLower(path)
		if other, twice := files[folded]; twice {
			return fmt.Errorf("the files %s and %s are the same on a volume without case: rename one in the image", other, path)
		}
		files[folded] = path
	}
	for folded, path := range files {
		for i := range len(folded) {
			if folded[i] != '/' {
				continue
			}
			if file, both := files[folded[:i]]; both {
				return fmt.Errorf("%s is a file and the folder of %s: rename one in the image", file, path)
			}
		}
	}
	return nil
}

// oneLine reports whether a terminal shows s as one line and nothing else happens.
func oneLine(s string) bool {
	return utf8.ValidString(s) && strings.IndexFunc(s, func(r rune) bool { return !unicode.IsGraphic(r) || r == '\u2028' || r == '\u2029' }) < 0
}

// validVersion takes one to three numbers, with dots between.
func validVersion(s string) bool {
	parts := strings.Split(s, ".")
	if len(parts) > 3 {
		return false
	}
	for _, p := range parts {
		if p == "" || len(p) > 4 || strings.Trim(p, "0123456789") != "" {
			return false
		}
	}
	return true
}
