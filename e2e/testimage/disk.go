// SPDX-License-Identifier: MIT

package main

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

const (
	// diskSize is the size of the guest's disk. The file is sparse.
	diskSize = 512 << 20
	// epoch is when everything in the images was made, in seconds since 1970.
	epoch = 1_700_000_000
)

// writeDisk writes the root file system: an empty one by mkfs.ext4, filled by debugfs,
// which gives every file its owner without being root. contents is a new
// folder that files are read from.
func writeDisk(ctx context.Context, to, contents string, t tree) error {
	if err := os.Mkdir(contents, 0o700); err != nil {
		return err
	}
	defer os.RemoveAll(contents)
	f, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Truncate(diskSize); err != nil {
		return err
	}
	// Without a journal: a clone lives for one job. Identifiers are fixed for equal bytes.
	_, err = output(command(ctx, "mkfs.ext4", "-q", "-F", "-b", "4096", "-m", "0",
		"-O", "^has_journal,^metadata_csum", "-L", "root", "-U", "5a5a5a5a-0000-4000-8000-000000000001",
		"-E", "hash_seed=5a5a5a5a-0000-4000-8000-000000000002,lazy_itable_init=1,root_owner=0:0", to))
	if err != nil {
		return err
	}
	script, err := fill(contents, t)
	if err != nil {
		return err
	}
	if err := debugfs(ctx, to, script); err != nil {
		return err
	}
	if _, err := output(command(ctx, "e2fsck", "-fn", to)); err != nil {
		return fmt.Errorf("the new file system is damaged: %w", err)
	}
	return nil
}

// fill writes the files' contents into a folder, and returns the commands that make
// debugfs take them.
func fill(contents string, t tree) ([]byte, error) {
	var script bytes.Buffer
	for i, name := range t.paths() {
		n := t[name]
		switch n.mode.Type() {
		case fs.ModeDir:
			fmt.Fprintf(&script, "mkdir %s\n", quote(name))
		case fs.ModeSymlink:
			fmt.Fprintf(&script, "symlink %s %s\n", quote(name), quote(n.target))
		default:
			content := filepath.Join(contents, fmt.Sprint(i))
			if err := os.WriteFile(content, n.data, 0o600); err != nil {
				return nil, err
			}
			fmt.Fprintf(&script, "write %s %s\n", quote(content), quote(name))
		}
	}
	for _, name := range t.paths() {
		n := t[name]
		for field, value := range map[string]string{
			"mode": fmt.Sprintf("0%o", unixMode(n.mode)), "uid": fmt.Sprint(n.owner), "gid": fmt.Sprint(n.owner),
		} {
			fmt.Fprintf(&script, "set_inode_field %s %s %s\n", quote(name), field, value)
		}
	}
	return script.Bytes(), nil
}

// quote writes an argument as debugfs reads it.
func quote(arg string) string { return `"` + strings.ReplaceAll(arg, `"`, `""`) + `"` }

// debugfs carries out commands on a file system. It says what failed on standard error
// alone, after a line with its version.
func debugfs(ctx context.Context, disk string, script []byte) error {
	cmd := command(ctx, "debugfs", "-w", "-f", "-", disk)
	cmd.Stdin = bytes.NewReader(script)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Run(); err != nil {
		return toolError(cmd, err, stderr.String())
	}
	_, complaint, _ := strings.Cut(stderr.String(), "\n")
	if complaint = strings.TrimSpace(complaint); complaint != "" {
		return fmt.Errorf("%s: %s", strings.Join(cmd.Args, " "), complaint)
	}
	return nil
}
