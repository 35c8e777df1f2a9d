// SPDX-License-Identifier: MIT

package agent_test

import (
	"context"
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/minifleet/minifleet/hosts/agent"
	"github.com/minifleet/minifleet/hosts/protocol"
	"github.com/minifleet/minifleet/secret"
)

// onLoopback is an agent on real connections, without VMs.
func onLoopback(t *testing.T, c *controller, url string) agent.Config {
	t.Helper()
	machines, err := agent.NewSimulated(agent.SimulatedConfig{Images: []string{"image"}})
	if err != nil {
		t.Fatal(err)
	}
	return agent.Config{
		Controller: url, Name: "mini-1", StateDir: filepath.Join(t.TempDir(), "state"), EnrolmentToken: c.enrolmentToken(),
		Slots: 2, Machines: machines, Machine: "hardware",
	}
}

// run runs an agent until stop is called.
func run(t *testing.T, cfg agent.Config) (stop func() error) {
	t.Helper()
	a, err := agent.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	return func() error { cancel(); return <-done }
}

func TestTheControllersCertificate(t *testing.T) {
	newServer := func(t *testing.T) (*controller, *httptest.Server) {
		c := newController(t)
		s := httptest.NewTLSServer(c)
		t.Cleanup(s.Close)
		return c, s
	}
	t.Run("pinned", func(t *testing.T) {
		c, s := newServer(t)
		cfg := onLoopback(t, c, s.URL)
		cfg.EnrolmentToken = protocol.FormatEnrolment(secret.New(c.token), protocol.Pin(s.Certificate()))
		stop := run(t, cfg)
		c.await("a report", func() bool { return len(c.reports) > 0 })
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		cfg.EnrolmentToken = secret.Text{} // the pin outlives the token
		stop = run(t, cfg)
		c.await("another agent's report", func() bool { return c.reports[len(c.reports)-1].Instance != c.reports[0].Instance })
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
	t.Run("another key than the pinned one", func(t *testing.T) {
		c, s := newServer(t)
		cfg := onLoopback(t, c, s.URL)
		cfg.EnrolmentToken = protocol.FormatEnrolment(secret.New(c.token), strings.Repeat("0a", 32))
		refuses(t, c, cfg)
	})
	t.Run("of an authority that is not known", func(t *testing.T) {
		c, s := newServer(t)
		refuses(t, c, onLoopback(t, c, s.URL))
	})
	t.Run("of the authority in ca_file", func(t *testing.T) {
		c, s := newServer(t)
		cfg := onLoopback(t, c, s.URL)
		cfg.CAFile = filepath.Join(t.TempDir(), "ca.pem")
		if err := os.WriteFile(cfg.CAFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}), 0o600); err != nil {
			t.Fatal(err)
		}
		stop := run(t, cfg)
		c.await("a report", func() bool { return len(c.reports) > 0 })
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
}

// refuses checks that the token is not shown to a controller that is not trusted.
func refuses(t *testing.T, c *controller, cfg agent.Config) {
	t.Helper()
	failed := make(chan struct{}, 100)
	var log lockedBuffer
	cfg.Log = newTestLog(&log, func() {
		select {
		case failed <- struct{}{}:
		default:
		}
	})
	stop := run(t, cfg)
	awaitSignal(t, failed)
	if err := stop(); err != nil {
		t.Error(err)
	}
	if _, enrols := c.enrolled(); enrols > 0 {
		t.Error("the token went to a controller that is not the right one")
	}
	if !strings.Contains(log.String(), "certificate") {
		t.Errorf("the log does not say why: %s", log.String())
	}
}

func TestAddressesThatAreRefused(t *testing.T) {
	for name, tc := range map[string]struct{ url, want string }{
		"nothing":          {"", "controller is missing"},
		"plain http":       {"http://minifleet.example.com", "loopback only"},
		"not quite local":  {"http://127.0.0.1.example.com", "loopback only"},
		"another scheme":   {"ftp://127.0.0.1", "https"},
		"with credentials": {"https://user:hunter2@example.com", "only scheme"},
		"no URL":           {"https://exa mple", "not a URL"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := agent.New(agent.Config{Controller: tc.url, Name: "a", Slots: 1, Machines: &agent.Simulated{}})
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v", err)
			}
			if err != nil && strings.Contains(err.Error(), "hunter2") {
				t.Error("the error shows the password")
			}
		})
	}
}

