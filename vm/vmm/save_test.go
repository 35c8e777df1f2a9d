// SPDX-License-Identifier: MIT

package vmm_test

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/minifleet/minifleet/vm"
)

// saver is a machine that saves states, and notes every call to it. While one call is
// made there must be no other.
type saver struct {
	machine
	fail  map[string]error  // by call; "continue" is a Start after a pause
	block map[string]bool   // calls that hang until their context ends
	meets func(call string) // called in each call

	calls  sync.Mutex // guards the rest
	names  []string
	paused bool
	begun  bool
}

func (s *saver) backend() vm.Backend {
	return vm.Backend{
		Name: vm.BackendQEMU, Isolation: vm.IsolationVM, SavesState: true,
		Open: func(_ context.Context, cfg vm.OpenConfig) (vm.Instance, error) {
			s.cfg = cfg
			return s, nil
		},
	}
}

func (s *saver) call(ctx context.Context, name string) error {
	if !s.calls.TryLock() {
		panic("two calls at once: " + name)
	}
	s.names = append(s.names, name)
	defer s.calls.Unlock()
	if s.meets != nil {
		s.meets(name)
	}
	if s.block[name] {
		<-ctx.Done()
		return context.Cause(ctx)
	}
	return s.fail[name]
}

func (s *saver) Start(ctx context.Context) error {
	name := "start"
	if s.begun {
		name = "continue"
	}
	s.begun = true
	if err := s.call(ctx, name); err != nil {
		return err
	}
	s.paused = false
	if name == "start" {
		return s.machine.Start(ctx)
	}
	return nil
}

func (s *saver) Stop(ctx context.Context) error {
	if err := s.call(ctx, "stop"); err != nil {
		return err
	}
	return s.machine.Stop(ctx)
}

func (s *saver) Pause(ctx context.Context) error {
	err := s.call(ctx, "pause")
	s.paused = err == nil
	return err
}

func (s *saver) Save(ctx context.Context, dir string) error {
	if !s.paused {
		return errors.New("not paused")
	}
	if err := os.WriteFile(filepath.Join(dir, "memory"), []byte("all of it"), 0o600); err != nil {
		return err
	}
	return s.call(ctx, "save")
}

func (s *saver) Restore(ctx context.Context, dir string) error {
	b, err := os.ReadFile(filepath.Join(dir, "memory"))
	if err != nil || string(b) != "all of it" {
		return errors.New("no state")
	}
	return s.call(ctx, "restore")
}

func (s *saver) had() string {
	s.calls.Lock()
	defer s.calls.Unlock()
	return strings.Join(s.names, " ")
}

// start runs a vmm with the machine, whose image has two disks.
func (s *saver) start(t *testing.T, restore string) *running {
	t.Helper()
	vms, err := os.MkdirTemp("", "mf") //nolint:usetesting // its path is too long for sockets
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(vms) })
	image := filepath.Join(vms, "image")
	for name, text := range map[string]string{"disk.img": "disk", "nvram.bin": "nvram"} {
		if err := errors.Join(os.MkdirAll(image, 0o700), os.WriteFile(filepath.Join(image, name), []byte(text), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	dir, err := vm.Create(t.Context(), vm.CreateConfig{
		Dir: vms, ImageDir: image, Clone: vm.CloneAllowCopy,
		Spec: vm.Spec{ID: "m-1", Backend: vm.BackendQEMU, CPUs: 1, MemoryMiB: 1, MaxLife: time.Hour, Restore: restore},
	})
	if err != nil {
		t.Fatal(err)
	}
	return runBundle(t, dir, s.backend())
}

// untilRuns waits until the machine runs.
func (r *running) untilRuns() {
	r.t.Helper()
	for after := 0; ; after++ {
		_, body, err := r.call(http.MethodGet, vm.PathState+"?wait=60s&after="+string(rune('0'+after)))
		var s vm.State
		if err != nil || json.Unmarshal([]byte(body), &s) != nil || s.Phase == vm.PhaseFinal {
			r.t.Fatalf("the machine does not run: %s, %v", body, err)
		}
		if s.Phase == vm.PhaseRunning {
			return
		}
	}
}

// save asks for a save as an agent does.
func (r *running) save(ctx context.Context, body string) (int, string) {
	r.t.Helper()
	client := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", filepath.Join(r.dir, vm.FileVMMSocket))
		},
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://vmm"+vm.PathSave, strings.NewReader(body))
	if err != nil {
		r.t.Fatal(err)
	}
	resp, err := client.Do(req)
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	var e vm.ErrorBody
	_ = json.NewDecoder(resp.Body).Decode(&e) // a state has no error
	return resp.StatusCode, e.Error
}

func into(dir string) string {
	b, _ := json.Marshal(vm.SaveRequest{Dir: dir, AllowCopy: true})
	return string(b)
}

// private makes a folder for a state.
func private(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "state")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return dir
}

