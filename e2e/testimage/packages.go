// SPDX-License-Identifier: MIT

package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// The packages that the guest is made of. The rest follows: the kernel is what the first
// depends on, libraries are what the others depend on.
const (
	packageKernel  = "linux-image-cloud-amd64"
	packageBusybox = "busybox-static"
	packageSSH     = "openssh-server"
	packageSFTP    = "openssh-sftp-server"
)

// deb is a package of the set.
type deb struct {
	Name    string `json:"name"`
	Version string `json:"version"`
	File    string `json:"file"` // in the folder of packages
	SHA256  string `json:"sha256"`
	Kernel  bool   `json:"kernel,omitempty"`
}

// packageSet is what a folder of packages holds: fetched once, and then what the images
// are built from until someone deletes the folder.
type packageSet struct {
	dir  string
	Debs []deb `json:"packages"`
}

const fileSet = "packages.json"

func (s packageSet) path(d deb) string { return filepath.Join(s.dir, d.File) }

// ensurePackages returns the set in dir, and whether it had to be fetched.
func ensurePackages(ctx context.Context, dir string) (packageSet, bool, error) {
	set := packageSet{dir: dir}
	b, err := os.ReadFile(filepath.Join(dir, fileSet))
	if err == nil {
		if err := json.Unmarshal(b, &set); err != nil {
			return set, false, fmt.Errorf("%s: %w: delete the folder, and the packages are fetched again", dir, err)
		}
		return set, false, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return set, false, err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return set, false, err
	}
	if set.Debs, err = resolve(ctx); err != nil {
		return set, false, err
	}
	if err := set.fetch(ctx); err != nil {
		return set, false, err
	}
	if b, err = json.MarshalIndent(set, "", "  "); err != nil {
		return set, false, err
	}
	return set, true, os.WriteFile(filepath.Join(dir, fileSet), append(b, '\n'), 0o644)
}

// resolve asks apt's lists which packages the guest needs.
func resolve(ctx context.Context) ([]deb, error) {
	kernel, err := show(ctx, []string{packageKernel})
	if err != nil {
		return nil, err
	}
	if len(kernel) == 0 || len(kernel[0].depends) == 0 {
		return nil, &missingError{"apt knows no " + packageKernel + ": give this machine Debian's packages, and run apt-get update as root"}
	}
	var debs []deb
	seen := map[string]bool{}
	want := []string{kernel[0].depends[0], packageBusybox, packageSSH, packageSFTP}
	roots := slices.Clone(want)
	for len(want) > 0 {
		found, err := show(ctx, want)
		if err != nil {
			return nil, err
		}
		for _, name := range want {
			seen[name] = true
		}
		want = nil
		for _, p := range found {
			root := slices.Contains(roots, p.Name)
			if !root && p.section != "libs" {
				continue
			}
			p.Kernel = p.Name == roots[0]
			debs = append(debs, p.deb)
			for _, name := range p.depends {
				if !seen[name] && !p.Kernel {
					seen[name] = true
					want = append(want, name)
				}
			}
		}
	}
	for _, name := range roots {
		if !slices.ContainsFunc(debs, func(d deb) bool { return d.Name == name }) {
			return nil, &missingError{"apt knows no " + name + ": run apt-get update as root"}
		}
	}
	slices.SortFunc(debs, func(a, b deb) int { return strings.Compare(a.Name, b.Name) })
	return debs, nil
}

// shown is what apt's lists say of a package.
type shown struct {
	deb
	section string
	depends []string // the first choice of each
}

// show asks for the candidate versions of packages. It leaves out what apt does not know,
// virtual packages among them.
func show(ctx context.Context, names []string) ([]shown, error) {
	cmd := command(ctx, "apt-cache", append([]string{"show", "--no-all-versions"}, names...)...)
	out, err := cmd.Output()
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if err != nil && len(out) == 0 {
		return nil, nil // none is known
	}
	return parseShow(bytes.NewReader(out))
}

// parseShow reads the answer of apt-cache show.
func parseShow(r io.Reader) ([]shown, error) {
	var all []shown
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		key, value, ok := strings.Cut(lines.Text(), ": ")
		if !ok {
			continue
		}
		if key == "Package" {
			all = append(all, shown{deb: deb{Name: value}})
			continue
		}
		if len(all) == 0 {
			continue
		}
		p := &all[len(all)-1]
		switch key {
		case "Version":
			p.Version = value
		case "Section":
			p.section = value
		case "SHA256":
			p.SHA256 = value
		case "Depends", "Pre-Depends":
			for d := range strings.SplitSeq(value, ",") {
				name, _, _ := strings.Cut(strings.TrimSpace(d), " ")
				name, _, _ = strings.Cut(name, ":")
				p.depends = append(p.depends, name)
			}
		}
	}
	return all, lines.Err()
}

// fetch downloads what is not in the folder yet, and notes the names that apt gave the
// files.
func (s *packageSet) fetch(ctx context.Context) error {
	// As root apt would fetch as a user who may not write here.
	args := []string{"-qq", "-o", "APT::Sandbox::User=root", "download"}
	for _, d := range s.Debs {
		args = append(args, d.Name+"="+d.Version)
	}
	cmd := command(ctx, "apt-get", args...)
	cmd.Dir = s.dir
	if _, err := output(cmd); err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return &missingError{fmt.Sprintf("%v\nThe packages are fetched once, over the network; if they are not found there, run apt-get update as root", err)}
	}
	for i, d := range s.Debs {
		found, err := filepath.Glob(filepath.Join(s.dir, d.Name+"_"+strings.ReplaceAll(d.Version, ":", "%3a")+"_*.deb"))
		if err != nil || len(found) != 1 {
			return fmt.Errorf("apt-get download left no file of %s %s in %s", d.Name, d.Version, s.dir)
		}
		s.Debs[i].File = filepath.Base(found[0])
	}
	return nil
}

// verify compares a package's file with the digest that apt's signed lists gave.
func (s packageSet) verify(d deb) error {
	f, err := os.Open(s.path(d))
	if err != nil {
		return fmt.Errorf("%w: delete %s, and the packages are fetched again", err, s.dir)
	}
	defer f.Close()
	sum := sha256.New()
	if _, err := io.Copy(sum, f); err != nil {
		return err
	}
	if got := hex.EncodeToString(sum.Sum(nil)); got != d.SHA256 {
		return fmt.Errorf("%s is damaged: delete %s, and the packages are fetched again", s.path(d), s.dir)
	}
	return nil
}
