// SPDX-License-Identifier: MIT

package setup

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"mime"
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
	return unreached(ctx, err), false
}

// unreached says in words why a request had no answer.
func unreached(ctx context.Context, err error) string {
	var (
		name    *net.DNSError
		cert    *tls.CertificateVerificationError
		record  tls.RecordHeaderError
		unknown x509.UnknownAuthorityError
		op      *net.OpError
	)
	switch {
	case errors.As(err, &name):
		return fmt.Sprintf("the name %s does not resolve (%s)", name.Name, name.Err)
	case errors.As(err, &cert):
		return fmt.Sprintf("the certificate is not believed: %v", cert.Err)
	case errors.As(err, &unknown):
		return "the certificate is of an unknown authority"
	case errors.As(err, &record), errors.Is(err, http.ErrSchemeMismatch):
		return "no TLS is spoken there"
	case context.Cause(ctx) != nil:
		return context.Cause(ctx).Error()
	case errors.As(err, &op) && op.Op == "dial":
		return fmt.Sprintf("no connection: %v", op.Err)
	default:
		return err.Error()
	}
}

// reach returns an error where no GitHub answers at a server's API, before anybody is sent
// there. What GitHub refuses, or cannot do just now, is an answer too.
func reach(ctx context.Context, client *http.Client, at Server) error {
	ctx, cancel := context.WithTimeoutCause(ctx, 15*time.Second, errors.New("no answer within 15s"))
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, at.API+"/meta", nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return fmt.Errorf("GitHub at %s cannot be reached from this machine: %s: is --github right, and the way through a proxy (HTTPS_PROXY)?", at.API, unreached(ctx, err))
	}
	resp.Body.Close()
	kind, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	if resp.StatusCode == http.StatusNotFound || resp.StatusCode < 400 && kind != "application/json" {
		return fmt.Errorf("what answers at %s is no GitHub (%s): --github wants the address of the server as in the browser's address bar", at.API, resp.Status)
	}
	return nil
}
