// SPDX-License-Identifier: MIT

package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
)

// writeInitrd writes what the kernel boots into: busybox, the modules, and a script that
// loads them and goes on to the disk.
func writeInitrd(to string, guest tree, modules []module) error {
	busybox, ok := guest[pathBusybox]
	if !ok {
		return errors.New("the guest has no busybox")
	}
	init, err := guestFiles.ReadFile("guest/initrd/init")
	if err != nil {
		return err
	}
	t := tree{}
	for _, dir := range []string{"bin", "dev", "proc", "sys", "new"} {
		t.dir(dir, 0o755, root)
	}
	t.file("bin/busybox", 0o755, root, busybox.data)
	t.file("init", 0o755, root, init)
	for i, m := range modules {
		t.file(fmt.Sprintf("modules/%02d-%s.ko", i, m.name), 0o644, root, m.data)
	}
	return os.WriteFile(to, cpio(t), 0o644)
}

// cpio returns a tree as an archive of the format newc, which the kernel reads (its
// Documentation/driver-api/early-userspace/buffer-format.rst).
func cpio(t tree) []byte {
	var b bytes.Buffer
	entry := func(inode int, name string, mode uint32, owner uint32, data []byte) {
		pad := func() {
			for b.Len()%4 != 0 {
				b.WriteByte(0)
			}
		}
		// inode, mode, uid, gid, nlink, mtime, filesize, dev (2), rdev (2), namesize, check
		fmt.Fprintf(&b, "070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X",
			inode, mode, owner, owner, 1, epoch, len(data), 0, 0, 0, 0, len(name)+1, 0)
		b.WriteString(name)
		b.WriteByte(0)
		pad()
		b.Write(data)
		pad()
	}
	for i, name := range t.paths() {
		n := t[name]
		data := n.data
		if n.mode.Type() == fs.ModeSymlink {
			data = []byte(n.target)
		}
		entry(i+1, name, unixMode(n.mode), n.owner, data)
	}
	entry(0, "TRAILER!!!", 0, 0, nil)
	return b.Bytes()
}

// unixMode is a mode as the kernel writes it.
func unixMode(m fs.FileMode) uint32 {
	mode := uint32(m.Perm())
	switch m.Type() {
	case fs.ModeDir:
		mode |= 0o040000
	case fs.ModeSymlink:
		mode |= 0o120000
	default:
		mode |= 0o100000
	}
	if m&fs.ModeSticky != 0 {
		mode |= 0o1000
	}
	return mode
}
