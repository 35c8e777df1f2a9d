// SPDX-License-Identifier: MIT

package layout

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"

	"github.com/minifleet/minifleet/imagecache/manifest"
	"github.com/minifleet/minifleet/vm/options"
)

// FileImage is the file that makes a folder an image of ours. Everything beside it is the
// image's content.
const FileImage = "image.json"

// ImageSchema is the version of image.json that this program reads.
const ImageSchema = 1

const maxImageBytes = 128 << 10

// Image is image.json: what an image is, as its maker says it.
type Image struct {
	Schema int `json:"schema"`
	// Name is the image's name and that of its folder.
	Name string `json:"name"`
	// GuestOS is "linux" or "darwin".
	GuestOS      string            `json:"guest_os"`
	Description  string            `json:"description,omitempty"`
	Arch         string            `json:"arch,omitempty"`
	MinHostOS    string            `json:"min_host_os,omitempty"`
	MinCPUs      int               `json:"min_cpus,omitempty"`
	MinMemoryMiB int               `json:"min_memory_mib,omitempty"`
	Display      *manifest.Display `json:"display,omitempty"`
	// HardwareModel may also lie beside image.json, as the file that the backend reads.
	HardwareModel []byte `json:"hardware_model,omitempty"`
}

// ReadImage reads the image.json of the folder dir. Where there is none the error is an
// fs.ErrNotExist.
func ReadImage(dir string) (Image, error) {
	b, err := readSmall(filepath.Join(dir, FileImage), maxImageBytes)
	if err != nil {
		return Image{}, err
	}
	return ParseImage(b)
}

// ParseImage reads an image.json: known schema, no unknown key, nothing after it, valid.
func ParseImage(b []byte) (Image, error) {
	if len(b) > maxImageBytes {
		return Image{}, fmt.Errorf("%s has more than %d bytes", FileImage, maxImageBytes)
	}
	var head struct {
		Schema int `json:"schema"`
	}
	if err := json.Unmarshal(b, &head); err != nil {
		return Image{}, fmt.Errorf("%s: %w", FileImage, short{err})
	}
	if head.Schema != ImageSchema {
		return Image{}, fmt.Errorf("%s has schema %d and this program reads schema %d", FileImage, head.Schema, ImageSchema)
	}
	var m Image
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&m); err != nil {
		return Image{}, fmt.Errorf("%s: %w", FileImage, short{err})
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return Image{}, fmt.Errorf("%s: something follows the object", FileImage)
	}
	if len(m.HardwareModel) == 0 {
		m.HardwareModel = nil
	}
	if err := m.validate(); err != nil {
		return Image{}, fmt.Errorf("%s: %w", FileImage, short{err})
	}
	return m, nil
}

// manifest returns what the image's manifest says beside its files.
func (m Image) manifest() manifest.Manifest {
	return manifest.Manifest{
		Schema: manifest.Schema, GuestOS: m.GuestOS, Arch: m.Arch, Description: m.Description,
		MinHostOS: m.MinHostOS, MinCPUs: m.MinCPUs, MinMemoryMiB: m.MinMemoryMiB,
		Display: m.Display, HardwareModel: m.HardwareModel,
	}
}

func (m Image) validate() error {
	return errors.Join(manifest.ValidateName(m.Name), validate(m.manifest()))
}

// validate checks what a manifest says beside its files.
func validate(m manifest.Manifest) error {
	m.ChunkBytes, m.Files = manifest.ChunkBytes, []manifest.File{{Path: options.FileDisk, Mode: FileMode}}
	if _, err := m.Encode(); err != nil {
		return err
	}
	if m.HardwareModel == nil {
		return nil
	}
	if err := checkModel(m.HardwareModel); err != nil {
		return fmt.Errorf("hardware_model: %w", err)
	}
	return nil
}

// maxModelBytes is what the backend reads of a hardware model. A real one has about 150.
const maxModelBytes = 64 << 10

// checkModel checks that a hardware model is what the framework stores, as far as that
// can be seen from outside.
func checkModel(b []byte) error {
	if len(b) > maxModelBytes || !bytes.HasPrefix(b, []byte("bplist00")) {
		return fmt.Errorf("it is no binary property list of up to %d bytes: take it from where the image was installed", maxModelBytes)
	}
	return nil
}

// short is an error that may quote a file at any length, cut to what a log can take.
type short struct{ error }

func (s short) Error() string {
	text := s.error.Error()
	if len(text) > 1<<10 {
		text = strings.ToValidUTF8(text[:1<<10], "")
	}
	return text
}

func (s short) Unwrap() error { return s.error }
