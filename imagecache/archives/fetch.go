// SPDX-License-Identifier: MIT

package archives

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/minifleet/minifleet/internal/durable"
)

const (
	maxRedirects = 10
	maxTries     = 4 // of a fetch in a row that brought nothing
	pieceBytes   = 1 << 20
)

var errDigest = errors.New("its SHA-256 is another than the pool's: correct the pool's runner, whose digest is on the release's page")

// errPart says that what is there of an archive is no beginning of what the server has.
var errPart = errors.New("what was fetched before is no part of what the server has")

// errRedirect is a redirect that is not followed.
type errRedirect struct{ to string }

func (e errRedirect) Error() string {
	return "it is redirected to " + e.to + ": only https is followed"
}

// brokenError is a failure of the way to the server, which may work the next time.
type brokenError struct{ err error }

func (e *brokenError) Error() string { return e.err.Error() }
func (e *brokenError) Unwrap() error { return e.err }

func newClient(cfg Config) *http.Client {
	transport := cfg.Transport
	if transport == nil {
		t := http.DefaultTransport.(*http.Transport).Clone() //nolint:forcetypeassert // it is one
		t.DisableCompression = true                          // the digest is of what is sent
		t.DisableKeepAlives = true                           // a fetch is rare
		t.ResponseHeaderTimeout = cfg.Stall
		transport = t
	}
	return &http.Client{Transport: transport, CheckRedirect: func(req *http.Request, via []*http.Request) error {
		switch {
		case req.URL.Scheme != "https":
			return errRedirect{req.URL.Scheme + "://" + req.URL.Host}
		case len(via) >= maxRedirects:
			return errRedirect{fmt.Sprintf("ever other places, more than %d", maxRedirects)}
		}
		return nil
	}}
}