func TestRedirectsAreNotFollowed(t *testing.T) {
	c := newController(t)
	elsewhere := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		t.Errorf("the agent followed to %s with %q", r.URL.Path, r.Header.Get("Authorization"))
	}))
	t.Cleanup(elsewhere.Close)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, elsewhere.URL+r.URL.Path, http.StatusTemporaryRedirect)
	}))
	t.Cleanup(s.Close)
	cfg := onLoopback(t, c, s.URL)
	failed := make(chan struct{}, 100)
	var log lockedBuffer
	cfg.Log = newTestLog(&log, func() {
		select {
		case failed <- struct{}{}:
		default:
		}
	})
	stop := run(t, cfg)
	awaitSignal(t, failed)
	if err := stop(); err != nil {
		t.Error(err)
	}
}

func awaitSignal(t *testing.T, failed <-chan struct{}) {
	t.Helper()
	deadline := time.NewTimer(time.Minute)
	defer deadline.Stop()
	select {
	case <-failed:
	case <-deadline.C:
		t.Error("the agent found nothing wrong within a minute")
	}
}

func TestTheStateFolder(t *testing.T) {
	c := newController(t)
	s := httptest.NewServer(c)
	t.Cleanup(s.Close)
	cfg := onLoopback(t, c, s.URL)
	stop := run(t, cfg)
	c.await("a report", func() bool { return len(c.reports) > 0 })

	t.Run("belongs to one agent", func(t *testing.T) {
		second, err := agent.New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		if err := second.Run(ctx); err == nil || !strings.Contains(err.Error(), "another agent") {
			t.Errorf("a second agent ended with %v", err)
		}
	})
	t.Run("is nobody else's to read", func(t *testing.T) {
		for path, want := range map[string]os.FileMode{"": 0o700, "vms": 0o700, "failures": 0o700, "credential": 0o600, "identity.json": 0o600} {
			info, err := os.Stat(filepath.Join(cfg.StateDir, path))
			if err != nil {
				t.Error(err)
			} else if info.Mode().Perm() != want {
				t.Errorf("%q has mode %o: want %o", path, info.Mode().Perm(), want)
			}
		}
	})
	if err := stop(); err != nil {
		t.Error(err)
	}
	t.Run("makes the next agent the same host", func(t *testing.T) {
		stop := run(t, cfg)
		c.await("another agent's report", func() bool { return c.reports[len(c.reports)-1].Instance != c.reports[0].Instance })
		if err := stop(); err != nil {
			t.Error(err)
		}
		if hosts, requests := c.enrolled(); hosts != 1 || requests != 1 {
			t.Errorf("%d hosts by %d enrolments", hosts, requests)
		}
	})
	t.Run("is not used when damaged", func(t *testing.T) {
		if err := os.WriteFile(filepath.Join(cfg.StateDir, "identity.json"), []byte("{"), 0o600); err != nil {
			t.Fatal(err)
		}
		a, err := agent.New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		if err := a.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "damaged") {
			t.Errorf("the agent ended with %v", err)
		}
	})
}

func TestSimulatedVMs(t *testing.T) {
	c := newController(t)
	s := httptest.NewServer(c)
	t.Cleanup(s.Close)
	for name, failRate := range map[string]float64{"all well": 0, "all fail": 1} {
		t.Run(name, func(t *testing.T) {
			counts := &agent.SimulatedCounts{}
			machines, err := agent.NewSimulated(agent.SimulatedConfig{FailRate: failRate, Counts: counts, Seed: 7})
			if err != nil {
				t.Fatal(err)
			}
			cfg := onLoopback(t, c, s.URL)
			cfg.StateDir, cfg.Machines, cfg.Slots = "", machines, 8
			cfg.Name = strings.ReplaceAll(name, " ", "-")
			stop := run(t, cfg)
			ids := []string{"a", "b", "c", "d", "e", "f", "g", "h"}
			for _, id := range ids {
				c.want(armed(cfg.Name + id))
			}
			for _, id := range ids {
				got := c.awaitObserved(cfg.Name+id, "gone")
				if (got.Failure != "") != (failRate == 1) || (got.Result == "succeeded") != (failRate == 0) {
					t.Errorf("%s is reported as %+v", id, got)
				}
				c.forget(cfg.Name + id)
			}
			if err := stop(); err != nil {
				t.Error(err)
			}
			if counts.Running.Load() != 0 {
				t.Errorf("%d VMs are left", counts.Running.Load())
			}
		})
	}
}
