// SPDX-License-Identifier: MIT

package show

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"syscall"
	"time"

	"github.com/minifleet/minifleet/admin/api"
)

const (
	maxPage   = 1000
	maxAnswer = 64 << 20
)

type getter struct {
	Options
	client *api.ClientWithResponses
}

// page is one answer of a listing. The rows are kept as they came, so that the
// JSON output has fields of newer controllers too.
type page struct {
	Items []json.RawMessage `json:"items"`
	Next  string            `json:"next,omitempty"`
}

func printList[T any](
	ctx context.Context, g getter, table func(io.Writer, []T, time.Time) error,
	fetch func(limit *int, cursor *string) (*http.Response, error),
) error {
	all, more, err := g.collect(ctx, fetch)
	if err != nil {
		return err
	}
	if g.Output == OutputJSON {
		return indent(g.Out, all)
	}
	rows := make([]T, len(all.Items))
	for i, item := range all.Items {
		if err := json.Unmarshal(item, &rows[i]); err != nil {
			return fmt.Errorf("understand the answer of %s: %w", g.Server, err)
		}
	}
	if err := table(g.Out, rows, g.Now()); err != nil || !more {
		return err
	}
	_, err = fmt.Fprintf(g.Out, "(there is more: raise the limit above %d)\n", g.Limit)
	return err
}

func printOne[T any](g getter, table func(io.Writer, T, time.Time) error, fetch func() (*http.Response, error)) error {
	var raw json.RawMessage
	if err := g.decode(fetch, &raw); err != nil {
		return err
	}
	if g.Output == OutputJSON {
		return indent(g.Out, raw)
	}
	var one T
	if err := json.Unmarshal(raw, &one); err != nil {
		return fmt.Errorf("understand the answer of %s: %w", g.Server, err)
	}
	return table(g.Out, one, g.Now())
}

// collect follows the pages of a listing until it has as many rows as asked for,
// and reports whether there are more. The pages are not made smaller towards the
// end: a filter can leave few rows of a page, and single rows would take long.
func (g getter) collect(ctx context.Context, fetch func(*int, *string) (*http.Response, error)) (all page, more bool, err error) {
	all.Items = []json.RawMessage{}
	size := min(g.Limit, maxPage)
	cursor := ""
	for ctx.Err() == nil {
		var p page
		if err := g.decode(func() (*http.Response, error) { return fetch(&size, set(cursor)) }, &p); err != nil {
			return all, false, err
		}
		all.Items = append(all.Items, p.Items...)
		if cut := len(all.Items) - g.Limit; cut > 0 {
			all.Items = all.Items[:g.Limit]
			return all, true, nil // no cursor points between the rows of a page
		}
		if p.Next == "" || len(all.Items) == g.Limit {
			all.Next = p.Next
			return all, p.Next != "", nil
		}
		if p.Next == cursor {
			return all, false, fmt.Errorf("%s repeats the cursor of a page: its answer cannot be read to the end", g.Server)
		}
		cursor = p.Next
	}
	return all, false, ctx.Err()
}

// decode reads a good answer, and makes any other an error that says what to do.
func (g getter) decode(fetch func() (*http.Response, error), into any) error {
	resp, err := fetch()
	if err != nil {
		return g.explain(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	switch {
	case err != nil:
		return g.explain(err)
	case len(body) > maxAnswer:
		return fmt.Errorf("the answer of %s is larger than %d MiB: lower the limit", g.Server, maxAnswer>>20)
	case resp.StatusCode == http.StatusUnauthorized:
		return fmt.Errorf("%s refuses the token: set %s to the one in the controller's configuration", g.Server, g.TokenSetting)
	case resp.StatusCode != http.StatusOK:
		return g.refused(resp.StatusCode, body)
	}
	if err := json.Unmarshal(body, into); err != nil {
		return fmt.Errorf("%s does not answer as a controller does: is it the address of its operator API?", g.Server)
	}
	return nil
}

func (g getter) refused(status int, body []byte) error {
	var said api.Error
	if json.Unmarshal(body, &said) != nil || said.Error == "" {
		return fmt.Errorf("%s answers %d and no reason: is it the address of the controller's operator API?", g.Server, status)
	}
	return fmt.Errorf("%s answers %d: %s", g.Server, status, clean(said.Error, 0))
}

// explain adds to an error of the connection what to do about it.
func (g getter) explain(err error) error {
	var (
		dns  *net.DNSError
		cert *tls.CertificateVerificationError
	)
	switch {
	case errors.Is(err, context.Canceled):
		return err
	case errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("nothing listens at %s: is `minifleet serve` running there? (%w)", g.Server, err)
	case errors.As(err, &dns):
		return fmt.Errorf("the host name in %s is not known: check the server's address (%w)", g.Server, err)
	case errors.As(err, &cert):
		return fmt.Errorf("the certificate of %s is not trusted: check the address, or add its authority to the system's (%w)", g.Server, err)
	case errors.Is(err, http.ErrSchemeMismatch):
		return fmt.Errorf("%s speaks plain HTTP: check the server's address (%w)", g.Server, err)
	case errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("no answer from %s in time: is `minifleet serve` running there? (%w)", g.Server, err)
	default:
		return fmt.Errorf("ask %s: %w", g.Server, err)
	}
}
