// SPDX-License-Identifier: MIT

package assemble

import (
	"errors"
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

func changeTime(s *syscall.Stat_t) int64 { return s.Ctimespec.Nano() }

// errNoClone says that the volume does not clone files.
var errNoClone = errors.New("copy-on-write clones do not work here")

// reflink makes dst a clone of src, which shares its blocks.
func reflink(src, dst string) error {
	from, err := os.OpenFile(src, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer from.Close()
	err = unix.Fclonefileat(int(from.Fd()), unix.AT_FDCWD, dst, 0)
	if errors.Is(err, unix.ENOTSUP) || errors.Is(err, unix.EXDEV) {
		return fmt.Errorf("%w: %w", errNoClone, err)
	}
	return err
}

// punch makes a hole. F_PUNCHHOLE takes a structure that begins as Fstore_t does: flags, a
// reserved word, offset and length, the latter both in whole blocks of the volume.
func punch(f *os.File, off, size int64) error {
	return unix.FcntlFstore(f.Fd(), unix.F_PUNCHHOLE, &unix.Fstore_t{Offset: off, Length: size})
}

// openDirect has what is written through f leave the cache of pages at once. There is no
// need for another descriptor.
func openDirect(f *os.File, _ string) *os.File {
	_, _ = unix.FcntlInt(f.Fd(), unix.F_NOCACHE, 1) // it only costs memory
	return nil
}

func aligned([]byte, int64) bool { return false }

// flusher does nothing: the system writes by itself what a job has written.
type flusher struct{}

func (*flusher) wrote(*os.File, int64, int64) {}
