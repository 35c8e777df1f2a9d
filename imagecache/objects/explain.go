// SPDX-License-Identifier: MIT

package objects

import (
	"cmp"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"cloud.google.com/go/storage"
	"google.golang.org/api/googleapi"
)

// action is what was tried, and what permission and role it takes.
type action struct{ verb, permission, role string }

var (
	toRead   = action{"read", "storage.objects.get", "roles/storage.objectViewer"}
	toList   = action{"list", "storage.objects.list", "roles/storage.objectViewer"}
	toPut    = action{"write", "storage.objects.create, and storage.objects.delete to replace one", "roles/storage.objectUser"}
	toTouch  = action{"touch", "storage.objects.update", "roles/storage.objectUser"}
	toDelete = action{"delete", "storage.objects.delete", "roles/storage.objectUser"}
)

func codeOf(err error) int {
	if e, ok := errors.AsType[*googleapi.Error](err); ok {
		return e.Code
	}
	return 0
}

func isPrecondition(err error) bool { return codeOf(err) == http.StatusPreconditionFailed }

func isNotFound(err error) bool {
	return errors.Is(err, storage.ErrObjectNotExist) || errors.Is(err, storage.ErrBucketNotExist) || codeOf(err) == http.StatusNotFound
}

// explain says of an error what was tried on what, and what to do about it. The library's
// errors end here: nobody else has to know them.
func (b *bucket) explain(did action, name string, err error) error {
	what := fmt.Sprintf("%s %s/%s", did.verb, b, name)
	server, rated := "", false
	if e, ok := errors.AsType[*googleapi.Error](err); ok {
		_, message := unpack(e.Body)
		rated = slowDown(e)
		server = fmt.Sprintf("%d %s", e.Code, said(cmp.Or(e.Message, message)))
	}
	switch code := codeOf(err); {
	case code == http.StatusTooManyRequests || rated:
		return fmt.Errorf("%s: too many requests: try again later, with fewer at once: %w", what, trouble{err})
	case code == http.StatusForbidden:
		return fmt.Errorf("%s: %w: grant %s the role %s on the bucket %s (%s) (%s)",
			what, ErrForbidden, cmp.Or(b.account, "the account of your credentials"), did.role, b.name, did.permission, server)
	case code == http.StatusUnauthorized || credentialsRefused(err):
		return fmt.Errorf("%s: %w: Google does not accept the credentials%s: make a new key, or run gcloud auth application-default login (%s)",
			what, ErrForbidden, of(b.account), cmp.Or(server, "no token"))
	case code == http.StatusPreconditionFailed:
		return fmt.Errorf("%s: %w", what, ErrPrecondition)
	case isNotFound(err) && (did == toPut || did == toList || strings.Contains(server, "bucket")):
		return fmt.Errorf("%s: %w: there is no bucket %s: correct the address or make the bucket (%s)", what, ErrNotFound, b.name, server)
	case isNotFound(err):
		return fmt.Errorf("%s: %w", what, ErrNotFound)
	case code == http.StatusMovedPermanently || code == http.StatusFound || code == http.StatusTemporaryRedirect || code == http.StatusPermanentRedirect:
		return fmt.Errorf("%s: the endpoint sends elsewhere (%s): give the address it really has", what, server)
	}
	return fmt.Errorf("%s: %w", what, trouble{err})
}

func of(account string) string {
	if account == "" {
		return ""
	}
	return " of " + account
}

// trouble is an error of the network or of the library, cut to what a log can take and
// without the URL that it may carry.
type trouble struct{ error }

func (t trouble) Error() string {
	if u, ok := errors.AsType[*url.Error](t.error); ok {
		whole, inner := t.error.Error(), u.Err.Error()
		return said(strings.Replace(whole, u.Error(), inner, 1))
	}
	return said(t.error.Error())
}

func (t trouble) Unwrap() error { return t.error }

// said is what a server said, on one line and not endless.
func said(text string) string {
	text = strings.Join(strings.Fields(strings.ToValidUTF8(text, "?")), " ")
	text = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return '?'
		}
		return r
	}, text)
	if len(text) > 500 {
		text = strings.ToValidUTF8(text[:500], "") + "…"
	}
	return text
}
