// SPDX-License-Identifier: MIT

package manifest_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"runtime"
	"testing"

	"github.com/minifleet/minifleet/imagecache/manifest"
)

func noise(n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{2}).Read(b)
	return b
}

func TestCodec(t *testing.T) {
	t.Parallel()
	for name, content := range map[string][]byte{
		"one byte": {7},
		"noise":    noise(300 << 10),
		"text":     bytes.Repeat([]byte("some text, "), 1000),
		"zeros":    make([]byte, mib),
		"a few":    noise(300),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			stored := manifest.Compress([]byte("before"), content)[len("before"):]
			size, sum := int64(len(content)), manifest.SumOf(content)
			if most := manifest.MaxStored(size); int64(len(stored)) > most {
				t.Errorf("%d bytes became %d, more than %d", size, len(stored), most)
			}
			back, err := manifest.Decompress(stored, size, sum)
			if err != nil || !bytes.Equal(back, content) {
				t.Fatalf("%d bytes came back, %v", len(back), err)
			}
			room := make([]byte, 1, size)
			back, err = manifest.DecompressInto(room, stored, size, sum)
			if err != nil || !bytes.Equal(back, content) || &back[0] != &room[0] {
				t.Fatalf("%d bytes came back, %v", len(back), err)
			}
			for lie, err := range map[string]error{
				"of another size": errOf(manifest.Decompress(stored, size+1, sum)),
				"shorter":         errOf(manifest.Decompress(stored, max(1, size-1), manifest.SumOf(nil))),
				"another sum":     errOf(manifest.Decompress(stored, size, manifest.SumOf(nil))),
				"cut":             errOf(manifest.Decompress(stored[:len(stored)-1], size, sum)),
				"nothing":         errOf(manifest.Decompress(nil, size, sum)),
				"longer":          errOf(manifest.Decompress(append(bytes.Clone(stored), stored...), size, sum)),
				"not compressed":  errOf(manifest.Decompress(content, size, sum)),
			} {
				if !errors.Is(err, manifest.ErrCorrupt) {
					t.Errorf("%s: %v", lie, err)
				}
			}
		})
	}
	largest := make([]byte, manifest.MaxChunkBytes)
	copy(largest, noise(1<<10))
	if back, err := manifest.Decompress(manifest.Compress(nil, largest), manifest.MaxChunkBytes, manifest.SumOf(largest)); err != nil || !bytes.Equal(back, largest) {
		t.Errorf("the largest: %d bytes came back, %v", len(back), err)
	}
	for _, size := range []int64{0, -1, manifest.MaxChunkBytes + 1} {
		if _, err := manifest.Decompress(nil, size, manifest.Sum{}); err == nil || errors.Is(err, manifest.ErrCorrupt) {
			t.Errorf("a chunk of %d bytes: %v", size, err)
		}
	}
}

func errOf(_ []byte, err error) error { return err }

// bomb is a frame without a size that becomes n MiB of zeros.
func bomb(n int) []byte {
	b := []byte{0x28, 0xb5, 0x2f, 0xfd, 0x00, 0x70} // window of 16 MiB
	const most = 128 << 10
	for i := range n * mib / most {
		head := uint32(most)<<3 | 1<<1 // a byte repeated
		if i == n*mib/most-1 {
			head |= 1
		}
		b = append(binary.LittleEndian.AppendUint32(b, head)[:len(b)+3], 0)
	}
	return b
}

// TestBomb: what would become 1 GiB takes no more memory than the chunk it should be.
func TestBomb(t *testing.T) {
	small := bomb(1)
	if _, err := manifest.Decompress(small, mib, manifest.SumOf(make([]byte, mib))); err != nil {
		t.Fatal(err) // it must be the size that is refused below
	}
	large := bomb(1024)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	_, err := manifest.Decompress(large, manifest.MaxChunkBytes, manifest.SumOf(nil))
	runtime.ReadMemStats(&after)
	if !errors.Is(err, manifest.ErrCorrupt) {
		t.Error(err)
	}
	if took := after.TotalAlloc - before.TotalAlloc; took > 64<<20 {
		t.Errorf("it took %d MiB", took>>20)
	}
}

func TestAllZero(t *testing.T) {
	t.Parallel()
	for at := range 70 {
		b := make([]byte, 70)
		if !manifest.AllZero(b[:at]) {
			t.Errorf("%d zeros are not", at)
		}
		b[at] = 1
		if manifest.AllZero(b) {
			t.Errorf("a 1 at %d is overlooked", at)
		}
	}
	if manifest.AllZero([]byte{1, 1, 1}) {
		t.Error("ones are zeros")
	}
}
