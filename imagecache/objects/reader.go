// SPDX-License-Identifier: MIT

package objects

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"cloud.google.com/go/storage"
)

// reader reads one generation of an object over as many connections as it takes. Only the
// time in which it waits for the server counts as a stall: its user may be slow.
type reader struct {
	b       *bucket
	ctx     context.Context //nolint:containedctx // of the Get that it belongs to
	name    string
	retries *retries

	attrs   Attributes
	sum     uint32 // what the server says that the content has
	summed  bool   // it said so
	read    int64
	got     uint32 // of what was read
	body    *storage.Reader
	attempt *attempt
	within  context.Context //nolint:containedctx // of the attempt
	err     error
}

// open opens the object where reading stands, trying again as long as it is worth it.
func (r *reader) open() error {
	for {
		err := r.connect()
		if err == nil {
			return nil
		}
		if err := r.retries.again(r.ctx, err); err != nil {
			return err
		}
	}
}

func (r *reader) connect() (err error) {
	r.within, r.attempt = begin(r.ctx, r.b.stall)
	defer func() {
		if err != nil {
			err = ended(r.within, err)
			r.close()
		}
	}()
	o := r.b.object(r.name, Condition{})
	if r.attrs.Generation > 0 {
		o = o.Generation(r.attrs.Generation)
	}
	if r.body, err = o.NewRangeReader(r.within, r.read, -1); err != nil {
		if r.read > 0 && isNotFound(err) {
			err = fmt.Errorf("%w: read it again from the beginning", ErrPrecondition)
		}
		return err
	}
	r.attempt.rest()
	a := r.body.Attrs
	if r.attrs.Name == "" {
		r.attrs = Attributes{Name: r.name, Size: a.Size, Generation: max(0, a.Generation), Metageneration: a.Metageneration, Touched: a.LastModified}
		r.sum, r.summed = a.CRC32C, a.CRC32C != 0 || a.Size == 0
		return nil
	}
	if a.StartOffset != r.read || a.Size != r.attrs.Size || r.attrs.Generation > 0 && a.Generation != r.attrs.Generation {
		return fmt.Errorf("asked to go on at byte %d of %d, the server sends byte %d of %d of generation %d: read it again from the beginning",
			r.read, r.attrs.Size, a.StartOffset, a.Size, a.Generation)
	}
	return nil
}

func (r *reader) close() {
	if r.body != nil {
		r.body.Close()
		r.body = nil
	}
	if r.attempt != nil {
		r.attempt.end()
		r.attempt = nil
	}
}

func (r *reader) Read(p []byte) (int, error) {
	if len(p) == 0 || r.err != nil {
		return 0, r.err
	}
	for {
		n, err := r.piece(p)
		r.read += int64(n)
		r.got = crc32.Update(r.got, castagnoli, p[:n])
		if n > 0 {
			r.retries.progress()
		}
		switch {
		case errors.Is(err, io.EOF):
			r.close()
			if r.err = io.EOF; r.summed && r.got != r.sum {
				r.err = r.b.explain(toRead, r.name, fmt.Errorf("%w: it has the checksum %08x and should have %08x", ErrCorrupt, r.got, r.sum))
			}
			return n, r.err
		case err != nil:
			if err = r.retries.again(r.ctx, err); err == nil {
				err = r.open()
			}
			if err != nil {
				r.err = r.b.explain(toRead, r.name, err)
				return n, r.err
			}
		}
		if n > 0 {
			return n, nil
		}
	}
}

// piece reads from the connection there is. io.EOF is the object's end and no other's.
func (r *reader) piece(p []byte) (int, error) {
	r.attempt.moved()
	n, err := r.body.Read(p)
	r.attempt.rest()
	if err == nil {
		return n, nil
	}
	err = ended(r.within, err)
	at := r.read + int64(n)
	if errors.Is(err, io.EOF) && at < r.attrs.Size {
		err = io.ErrUnexpectedEOF
	}
	if !errors.Is(err, io.EOF) && at == r.attrs.Size && r.attrs.Size > 0 {
		err = io.EOF // all is there, and what came behind it does not matter
	}
	if err != nil && !errors.Is(err, io.EOF) {
		r.close()
	}
	return n, err
}

func (r *reader) Close() error {
	r.close()
	r.err = errors.Join(r.err, io.ErrClosedPipe)
	return nil
}
