// SPDX-License-Identifier: MIT

package disks

import (
	"bytes"
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"os"
)

// Changed is what an update did to a disk.
type Changed struct {
	Blocks  int64 // that are other than before
	Extents int64 // in so many runs
}

// What an update changes, as parts of all blocks that it does.
const (
	partFiles    = 0.65 // new files and new versions, folder by folder
	partDeleted  = 0.05 // files that are gone, whose blocks are discarded
	partDatabase = 0.12 // pages of databases and caches, in place
	partLog      = 0.13 // logs that were written on, and the journal
	partMetadata = 0.05 // of the groups in which something changed
)

// update is one that goes on.
type update struct {
	*writer
	f      *os.File
	size   int64
	old    []byte
	done   Changed
	groups map[int64]bool // those with changes
}

// Update changes a part of a disk's blocks as an update of its guest would, and reports
// exactly what it did: blocks that were changed to what they were do not count.
func (s *Sources) Update(ctx context.Context, path string, seed uint64, part float64) (_ Changed, err error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return Changed{}, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	info, err := f.Stat()
	if err != nil {
		return Changed{}, err
	}
	u := &update{writer: s.writer(seed, math.MaxUint64), f: f, size: info.Size(), groups: map[int64]bool{}}
	all := float64(u.size/Block) * part
	for _, step := range []struct {
		part float64
		do   func(left int64) error // changes so many blocks at most
	}{
		{partFiles, u.folder}, {partDeleted, u.deletion}, {partDatabase, u.database}, {partLog, u.log}, {partMetadata, u.metadata},
	} {
		for until := float64(u.done.Blocks) + step.part*all; float64(u.done.Blocks) < until; {
			if ctx.Err() != nil {
				return u.done, context.Cause(ctx)
			}
			if err := step.do(max(1, int64(until)-u.done.Blocks)); err != nil {
				return u.done, err
			}
		}
	}
	return u.done, nil
}

// blocks draws a number of blocks whose median is given.
func blocks(r *rand.Rand, median, sigma float64) int64 {
	return max(1, int64(math.Round(median*math.Exp(sigma*r.NormFloat64()))))
}

// put changes a run of blocks that begins at one, as far as the disk goes.
func (u *update) put(block, n int64, k kind) error {
	at := block * Block
	n = min(n, partBytes/Block, (u.size-at)/Block)
	if n <= 0 {
		return nil
	}
	bytesOf := n * Block
	if k == text || k == program || k == compressed {
		bytesOf -= u.r.Int64N(Block) // the end of the file
	}
	b := u.content(k, bytesOf)
	if u.old == nil {
		u.old = make([]byte, partBytes)
	}
	old := u.old[:len(b)]
	if _, err := u.f.ReadAt(old, at); err != nil {
		return err
	}
	before := u.done.Blocks
	for i := 0; i < len(b); i += Block {
		if !bytes.Equal(old[i:i+Block], b[i:i+Block]) {
			u.done.Blocks++
		}
	}
	if u.done.Blocks == before {
		return nil
	}
	u.done.Extents++
	u.groups[at/groupBytes] = true
	_, err := u.f.WriteAt(b, at)
	return err
}

func (u *update) anywhere() int64 { return u.r.Int64N(u.size / Block) }

// folder writes the files of one folder near each other, in what room there is between
// others.
func (u *update) folder(most int64) error {
	at := u.anywhere()
	for left := min(most, blocks(u.r, 512, 1.2)); left > 0; {
		k := program
		switch x := u.r.IntN(20); {
		case x < 8:
			k = text
		case x < 11:
			k = compressed
		}
		n := min(left, blocks(u.r, 12, 1.6))
		if err := u.put(at, n, k); err != nil {
			return err
		}
		left -= n
		at += n + blocks(u.r, 8, 1.4)
	}
	return nil
}

func (u *update) deletion(most int64) error {
	at := u.anywhere()
	for range 1 + u.r.IntN(6) {
		n := min(most, blocks(u.r, 24, 1.6))
		if err := u.put(at, n, unused); err != nil {
			return err
		}
		at += n + blocks(u.r, 16, 1.4)
	}
	return nil
}

// database changes pages all over one large file.
func (u *update) database(most int64) error {
	first, size := u.anywhere(), blocks(u.r, 4096, 0.8)
	for range max(1, min(most/4, size/80)) {
		if err := u.put(first+u.r.Int64N(size), 1+u.r.Int64N(8), records); err != nil {
			return err
		}
	}
	return nil
}

func (u *update) log(most int64) error {
	return u.put(u.anywhere(), min(most, blocks(u.r, 512, 0.8)), text)
}

// metadata changes blocks of metadata in a group that has changed.
func (u *update) metadata(int64) error {
	n := u.r.IntN(len(u.groups))
	for g := range (u.size + groupBytes - 1) / groupBytes { // in order: the seed decides alone
		if !u.groups[g] {
			continue
		}
		if n--; n < 0 {
			size := min(groupBytes, u.size-g*groupBytes)
			area := max(1, int64(float64(size)*metadataPart)/Block)
			return u.put(g*groupBytes/Block+u.r.Int64N(area), 1+u.r.Int64N(4), records)
		}
	}
	return nil
}
