// SPDX-License-Identifier: MIT

package main

import (
	"io/fs"
	"maps"
	"path"
	"slices"
)

// node is a file, a folder or a link of the guest.
type node struct {
	mode   fs.FileMode // type and permissions
	owner  uint32      // user and group
	data   []byte      // of a file
	target string      // of a link
}

// tree is the guest's files by path, without a leading slash.
type tree map[string]node

// dir adds a folder, or says who owns one and what its permissions are.
func (t tree) dir(name string, mode fs.FileMode, owner uint32) {
	t.parents(name)
	t[name] = node{mode: fs.ModeDir | mode, owner: owner}
}

func (t tree) file(name string, mode fs.FileMode, owner uint32, data []byte) {
	t.parents(name)
	t[name] = node{mode: mode, owner: owner, data: data}
}

func (t tree) link(name, target string) {
	t.parents(name)
	t[name] = node{mode: fs.ModeSymlink | 0o777, target: target}
}

// parents adds the folders above a path that are not there, as root's.
func (t tree) parents(name string) {
	parent := path.Dir(name)
	if _, ok := t[parent]; parent == "." || ok {
		return
	}
	t.dir(parent, 0o755, 0)
}

// paths returns all paths, each after its folder.
func (t tree) paths() []string { return slices.Sorted(maps.Keys(t)) }
