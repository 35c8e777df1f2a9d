// SPDX-License-Identifier: MIT

package vmm_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/minifleet/minifleet/internal/leakcheck"
	"github.com/minifleet/minifleet/vm"
	"github.com/minifleet/minifleet/vm/vmm"
)

func TestMain(m *testing.M) { leakcheck.Main(m) }

// machine is a backend's instance that behaves as a test wants. Its guest greets each
// stream with a line and then sends everything back.
type machine struct {
	cfg      vm.OpenConfig
	openErr  error
	startErr error
	stopErr  error
	hang     bool          // Start hangs until its context ends
	silent   chan struct{} // if set, the guest does not answer before it is closed

	mu      sync.Mutex // guards started
	started bool
	once    sync.Once
}

func (m *machine) backend() vm.Backend {
	return vm.Backend{
		Name: vm.BackendQEMU, Isolation: vm.IsolationVM,
		Open: func(_ context.Context, cfg vm.OpenConfig) (vm.Instance, error) {
			m.cfg = cfg
			return m, m.openErr
		},
	}
}

func (m *machine) Start(ctx context.Context) error {
	if m.hang {
		<-ctx.Done()
		return ctx.Err()
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.started = m.startErr == nil
	return m.startErr
}

func (m *machine) Stop(context.Context) error {
	if m.stopErr == nil {
		m.end("was stopped")
	}
	return m.stopErr
}

func (m *machine) end(detail string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.started {
		m.once.Do(func() { m.cfg.Ended(vm.Ending{Reason: vm.ReasonGuestEnded, Detail: detail}) })
	}
}

func (*machine) Pause(context.Context) error           { return errors.ErrUnsupported }
func (*machine) Save(context.Context, string) error    { return errors.ErrUnsupported }
func (*machine) Restore(context.Context, string) error { return errors.ErrUnsupported }

func (m *machine) Connect(ctx context.Context) (net.Conn, error) {
	if m.silent != nil {
		select {
		case <-m.silent:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	ours, theirs := net.Pipe()
	go func() {
		defer theirs.Close()
		io.WriteString(theirs, "hello\n")
		io.Copy(theirs, theirs)
	}()
	return ours, nil
}

// running is a vmm that runs in this process.
type running struct {
	t    *testing.T
	dir  string
	stop context.CancelFunc
	end  chan error
}

func run(t *testing.T, m *machine, change func(*vm.Spec)) *running {
	t.Helper()
	vms, err := os.MkdirTemp("", "mf") //nolint:usetesting // its path is too long for sockets
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(vms) })
	spec := vm.Spec{ID: "m-1", Backend: vm.BackendQEMU, CPUs: 1, MemoryMiB: 1, MaxLife: time.Hour}
	if change != nil {
		change(&spec)
	}
	dir, err := vm.Create(t.Context(), vm.CreateConfig{Dir: vms, Spec: spec})
	if err != nil {
		t.Fatal(err)
	}
	return runBundle(t, dir, m.backend())
}

// runBundle runs the machine of a bundle until the test ends.
func runBundle(t *testing.T, dir string, b vm.Backend) *running {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	r := &running{t: t, dir: dir, stop: cancel, end: make(chan error, 1)}
	ready := make(chan struct{})
	go func() {
		r.end <- vmm.Run(ctx, vmm.Config{
			Bundle: dir, Backends: []vm.Backend{b}, StopTimeout: time.Minute,
			Ready: func() error { close(ready); return nil },
		})
		close(r.end)
	}()
	t.Cleanup(func() {
		cancel()
		<-r.end
	})
	<-ready
	return r
}

// wait returns what Run returned, and the final state.
func (r *running) wait() (vm.State, error) {
	r.t.Helper()
	err := <-r.end
	states, readErr := vm.ReadStatus(r.dir)
	if readErr != nil || len(states) == 0 {
		r.t.Fatalf("status: %v, %v", states, readErr)
	}
	return states[len(states)-1], err
}

func (r *running) call(method, path string) (int, string, error) {
	client := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", filepath.Join(r.dir, vm.FileVMMSocket))
		},
	}}
	req, err := http.NewRequestWithContext(r.t.Context(), method, "http://vmm"+path, nil)
	if err != nil {
		return 0, "", err
	}
	resp, err := client.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b), err
}

func (r *running) dial() net.Conn {
	r.t.Helper()
	var d net.Dialer
	c, err := d.DialContext(r.t.Context(), "unix", filepath.Join(r.dir, vm.FileGuestSocket))
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { c.Close() })
	return c
}

