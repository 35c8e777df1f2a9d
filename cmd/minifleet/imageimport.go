// SPDX-License-Identifier: MIT

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/minifleet/minifleet/imagecache/assemble"
	"github.com/minifleet/minifleet/imagecache/layout"
	"github.com/minifleet/minifleet/imagecache/manifest"
	"github.com/minifleet/minifleet/imagecache/oci"
	"github.com/minifleet/minifleet/imagecache/publish"
)

type imageImport struct {
	Tart importTart `cmd:"" help:"Publish an image of tart's, from a folder or a registry."`
}

type importTart struct {
	bucket
	Source  string `arg:"" help:"Folder of a VM of tart's, such as ~/.tart/vms/NAME, or oci://REGISTRY/REPOSITORY:TAG."`
	Ref     string `arg:"" name:"ref" help:"Where to, and under which name and tag: gs://BUCKET/PREFIX/NAME:TAG or file:///FOLDER/NAME:TAG."`
	Scratch string `type:"path" placeholder:"DIR" help:"Folder with room for the whole image, where one from a registry is put together; needed for those. What it has of the image is kept until the push is done, so that another attempt goes on."`

	RegistryTokenFile string `type:"path" placeholder:"FILE" help:"File with \"user:password\" or a token for the registry. Without it Docker's own configuration is used, if there is any."`
}

// Help says what is taken over.
func (importTart) Help() string {
	return "Takes over the disk, the NVRAM and the hardware model, and what the image says of CPUs, memory and display; not the VM's identity, which each host makes anew.\n\n" +
		"Examples:\n  minifleet image import tart ~/.tart/vms/sonoma gs://acme-images/macos/sonoma:14.5\n" +
		"  minifleet image import tart oci://ghcr.io/cirruslabs/macos-sonoma-base:latest gs://acme-images/macos/sonoma:base --scratch /var/tmp/import"
}

// Run imports.
func (c importTart) Run(s *surroundings) error {
	l, r, err := c.at(s.ctx, c.Ref)
	if err != nil {
		return err
	}
	defer l.Store.Close()
	if !published(c.Source) {
		t, err := layout.Open(c.Source)
		if err != nil {
			return err
		}
		return push(s, l, r, t)
	}
	source, err := manifest.ParseReference(c.Source)
	if err != nil {
		return err
	}
	if source.Scheme != manifest.SchemeOCI {
		return fmt.Errorf("%s: give oci://REGISTRY/REPOSITORY:TAG, or a folder", c.Source)
	}
	if c.Scratch == "" {
		return errors.New("give a folder with room for the whole image: --scratch DIR")
	}
	var (
		t   *layout.Template
		dir string
	)
	err = working(s, "the pull from the registry", func(ctx context.Context, show func(publish.Progress)) (err error) {
		t, dir, err = c.fetch(ctx, source, show)
		return err
	})
	if err != nil {
		return err
	}
	if err := push(s, l, r, t); err != nil {
		return err
	}
	return os.RemoveAll(dir)
}

// fetch puts the image together in a folder of its own.
func (c importTart) fetch(ctx context.Context, source manifest.Reference, show func(publish.Progress)) (*layout.Template, string, error) {
	repository, err := oci.Open(source, oci.Options{TokenFile: c.RegistryTokenFile, Keychain: true})
	if err != nil {
		return nil, "", err
	}
	digest, err := repository.Resolve(ctx)
	if err != nil {
		return nil, "", err
	}
	image, err := repository.Image(ctx, digest)
	if err != nil {
		return nil, "", err
	}
	dir := filepath.Join(c.Scratch, strings.TrimPrefix(digest, "sha256:"))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, "", err
	}
	m, err := image.Pull(ctx, dir, oci.PullOptions{Progress: func(p assemble.Progress) {
		show(publish.Progress{Doing: "pulling", Done: p.DoneBytes, Total: p.TotalBytes, Sent: p.FetchedBytes})
	}})
	if err != nil {
		return nil, "", err
	}
	t := &layout.Template{Dir: dir, Manifest: *m}
	for _, f := range m.Files {
		t.Files = append(t.Files, layout.File{Path: f.Path, Mode: f.Mode, Source: filepath.Join(dir, filepath.FromSlash(f.Path))})
	}
	return t, dir, nil
}
