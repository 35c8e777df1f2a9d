// SPDX-License-Identifier: MIT

package manifest_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/minifleet/minifleet/imagecache/manifest"
)

// An image whose content is like a disk's: extents of files, one after the other, that are
// text, programs, archives that do not compress, or nothing.
const (
	blockBytes  = 4 << 10
	extentBytes = 1 << 20 // on average
)

// disk makes a disk of so many MiB.
func disk(mibs int) []byte {
	r := rand.New(rand.NewPCG(1, 2))
	noise := rand.NewChaCha8([32]byte{3})
	words := make([][]byte, 4000)
	for i := range words {
		words[i] = fmt.Appendf(nil, "%x ", r.Uint64()>>(r.IntN(7)*8))
	}
	d := make([]byte, mibs<<20)
	for at := 0; at < len(d); {
		n := min(blockBytes*(1+int(r.ExpFloat64()*extentBytes/blockBytes)), len(d)-at)
		extent := d[at : at+n]
		at += n
		switch kind := r.IntN(100); {
		case kind < 35: // free
		case kind < 55: // text
			for len(extent) > 0 {
				extent = extent[copy(extent, words[int(r.ExpFloat64()*300)%len(words)]):]
			}
		case kind < 80: // programs: what repeats, and what does not
			noise.Read(extent)
			for i := 0; i+64 <= len(extent); i += 64 {
				copy(extent[i:i+40], words[(i/64)%97])
			}
		default: // compressed already
			noise.Read(extent)
		}
	}
	return d
}

// update writes anew a share of a disk's blocks, as installing software does: mostly runs
// of new files, some of them long, and single blocks of what a file system keeps of them.
func update(d []byte, share float64) (changed int) {
	r := rand.New(rand.NewPCG(4, 5))
	noise := rand.NewChaCha8([32]byte{6})
	blocks := len(d) / blockBytes
	for want := int(share * float64(blocks)); changed < want; {
		run := 1
		if r.IntN(100) < 60 {
			run = 1 + int(r.ExpFloat64()*128) // 512 KiB on average
		}
		run = min(run, want-changed)
		at := r.IntN(blocks - run)
		noise.Read(d[at*blockBytes : (at+run)*blockBytes])
		changed += run
	}
	return changed
}

// BenchmarkChunkSize prints what docs/image-format.md chooses the chunk size by. Give
// MINIFLEET_DISK_MIB for another size than 512.
func BenchmarkChunkSize(b *testing.B) {
	mibs := 512
	if n, err := strconv.Atoi(os.Getenv("MINIFLEET_DISK_MIB")); err == nil {
		mibs = n
	}
	old := disk(mibs)
	now := append([]byte(nil), old...)
	changed := int64(update(now, 0.03)) * blockBytes
	for size := manifest.MinChunkBytes; size <= manifest.MaxChunkBytes; size *= 2 {
		b.Run(fmt.Sprintf("%dMiB", size>>20), func(b *testing.B) {
			for b.Loop() {
				chunkSize(b, old, now, changed, size)
			}
		})
	}
}

func chunkSize(b *testing.B, old, now []byte, changed int64, size int) {
	var stored, moved, objects, fetched int64
	var hashing, packing, unpacking time.Duration
	m := good()
	m.ChunkBytes = int64(size)
	f := manifest.File{Path: "disk.img", Mode: 0o644, Size: int64(len(old))}
	for at := 0; at < len(old); at += size {
		end := min(at+size, len(old))
		content := old[at:end]
		began := time.Now()
		sum := manifest.SumOf(content)
		hashing += time.Since(began)
		next := manifest.SumOf(now[at:end])
		if next != sum {
			moved += int64(len(manifest.Compress(nil, now[at:end])))
			fetched++
		}
		if manifest.AllZero(content) {
			f.Chunks = append(f.Chunks, manifest.Chunk{})
			continue
		}
		began = time.Now()
		packed := manifest.Compress(nil, content)
		packing += time.Since(began)
		began = time.Now()
		if _, err := manifest.Decompress(packed, int64(len(content)), sum); err != nil {
			b.Fatal(err)
		}
		unpacking += time.Since(began)
		stored += int64(len(packed))
		objects++
		f.Chunks = append(f.Chunks, manifest.Chunk{Sum: sum, Stored: int64(len(packed))})
	}
	m.Files = []manifest.File{f}
	text, err := m.Encode()
	if err != nil {
		b.Fatal(err)
	}
	total := float64(len(old))
	const image = 150e9
	b.ReportMetric(float64(moved)/float64(changed), "moved/changed")
	b.ReportMetric(100*float64(moved)/float64(stored), "%-of-image-moved")
	b.ReportMetric(float64(stored)/total, "stored/size")
	b.ReportMetric(total/1e6/hashing.Seconds(), "hash-MB/s")
	b.ReportMetric(total/1e6/packing.Seconds(), "pack-MB/s")
	b.ReportMetric(total/1e6/unpacking.Seconds(), "unpack+hash-MB/s")
	b.ReportMetric(float64(objects)/total*image, "objects/150GB")
	b.ReportMetric(float64(fetched)/total*image, "gets-of-update/150GB")
	b.ReportMetric(float64(len(text))/total*image/1e6, "manifest-MB/150GB")
	b.ReportMetric(float64(objects)/total*image/1000*0.005, "USD-push/150GB")
	b.ReportMetric(float64(objects)/total*image/1000*0.0004, "USD-pull/150GB")
}