// free reports whether the folder of a state could be taken away.
func free(dir string) bool {
	release, err := vm.HoldSaved(dir, true)
	if err == nil {
		release()
	}
	return err == nil
}

func names(t *testing.T, dir string) string {
	t.Helper()
	var all []string
	err := filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			rel, _ := filepath.Rel(dir, path)
			all = append(all, rel)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(all, " ")
}

func TestSaveAndRestore(t *testing.T) {
	t.Parallel()
	dir := private(t)
	var s saver
	s.meets = func(call string) {
		if call == "save" && free(dir) {
			t.Error("the folder of a state that is being written can be taken away")
		}
	}
	r := s.start(t, "")
	r.untilRuns()
	if code, text := r.save(t.Context(), into(dir)); code != http.StatusOK {
		t.Fatalf("save: %d %s", code, text)
	}
	if got, want := s.had(), "start pause save continue"; got != want {
		t.Errorf("calls %q, want %q", got, want)
	}
	if got, want := names(t, dir), "disks/disk.img disks/nvram.bin state/memory"; got != want {
		t.Errorf("saved %q, want %q", got, want)
	}
	if code, text := r.save(t.Context(), into(private(t))); code != http.StatusConflict || !strings.Contains(text, "once") {
		t.Errorf("a second save: %d %s", code, text)
	}
	r.call(http.MethodPost, vm.PathStop)
	if state, err := r.wait(); state.Reason != vm.ReasonStopped || err != nil {
		t.Errorf("%+v, %v", state, err)
	}

	var again saver
	again.meets = func(call string) {
		if call == "restore" && free(dir) {
			t.Error("a state can be taken away while it is read")
		}
	}
	r = again.start(t, dir)
	r.untilRuns()
	if got, want := again.had(), "restore start"; got != want {
		t.Errorf("calls %q, want %q", got, want)
	}
	if !free(dir) {
		t.Error("a state is held after it was read")
	}
}

// What fails leaves nothing in the folder, and the machine runs on or ends with a reason.
func TestSaveFails(t *testing.T) {
	t.Parallel()
	bad := errors.New("it went wrong")
	for name, tt := range map[string]struct {
		machine *saver
		calls   string
		text    string
		ends    vm.Reason // "" if the machine runs on
	}{
		"pause":    {&saver{fail: map[string]error{"pause": bad}}, "start pause", "paused", ""},
		"save":     {&saver{fail: map[string]error{"save": bad}}, "start pause save continue", "it went wrong", ""},
		"continue": {&saver{fail: map[string]error{"continue": bad}}, "start pause save continue", "could not be continued", vm.ReasonBackendFailed},
		"continue, with a reason": {
			&saver{fail: map[string]error{"continue": vm.WithReason(vm.ReasonHypervisorCrashed, bad)}},
			"start pause save continue", "could not be continued", vm.ReasonHypervisorCrashed,
		},
		"save and continue": {&saver{fail: map[string]error{"save": bad, "continue": bad}}, "start pause save continue", "it went wrong", vm.ReasonBackendFailed},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir, s := private(t), tt.machine
			r := s.start(t, "")
			r.untilRuns()
			code, text := r.save(t.Context(), into(dir))
			if code != http.StatusInternalServerError || !strings.Contains(text, tt.text) {
				t.Errorf("%d %q, want %q", code, text, tt.text)
			}
			if left := names(t, dir); left != "" {
				t.Errorf("left: %s", left)
			}
			if _, err := os.Stat(filepath.Join(dir, vm.DirState)); err == nil {
				t.Error("an empty folder is left")
			}
			if tt.ends != "" {
				state, err := r.wait()
				if state.Reason != tt.ends || !strings.Contains(state.Detail, tt.text) && !strings.Contains(state.Detail, "continued") || err == nil {
					t.Errorf("%+v, %v", state, err)
				}
				return
			}
			if got := s.had(); got != tt.calls {
				t.Errorf("calls %q, want %q", got, tt.calls)
			}
			if code, text := r.save(t.Context(), into(dir)); tt.calls != "" && code != http.StatusConflict {
				t.Errorf("another try: %d %s", code, text)
			}
			r.call(http.MethodPost, vm.PathStop)
			if state, _ := r.wait(); state.Reason != vm.ReasonStopped {
				t.Errorf("%+v", state)
			}
		})
	}
}