func TestEndings(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		machine *machine
		spec    func(*vm.Spec)
		act     func(*running, *machine)
		reason  vm.Reason
		detail  string
	}{
		"signal":        {&machine{}, nil, func(r *running, _ *machine) { r.stop() }, vm.ReasonStopped, "signal"},
		"command":       {&machine{}, nil, func(r *running, _ *machine) { r.call("POST", vm.PathStop) }, vm.ReasonStopped, "agent"},
		"maximum life":  {&machine{}, func(s *vm.Spec) { s.MaxLife = time.Millisecond }, nil, vm.ReasonMaxLife, "1ms"},
		"open fails":    {&machine{openErr: errors.New("no disk")}, nil, nil, vm.ReasonBackendFailed, "no disk"},
		"open refuses":  {&machine{openErr: vm.WithReason("two_vm_limit", errors.New("two run"))}, nil, nil, "two_vm_limit", "two run"},
		"start fails":   {&machine{startErr: errors.New("no memory")}, nil, nil, vm.ReasonBackendFailed, "no memory"},
		"stop fails":    {&machine{stopErr: errors.New("stuck")}, nil, func(r *running, _ *machine) { r.stop() }, vm.ReasonBackendFailed, "stuck"},
		"start is slow": {&machine{hang: true}, nil, func(r *running, _ *machine) { r.call("POST", vm.PathStop) }, vm.ReasonStopped, "agent"},
		"guest ends": {&machine{}, nil, func(r *running, m *machine) {
			r.call("GET", vm.PathState+"?after=2&wait=60s") // 2 is running
			m.end("the guest shut down")
		}, vm.ReasonGuestEnded, "shut down"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := run(t, tt.machine, tt.spec)
			if tt.act != nil {
				tt.act(r, tt.machine)
			}
			state, err := r.wait()
			if state.Phase != vm.PhaseFinal || state.Reason != tt.reason || !strings.Contains(state.Detail, tt.detail) {
				t.Errorf("final state %+v, want %s with %q", state, tt.reason, tt.detail)
			}
			if (err != nil) != tt.reason.Failed() {
				t.Errorf("Run returned %v for %s", err, tt.reason)
			}
			if locked, err := vm.IsLocked(r.dir); locked || err != nil {
				t.Errorf("the lock is held after the end (%v, %v)", locked, err)
			}
		})
	}
}

func TestProtocol(t *testing.T) {
	t.Parallel()
	r := run(t, &machine{}, nil)
	for name, tt := range map[string]struct {
		method, path string
		code         int
		want         string
	}{
		"state":           {"GET", vm.PathState, 200, `"id":"m-1"`},
		"bad revision":    {"GET", vm.PathState + "?after=x", 400, "after is"},
		"bad wait":        {"GET", vm.PathState + "?wait=5", 400, "wait is"},
		"negative wait":   {"GET", vm.PathState + "?wait=-5s", 400, "wait is"},
		"wrong method":    {"POST", vm.PathState, 405, ""},
		"stop by reading": {"GET", vm.PathStop, 405, ""},
		"unknown":         {"GET", "/v1/unknown", 404, ""},
	} {
		code, body, err := r.call(tt.method, tt.path)
		if code != tt.code || !strings.Contains(body, tt.want) || err != nil {
			t.Errorf("%s: %d %s, %v; want %d with %q", name, code, body, err, tt.code, tt.want)
		}
	}
}

func TestStreams(t *testing.T) {
	t.Parallel()
	silent := make(chan struct{})
	r := run(t, &machine{silent: silent}, nil)
	early := r.dial()
	if _, err := io.WriteString(early, "before the guest answers"); err != nil {
		t.Fatal(err)
	}
	gone := r.dial() // hangs up while it waits, and must not count as a stream for ever
	gone.Close()
	close(silent)
	want := "hello\nbefore the guest answers"
	got := make([]byte, len(want))
	if _, err := io.ReadFull(early, got); err != nil || string(got) != want {
		t.Errorf("early stream: %q, %v", got, err)
	}
	// Much more than any buffer, in both directions at once.
	load := bytes.Repeat([]byte("0123456789"), 100_000)
	late := r.dial()
	greeting := make([]byte, len("hello\n"))
	if _, err := io.ReadFull(late, greeting); err != nil {
		t.Fatal(err)
	}
	var sending sync.WaitGroup
	sending.Go(func() {
		if _, err := late.Write(load); err != nil {
			t.Error(err)
		}
	})
	back := make([]byte, len(load))
	if _, err := io.ReadFull(late, back); err != nil || !bytes.Equal(back, load) {
		t.Errorf("the load did not come back whole: %v", err)
	}
	sending.Wait()
	// More streams than may be open at once: hanging up makes room.
	for range 300 {
		c := r.dial()
		if _, err := io.ReadFull(c, greeting); err != nil {
			t.Fatal(err)
		}
		c.Close()
	}
	r.stop()
	if _, err := io.Copy(io.Discard, early); err != nil {
		t.Errorf("the end of the machine broke the stream instead of ending it: %v", err)
	}
}

func TestRunRefuses(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct{ bundle, want string }{
		"relative":     {"some/bundle", "absolute"},
		"no such":      {"/no/such/bundle-1", "no such file"},
		"no bundle id": {"/tmp/NO", "only a-z"},
	} {
		if err := vmm.Run(t.Context(), vmm.Config{Bundle: tt.bundle}); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", name, err, tt.want)
		}
	}
}

func TestBackendThatTheVMMDoesNotHave(t *testing.T) {
	t.Parallel()
	spec := vm.Spec{ID: "m-1", Backend: vm.BackendVZ, CPUs: 1, MemoryMiB: 1, MaxLife: time.Hour}
	dir, err := vm.Create(t.Context(), vm.CreateConfig{Dir: t.TempDir(), Spec: spec})
	if err != nil {
		t.Fatal(err)
	}
	err = vmm.Run(t.Context(), vmm.Config{Bundle: dir, Backends: []vm.Backend{(&machine{}).backend()}})
	if err == nil || !strings.Contains(err.Error(), `no backend "vz"`) {
		t.Errorf("it ran: %v", err)
	}
	states, err := vm.ReadStatus(dir)
	if err != nil || len(states) == 0 || states[len(states)-1].Reason != vm.ReasonBadConfiguration {
		t.Errorf("status %+v, %v", states, err)
	}
}
