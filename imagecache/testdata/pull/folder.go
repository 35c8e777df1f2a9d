// SPDX-License-Identifier: MIT

package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/minifleet/minifleet/imagecache/objects"
)

// folder gives out files as objects, and can nothing else.
type folder struct {
	objects.Store
	dir string
}

func (f folder) Get(_ context.Context, name string) (io.ReadCloser, objects.Attributes, error) {
	file, err := os.Open(filepath.Join(f.dir, name))
	if os.IsNotExist(err) {
		err = fmt.Errorf("%s: %w", name, objects.ErrNotFound)
	}
	return file, objects.Attributes{Name: name}, err
}

func (f folder) String() string { return f.dir }
func (folder) Close() error     { return nil }
