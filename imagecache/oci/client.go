// SPDX-License-Identifier: MIT

package oci

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
)

// What a registry answers. Test with errors.Is.
var (
	ErrNotFound  = errors.New("the registry does not have it")
	ErrForbidden = errors.New("the registry denies access")
)

const (
	maxManifestBytes = 4 << 20
	maxTries         = 6 // of a request in a row that brought nothing
)

// acceptManifests names indexes too: a registry that has one and may not send it would say
// that there is nothing.
const acceptManifests = "application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json, " +
	"application/vnd.oci.image.index.v1+json, application/vnd.docker.distribution.manifest.list.v2+json"

// guard lets nothing leave this machine in the clear, whatever a registry redirects to.
type guard struct{ inner http.RoundTripper }

// RoundTrip sends the request, or refuses to.
func (g guard) RoundTrip(q *http.Request) (*http.Response, error) {
	if q.URL.Scheme != "https" && !loopback(q.URL.Hostname()) {
		return nil, final{fmt.Errorf("%s is not asked without TLS: only a registry on this machine may do without", q.URL.Host)}
	}
	return g.inner.RoundTrip(q)
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// final marks an error that another attempt would not mend.
type final struct{ error }

func (f final) Unwrap() error { return f.error }

// errDigest says that content is not what its digest says.
func errDigest(what string) error {
	return final{fmt.Errorf("%s is not what its digest says: something on the way to the registry changes it, or the registry's copy is broken: push the image again", what)}
}

// statusError is an answer that is none.
type statusError struct {
	code  int
	after time.Duration // the registry's wish, or 0
	text  string
}

func (e *statusError) Error() string {
	text := fmt.Sprintf("the registry answered %d %s", e.code, http.StatusText(e.code))
	if e.text != "" {
		text += " (" + e.text + ")"
	}
	switch e.code {
	case http.StatusUnauthorized, http.StatusForbidden:
		text += ": check the repository's name, and give credentials that may read it"
	case http.StatusNotFound:
		text += ": check the name and the tag, or push the image again"
	case http.StatusTooManyRequests:
		text += ": try again later, or give credentials, which may ask more often"
	}
	return text
}

// Is tells what callers branch on.
func (e *statusError) Is(target error) bool {
	switch target {
	case ErrNotFound:
		return e.code == http.StatusNotFound
	case ErrForbidden:
		return e.code == http.StatusUnauthorized || e.code == http.StatusForbidden
	}
	return false
}

func checkStatus(p *http.Response, codes ...int) error {
	err := transport.CheckError(p, codes...)
	if err == nil {
		return nil
	}
	e := &statusError{code: p.StatusCode}
	if s, err := strconv.Atoi(p.Header.Get("Retry-After")); err == nil && s > 0 {
		e.after = time.Duration(min(s, 60)) * time.Second
	}
	if said, ok := errors.AsType[*transport.Error](err); ok {
		e.text = diagnosis(said)
	}
	return e
}

// diagnosis is what a registry said, cut to what a log can take.
func diagnosis(e *transport.Error) string {
	if len(e.Errors) == 0 {
		return ""
	}
	text := strings.Map(func(r rune) rune {
		if !unicode.IsGraphic(r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(string(e.Errors[0].Code)+": "+e.Errors[0].Message, "?"))
	if len(text) > 200 {
		text = strings.ToValidUTF8(text[:200], "") + "..."
	}
	return text
}

// plain takes out of an error what may not be shown: the addresses that registries redirect
// to are signed, and what a token server answers may hold a token.
func plain(err error) error {
	if said, ok := errors.AsType[*transport.Error](err); ok {
		return &statusError{code: said.StatusCode, text: diagnosis(said)}
	}
	host := ""
	for {
		in, ok := errors.AsType[*url.Error](err)
		if !ok {
			break
		}
		if u, err := url.Parse(in.URL); err == nil {
			host = u.Host
		}
		err = in.Err
	}
	if host != "" {
		return fmt.Errorf("ask %s: %w", host, brief{err})
	}
	return brief{err}
}

// brief is the first line of an error, cut to what a log can take.
type brief struct{ error }

func (b brief) Error() string {
	text, _, _ := strings.Cut(b.error.Error(), "\n")
	if len(text) > 500 {
		text = strings.ToValidUTF8(text[:500], "") + "..."
	}
	return text
}

func (b brief) Unwrap() error { return b.error }

// transient reports whether another attempt may succeed.
func transient(err error) bool {
	if _, ok := errors.AsType[final](err); ok {
		return false
	}
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return false
	}
	if e, ok := errors.AsType[*statusError](err); ok {
		switch e.code {
		case http.StatusRequestTimeout, http.StatusTooManyRequests, http.StatusInternalServerError,
			http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
			return true
		}
		return false
	}
	return true
}

// try makes attempts until one succeeds or there is no point in more.
func (r *Repository) try(ctx context.Context, attempt func(context.Context) error) error {
	for n := 1; ; n++ {
		err := attempt(ctx)
		if err == nil {
			return nil
		}
		if err := r.again(ctx, err, n); err != nil {
			return err
		}
	}
}

// again waits before another attempt after n that failed in a row. It returns an error, for
// people, where there shall be none.
func (r *Repository) again(ctx context.Context, err error, n int) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	err = plain(err)
	if !transient(err) || n >= maxTries {
		return err
	}
	wait := time.Second << (n - 1)
	wait = wait/2 + rand.N(wait)
	if e, ok := errors.AsType[*statusError](err); ok {
		wait = max(wait, e.after)
	}
	return r.pause(ctx, wait)
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// manifest fetches the manifest that a tag or digest names. Where the connection is nil it
// makes one.
func (r *Repository) manifest(ctx context.Context, c *http.Client, ref string) ([]byte, error) {
	if c == nil {
		var err error
		if c, err = r.connect(ctx); err != nil {
			return nil, err
		}
	}
	return r.small(ctx, c, "manifests/"+ref, acceptManifests, maxManifestBytes)
}

// small fetches something of at most limit bytes.
func (r *Repository) small(ctx context.Context, c *http.Client, what, accept string, limit int64) ([]byte, error) {
	var b []byte
	err := r.try(ctx, func(ctx context.Context) error {
		p, err := r.get(ctx, c, what, accept, 0, 0)
		if err != nil {
			return err
		}
		defer p.Close()
		if b, err = io.ReadAll(io.LimitReader(p, limit+1)); err == nil && int64(len(b)) > limit {
			err = final{fmt.Errorf("the registry sends more than %d bytes", limit)}
		}
		return err
	})
	return b, err
}

// answer is the body of an answer. It fails if nothing comes for long, and comes no faster
// than allowed.
type answer struct {
	ctx    context.Context
	cancel context.CancelCauseFunc
	timer  *time.Timer
	body   io.ReadCloser
	r      *Repository
	from   int64 // where in the whole it begins
}

var errStalled = errors.New("the registry says nothing any more")

// get asks for something of the repository, and if from is not 0 for what lies from there
// to the end at size. The answer may begin at the beginning all the same.
func (r *Repository) get(ctx context.Context, c *http.Client, what, accept string, from, size int64) (_ *answer, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	a := &answer{ctx: ctx, cancel: cancel, r: r, timer: time.AfterFunc(r.stall, func() { cancel(errStalled) })}
	defer func() {
		a.timer.Stop()
		if err != nil {
			if errors.Is(context.Cause(ctx), errStalled) {
				err = errStalled
			}
			cancel(nil)
		}
	}()
	u := url.URL{Scheme: scheme(r.repo.Registry), Host: r.repo.RegistryStr(), Path: "/v2/" + r.repo.RepositoryStr() + "/" + what}
	q, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, final{err}
	}
	if accept != "" {
		q.Header.Set("Accept", accept)
	}
	codes := []int{http.StatusOK}
	if from > 0 {
		q.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", from, size-1))
		codes = append(codes, http.StatusPartialContent)
	}
	p, err := c.Do(q)
	if err != nil {
		return nil, err
	}
	if err = checkStatus(p, codes...); err == nil && p.StatusCode == http.StatusPartialContent {
		if a.from = from; !strings.HasPrefix(p.Header.Get("Content-Range"), fmt.Sprintf("bytes %d-", from)) {
			err = final{errors.New("the registry sends another part than it was asked for")}
		}
	}
	if err != nil {
		p.Body.Close()
		return nil, err
	}
	a.body = p.Body
	return a, nil
}

// scheme is what to ask first. The connection knows better once it was made.
func scheme(r name.Registry) string {
	host := r.RegistryStr()
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	if loopback(strings.Trim(host, "[]")) {
		return "http"
	}
	return "https"
}

// Read reads what comes.
func (a *answer) Read(b []byte) (int, error) {
	a.timer.Reset(a.r.stall)
	n, err := a.body.Read(b)
	a.timer.Stop()
	if err != nil && errors.Is(context.Cause(a.ctx), errStalled) {
		err = errStalled
	}
	if l := a.r.o.Limit; l != nil {
		for left := n; left > 0; {
			part := min(left, max(l.Burst(), 1))
			if err := l.WaitN(a.ctx, part); err != nil {
				return n, final{err}
			}
			left -= part
		}
	}
	return n, err
}

// Close ends the request.
func (a *answer) Close() error {
	a.timer.Stop()
	a.cancel(nil)
	return a.body.Close()
}
