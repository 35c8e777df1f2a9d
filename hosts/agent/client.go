// SPDX-License-Identifier: MIT

package agent

import (
	"bytes"
	"context"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/minifleet/minifleet/hosts/protocol"
	"github.com/minifleet/minifleet/secret"
	"github.com/minifleet/minifleet/trust"
)

// How long calls may take, apart from a desired call, which waits by intention.
const (
	callTimeout = 30 * time.Second
	mintTimeout = 2 * time.Minute // the controller may ask GitHub several times
)

// refusal is an answer of the controller that is not 2xx.
type refusal struct {
	status     int
	code       protocol.Code
	message    string
	retryAfter time.Duration
}

func (r *refusal) Error() string {
	return fmt.Sprintf("the controller answered %d (%s): %s", r.status, r.code, r.message)
}

// codeOf returns the code of a refusal, "" for any other error.
func codeOf(err error) protocol.Code {
	if r, ok := errors.AsType[*refusal](err); ok {
		return r.code
	}
	return ""
}

// client speaks the protocol's calls. It decides nothing.
type client struct {
	base      *url.URL
	http      *http.Client
	transport *http.Transport
	agent     string // User-Agent
}

// newClient returns a client that trusts the certificate with the pin, if there is
// one, or else what caFile says, or else the system's authorities.
func newClient(cfg Config, pin string) (*client, error) {
	base, err := controllerURL(cfg.Controller)
	if err != nil {
		return nil, err
	}
	trust, err := tlsConfig(cfg.CAFile, pin)
	if err != nil {
		return nil, err
	}
	transport := &http.Transport{
		DialContext:            cfg.Dial,
		TLSClientConfig:        trust,
		TLSHandshakeTimeout:    10 * time.Second,
		MaxResponseHeaderBytes: 64 << 10,
		MaxIdleConnsPerHost:    4,
		IdleConnTimeout:        90 * time.Second,
	}
	if !isLoopback(base.Hostname()) {
		transport.Proxy = http.ProxyFromEnvironment
	}
	return &client{
		base: base, transport: transport, agent: "minifleet-agent/" + cfg.Version,
		http: &http.Client{
			Transport:     transport,
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}, nil
}

func tlsConfig(caFile, pin string) (*tls.Config, error) {
	c := &tls.Config{MinVersion: tls.VersionTLS12}
	if caFile != "" {
		pem, err := os.ReadFile(caFile)
		if err != nil {
			return nil, fmt.Errorf("ca_file: %w", err)
		}
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("ca_file %s holds no PEM certificate", caFile)
		}
	}
	if pin != "" {
		// The key itself is known, so who signed the certificate does not matter.
		c.InsecureSkipVerify = true
		c.VerifyConnection = func(s tls.ConnectionState) error {
			if len(s.PeerCertificates) > 0 &&
				subtle.ConstantTimeCompare([]byte(protocol.Pin(s.PeerCertificates[0])), []byte(pin)) == 1 {
				return nil
			}
			return errors.New("the controller's certificate is not the one that the enrolment token pins: " +
				"if its key was changed on purpose, enrol this host anew with a new token")
		}
	}
	return c, nil
}

func (c *client) close() { c.transport.CloseIdleConnections() }

func (c *client) enrol(ctx context.Context, in protocol.Enrol) (protocol.Enrolled, error) {
	var out protocol.Enrolled
	err := c.call(ctx, callTimeout, http.MethodPost, protocol.PathEnrol, secret.Text{}, in, &out)
	if err == nil {
		err = checkEnrolled(out)
	}
	return out, err
}

func (c *client) hello(ctx context.Context, credential secret.Text, in protocol.Hello) (protocol.Welcome, error) {
	var out protocol.Welcome
	err := c.call(ctx, callTimeout, http.MethodPost, protocol.PathHello, credential, in, &out)
	if err == nil {
		err = checkWelcome(&out)
	}
	return out, err
}

// desired waits up to wait at the controller for a revision other than the given one.
func (c *client) desired(ctx context.Context, credential secret.Text, instance string, revision int64, wait time.Duration) (protocol.Desired, error) {
	query := url.Values{
		"instance": {instance},
		"revision": {strconv.FormatInt(revision, 10)},
		"wait":     {strconv.Itoa(int(wait.Round(time.Second).Seconds()))},
	}
	var out protocol.Desired
	err := c.call(ctx, wait+callTimeout, http.MethodGet, protocol.PathDesired+"?"+query.Encode(), credential, nil, &out)
	if err == nil {
		err = checkDesired(&out)
	}
	return out, err
}

func (c *client) report(ctx context.Context, credential secret.Text, in protocol.Report) error {
	return c.call(ctx, callTimeout, http.MethodPost, protocol.PathReport, credential, in, nil)
}

// mint returns the name of the registration, its JIT config and the policy that goes with it.
func (c *client) mint(ctx context.Context, credential secret.Text, instance, runner string) (string, secret.Text, *trust.Policy, error) {
	path := strings.Replace(protocol.PathMint, "{runner}", url.PathEscape(runner), 1)
	var out protocol.Minted
	err := c.call(ctx, mintTimeout, http.MethodPost, path, credential, protocol.MintRequest{Instance: instance}, &out)
	if err == nil {
		err = checkMinted(out)
	}
	if err != nil {
		return "", secret.Text{}, nil, fmt.Errorf("mint %s: %w", runner, err)
	}
	return out.Name, secret.New(out.JITConfig), out.Trust, nil
}

func (c *client) call(ctx context.Context, timeout time.Duration, method, path string, credential secret.Text, in, out any) error {
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("no answer within %s", timeout))
	defer cancel()
	var body io.Reader
	if in != nil {
		raw, err := json.Marshal(in)
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		body = bytes.NewReader(raw)
	}
	req, err := http.NewRequestWithContext(ctx, method, strings.TrimRight(c.base.String(), "/")+path, body)
	if err != nil {
		return err
	}
	req.Header.Set("User-Agent", c.agent)
	req.Header.Set("Accept", "application/json")
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if !credential.Empty() {
		req.Header.Set("Authorization", "Bearer "+credential.Reveal())
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	return readAnswer(resp, path, out)
}

func readAnswer(resp *http.Response, path string, out any) error {
	raw, err := io.ReadAll(io.LimitReader(resp.Body, protocol.MaxBody+1))
	switch {
	case err != nil:
		return fmt.Errorf("%s: %w", path, err)
	case resp.StatusCode/100 != 2:
		return refused(resp, raw)
	case len(raw) > protocol.MaxBody:
		return fmt.Errorf("%s: the answer is larger than %d bytes", path, protocol.MaxBody)
	case out == nil:
		return nil
	}
	if err := json.Unmarshal(raw, out); err != nil {
		// The decoder's error may quote the answer, which may be a secret.
		return fmt.Errorf("%s: the answer is not the JSON that this agent knows", path)
	}
	return nil
}

func refused(resp *http.Response, raw []byte) error {
	var e protocol.Error
	r := &refusal{status: resp.StatusCode}
	if json.Unmarshal(raw, &e) == nil {
		r.code, r.message = protocol.Code(cut(string(e.Code), 40)), cut(e.Message, 500)
	}
	if r.message == "" {
		r.message = http.StatusText(resp.StatusCode)
	}
	if s, err := strconv.Atoi(resp.Header.Get("Retry-After")); err == nil && s > 0 {
		r.retryAfter = time.Duration(boundSeconds(s, time.Hour)) * time.Second
	}
	return r
}
