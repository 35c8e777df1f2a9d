// SPDX-License-Identifier: MIT

package vm

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"
)

// SpecSchema is the version of spec.json that this program reads and writes.
const SpecSchema = 1

// specFile is spec.json as it lies on disk.
type specFile struct {
	Schema      int               `json:"schema"`
	ID          string            `json:"id"`
	Backend     BackendName       `json:"backend"`
	CPUs        int               `json:"cpus"`
	MemoryMiB   int               `json:"memory_mib"`
	MaxLife     duration          `json:"max_life"`
	Image       *ImageRef         `json:"image,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
	Restore     string            `json:"restore,omitempty"`
	Process     *processFile      `json:"process,omitempty"`
	Options     json.RawMessage   `json:"options,omitempty"`
}

type processFile struct {
	GuestProgram string            `json:"guest_program"`
	Args         []string          `json:"args,omitempty"`
	Env          map[string]string `json:"env,omitempty"`
	RunnerDir    string            `json:"runner_dir,omitempty"`
	BootDelay    duration          `json:"boot_delay,omitzero"`
}

// duration is written as text ("6h0m0s"), so that a person can read the file.
type duration time.Duration

func (d duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

func (d *duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	*d = duration(v)
	return err
}

// ParseSpec reads a spec.json: known schema, no unknown key, nothing after it, valid.
func ParseSpec(b []byte) (Spec, error) {
	if len(b) > MaxSpecBytes {
		return Spec{}, fmt.Errorf("%s has %d bytes: %d are allowed", FileSpec, len(b), MaxSpecBytes)
	}
	// The schema comes first: a newer file has keys that are unknown here, and the
	// message shall speak of the version and not of them.
	var head struct {
		Schema int `json:"schema"`
	}
	if err := json.Unmarshal(b, &head); err != nil {
		return Spec{}, fmt.Errorf("%s: %w", FileSpec, foreign{err})
	}
	if head.Schema != SpecSchema {
		return Spec{}, fmt.Errorf("%s has schema %d and this program reads schema %d: use the minifleet-vmm of the same release as the agent that made the bundle",
			FileSpec, head.Schema, SpecSchema)
	}
	var f specFile
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&f); err != nil {
		return Spec{}, fmt.Errorf("%s: %w", FileSpec, foreign{err})
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return Spec{}, fmt.Errorf("%s: something follows the spec", FileSpec)
	}
	s := f.spec()
	if err := s.Validate(); err != nil {
		return Spec{}, fmt.Errorf("%s: %w", FileSpec, foreign{err})
	}
	return s, nil
}

// Encode returns the spec as spec.json, or what is wrong with it.
func (s Spec) Encode() ([]byte, error) {
	if err := s.Validate(); err != nil {
		return nil, err
	}
	b, err := json.MarshalIndent(s.file(), "", "  ")
	if err != nil {
		return nil, err
	}
	b = append(b, '\n')
	if len(b) > MaxSpecBytes {
		return nil, fmt.Errorf("the spec has %d bytes: %d are allowed", len(b), MaxSpecBytes)
	}
	return b, nil
}

func (f specFile) spec() Spec {
	s := Spec{
		ID: f.ID, Backend: f.Backend, CPUs: f.CPUs, MemoryMiB: f.MemoryMiB, MaxLife: time.Duration(f.MaxLife),
		Annotations: f.Annotations, Restore: f.Restore, Options: f.Options,
	}
	if f.Image != nil {
		s.Image = *f.Image
	}
	if p := f.Process; p != nil {
		s.Process = &ProcessSpec{
			GuestProgram: p.GuestProgram, Args: p.Args, Env: p.Env, RunnerDir: p.RunnerDir, BootDelay: time.Duration(p.BootDelay),
		}
	}
	return s
}

func (s Spec) file() specFile {
	f := specFile{
		Schema: SpecSchema, ID: s.ID, Backend: s.Backend, CPUs: s.CPUs, MemoryMiB: s.MemoryMiB, MaxLife: duration(s.MaxLife),
		Annotations: s.Annotations, Restore: s.Restore, Options: s.Options,
	}
	if s.Image != (ImageRef{}) {
		f.Image = &s.Image
	}
	if p := s.Process; p != nil {
		f.Process = &processFile{
			GuestProgram: p.GuestProgram, Args: p.Args, Env: p.Env, RunnerDir: p.RunnerDir, BootDelay: duration(p.BootDelay),
		}
	}
	return f
}

// clone returns a copy that shares nothing with s.
func (s Spec) clone() Spec {
	s.Annotations = maps.Clone(s.Annotations)
	s.Options = slices.Clone(s.Options)
	if s.Process != nil {
		p := *s.Process
		p.Args, p.Env = slices.Clone(p.Args), maps.Clone(p.Env)
		s.Process = &p
	}
	return s
}

// ReadSpec reads the spec of the bundle dir and checks that the folder's name is the
// machine's id, so that a bundle that was moved or copied is not taken for itself.
func ReadSpec(dir string) (Spec, error) {
	b, err := readSmall(filepath.Join(dir, FileSpec), MaxSpecBytes)
	if err != nil {
		return Spec{}, err
	}
	s, err := ParseSpec(b)
	if err != nil {
		return Spec{}, fmt.Errorf("bundle %s: %w", dir, err)
	}
	if name := filepath.Base(dir); s.ID != name {
		return Spec{}, fmt.Errorf("bundle %s: its spec is that of %s", dir, s.ID)
	}
	return s, nil
}

// openRegular opens a regular file of a bundle to read it. A pipe in its place would hold
// the reader for ever, and a link have it read, and tell of, what its owner cannot.
func openRegular(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		f.Close()
		return nil, errors.Join(err, fmt.Errorf("%s is no regular file", path))
	}
	return f, nil
}

// readSmall reads a regular file of at most limit bytes. Nothing in a bundle is
// trusted to be of a sensible size: with the process backend the guest can write there.
func readSmall(path string, limit int64) ([]byte, error) {
	f, err := openRegular(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	if int64(len(b)) > limit {
		return nil, fmt.Errorf("%s is larger than %d bytes", path, limit)
	}
	return b, nil
}
