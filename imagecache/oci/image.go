// SPDX-License-Identifier: MIT

package oci

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/minifleet/minifleet/imagecache/layout"
	"github.com/minifleet/minifleet/imagecache/manifest"
	"github.com/minifleet/minifleet/vm/options"
)

// tart's types and annotations.
const (
	typeConfig  types.MediaType = "application/vnd.cirruslabs.tart.config.v1"
	typeDisk    types.MediaType = "application/vnd.cirruslabs.tart.disk.v2"
	typeDisks                   = "application/vnd.cirruslabs.tart.disk."
	typeNVRAM   types.MediaType = "application/vnd.cirruslabs.tart.nvram.v1"
	noteDisk                    = "org.cirruslabs.tart.uncompressed-disk-size"
	noteSize                    = "org.cirruslabs.tart.uncompressed-size"
	noteContent                 = "org.cirruslabs.tart.uncompressed-content-digest"
)

const (
	maxConfigBytes = 256 << 10
	maxNVRAMBytes  = 256 << 20
	// maxLayerBytes is four times what tart puts into one.
	maxLayerBytes = 2 << 30
	maxLayers     = 64 << 10
	maxDiskBytes  = min(manifest.MaxImageBytes, manifest.MaxChunks*manifest.ChunkBytes)
)

// blob is content that the registry has under its digest.
type blob struct {
	digest string
	size   int64
}

// layer is a part of a file.
type layer struct {
	blob
	packed  bool         // with LZ4
	offset  int64        // in the file
	bytes   int64        // of the content
	content manifest.Sum // its sum
}

// parts are what an image in tart's format consists of.
type parts struct {
	config blob
	disk   []layer
	nvram  layer
}

// parseManifest reads the manifest of an image in tart's format, strictly: all sizes are
// known and bounded when it returns.
func parseManifest(b []byte) (*parts, error) {
	if len(b) > maxManifestBytes {
		return nil, fmt.Errorf("its manifest has more than %d bytes", maxManifestBytes)
	}
	m, err := v1.ParseManifest(bytes.NewReader(b))
	if err != nil {
		return nil, fmt.Errorf("its manifest is none: %.300s", err) //nolint:errorlint // bounded: it quotes what a registry sent
	}
	if m.MediaType.IsIndex() {
		return nil, errors.New("it is an index of several images: name one of them by its digest")
	}
	if m.SchemaVersion != 2 {
		return nil, fmt.Errorf("its manifest has schema %d and this program reads schema 2", m.SchemaVersion)
	}
	if len(m.Layers) > maxLayers {
		return nil, fmt.Errorf("it has more than %d layers", maxLayers)
	}
	var p parts
	seen := map[string]layer{}
	var configs, nvrams int
	size := int64(0)
	for n, d := range m.Layers {
		l, err := parseLayer(d)
		if err != nil {
			return nil, fmt.Errorf("its layer %d: %w", n+1, err)
		}
		// Blobs lie under their digests while they wait: one cannot be two things.
		if other, ok := seen[l.digest]; ok && other != l {
			return nil, fmt.Errorf("its layer %d: an earlier layer has the same digest and is said to hold something else", n+1)
		}
		seen[l.digest] = l
		switch d.MediaType {
		case typeConfig:
			configs++
			p.config = l.blob
		case typeNVRAM:
			nvrams++
			p.nvram = l
		case typeDisk:
			l.offset = size
			if size += l.bytes; size > maxDiskBytes {
				return nil, fmt.Errorf("its disk has more than %d bytes", int64(maxDiskBytes))
			}
			p.disk = append(p.disk, l)
		}
	}
	if configs != 1 || nvrams != 1 || len(p.disk) == 0 {
		return nil, fmt.Errorf("it is no image of tart's: it has %d configurations, %d disk layers and %d NVRAM layers", configs, len(p.disk), nvrams)
	}
	if text, ok := m.Annotations[noteDisk]; ok && text != strconv.FormatInt(size, 10) {
		return nil, fmt.Errorf("its disk layers have %d bytes in all, and it says %.40q: push it again", size, text)
	}
	return &p, nil
}

