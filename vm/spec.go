// SPDX-License-Identifier: MIT

package vm

import (
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"
	"unicode/utf8"
)

// BackendName names a kind of machine.
type BackendName string

// The backends that a spec can name. Which of them a vmm has is its own matter.
const (
	BackendProcess BackendName = "process" // the guest agent as an ordinary process: no isolation, for development
	BackendQEMU    BackendName = "qemu"    // QEMU, on Linux
	BackendVZ      BackendName = "vz"      // Apple's Virtualization.framework
)

// Limits of a spec. They are far above anything sensible and keep a spec that
// went wrong from taking the host with it.
const (
	MaxSpecBytes       = 256 << 10
	MaxCPUs            = 1024
	MaxMemoryMiB       = 64 << 20
	MaxLifeLimit       = 60 * 24 * time.Hour
	MaxBootDelay       = time.Hour
	MaxAnnotations     = 64
	MaxAnnotationBytes = 32 << 10 // of all keys and values together
	MaxSavedPath       = 1 << 10  // of the path of a saved state's folder
)

// Spec says what a machine is. It is written into the bundle once, when the bundle
// is made, and never changes. It holds no secret.
type Spec struct {
	ID      string
	Backend BackendName
	// CPUs and MemoryMiB are what the guest gets; the process backend only notes them.
	CPUs      int
	MemoryMiB int
	// MaxLife ends the machine whatever it does, counted from the vmm's start.
	MaxLife time.Duration
	// Image tells where the disk came from, for information.
	Image ImageRef
	// Annotations are the agent's own notes, which must survive its restart.
	Annotations map[string]string
	// Restore is the absolute path of a saved state's folder, as SaveRequest has it: the
	// machine continues from there instead of booting, and its disks must be clones of
	// those in it. "" boots. The process backend saves nothing.
	Restore string
	// Process is set if, and only if, Backend is BackendProcess.
	Process *ProcessSpec
	// Options are what any other backend needs, as one JSON object in its own terms:
	// it decodes them itself, strictly.
	Options json.RawMessage
}

// ImageRef names an image.
type ImageRef struct {
	Name   string `json:"name,omitempty"`
	Digest string `json:"digest,omitempty"`
}

// ProcessSpec is what the process backend needs.
type ProcessSpec struct {
	// GuestProgram is the absolute path of the guest agent.
	GuestProgram string
	// Args follow the arguments that the backend gives the guest agent itself.
	Args []string
	// Env is added to the guest agent's environment, which is otherwise empty but for
	// HOME, PATH, TMPDIR and LANG.
	Env map[string]string
	// RunnerDir is the runner's folder inside the bundle's root; "" means the root itself.
	RunnerDir string
	// BootDelay is how long the guest pretends to boot.
	BootDelay time.Duration
}

// Validate returns everything that is wrong with the spec, joined.
func (s Spec) Validate() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if err := ValidateID(s.ID); err != nil {
		errs = append(errs, err)
	}
	if s.CPUs < 1 || s.CPUs > MaxCPUs {
		bad("cpus is %d: give 1 to %d", s.CPUs, MaxCPUs)
	}
	if s.MemoryMiB < 1 || s.MemoryMiB > MaxMemoryMiB {
		bad("memory_mib is %d: give 1 to %d", s.MemoryMiB, MaxMemoryMiB)
	}
	if s.MaxLife <= 0 || s.MaxLife > MaxLifeLimit {
		bad("max_life is %v: give more than 0 and at most %v", s.MaxLife, MaxLifeLimit)
	}
	if len(s.Image.Name) > 512 || len(s.Image.Digest) > 512 {
		bad("the image's name or digest is longer than 512 bytes")
	}
	errs = append(errs, validateAnnotations(s.Annotations), s.validateRestore(), s.validateBackend())
	return errors.Join(errs...)
}

func (s Spec) validateRestore() error {
	switch {
	case s.Restore == "":
		return nil
	case s.Backend == BackendProcess:
		return errors.New("restore is set: the process backend has no saved states")
	default:
		if err := checkSavedPath(s.Restore); err != nil {
			return fmt.Errorf("restore: %w", err)
		}
		return nil
	}
}

func (s Spec) validateBackend() error {
	switch s.Backend {
	case BackendProcess:
		if len(s.Options) > 0 {
			return errors.New("options is set: the process backend takes its settings in process")
		}
		if s.Process == nil {
			return errors.New("process is missing: the process backend needs it")
		}
		return s.Process.validate()
	case BackendQEMU, BackendVZ:
		if s.Process != nil {
			return fmt.Errorf("process is set, but the backend is %s: put its settings into options", s.Backend)
		}
		if len(s.Options) > 0 && !isJSONObject(s.Options) {
			return errors.New("options is no JSON object")
		}
		return nil
	default:
		return fmt.Errorf("backend is %.60q: give %s, %s or %s", s.Backend, BackendProcess, BackendQEMU, BackendVZ)
	}
}

func isJSONObject(b []byte) bool {
	var m map[string]json.RawMessage
	return json.Unmarshal(b, &m) == nil && m != nil
}

func (p *ProcessSpec) validate() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if !filepath.IsAbs(p.GuestProgram) || strings.ContainsRune(p.GuestProgram, 0) {
		bad("process.guest_program is %q: give the guest agent's absolute path", p.GuestProgram)
	}
	if p.RunnerDir != "" && (!filepath.IsLocal(p.RunnerDir) || strings.ContainsRune(p.RunnerDir, 0)) {
		bad("process.runner_dir is %q: give a path inside the bundle's %s folder", p.RunnerDir, DirRoot)
	}
	if p.BootDelay < 0 || p.BootDelay > MaxBootDelay {
		bad("process.boot_delay is %v: give 0 to %v", p.BootDelay, MaxBootDelay)
	}
	for _, a := range p.Args {
		if strings.ContainsRune(a, 0) {
			bad("process.args has a zero byte in %q", a)
		}
	}
	for k, v := range p.Env {
		if k == "" || strings.ContainsAny(k, "=\x00") || strings.ContainsRune(v, 0) {
			bad("process.env has the name %q: names have no '=', and nothing has a zero byte", k)
		}
	}
	return errors.Join(errs...)
}

func validateAnnotations(notes map[string]string) error {
	if len(notes) > MaxAnnotations {
		return fmt.Errorf("there are %d annotations: %d are allowed", len(notes), MaxAnnotations)
	}
	var errs []error
	total := 0
	for k, v := range notes {
		total += len(k) + len(v)
		if k == "" || len(k) > 64 || strings.Trim(k, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._/-") != "" {
			errs = append(errs, fmt.Errorf("annotation %.80q: a key is 1 to 64 of letters, digits and . _ / -", k))
		}
		if !utf8.ValidString(v) {
			errs = append(errs, fmt.Errorf("annotation %q: the value is not UTF-8", k))
		}
	}
	if total > MaxAnnotationBytes {
		errs = append(errs, fmt.Errorf("the annotations have %d bytes together: %d are allowed", total, MaxAnnotationBytes))
	}
	return errors.Join(errs...)
}
