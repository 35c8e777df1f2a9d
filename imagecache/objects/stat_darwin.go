// SPDX-License-Identifier: MIT

package objects

import (
	"io/fs"
	"syscall"
	"time"
)

// changed is when the inode changed last.
func changed(info fs.FileInfo) time.Time {
	if s, ok := info.Sys().(*syscall.Stat_t); ok {
		return time.Unix(0, s.Ctimespec.Nano())
	}
	return info.ModTime()
}