func parseLayer(d v1.Descriptor) (layer, error) {
	l := layer{blob: blob{digest: d.Digest.String(), size: d.Size}}
	most := int64(0)
	switch {
	case d.MediaType == typeConfig:
		most = maxConfigBytes
	case d.MediaType == typeNVRAM:
		most = maxNVRAMBytes
	case d.MediaType == typeDisk:
		most = maxLayerBytes
	case strings.HasPrefix(string(d.MediaType), typeDisks):
		return l, fmt.Errorf("its type %.100q is a form of disk that this program does not read: pull it with tart and push it again, or import the VM's folder", string(d.MediaType))
	default:
		return l, nil // others may add what they like
	}
	if !manifest.ValidDigest(l.digest) {
		return l, fmt.Errorf("its digest %.100q is no SHA-256", l.digest)
	}
	if l.size < 1 || l.size > most+most/64 {
		return l, fmt.Errorf("it has %d bytes: 1 to %d are possible", l.size, most+most/64)
	}
	var err error
	if d.MediaType != typeDisk {
		l.bytes = l.size
		l.content, err = manifest.ParseSum(strings.TrimPrefix(l.digest, "sha256:"))
		return l, err
	}
	l.packed = true
	l.bytes, err = strconv.ParseInt(d.Annotations[noteSize], 10, 64)
	if err != nil || l.bytes < 1 || l.bytes > most {
		return l, fmt.Errorf("its annotation %s is %.40q: 1 to %d are possible", noteSize, d.Annotations[noteSize], most)
	}
	content := d.Annotations[noteContent]
	if !manifest.ValidDigest(content) {
		return l, fmt.Errorf("its annotation %s is %.100q, which is no digest", noteContent, content)
	}
	l.content, err = manifest.ParseSum(strings.TrimPrefix(content, "sha256:"))
	return l, err
}

// file is a file of an image: layers one behind the other, or content that is known.
type file struct {
	manifest.File
	layers  []layer
	content []byte
}

// Image is an image of a repository.
type Image struct {
	repository *Repository
	client     *http.Client
	digest     string
	about      manifest.Manifest // without files
	files      []file            // in the order of their paths
}

func newImage(r *Repository, c *http.Client, digest string, p *parts, config []byte) (*Image, error) {
	about, err := layout.ParseTart(config)
	if err != nil {
		return nil, err
	}
	if r.o.Arch != "" && about.Arch != r.o.Arch {
		return nil, fmt.Errorf("it is made for %s and this host has %s: use an image for %s", about.Arch, r.o.Arch, r.o.Arch)
	}
	about.ChunkBytes = manifest.ChunkBytes
	img := &Image{repository: r, client: c, digest: digest, about: about}
	last := p.disk[len(p.disk)-1]
	img.files = append(img.files, file{File: named(options.FileDisk, last.offset+last.bytes), layers: p.disk})
	if about.HardwareModel != nil {
		img.files = append(img.files, file{File: named(options.FileHardwareModel, int64(len(about.HardwareModel))), content: about.HardwareModel})
	}
	img.files = append(img.files, file{File: named(options.FileNVRAM, p.nvram.bytes), layers: []layer{p.nvram}})
	// An image whose manifest could not be written is not worth hours of fetching.
	if _, err := img.manifest(); err != nil {
		return nil, err
	}
	return img, nil
}

// named is a file whose chunks are all zeros yet.
func named(path string, size int64) manifest.File {
	n := (size + manifest.ChunkBytes - 1) / manifest.ChunkBytes
	return manifest.File{Path: path, Mode: layout.FileMode, Size: size, Chunks: make([]manifest.Chunk, n)}
}

// manifest is the image's, which is valid.
func (i *Image) manifest() (*manifest.Manifest, error) {
	m := i.about
	for _, f := range i.files {
		m.Files = append(m.Files, f.File)
	}
	_, err := m.Encode()
	return &m, err
}

// Template returns what the image says of itself. Its files have sizes, and no chunks yet:
// the registry does not know them.
func (i *Image) Template() manifest.Manifest {
	m := i.about
	for _, f := range i.files {
		f.Chunks = nil
		m.Files = append(m.Files, f.File)
	}
	return m
}

// Bytes is the sum of the sizes of the image's files.
func (i *Image) Bytes() int64 {
	m := i.Template()
	return m.Bytes()
}

// Scratch is how many bytes Pull needs on the volume beside those of the image, at most.
func (i *Image) Scratch() int64 {
	var sizes []int64
	for _, f := range i.files {
		for _, l := range f.layers {
			sizes = append(sizes, l.size)
		}
	}
	slices.Sort(sizes)
	n := int64(0)
	for _, size := range sizes[max(0, len(sizes)-i.repository.o.Layers):] {
		n += size
	}
	return n
}
