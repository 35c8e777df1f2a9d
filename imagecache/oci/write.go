// SPDX-License-Identifier: MIT

package oci

import (
	"context"
	"crypto/sha256"
	"fmt"
	"hash"
	"io"
	"os"

	"github.com/minifleet/minifleet/imagecache/manifest"
)

// input reads a part of a file in order, and can be called off.
type input struct {
	ctx  context.Context
	f    *os.File
	at   int64
	left int64
}

func newInput(ctx context.Context, f *os.File, n int64) *input {
	return &input{ctx: ctx, f: f, left: n}
}

// Read reads on.
func (r *input) Read(b []byte) (int, error) {
	switch {
	case r.ctx.Err() != nil:
		return 0, context.Cause(r.ctx)
	case r.left == 0:
		return 0, io.EOF
	}
	n, err := r.f.ReadAt(b[:min(int64(len(b)), r.left)], r.at)
	r.at += int64(n)
	r.left -= int64(n)
	return n, err
}

// copy gives all that is left to emit. Less than that is an error.
func (r *input) copy(emit func([]byte) error) error {
	buf := make([]byte, min(copyBytes, r.left))
	for r.left > 0 {
		n, err := io.ReadFull(r, buf[:min(int64(len(buf)), r.left)])
		if err != nil {
			return fmt.Errorf("read %s: %w", r.f.Name(), err)
		}
		if err := emit(buf[:n]); err != nil {
			return err
		}
	}
	return nil
}

// blocks gives what lies at an offset of a file to each, cut where blocks end.
func blocks(offset int64, b []byte, each func(b []byte, zero bool)) {
	for len(b) > 0 {
		n := min(int64(len(b)), blockBytes-offset%blockBytes)
		each(b[:n], isZero(b[:n]))
		offset += n
		b = b[n:]
	}
}

// tally knows whether a piece's content is right, and the sums of its chunks.
type tally struct {
	c    *piece
	sum  hash.Hash
	sums *chunkSums
	at   int64
}

func newTally(c *piece) *tally {
	return &tally{c: c, sum: sha256.New(), sums: newChunkSums(c.offset, c.offset+c.bytes, c.to.Size), at: c.offset}
}

func (t *tally) take(b []byte) error {
	t.sum.Write(b)
	blocks(t.at, b, t.sums.take)
	t.at += int64(len(b))
	return nil
}

func (t *tally) check() error {
	var sum manifest.Sum
	t.sum.Sum(sum[:0])
	if t.at != t.c.offset+t.c.bytes || sum != t.c.content {
		return errContent
	}
	return nil
}

// pieceWriter writes a piece into its file: zeros as holes, and nothing where the file has
// the same already, so that what it shares with another image stays shared.
type pieceWriter struct {
	*tally
	there []byte // what the file has
	zero  bool   // so far there were only zeros
	wrote func(n int) error
}

func newPieceWriter(c *piece, wrote func(int) error) *pieceWriter {
	return &pieceWriter{tally: newTally(c), zero: true, wrote: wrote}
}

// Write writes on. The two sums, which take the longest, are made side by side.
func (w *pieceWriter) Write(b []byte) error {
	whole := make(chan struct{})
	go func() {
		defer close(whole)
		w.sum.Write(b)
	}()
	var err error
	run := int64(0) // bytes from w.at on that are to be written together
	at := w.at
	flush := func(skip int) {
		if run > 0 && err == nil {
			_, err = w.c.to.f.WriteAt(b[at-w.at:][:run], at)
		}
		at += run + int64(skip)
		run = 0
	}
	blocks(w.at, b, func(part []byte, zero bool) {
		w.sums.take(part, zero)
		w.zero = w.zero && zero
		if err == nil {
			var same bool
			if same, err = w.same(at+run, part, zero); same {
				flush(len(part))
				return
			}
		}
		run += int64(len(part))
	})
	flush(0)
	<-whole
	w.at += int64(len(b))
	if err != nil {
		return err
	}
	return w.wrote(len(b))
}

// same reports whether the file has this already. Where it does not reach it has zeros,
// once it is as long as it will be.
func (w *pieceWriter) same(at int64, b []byte, zero bool) (bool, error) {
	old := min(max(w.c.to.had-at, 0), int64(len(b)))
	if old == 0 {
		return zero, nil
	}
	if w.there == nil {
		w.there = make([]byte, blockBytes)
	}
	there := w.there[:old]
	if _, err := w.c.to.f.ReadAt(there, at); err != nil {
		return false, err
	}
	return string(there) == string(b[:old]) && isZero(b[old:]), nil
}

// close checks that the piece was what it should be, and has the file reach its end.
func (w *pieceWriter) close() error {
	if err := w.check(); err != nil {
		return fmt.Errorf("%w, although its blob is: the image is broken in the registry: push it again", err)
	}
	return w.c.reach()
}