// fetch makes sure that the archive is there and right.
func (c *Cache) fetch(ctx context.Context, source *url.URL, digest string, show func(Progress)) error {
	there, err := c.prove(ctx, digest)
	if there || err != nil {
		return err
	}
	pause := time.NewTimer(0)
	defer pause.Stop()
	for failed := 0; ; {
		before := c.partSize(digest)
		err := c.attempt(ctx, source, digest, show)
		var broken *brokenError
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case err == nil || !errors.As(err, &broken):
			return err
		case c.partSize(digest) > before:
			failed = 0
		}
		if failed++; failed >= maxTries {
			return err
		}
		c.cfg.Log.Info("fetching an archive is tried again", slog.String("url", shown(source)), slog.Any("error", err))
		pause.Reset(c.cfg.Pause << (failed - 1))
		select {
		case <-pause.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// prove reports whether the archive is there. The first time in this process it is read:
// a disk may have spoilt what was right, and such a file is deleted.
func (c *Cache) prove(ctx context.Context, digest string) (bool, error) {
	path := c.path(digest, archiveEnd)
	c.mu.Lock()
	proved := c.proved[digest]
	c.mu.Unlock()
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer f.Close()
	if proved {
		return true, nil
	}
	sum := sha256.New()
	if err := copyPieces(ctx, sum, f, nil); err != nil {
		return false, err
	}
	if hex.EncodeToString(sum.Sum(nil)) != digest {
		c.cfg.Log.Warn("a spoilt archive is deleted and fetched anew", slog.String("file", path))
		return false, os.Remove(path)
	}
	c.setProved(digest)
	return true, nil
}

func (c *Cache) setProved(digest string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.proved[digest] = true
}

func (c *Cache) partSize(digest string) int64 {
	info, err := os.Stat(c.path(digest, partEnd))
	if err != nil {
		return 0
	}
	return info.Size()
}

// attempt goes on with what is there of the archive. Where that does not lead to what is
// wanted, what was there may have been wrong: it begins anew.
func (c *Cache) attempt(ctx context.Context, source *url.URL, digest string, show func(Progress)) error {
	resumed, err := c.transfer(ctx, source, digest, show)
	if errors.Is(err, errDigest) && resumed || errors.Is(err, errPart) {
		_, err = c.transfer(ctx, source, digest, show)
	}
	return err
}

// transfer brings what is missing of an archive, proves the whole and puts it in its
// place. It reports whether it went on with a part. The part stays only where a later
// attempt can go on with it.
func (c *Cache) transfer(ctx context.Context, source *url.URL, digest string, show func(Progress)) (resumed bool, err error) {
	path := c.path(digest, partEnd)
	part, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return false, roomless(err)
	}
	defer func() {
		err = errors.Join(err, part.Close())
		var broken *brokenError
		if err != nil && ctx.Err() == nil && !errors.As(err, &broken) {
			err = errors.Join(err, os.Remove(path))
		}
	}()
	sum := sha256.New()
	if err := copyPieces(ctx, sum, part, nil); err != nil {
		return false, err
	}
	have, err := part.Seek(0, io.SeekEnd)
	if err != nil {
		return false, err
	}
	body, total, from, err := c.open(ctx, source, have)
	if err != nil {
		return false, err
	}
	defer body.Close()
	if from == 0 && have > 0 {
		sum.Reset()
		if _, err := part.Seek(0, io.SeekStart); err != nil {
			return false, err
		}
		if err := part.Truncate(0); err != nil {
			return false, err
		}
	}
	resumed = from > 0
	if total > c.cfg.MaxBytes {
		return resumed, c.tooLarge()
	}
	done := from
	show(Progress{done, total})
	err = copyPieces(ctx, io.MultiWriter(c.writer(part), sum), io.LimitReader(body, c.cfg.MaxBytes+1-from), func(n int64) {
		done += n
		show(Progress{done, total})
	})
	switch {
	case err != nil:
		return resumed, roomless(err)
	case done > c.cfg.MaxBytes:
		return resumed, c.tooLarge()
	case total > 0 && done < total:
		return resumed, &brokenError{fmt.Errorf("it ended after %d of %d bytes", done, total)}
	}
	return resumed, c.settle(part, sum, digest)
}

func (c *Cache) tooLarge() error {
	return fmt.Errorf("it is larger than %d MiB: that is no runner", c.cfg.MaxBytes>>20)
}

// settle proves what was brought and makes it an archive, durably.
func (c *Cache) settle(part *os.File, sum hash.Hash, digest string) error {
	if got := hex.EncodeToString(sum.Sum(nil)); got != digest {
		return fmt.Errorf("%w (it is %s)", errDigest, got)
	}
	if err := part.Sync(); err != nil {
		return roomless(err)
	}
	if err := durable.Rename(part.Name(), c.path(digest, archiveEnd)); err != nil {
		return roomless(err)
	}
	c.setProved(digest)
	return nil
}

// roomless adds to an error of a full volume what to do about it.
func roomless(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fmt.Errorf("there is no room for it (%w): free some space on the volume of the agent's state_dir", err)
	}
	return err
}

// open opens the source, at have if it can. total is the size of the whole, 0 if the
// server does not say.
func (c *Cache) open(ctx context.Context, source *url.URL, have int64) (body io.ReadCloser, total, from int64, err error) {
	if source.Scheme == "file" {
		return openFile(source.Path)
	}
	return c.request(ctx, source, have)
}

// openFile opens a file, which is read anew from its beginning.
func openFile(path string) (io.ReadCloser, int64, int64, error) {
	f, err := os.OpenFile(filepath.Clean(path), os.O_RDONLY|syscall.O_NONBLOCK, 0) // a pipe must not hold us
	if err != nil {
		return nil, 0, 0, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = errors.New("it is not a file")
	}
	if err != nil {
		return nil, 0, 0, errors.Join(err, f.Close())
	}
	return f, info.Size(), 0, nil
}

func (c *Cache) request(ctx context.Context, source *url.URL, have int64) (_ io.ReadCloser, total, from int64, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer func() {
		if err != nil {
			cancel(nil)
		}
	}()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, source.String(), nil)
	if err != nil {
		return nil, 0, 0, err
	}
	if have > 0 {
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-", have))
	}
	b := &body{cancel: cancel, stall: c.cfg.Stall}
	b.timer = time.AfterFunc(c.cfg.Stall, b.stalled)
	resp, err := c.http.Do(req) //nolint:bodyclose // it is part of what is returned
	if err != nil {
		b.timer.Stop()
		return nil, 0, 0, broken(ctx, err)
	}
	b.ReadCloser, b.ctx = resp.Body, ctx
	if total, from, err = extent(resp, have); err != nil {
		return nil, 0, 0, errors.Join(err, b.Close())
	}
	return b, total, from, nil
}

