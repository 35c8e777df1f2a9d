// SPDX-License-Identifier: MIT

package objects

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"iter"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"cloud.google.com/go/storage"
	"google.golang.org/api/iterator"
	"google.golang.org/api/option"
)

// Keys of metadata. Their values are random: by them a writer knows its own work again
// when the answer was lost.
const (
	keyPut   = "minifleet-put"
	keyTouch = "minifleet-touch"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// bucket is a part of a bucket of Google Cloud Storage, over its JSON API.
type bucket struct {
	name, prefix string // the prefix ends with a slash, or is empty
	account      string // whom the credentials are of, "" if that is not known
	client       *storage.Client
	handle       *storage.BucketHandle
	http         *http.Client
	tokens       *http.Client

	stall, patience, pause time.Duration
}

func openBucket(ctx context.Context, o Options) (*bucket, error) {
	name, prefix, _ := strings.Cut(o.Location, "/")
	b := &bucket{name: name, stall: cmp.Or(o.Stall, 30*time.Second), patience: cmp.Or(o.Patience, 2*time.Minute), pause: cmp.Or(o.Pause, 500*time.Millisecond)}
	if prefix != "" {
		if err := check(prefix); err != nil {
			return nil, fmt.Errorf("open gs://%s: %w", o.Location, err)
		}
		b.prefix = prefix + "/"
	}
	if name == "" {
		return nil, errors.New("open gs://: the bucket's name is missing")
	}
	endpoint, err := endpointOf(cmp.Or(o.Endpoint, os.Getenv("STORAGE_EMULATOR_HOST")))
	if err != nil {
		return nil, err
	}
	base := newTransport(o.dial)
	signed := http.RoundTripper(base)
	if endpoint == nil || endpoint.Scheme == "https" {
		if signed, err = b.sign(ctx, base, o.KeyFile); err != nil {
			base.CloseIdleConnections()
			return nil, fmt.Errorf("open %s: %w", b, err)
		}
	}
	b.http = &http.Client{Transport: watched{signed}, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	opts := []option.ClientOption{option.WithHTTPClient(b.http), option.WithoutAuthentication(), storage.WithJSONReads(), storage.WithDisabledClientMetrics()}
	if endpoint != nil {
		opts = append(opts, option.WithEndpoint(endpoint.String()))
	}
	if b.client, err = storage.NewClient(ctx, opts...); err != nil {
		return nil, fmt.Errorf("open %s: %w", b, err)
	}
	b.client.SetRetry(storage.WithPolicy(storage.RetryNever)) // we do, with a view of the whole
	b.handle = b.client.Bucket(name)
	return b, nil
}

// endpointOf reads an address of the JSON API; nil is Google's.
func endpointOf(text string) (*url.URL, error) {
	if text == "" {
		return nil, nil
	}
	if !strings.Contains(text, "://") {
		text = "http://" + text
	}
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" {
		return nil, errors.New("the endpoint of Cloud Storage, or STORAGE_EMULATOR_HOST, is no address: give http://HOST:PORT or https://HOST:PORT without a name or a password")
	}
	return &url.URL{Scheme: u.Scheme, Host: u.Host, Path: "/storage/v1/"}, nil
}

func (b *bucket) String() string {
	return strings.TrimSuffix("gs://"+b.name+"/"+b.prefix, "/")
}

func (b *bucket) Close() error {
	err := b.client.Close()
	b.http.CloseIdleConnections()
	if b.tokens != nil {
		b.tokens.CloseIdleConnections()
	}
	return err
}

// object returns the handle of an object under a condition.
func (b *bucket) object(name string, c Condition) *storage.ObjectHandle {
	o := b.handle.Object(b.prefix + name)
	switch {
	case c.Absent:
		o = o.If(storage.Conditions{DoesNotExist: true})
	case c != Condition{}:
		o = o.If(storage.Conditions{GenerationMatch: c.Generation, MetagenerationMatch: c.Metageneration})
	}
	return o
}

func (b *bucket) attributes(a *storage.ObjectAttrs) Attributes {
	return Attributes{
		Name: strings.TrimPrefix(a.Name, b.prefix), Size: a.Size,
		Generation: a.Generation, Metageneration: a.Metageneration, Touched: a.Updated,
	}
}

func (b *bucket) Stat(ctx context.Context, name string) (Attributes, error) {
	if err := check(name); err != nil {
		return Attributes{}, err
	}
	attrs, err := b.stat(ctx, name)
	if err != nil {
		return Attributes{}, b.explain(toRead, name, err)
	}
	return b.attributes(attrs), nil
}

func (b *bucket) stat(ctx context.Context, name string) (attrs *storage.ObjectAttrs, err error) {
	err = b.try(ctx, func(ctx context.Context, _ bool) error {
		attrs, err = b.object(name, Condition{}).Attrs(ctx)
		if err == nil && attrs.Name != b.prefix+name {
			err = fmt.Errorf("the server tells of %.100q instead", attrs.Name)
		}
		return err
	})
	return attrs, err
}

const pageObjects = 1000

func (b *bucket) List(ctx context.Context, prefix string) iter.Seq2[Attributes, error] {
	return func(yield func(Attributes, error) bool) {
		query := &storage.Query{Prefix: b.prefix + prefix, Projection: storage.ProjectionNoACL}
		err := query.SetAttrSelection([]string{"Name", "Size", "Generation", "Metageneration", "Updated"})
		last, token := "", ""
		for err == nil {
			var page []*storage.ObjectAttrs
			var next string
			err = b.try(ctx, func(ctx context.Context, _ bool) error {
				var err error
				page = nil
				next, err = iterator.NewPager(b.handle.Objects(ctx, query), pageObjects, token).NextPage(&page)
				return err
			})
			if err != nil {
				break
			}
			for _, a := range page {
				if a.Name <= last || !strings.HasPrefix(a.Name, query.Prefix) {
					yield(Attributes{}, fmt.Errorf("list %s: the server lists %.100q behind %.100q, under %q: that is no order", b, a.Name, last, query.Prefix))
					return
				}
				last = a.Name
				if !yield(b.attributes(a), nil) {
					return
				}
			}
			if token = next; token == "" {
				return
			}
		}
		yield(Attributes{}, b.explain(toList, prefix, err))
	}
}

func (b *bucket) Put(ctx context.Context, name string, content []byte, c Condition) (Attributes, error) {
	if err := check(name); err != nil {
		return Attributes{}, err
	}
	mine, sum := rand.Text(), crc32.Checksum(content, castagnoli)
	var attrs *storage.ObjectAttrs
	err := b.try(ctx, func(ctx context.Context, lost bool) error {
		w := b.object(name, c).NewWriter(ctx)
		w.ChunkSize = 0 // one request: what is tried again is tried as a whole
		w.CRC32C, w.SendCRC32C = sum, true
		w.ContentType = "application/octet-stream"
		w.CacheControl = "no-store" // a public bucket's tags would be old for an hour
		w.Metadata = map[string]string{keyPut: mine}
		_, err := w.Write(content)
		if closed := w.Close(); err == nil || closed != nil {
			err = closed
		}
		if err == nil {
			attrs = w.Attrs()
		} else if lost && isPrecondition(err) {
			attrs, err = b.own(ctx, name, keyPut, mine, err)
		}
		if err == nil && (attrs.Size != int64(len(content)) || attrs.CRC32C != sum) {
			err = fmt.Errorf("the server has %d bytes with the checksum %08x of what were %d with %08x: put it again", attrs.Size, attrs.CRC32C, len(content), sum)
		}
		return err
	})
	if err != nil {
		return Attributes{}, b.explain(toPut, name, err)
	}
	return b.attributes(attrs), nil
}

// own looks whether an object bears our mark: then an earlier attempt was carried out,
// and its condition no longer holds because of that alone. If not, refused stands.
func (b *bucket) own(ctx context.Context, name, key, mine string, refused error) (*storage.ObjectAttrs, error) {
	attrs, err := b.object(name, Condition{}).Attrs(ctx)
	switch {
	case errors.Is(err, storage.ErrObjectNotExist):
		return nil, refused
	case err != nil:
		return nil, err
	case attrs.Metadata[key] != mine:
		return nil, refused
	}
	return attrs, nil
}

func (b *bucket) Touch(ctx context.Context, name string, c Condition) (Attributes, error) {
	if err := errors.Join(check(name), c.ofExisting()); err != nil {
		return Attributes{}, err
	}
	mine := rand.Text()
	var attrs *storage.ObjectAttrs
	err := b.try(ctx, func(ctx context.Context, lost bool) (err error) {
		attrs, err = b.object(name, c).Update(ctx, storage.ObjectAttrsToUpdate{Metadata: map[string]string{keyTouch: mine}})
		if lost && isPrecondition(err) {
			attrs, err = b.own(ctx, name, keyTouch, mine, err)
		}
		return err
	})
	if err != nil {
		return Attributes{}, b.explain(toTouch, name, err)
	}
	return b.attributes(attrs), nil
}

func (b *bucket) Delete(ctx context.Context, name string, c Condition) error {
	if err := errors.Join(check(name), c.ofExisting()); err != nil {
		return err
	}
	err := b.try(ctx, func(ctx context.Context, lost bool) error {
		err := b.object(name, c).Delete(ctx)
		if lost && isNotFound(err) {
			return nil // it was carried out before, or by somebody else: it is gone
		}
		return err
	})
	if err != nil {
		return b.explain(toDelete, name, err)
	}
	return nil
}

func (b *bucket) Get(ctx context.Context, name string) (io.ReadCloser, Attributes, error) {
	if err := check(name); err != nil {
		return nil, Attributes{}, err
	}
	r := &reader{b: b, ctx: ctx, name: name, retries: b.retries()}
	if err := r.open(); err != nil {
		return nil, Attributes{}, b.explain(toRead, name, err)
	}
	return r, r.attrs, nil
}
