// SPDX-License-Identifier: MIT

package main

import (
	"archive/tar"
	"context"
	"errors"
	"io"
	"path"
	"strings"
)

// read calls visit for each file, folder and link of a package, by its path without a
// leading slash, where everything of /bin, /sbin, /lib and /lib64 is below usr.
func (s packageSet) read(ctx context.Context, d deb, visit func(name string, h *tar.Header, r io.Reader) error) error {
	if err := s.verify(d); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	cmd := command(ctx, "dpkg-deb", "--fsys-tarfile", s.path(d))
	var complaint strings.Builder
	cmd.Stderr = &complaint
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	err = readTar(pipe, visit)
	if err != nil {
		cancel() // nobody reads what is left
	} else {
		_, err = io.Copy(io.Discard, pipe) // the padding after the last file
	}
	if werr := cmd.Wait(); err == nil && werr != nil {
		err = toolError(cmd, werr, complaint.String())
	}
	return err
}

func readTar(r io.Reader, visit func(string, *tar.Header, io.Reader) error) error {
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := visit(mergedUsr(path.Clean(h.Name)), h, tr); err != nil {
			return err
		}
	}
}

func mergedUsr(name string) string {
	name = strings.TrimPrefix(name, "./")
	top, _, _ := strings.Cut(name, "/")
	switch top {
	case "bin", "sbin", "lib", "lib64":
		return "usr/" + name
	}
	return name
}
