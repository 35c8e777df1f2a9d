// SPDX-License-Identifier: MIT

package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/minifleet/minifleet/hosts/agent"
	"github.com/minifleet/minifleet/hosts/protocol"
	"github.com/minifleet/minifleet/internal/keepport"
	"github.com/minifleet/minifleet/secret"
)

// certificate makes a self-signed certificate for loopback, valid for the time
// given, and writes name.pem and name.key.
func (s *site) certificate(name string, from, to time.Time) *x509.Certificate {
	s.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		s.t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: from, NotAfter: to,
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		s.t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		s.t.Fatal(err)
	}
	s.file(name+".pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
	s.file(name+".key", string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})))
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		s.t.Fatal(err)
	}
	return leaf
}

func (s *site) goodCertificate(name string) *x509.Certificate {
	return s.certificate(name, time.Now().Add(-time.Hour), time.Now().Add(time.Hour))
}

func TestAgentsOverTLS(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	mine, other := s.goodCertificate("mine"), s.goodCertificate("other")
	at := keepport.Address(t)
	s.agents = fmt.Sprintf(`{address: %q, cert_file: mine.pem, key_file: mine.key}`, at)
	c := s.serve()
	if !strings.HasPrefix(c.agents, "https://") {
		t.Fatalf("agents are told to call %s", c.agents)
	}
	token := c.hostToken("mini-1")
	plain, pin, err := protocol.ParseEnrolment(token)
	if err != nil || pin != protocol.Pin(mine) {
		t.Fatalf("the token's pin is %q (%v), want that of the certificate", pin, err)
	}

	refused := startHost(t, hostConfig(t, c.agents, "mini-1", "", protocol.FormatEnrolment(plain, protocol.Pin(other))), newGates())
	eventually(t, "an agent with another pin refuses the controller", func() bool {
		return strings.Contains(refused.log.String(), "not the one that the enrolment token pins")
	})
	stranger := startHost(t, hostConfig(t, c.agents, "mini-1", "", protocol.FormatEnrolment(plain, "")), newGates())
	eventually(t, "an agent without a pin trusts no certificate that nobody vouches for", func() bool {
		return strings.Contains(stranger.log.String(), "x509: ")
	})
	if rows := c.list("hosts"); len(rows) != 0 {
		t.Errorf("hosts %v: the token was told to a controller that is not trusted", rows)
	}
	refused.stop()
	stranger.stop()

	// The token is unused still, and the whole way works over TLS.
	dir := t.TempDir()
	cfg := hostConfig(t, c.agents, "mini-1", dir, token)
	g := newGates()
	g.create.open()
	g.start.open()
	g.config.open()
	h := startHost(t, cfg, g)
	c.one("state", "online", "hosts")
	s.queue(macLabels())
	c.one("phase", "idle", "runners")

	// The pin outlives the token: an agent that starts again has it from its state.
	h.stop()
	c.stop()
	s.agents = fmt.Sprintf(`{address: %q, cert_file: other.pem, key_file: other.key}`, at)
	s.serve()
	cfg.EnrolmentToken = secret.Text{}
	h = startHost(t, cfg, g)
	eventually(t, "the agent refuses a controller that shows another key", func() bool {
		return strings.Contains(h.log.String(), "not the one that the enrolment token pins")
	})
}

func TestAgentTrustsCAFile(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.goodCertificate("mine")
	s.agents = `{address: "127.0.0.1:0", cert_file: mine.pem, key_file: mine.key}`
	c := s.serve()
	plain, _, err := protocol.ParseEnrolment(c.hostToken("mini-1"))
	if err != nil {
		t.Fatal(err)
	}
	cfg := hostConfig(t, c.agents, "mini-1", "", protocol.FormatEnrolment(plain, ""))
	cfg.CAFile = s.path("mine.pem")
	startHost(t, cfg, newGates())
	c.one("state", "online", "hosts")
}

func TestOperatorsOverTLS(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.goodCertificate("mine")
	s.admin = `{address: "127.0.0.1:0", cert_file: mine.pem, key_file: mine.key, token_file: admin.token}`
	c := s.serve()
	if _, err := c.cli("get", "jobs"); err == nil || !strings.Contains(err.Error(), "is not trusted: check the address, or add its authority") {
		t.Errorf("a certificate that nobody vouches for: %v", err)
	}
	c.admin = strings.Replace(c.admin, "https://", "http://", 1)
	if _, err := c.cli("get", "jobs"); err == nil {
		t.Error("plain HTTP to a TLS listener works")
	}
}

func TestCertificateMistakes(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.goodCertificate("mine")
	s.goodCertificate("other")
	s.file("junk.pem", "junk")
	for name, test := range map[string]struct{ section, want string }{
		"missing file":  {`{address: "127.0.0.1:0", cert_file: none.pem, key_file: mine.key}`, "none.pem"},
		"no PEM":        {`{address: "127.0.0.1:0", cert_file: junk.pem, key_file: mine.key}`, "junk.pem"},
		"another's key": {`{address: "127.0.0.1:0", cert_file: mine.pem, key_file: other.key}`, "private key does not match"},
	} {
		for _, door := range []string{"webhook", "agents"} {
			t.Run(name+" of "+door, func(t *testing.T) {
				s := *s
				s.t = t
				if door == "agents" {
					s.agents = test.section
				} else {
					s.webhook = test.section
				}
				err := run(t.Context(), []string{"serve", "--config", s.config()}, nil, io.Discard, io.Discard, nothing)
				if err == nil || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), "certificate") {
					t.Errorf("%v, want %q in it", err, test.want)
				}
			})
		}
	}
}

func TestAgentRefusesPlainHTTPBeyondLoopback(t *testing.T) {
	t.Parallel()
	_, err := agent.New(hostConfig(t, "http://192.0.2.1:8443", "mini-1", "", secret.New("x")))
	if err == nil || !strings.Contains(err.Error(), "plain http is allowed to loopback only") {
		t.Errorf("%v", err)
	}
}
