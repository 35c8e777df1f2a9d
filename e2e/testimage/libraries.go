// SPDX-License-Identifier: MIT

package main

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"path"
	"strings"
)

// libraryDirs is where the loader looks.
var libraryDirs = []string{"usr/lib/x86_64-linux-gnu", "usr/lib64", "usr/lib"}

// addWithLibraries moves a program from the packages' files into the tree, and with it
// the loader and the libraries that it needs.
func addWithLibraries(to, from tree, name string) error {
	if _, ok := to[name]; ok {
		return nil
	}
	n, ok := from[name]
	if !ok {
		return errors.New("no package has it")
	}
	to.parents(name)
	to[name] = n
	if n.target != "" {
		target := n.target
		if path.IsAbs(target) {
			target = mergedUsr(target[1:])
		} else {
			target = path.Join(path.Dir(name), target)
		}
		return addWithLibraries(to, from, target)
	}
	loader, needed, err := needs(n.data)
	if err != nil {
		return err
	}
	if loader != "" {
		if err := addWithLibraries(to, from, mergedUsr(strings.TrimPrefix(loader, "/"))); err != nil {
			return fmt.Errorf("its loader %s: %w", loader, err)
		}
	}
	for _, library := range needed {
		if err := addLibrary(to, from, library); err != nil {
			return fmt.Errorf("the library %s: %w", library, err)
		}
	}
	return nil
}

func addLibrary(to, from tree, library string) error {
	for _, dir := range libraryDirs {
		if name := path.Join(dir, library); from[name].mode != 0 {
			return addWithLibraries(to, from, name)
		}
	}
	return errors.New("no package has it")
}

// needs returns the loader of a program, if it has one, and the libraries it is linked to.
func needs(data []byte) (loader string, libraries []string, err error) {
	f, err := elf.NewFile(bytes.NewReader(data))
	if err != nil {
		return "", nil, err
	}
	for _, p := range f.Progs {
		if p.Type != elf.PT_INTERP {
			continue
		}
		b := make([]byte, p.Filesz)
		if _, err := p.ReadAt(b, 0); err != nil {
			return "", nil, err
		}
		loader = string(bytes.TrimRight(b, "\x00"))
	}
	libraries, err = f.ImportedLibraries()
	return loader, libraries, err
}
