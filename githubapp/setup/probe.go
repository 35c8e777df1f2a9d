// SPDX-License-Identifier: MIT

package setup

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"
)

// Probe asks for a webhook URL from this machine and says in words what came of it.
// reached is false where GitHub, which asks from elsewhere, will hardly fare better.
func Probe(ctx context.Context, client *http.Client, url string) (found string, reached bool) {
	ctx, cancel := context.WithTimeoutCause(ctx, 15*time.Second, errors.New("no answer within 15s"))
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err.Error(), false
	}
	resp, err := client.Do(req)
	if err == nil {
		resp.Body.Close()
		if resp.StatusCode == http.StatusMethodNotAllowed { // the controller takes POST only
			return "a controller answers", true
		}
		return "something answers: " + resp.Status, resp.StatusCode != http.StatusNotFound && resp.StatusCode < 500
	}
	var (
		name    *net.DNSError
		cert    *tls.CertificateVerificationError
		record  tls.RecordHeaderError
		unknown x509.UnknownAuthorityError
		op      *net.OpError
	)
	switch {
	case errors.As(err, &name):
		return fmt.Sprintf("the name %s does not resolve (%s)", name.Name, name.Err), false
	case errors.As(err, &cert):
		return fmt.Sprintf("the certificate is not believed: %v", cert.Err), false
	case errors.As(err, &unknown):
		return "the certificate is of an unknown authority", false
	case errors.As(err, &record), errors.Is(err, http.ErrSchemeMismatch):
		return "no TLS is spoken there", false
	case context.Cause(ctx) != nil:
		return context.Cause(ctx).Error(), false
	case errors.As(err, &op) && op.Op == "dial":
		return fmt.Sprintf("no connection: %v", op.Err), false
	default:
		return err.Error(), false
	}
}
