// SPDX-License-Identifier: MIT

package process

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/minifleet/minifleet/vm"
)

// Folders that the backend makes in the bundle's root.
const (
	dirWork = "work" // the runner's work folder
	dirTemp = "tmp"  // TMPDIR
)

const guestPath = "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin"

// plan is how the guest agent is started, checked.
type plan struct {
	program string
	args    []string
	env     []string
	root    string
}

func newPlan(dir string, spec vm.Spec) (plan, error) {
	p := spec.Process
	if p == nil {
		return plan{}, errors.New("the spec has no settings for the process backend")
	}
	if err := checkProgram(p.GuestProgram); err != nil {
		return plan{}, err
	}
	root := filepath.Join(dir, vm.DirRoot)
	runner, err := makeFolders(root, p.RunnerDir)
	if err != nil {
		return plan{}, err
	}
	env := map[string]string{
		"HOME": root, "PATH": guestPath, "TMPDIR": filepath.Join(root, dirTemp), "LANG": "C.UTF-8",
	}
	for k, v := range p.Env {
		env[k] = v
	}
	list := make([]string, 0, len(env))
	for k, v := range env {
		list = append(list, k+"="+v)
	}
	slices.Sort(list)
	return plan{
		program: p.GuestProgram,
		args: append([]string{
			"--listen", "unix:" + filepath.Join(dir, vm.FileInnerSocket),
			"--runner-dir", runner,
			"--work-dir", filepath.Join(root, dirWork),
			"--exit-with-stdin",
		}, p.Args...),
		env:  list,
		root: root,
	}, nil
}

func checkProgram(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return fmt.Errorf("guest program: %w", err)
	}
	if !info.Mode().IsRegular() || info.Mode().Perm()&0o111 == 0 {
		return fmt.Errorf("guest program %s is no executable file", path)
	}
	return nil
}

// makeFolders makes what the image need not bring, and returns the runner's folder,
// which it has to. No link in the image leads any of this out of the root.
func makeFolders(root, runnerDir string) (string, error) {
	if err := os.Mkdir(root, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return "", err
	}
	r, err := os.OpenRoot(root)
	if err != nil {
		return "", err
	}
	defer r.Close()
	for _, name := range []string{dirWork, dirTemp} {
		if err := r.Mkdir(name, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
			return "", fmt.Errorf("make the guest's folder %s: %w", name, err)
		}
	}
	if runnerDir == "" {
		return root, nil
	}
	info, err := r.Stat(runnerDir)
	if err != nil {
		return "", fmt.Errorf("the runner's folder %s is not in the image's %s: %w", runnerDir, vm.DirRoot, err)
	}
	if !info.IsDir() {
		return "", fmt.Errorf("the runner's folder %s in the image's %s is no folder", runnerDir, vm.DirRoot)
	}
	return filepath.Join(root, runnerDir), nil
}
