// SPDX-License-Identifier: MIT

package peer

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"slices"
	"sync"
	"time"

	"github.com/minifleet/minifleet/imagecache/manifest"
)

const (
	pathChunks = "/chunks/" // and the SHA-256 in hex
	queryWait  = "wait"     // asks for a chunk that has to be fetched first
	waitSoon   = "soon"     // its value where somebody waits for the image
	waitLong   = "long"     // and where nobody does

	maxHeader = 8 << 10
	maxChunk  = 64 << 20 // far more than any manifest's

	maxHolders = 8                // asked for a chunk before the bucket is
	manyLacks  = 3                // chunks in a row that it lacks, and a peer is asked less
	lackMost   = 30 * time.Second // between two questions for one that has nothing
	slowFor    = 30 * time.Second // a peer is not waited for, after it was in vain
	busyFor    = 500 * time.Millisecond
	asideMost  = 5 * time.Minute
)

// question is what a peer is asked for.
type question int

const (
	holding      question = iota // a chunk that it has
	fetching                     // or that it fetches for itself too
	fetchingSoon                 // as long as it does that in a hurry
)

// Why a peer did not give a chunk.
var (
	errLacks  = errors.New("it does not have the chunk")
	errEarly  = errors.New("it does not have the chunk yet")
	errBusy   = errors.New("it is busy")
	errSilent = errors.New("it did not answer in time")
	errLied   = errors.New("it sent something else than was asked for")
)

// other is a peer as this host has come to know it.
type other struct {
	x         *Exchange
	peer      Peer
	transport *http.Transport
	client    *http.Client

	mu       sync.Mutex // guards the rest
	luck     float64    // of being asked for what is on its disk, 1 at first
	lacks    int        // chunks in a row that it lacked
	failures int        // in a row
	lacking  time.Time  // not asked before
	slow     time.Time  // not waited for before
	aside    time.Time  // not asked before, because it failed
}

