// SPDX-License-Identifier: MIT

package oci

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"os"

	"golang.org/x/sys/unix"
)

// spool fetches a blob into a file of its own, where it waits to be unpacked. When it
// returns without an error the file is what the digest says.
type spool struct {
	r    *Repository
	c    *http.Client
	b    blob
	f    *os.File
	sum  hash.Hash // of what the file has
	have int64
	cut  bool // it comes from more than one answer
	// got is told of bytes that came. Its error ends all.
	got func(ctx context.Context, n int) error
}

const copyBytes = 1 << 20

// worth is how much an attempt has to bring to count as none in vain.
const worth = 64 << 10

// fetch brings a blob into the file at path. What an earlier call left there is read again,
// and the rest is asked for. The caller closes the file.
func (r *Repository) fetch(ctx context.Context, c *http.Client, b blob, path string, got func(context.Context, int) error) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	s := &spool{r: r, c: c, b: b, f: f, sum: sha256.New(), got: got}
	if err := s.fill(ctx); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// fill goes on where the file ends, until it is whole. Content that came in several parts
// and is wrong is fetched once more, in the whole.
func (s *spool) fill(ctx context.Context) error {
	if err := s.recall(ctx); err != nil {
		return err
	}
	for again := false; ; again = true {
		if err := s.rest(ctx); err != nil {
			return err
		}
		if "sha256:"+hex.EncodeToString(s.sum.Sum(nil)) == s.b.digest {
			return nil
		}
		if !s.cut || again {
			return errDigest("what the registry sends")
		}
		if err := s.restart(); err != nil {
			return err
		}
	}
}

// recall reads what an earlier call left.
func (s *spool) recall(ctx context.Context) error {
	info, err := s.f.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() || info.Size() > s.b.size {
		return s.restart()
	}
	s.cut = info.Size() > 0
	buf := make([]byte, copyBytes)
	for s.have < info.Size() {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		n, err := s.f.ReadAt(buf[:min(int64(len(buf)), info.Size()-s.have)], s.have)
		s.sum.Write(buf[:n])
		s.have += int64(n)
		if err != nil {
			return err
		}
	}
	return nil
}

func (s *spool) restart() error {
	s.sum.Reset()
	s.have, s.cut = 0, false
	return s.f.Truncate(0)
}

// rest brings what is missing, in as many attempts as bring something.
func (s *spool) rest(ctx context.Context) error {
	for n := 1; s.have < s.b.size; n++ {
		before := s.have
		err := s.attempt(ctx)
		if err == nil {
			continue
		}
		if e, ok := errors.AsType[*statusError](err); ok && e.code == http.StatusRequestedRangeNotSatisfiable && s.have > 0 {
			if err := s.restart(); err != nil {
				return err
			}
			continue
		}
		s.cut = s.have > 0
		if s.have-before >= worth {
			n = 1
		}
		if err := s.r.again(ctx, err, n); err != nil {
			return err
		}
	}
	return nil
}

// attempt is one request.
func (s *spool) attempt(ctx context.Context) error {
	a, err := s.r.get(ctx, s.c, "blobs/"+s.b.digest, "", s.have, s.b.size)
	if err != nil {
		return err
	}
	defer a.Close()
	if a.from != s.have {
		if err := s.restart(); err != nil { // it knows nothing of parts
			return final{err}
		}
	}
	buf := make([]byte, 256<<10)
	for {
		n, err := a.Read(buf)
		if int64(n) > s.b.size-s.have {
			return errDigest("what the registry sends")
		}
		if n > 0 {
			if _, err := s.f.WriteAt(buf[:n], s.have); err != nil {
				return final{err}
			}
			s.sum.Write(buf[:n])
			s.have += int64(n)
			if err := s.got(ctx, n); err != nil {
				return final{err}
			}
		}
		switch {
		case errors.Is(err, io.EOF) && s.have < s.b.size:
			return fmt.Errorf("the answer ends after %d of %d bytes", s.have, s.b.size)
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
	}
}
