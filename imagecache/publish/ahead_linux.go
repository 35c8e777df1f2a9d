// SPDX-License-Identifier: MIT

package publish

import (
	"os"

	"golang.org/x/sys/unix"
)

// willRead has the system begin to read what is not in memory. It only saves time.
func willRead(f *os.File, off, size int64) {
	_ = unix.Fadvise(int(f.Fd()), off, size, unix.FADV_WILLNEED)
}
