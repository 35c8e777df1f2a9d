// SPDX-License-Identifier: MIT

package guest

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"syscall"
	"time"
)

// maxDiagFile is how much of one file is sent: its end, for logs say at the
// end why they end.
const maxDiagFile = 4 << 20

// writeDiag writes a tar of the regular files in the runner's _diag folder,
// newest first, as many as fit into maxDiagBytes. The job could write into that
// folder, so nothing is followed out of it. A runner without the folder has an
// empty archive.
func writeDiag(w io.Writer, runnerDir string) error {
	tw := tar.NewWriter(w)
	runner, err := os.OpenRoot(runnerDir)
	if err != nil {
		return fmt.Errorf("runner folder: %w", err)
	}
	defer runner.Close()
	root, err := runner.OpenRoot("_diag")
	if errors.Is(err, fs.ErrNotExist) {
		return tw.Close()
	}
	if err != nil {
		return fmt.Errorf("runner's _diag: %w", err)
	}
	defer root.Close()
	files, err := diagFiles(root.FS())
	if err != nil {
		return fmt.Errorf("runner's _diag: %w", err)
	}
	room := int64(maxDiagBytes - 1024) // the archive's end
	for _, f := range files {
		data, err := readEnd(root, f.name)
		if err != nil {
			continue // rotated away or made unreadable meanwhile
		}
		// A header, possibly with two blocks for a long name, and whole blocks.
		need := 3*512 + (int64(len(data))+511)/512*512
		if need > room {
			break
		}
		room -= need
		h := &tar.Header{Name: "_diag/" + f.name, Mode: 0o600, Size: int64(len(data)), ModTime: f.modified}
		if err := tw.WriteHeader(h); err != nil {
			return fmt.Errorf("runner's _diag/%s: %w", f.name, err)
		}
		if _, err := tw.Write(data); err != nil {
			return fmt.Errorf("runner's _diag/%s: %w", f.name, err)
		}
	}
	return tw.Close()
}

type diagFile struct {
	name     string
	modified time.Time
}

// maxDiagFiles bounds the walk, and with it the memory for names.
const maxDiagFiles = 4096

func diagFiles(fsys fs.FS) ([]diagFile, error) {
	var files []diagFile
	seen := 0
	err := fs.WalkDir(fsys, ".", func(name string, d fs.DirEntry, err error) error {
		if seen++; seen > maxDiagFiles {
			return fs.SkipAll
		}
		if err != nil || !d.Type().IsRegular() || len(name) > 200 {
			return nil // what cannot be read is left out
		}
		if info, err := d.Info(); err == nil {
			files = append(files, diagFile{name: name, modified: info.ModTime().Truncate(time.Second)})
		}
		return nil
	})
	slices.SortStableFunc(files, func(a, b diagFile) int { return b.modified.Compare(a.modified) })
	return files, err
}

// readEnd returns the last maxDiagFile bytes of a regular file.
func readEnd(root *os.Root, name string) ([]byte, error) {
	// Without O_NONBLOCK a pipe put in the file's place would hold us for ever.
	f, err := root.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fs.ErrInvalid
	}
	start := max(info.Size()-maxDiagFile, 0)
	return io.ReadAll(io.NewSectionReader(f, start, maxDiagFile))
}
