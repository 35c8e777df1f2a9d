// SPDX-License-Identifier: MIT

package manifest

import (
	"bytes"
	"errors"
	"fmt"
	"sync"

	"github.com/klauspost/compress/zstd"
)

// ErrCorrupt says that a stored chunk is not what its name promises: whoever gave it is
// broken or lies. Test with errors.Is.
var ErrCorrupt = errors.New("the stored chunk does not hold what its name says")

// MaxStored is how many bytes a chunk of size bytes takes at the most, compressed. Nobody
// needs to read more.
func MaxStored(size int64) int64 { return size + size>>8 + 128 }

// The coders are made when first needed, used by all and never changed: what they cost is
// their tables, one set for each CPU.
var (
	encoder = sync.OnceValue(func() *zstd.Encoder {
		e, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedDefault), zstd.WithWindowSize(MaxChunkBytes), zstd.WithEncoderCRC(false))
		if err != nil {
			panic(err) // the options are constants
		}
		return e
	})
	decoder = sync.OnceValue(func() *zstd.Decoder {
		d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(0), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(MaxChunkBytes),
			zstd.WithDecoderMaxMemory(MaxChunkBytes), zstd.WithDecodeAllCapLimit(true))
		if err != nil {
			panic(err) // the options are constants
		}
		return d
	})
)

// Compress appends the stored form of a chunk's content to dst: one zstd frame. It is not
// the same in every version of this program.
func Compress(dst, content []byte) []byte { return encoder().EncodeAll(content, dst) }

// Decompress returns the content of a stored chunk, which has size bytes and the sum
// want. Anything else is ErrCorrupt, and makes it use no more memory than the truth.
func Decompress(stored []byte, size int64, want Sum) ([]byte, error) {
	return DecompressInto(nil, stored, size, want)
}

// DecompressInto is Decompress into the room behind buf[:0], if that is enough for the
// content.
func DecompressInto(buf, stored []byte, size int64, want Sum) ([]byte, error) {
	if size <= 0 || size > MaxChunkBytes {
		return nil, fmt.Errorf("a chunk of %d bytes: 1 to %d are possible", size, MaxChunkBytes)
	}
	if int64(len(stored)) > MaxStored(size) {
		return nil, fmt.Errorf("%w: chunk %s of %d bytes is stored in %d", ErrCorrupt, want, size, len(stored))
	}
	if int64(cap(buf)) < size {
		buf = make([]byte, size)
	}
	content, err := decoder().DecodeAll(stored, buf[:0:size])
	if err != nil {
		return nil, fmt.Errorf("%w: chunk %s: %w", ErrCorrupt, want, err)
	}
	if int64(len(content)) != size {
		return nil, fmt.Errorf("%w: chunk %s has %d bytes and should have %d", ErrCorrupt, want, len(content), size)
	}
	if have := SumOf(content); have != want {
		return nil, fmt.Errorf("%w: chunk %s has the sum %s", ErrCorrupt, want, have)
	}
	return content, nil
}

// AllZero reports whether content is nothing but zeros: such a chunk is not stored.
func AllZero(content []byte) bool {
	return len(content) == 0 || content[0] == 0 && bytes.Equal(content[:len(content)-1], content[1:])
}
