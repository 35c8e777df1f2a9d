// SPDX-License-Identifier: MIT

package layout

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"

	"github.com/minifleet/minifleet/imagecache/manifest"
	"github.com/minifleet/minifleet/vm/options"
)

// The files of a template of shoes-vz. One of its runners has a machine's identifier and
// perhaps a saved state beside them, which are never taken.
const (
	shoesDisk    = "Disk.img"
	shoesStorage = "AuxiliaryStorage"
	shoesModel   = "HardwareModel.json"
	shoesState   = "State.save"
)

// maxShoesBytes is room for the largest hardware model in base64.
const maxShoesBytes = 128 << 10

// ParseShoesModel reads the hardware model of a template of shoes-vz.
func ParseShoesModel(b []byte) ([]byte, error) {
	model, err := parseShoesModel(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", shoesModel, short{err})
	}
	return model, nil
}

func parseShoesModel(b []byte) ([]byte, error) {
	if len(b) > maxShoesBytes {
		return nil, fmt.Errorf("it has more than %d bytes", maxShoesBytes)
	}
	var c struct {
		HardwareModel []byte `json:"hardwareModel"`
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	if err := dec.Decode(&c); err != nil {
		return nil, err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("something follows the object")
	}
	if len(c.HardwareModel) == 0 {
		return nil, errors.New("hardwareModel is missing")
	}
	return c.HardwareModel, checkModel(c.HardwareModel)
}

func openShoes(root string, has func(name string) bool) (*Template, error) {
	if has(shoesState) {
		return nil, fmt.Errorf("it has a saved state (%s): start it and shut the guest down, so that its disk is complete", shoesState)
	}
	b, err := readSmall(filepath.Join(root, shoesModel), maxShoesBytes)
	if errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("%s is missing", shoesModel)
	}
	var model []byte
	if err == nil {
		if model, err = ParseShoesModel(b); err != nil {
			return nil, err
		}
	}
	disk, err2 := source(root, shoesDisk, options.FileDisk)
	storage, err3 := source(root, shoesStorage, options.FileNVRAM)
	if err := errors.Join(err, err2, err3); err != nil {
		return nil, fmt.Errorf("it is an incomplete template of shoes-vz: %w", err)
	}
	return &Template{
		Manifest: manifest.Manifest{Schema: manifest.Schema, GuestOS: guestDarwin, Arch: archARM, HardwareModel: model},
		Files:    []File{disk, storage, modelFile(model)},
	}, nil
}