// A client that goes calls its save off, and an order to end does not wait for it.
func TestSaveIsCalledOff(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(r *running, hangUp func()){
		"by the client": func(_ *running, hangUp func()) { hangUp() },
		"by a signal":   func(r *running, _ func()) { r.stop() },
		"by the agent":  func(r *running, _ func()) { r.call(http.MethodPost, vm.PathStop) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := private(t)
			continued := make(chan struct{})
			saving := make(chan struct{})
			s := &saver{block: map[string]bool{"save": true}}
			s.meets = func(call string) {
				switch call {
				case "save":
					close(saving)
				case "continue":
					close(continued)
				}
			}
			r := s.start(t, "")
			r.untilRuns()
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			var asking sync.WaitGroup
			asking.Go(func() { r.save(ctx, into(dir)) })
			<-saving
			end(r, cancel)
			asking.Wait()
			if name == "by the client" {
				<-continued
				r.stop()
			}
			state, err := r.wait()
			if state.Reason != vm.ReasonStopped || err != nil {
				t.Errorf("%+v, %v", state, err)
			}
			if left := names(t, dir); left != "" {
				t.Errorf("left: %s", left)
			}
			want := "start pause save stop"
			if name == "by the client" {
				want = "start pause save continue stop"
			}
			if got := s.had(); got != want {
				t.Errorf("calls %q, want %q", got, want)
			}
		})
	}
}

func TestSaveRefuses(t *testing.T) {
	t.Parallel()
	s := &saver{}
	r := s.start(t, "")
	r.untilRuns()
	taken, open := private(t), private(t)
	if err := errors.Join(os.WriteFile(filepath.Join(taken, "x"), nil, 0o600), os.Chmod(open, 0o755)); err != nil {
		t.Fatal(err)
	}
	within := filepath.Join(r.dir, "state")
	if err := os.Mkdir(within, 0o700); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(private(t), link); err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		body string
		code int
		want string
	}{
		"nothing":        {"", 400, "EOF"},
		"another key":    {`{"dir":"/tmp/x","force":true}`, 400, "unknown field"},
		"relative":       {into("state"), 400, "absolute"},
		"not clean":      {into("/tmp/../tmp/x"), 400, "shortest"},
		"two":            {into("/tmp/x") + into("/tmp/y"), 400, "follows"},
		"long":           {strings.Repeat(" ", 9000), 400, "more than"},
		"no such":        {into("/nowhere/state"), 500, "no such file"},
		"not empty":      {into(taken), 500, "not empty"},
		"not private":    {into(open), 500, "alone"},
		"a link":         {into(link), 500, "not a folder"},
		"in the bundle":  {into(within), 500, "apart"},
		"the bundle":     {into(r.dir), 500, "apart"},
		"around bundles": {into(filepath.Dir(r.dir)), 500, "apart"},
	} {
		if code, text := r.save(t.Context(), tt.body); code != tt.code || !strings.Contains(text, tt.want) {
			t.Errorf("%s: %d %q, want %d with %q", name, code, text, tt.code, tt.want)
		}
	}
	if got := s.had(); got != "start" {
		t.Errorf("calls %q", got)
	}
	// What was refused was no try.
	if code, text := r.save(t.Context(), into(private(t))); code != http.StatusOK {
		t.Errorf("a good one: %d %s", code, text)
	}

	plain := run(t, &machine{}, nil)
	plain.untilRuns()
	if code, text := plain.save(t.Context(), into(private(t))); code != http.StatusNotImplemented {
		t.Errorf("a backend that saves nothing: %d %s", code, text)
	}
}

func TestRestoreFails(t *testing.T) {
	t.Parallel()
	whole := private(t)
	if err := errors.Join(os.Mkdir(filepath.Join(whole, vm.DirState), 0o700),
		os.WriteFile(filepath.Join(whole, vm.DirState, "memory"), []byte("all of it"), 0o600)); err != nil {
		t.Fatal(err)
	}
	bad := errors.New("another macOS")
	for name, tt := range map[string]struct {
		machine *saver
		dir     string
		reason  vm.Reason
		calls   string
	}{
		"gone":            {&saver{}, "/nowhere/state", vm.ReasonRestoreFailed, "stop"},
		"empty":           {&saver{}, private(t), vm.ReasonRestoreFailed, "stop"},
		"refused":         {&saver{fail: map[string]error{"restore": bad}}, whole, vm.ReasonRestoreFailed, "restore stop"},
		"a better reason": {&saver{fail: map[string]error{"restore": vm.WithReason(vm.ReasonKeychainLocked, bad)}}, whole, vm.ReasonKeychainLocked, "restore stop"},
		"not continued":   {&saver{fail: map[string]error{"start": bad}}, whole, vm.ReasonBackendFailed, "restore start stop"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := tt.machine.start(t, tt.dir)
			state, err := r.wait()
			if state.Reason != tt.reason || err == nil {
				t.Errorf("%+v, %v; want %s", state, err, tt.reason)
			}
			if got := tt.machine.had(); got != tt.calls {
				t.Errorf("calls %q, want %q", got, tt.calls)
			}
		})
	}
}
