// SPDX-License-Identifier: MIT

// Package disks writes disks such as a guest's file system leaves them: text, programs,
// what is compressed already and what was never written, in files of all sizes and their
// fragments; and changes them as an update of the guest does. The same seed on the same Go
// makes the same disk: text and programs are pieces of the toolchain's own.
package disks

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"

	"golang.org/x/sync/errgroup"
)

// Block is what a file system gives out: no file shares one with another.
const Block = 4 << 10

// groupBytes is an allocation group, in which a file system keeps together what belongs
// together: a folder's files, and their metadata at its start.
const groupBytes = 64 << 20

// metadataPart of a group is metadata.
const metadataPart = 0.015

type kind int

const (
	text kind = iota
	program
	compressed
	unused // never written, or discarded: zeros
	records
	kinds
)

// share is how much of a disk a kind has, and how large its files are: the median, and the
// standard deviation of the logarithm.
type share struct {
	kind   kind
	part   float64
	median float64
	sigma  float64
}

func (s share) mean() float64 { return s.median * math.Exp(s.sigma*s.sigma/2) }

func shares() []share {
	return []share{
		{text, 0.20, 6 << 10, 1.6},
		{program, 0.40, 96 << 10, 1.7},
		{compressed, 0.15, 256 << 10, 1.6},
		{unused, 0.25, 1 << 20, 1.4},
	}
}

// size draws the size of a file.
func (s share) size(r *rand.Rand) int64 {
	return max(1, int64(s.median*math.Exp(s.sigma*r.NormFloat64())))
}

// Write makes a disk of so many bytes, a multiple of Block.
func (s *Sources) Write(ctx context.Context, path string, size int64, seed uint64) error {
	if size%Block != 0 || size <= 0 {
		return fmt.Errorf("a disk of %d bytes: want blocks of %d", size, Block)
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		return err
	}
	tasks, inner := errgroup.WithContext(ctx)
	tasks.SetLimit(2)
	for at := int64(0); at < size && inner.Err() == nil; at += groupBytes {
		tasks.Go(func() error { return s.group(inner, f, at, min(groupBytes, size-at), seed) })
	}
	return errors.Join(tasks.Wait(), context.Cause(ctx), f.Close())
}

// piece is a run of blocks with parts of one file.
type piece struct {
	kind  kind
	bytes int64
}

// group writes one group: its metadata, and files until it is full. A quarter of the files
// do not lie in one piece: what is left of one comes a few files later.
func (s *Sources) group(ctx context.Context, f *os.File, at, size int64, seed uint64) error {
	w := s.writer(seed, uint64(at))
	metadata := int64(float64(size)*metadataPart) / Block * Block
	if err := w.write(f, at, piece{records, metadata}); err != nil {
		return err
	}
	all := shares()
	var total float64
	for _, one := range all {
		total += one.part / one.mean()
	}
	var later []piece
	for off := metadata; off < size; {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		var p piece
		if len(later) > 8 {
			p, later = later[0], later[1:]
		} else {
			x, i := w.r.Float64()*total, 0
			for ; i < len(all)-1 && x >= all[i].part/all[i].mean(); i++ {
				x -= all[i].part / all[i].mean()
			}
			p = piece{all[i].kind, all[i].size(w.r)}
		}
		if p.kind != unused && p.bytes > 4*Block && w.r.IntN(4) == 0 {
			first := (1 + w.r.Int64N(p.bytes/Block-1)) * Block
			later = append(later, piece{p.kind, p.bytes - first})
			p.bytes = first
		}
		p.bytes = min(p.bytes, size-off)
		if err := w.write(f, at+off, p); err != nil {
			return err
		}
		off += (p.bytes + Block - 1) / Block * Block
	}
	return nil
}