func (x *Exchange) newOther(p Peer) *other {
	transport := &http.Transport{
		DialContext: (&net.Dialer{Timeout: x.cfg.Limits.Sign}).DialContext,
		TLSClientConfig: &tls.Config{
			MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{x.cfg.Identity.Certificate},
			// The key itself is known, so who signed the certificate does not matter.
			InsecureSkipVerify: true, //nolint:gosec // VerifyConnection is stricter
			VerifyConnection: func(s tls.ConnectionState) error {
				if len(s.PeerCertificates) > 0 && subtle.ConstantTimeCompare([]byte(pinOf(s.PeerCertificates[0])), []byte(p.Pin)) == 1 {
					return nil
				}
				return errors.New("its key is not the one that the controller names")
			},
		},
		TLSHandshakeTimeout: x.cfg.Limits.Sign, MaxResponseHeaderBytes: maxHeader, DisableCompression: true,
		MaxIdleConnsPerHost: 8, IdleConnTimeout: time.Minute,
	}
	return &other{x: x, peer: p, luck: 1, transport: transport, client: &http.Client{
		Transport:     transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// rank is where a host stands in the order of those that fetch a chunk: the same for
// everybody who looks.
func rank(pin string, sum manifest.Sum) [sha256.Size]byte {
	return sha256.Sum256(append([]byte(pin), sum[:]...))
}

// ranked is a peer with its place in a chunk's order.
type ranked struct {
	*other
	rank [sha256.Size]byte
	luck float64
}

// ranking returns the peers that are worth asking now, in the chunk's order.
func (x *Exchange) ranking(sum manifest.Sum, wait bool) []ranked {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.terms.Token.Empty() {
		return nil
	}
	now := time.Now()
	out := make([]ranked, 0, len(x.others))
	for _, o := range x.others {
		if luck, ok := o.usable(now, wait); ok {
			out = append(out, ranked{o, rank(o.peer.Pin, sum), luck})
		}
	}
	slices.SortFunc(out, func(a, b ranked) int { return bytes.Compare(a.rank[:], b.rank[:]) })
	return out
}

// before returns the peers whose turn to fetch the chunk is before this host's.
func (x *Exchange) before(sum manifest.Sum) []*other {
	own := rank(x.cfg.Identity.Pin, sum)
	var out []*other
	for _, r := range x.ranking(sum, true) {
		if bytes.Compare(r.rank[:], own[:]) < 0 {
			out = append(out, r.other)
		}
	}
	return out
}

// holders returns peers that may have the chunk, the most likely first.
func (x *Exchange) holders(sum manifest.Sum, besides []*other) []*other {
	all := slices.DeleteFunc(x.ranking(sum, false), func(r ranked) bool { return slices.Contains(besides, r.other) })
	slices.SortStableFunc(all, func(a, b ranked) int { return cmp.Compare(b.luck, a.luck) })
	var out []*other
	for _, r := range all[:min(len(all), maxHolders)] {
		out = append(out, r.other)
	}
	return out
}

// usable reports whether it is worth asking.
func (o *other) usable(now time.Time, wait bool) (luck float64, ok bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.luck, !now.Before(o.aside) && !now.Before(o.lacking) && (!wait || !now.Before(o.slow))
}

// ask returns a chunk of the peer's, verified.
func (o *other) ask(ctx context.Context, sum manifest.Sum, size int64, q question) ([]byte, error) {
	began := time.Now()
	content, err := o.request(ctx, sum, size, q)
	if ctx.Err() != nil {
		return nil, context.Cause(ctx) // says nothing of the peer
	}
	o.learn(began, q != holding, err)
	return content, err
}

// learn draws the conclusion from an answer to a question of that time.
func (o *other) learn(began time.Time, wait bool, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	now := time.Now()
	if err != nil {
		o.luck /= 2
	}
	switch {
	case err == nil:
		o.luck, o.lacks, o.failures = 1, 0, 0
	case errors.Is(err, errLacks):
		o.failures = 0
		if began.Before(o.lacking) {
			return // one of several at once
		}
		if o.lacks++; o.lacks >= manyLacks {
			o.lacking = now.Add(min(time.Second<<min(o.lacks-manyLacks, 10), lackMost))
		}
	case errors.Is(err, errEarly):
		o.lacks, o.failures = 0, 0
		if wait {
			o.slow = now.Add(slowFor)
		}
	case errors.Is(err, errBusy):
		o.lacking = later(o.lacking, now.Add(busyFor))
	case errors.Is(err, errLied):
		o.aside = now.Add(o.x.cfg.Limits.Shun)
		o.x.log.Warn("another host sent what it should not; it is asked no more for long", slog.String("peer", o.peer.Address), slog.Any("error", err))
	case began.Before(o.aside):
	default:
		level := slog.LevelDebug
		if o.failures++; o.failures == 1 {
			level = slog.LevelInfo
		}
		o.aside = now.Add(o.pause())
		o.x.log.Log(context.Background(), level, "another host does not give chunks as hoped; they come from elsewhere", slog.String("peer", o.peer.Address), slog.Any("error", err))
	}
}

// pause grows with the failures in a row. The caller holds mu.
func (o *other) pause() time.Duration {
	window := min(o.x.cfg.Limits.Aside<<min(o.failures-1, 10), asideMost)
	return window/2 + rand.N(window/2+1)
}

// pullsToo notes that a peer, which may have lacked everything, fetches an image now.
func (x *Exchange) pullsToo(pin string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, o := range x.others {
		if o.peer.Pin == pin {
			o.mu.Lock()
			o.lacks, o.lacking, o.luck = 0, time.Time{}, 1
			o.mu.Unlock()
		}
	}
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

func (o *other) request(ctx context.Context, sum manifest.Sum, size int64, q question) ([]byte, error) {
	if size <= 0 || size > maxChunk {
		return nil, fmt.Errorf("a chunk of %d bytes is none", size)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	limits := o.x.cfg.Limits
	patience := time.AfterFunc(limits.Sign, func() { cancel(errSilent) })
	defer patience.Stop()
	url := "https://" + o.peer.Address + pathChunks + sum.String()
	if q != holding {
		url += "?" + queryWait + "=" + map[question]string{fetching: waitLong, fetchingSoon: waitSoon}[q]
		var once sync.Once
		ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{Got1xxResponse: func(int, textproto.MIMEHeader) error {
			once.Do(func() { patience.Reset(limits.Hold + limits.Sign) })
			return nil
		}})
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	o.x.mu.Lock()
	token := o.x.terms.Token
	o.x.mu.Unlock()
	req.Header.Set("Authorization", "Bearer "+token.Reveal())
	resp, err := o.client.Do(req)
	if err != nil {
		return nil, because(ctx, err)
	}
	defer resp.Body.Close()
	patience.Reset(limits.Whole)
	if err := refusalOf(resp, size); err != nil {
		_, _ = io.CopyN(io.Discard, resp.Body, maxHeader) // so that the connection serves the next question
		return nil, err
	}
	content := make([]byte, size)
	if _, err := io.ReadFull(resp.Body, content); err != nil {
		return nil, because(ctx, err)
	}
	if manifest.Sum(sha256.Sum256(content)) != sum {
		return nil, fmt.Errorf("%w: the content of chunk %s is another", errLied, sum)
	}
	return content, nil
}

// because prefers the reason why a call was ended to its consequence.
func because(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); errors.Is(cause, errSilent) {
		return cause
	}
	return err
}

func refusalOf(resp *http.Response, size int64) error {
	switch resp.StatusCode {
	case http.StatusOK:
		if resp.ContentLength != size {
			return fmt.Errorf("%w: %d bytes in place of %d", errLied, resp.ContentLength, size)
		}
		return nil
	case http.StatusNotFound:
		return errLacks
	case http.StatusTooEarly:
		return errEarly
	case http.StatusTooManyRequests, http.StatusServiceUnavailable:
		return errBusy
	default:
		return fmt.Errorf("it answered %d", resp.StatusCode)
	}
}