// extent reads from an answer how large the whole is and where its body begins.
func extent(resp *http.Response, have int64) (total, from int64, err error) {
	switch {
	case resp.StatusCode == http.StatusOK:
		return max(resp.ContentLength, 0), 0, nil
	case resp.StatusCode == http.StatusPartialContent:
		from, total, err = parseContentRange(resp.Header.Get("Content-Range"))
		switch {
		case err == nil && from == have:
			return total, from, nil
		case have > 0:
			return 0, 0, errPart
		case err == nil:
			err = fmt.Errorf("the server sends from byte %d and was asked for all", from)
		}
		return 0, 0, err
	case resp.StatusCode == http.StatusRequestedRangeNotSatisfiable && have > 0:
		return 0, 0, errPart
	case resp.StatusCode >= 500, resp.StatusCode == http.StatusTooManyRequests, resp.StatusCode == http.StatusRequestTimeout:
		return 0, 0, &brokenError{fmt.Errorf("the server answers %d", resp.StatusCode)}
	default:
		return 0, 0, fmt.Errorf("the server answers %d: correct the pool's runner.url", resp.StatusCode)
	}
}

// parseContentRange reads "bytes FROM-TO/TOTAL", where TOTAL may be "*": 0 then.
func parseContentRange(text string) (from, total int64, err error) {
	bad := fmt.Errorf("the server's Content-Range is %.100q: want bytes FROM-TO/TOTAL", text)
	span, whole, ok1 := strings.Cut(strings.TrimPrefix(text, "bytes "), "/")
	first, last, ok2 := strings.Cut(span, "-")
	if !ok1 || !ok2 || !strings.HasPrefix(text, "bytes ") {
		return 0, 0, bad
	}
	a, err1 := strconv.ParseUint(first, 10, 63)
	z, err2 := strconv.ParseUint(last, 10, 63)
	if err1 != nil || err2 != nil || z < a {
		return 0, 0, bad
	}
	if whole == "*" {
		return int64(a), 0, nil
	}
	n, err := strconv.ParseUint(whole, 10, 63)
	if err != nil || n <= z {
		return 0, 0, bad
	}
	return int64(a), int64(n), nil
}

// body is an answer's body that ends when the server sends nothing for too long.
type body struct {
	io.ReadCloser
	ctx    context.Context //nolint:containedctx // of the request: it says why a read ended
	cancel context.CancelCauseFunc
	stall  time.Duration
	timer  *time.Timer
}

func (b *body) stalled() { b.cancel(fmt.Errorf("the server sent nothing for %s", b.stall)) }

func (b *body) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if n > 0 {
		b.timer.Reset(b.stall)
	}
	if err != nil && !errors.Is(err, io.EOF) {
		err = broken(b.ctx, err)
	}
	return n, err
}

func (b *body) Close() error {
	b.timer.Stop()
	b.cancel(nil)
	return b.ReadCloser.Close()
}

// broken says of an error of the network why it came, without the URL that it may carry:
// that one may have secrets, and can be another than the operator's.
func broken(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		return &brokenError{cause}
	}
	if to, ok := errors.AsType[errRedirect](err); ok {
		return to
	}
	if cert, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return fmt.Errorf("its server is not trusted: %w", cert)
	}
	if of, ok := errors.AsType[*url.Error](err); ok {
		err = of.Err
	}
	return &brokenError{err}
}

// copyPieces copies until the end, piece by piece, so that it can be called off and tell
// how far it is.
func copyPieces(ctx context.Context, dst io.Writer, src io.Reader, moved func(int64)) error {
	for {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		n, err := io.CopyN(dst, src, pieceBytes)
		if moved != nil && n > 0 {
			moved(n)
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}
