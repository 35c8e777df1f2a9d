// SPDX-License-Identifier: MIT

package agent_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/minifleet/minifleet/hosts/agent"
	"github.com/minifleet/minifleet/hosts/protocol"
	"github.com/minifleet/minifleet/internal/leakcheck"
	"github.com/minifleet/minifleet/vm"
)

// programs builds the real programs once for all tests that want them.
var programs = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "mfbin")
	if err != nil {
		return "", err
	}
	built.Store(&dir)
	if err := os.Chmod(dir, 0o755); err != nil {
		return "", err
	}
	build := exec.Command("go", "build", "-o", dir,
		"github.com/minifleet/minifleet/cmd/minifleet-vmm",
		"github.com/minifleet/minifleet/cmd/minifleet-guest",
		"github.com/minifleet/minifleet/cmd/minifleet-agent")
	if out, err := build.CombinedOutput(); err != nil {
		return dir, fmt.Errorf("build: %w\n%s", err, out)
	}
	return dir, nil
})

var built atomic.Pointer[string]

// site is a controller on loopback and one host of real VMs by the process backend,
// whose runner is a script that obeys files in a folder. The folder's path is the JIT
// config.
type site struct {
	t    *testing.T
	c    *controller
	url  string
	dir  string // state
	bin  string
	imgs string

	setup func(*agent.VMsConfig) // nil for the process backend
}

// listenerScript is a runner that does what the folder in its config says.
const listenerScript = `#!/bin/sh
d="$ACTIONS_RUNNER_INPUT_JITCONFIG"
echo "Current runner version: '2.336.0'"
if [ -e "$d/refuse" ]; then echo "An error occurred: Runner version v2 is deprecated and cannot receive messages."; exit 1; fi
echo "2026-11-21 20:42:41Z: Listening for Jobs"
if [ -e "$d/stubborn" ]; then trap '' INT TERM; else trap 'exit 0' INT TERM; fi
while [ ! -e "$d/job" ]; do sleep 0.02; done
echo "2026-11-21 20:42:50Z: Running job: build"
n=0
while [ ! -e "$d/finish" ]; do n=$((n+1)); echo "$$ $n" >> "$d/output"; sleep 0.02; done
echo "2026-11-21 20:43:10Z: Job build completed with result: Succeeded"
exit 0
`

func newSite(t *testing.T) *site {
	t.Helper()
	bin, err := programs()
	if err != nil {
		t.Fatal(err)
	}
	root, err := os.MkdirTemp("", "mf")
	if err != nil {
		t.Fatal(err)
	}
	s := &site{t: t, c: newController(t), bin: bin, dir: filepath.Join(root, "s"), imgs: filepath.Join(root, "images")}
	t.Cleanup(func() {
		s.killVMs()
		os.RemoveAll(root)
	})
	s.image("image", map[string]string{"root/runner/bin/Runner.Listener": listenerScript})
	server := httptest.NewServer(s.c)
	t.Cleanup(server.Close)
	s.url = server.URL
	s.c.configOf = func(runner string, _ int) string { return s.control(runner) }
	return s
}

// image makes one.
func (s *site) image(name string, files map[string]string) {
	s.t.Helper()
	files["image.json"] = fmt.Sprintf(`{"schema":1,"name":%q,"guest_os":"linux"}`, name)
	for path, content := range files {
		full := filepath.Join(s.imgs, name, path)
		if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
			s.t.Fatal(err)
		}
		if err := os.WriteFile(full, []byte(content), 0o755); err != nil {
			s.t.Fatal(err)
		}
	}
}

// control is the folder that a runner's script obeys.
func (s *site) control(runner string) string {
	dir := filepath.Join(filepath.Dir(s.dir), "control-"+runner)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		s.t.Error(err)
	}
	return dir
}

// tell makes a file that a runner's script waits for.
func (s *site) tell(runner, what string) {
	s.t.Helper()
	if err := os.WriteFile(filepath.Join(s.control(runner), what), nil, 0o600); err != nil {
		s.t.Fatal(err)
	}
}

// A vmm whose agent was killed as it started it may take the bundle's lock only after
// the next agent has found the bundle unlocked.
func TestAVMMThatComesLateIsEnded(t *testing.T) {
	s := newSite(t)
	dir := filepath.Join(s.dir, "vms")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	vms, err := agent.NewVMs(agent.VMsConfig{
		Dir: dir, ImagesDir: s.imgs, Backend: vm.BackendProcess, AllowCopy: true,
		VMMProgram: filepath.Join(s.bin, "minifleet-vmm"), GuestProgram: filepath.Join(s.bin, "minifleet-guest"),
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := vms.Create(t.Context(), agent.Order{ID: "late", Pool: "p", Image: "image"}, func(string) {}); err != nil {
		t.Fatal(err)
	}
	found, err := vms.Scan(t.Context())
	if err != nil || len(found) != 1 || found[0].Running {
		t.Fatalf("found %+v, %v", found, err)
	}
	late, err := vm.Start(t.Context(), filepath.Join(dir, "late"), filepath.Join(s.bin, "minifleet-vmm"))
	if err != nil {
		t.Fatal(err)
	}
	defer late.Detach()
	m := found[0].Machine
	defer m.Release()
	if err := m.Stop(t.Context()); err != nil {
		t.Error(err)
	}
	if err := m.Remove(t.Context()); err != nil {
		t.Error(err)
	}
	<-late.Done()
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

// killVMs ends what a failed test left running.
func (s *site) killVMs() {
	notes, _ := filepath.Glob(filepath.Join(s.dir, "vms", "*", "*.json"))
	for _, path := range notes {
		var who struct {
			PID int `json:"pid"`
		}
		if raw, err := os.ReadFile(path); err == nil && json.Unmarshal(raw, &who) == nil && who.PID > 1 {
			s.t.Logf("ending process %d of %s", who.PID, path)
			_ = syscall.Kill(who.PID, syscall.SIGTERM)
		}
	}
}

// start runs an agent in this process until the test ends or stop is called.
func (s *site) start() (stop func()) {
	s.t.Helper()
	log := slog.New(slog.NewTextHandler(s.t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
	cfg := agent.VMsConfig{
		Dir: filepath.Join(s.dir, agent.DirVMs), ImagesDir: s.imgs, Backend: vm.BackendProcess, AllowCopy: true,
		VMMProgram: filepath.Join(s.bin, "minifleet-vmm"), GuestProgram: filepath.Join(s.bin, "minifleet-guest"), Log: log,
	}
	if s.setup != nil {
		s.setup(&cfg)
	}
	vms, err := agent.NewVMs(cfg)
	if err != nil {
		s.t.Fatal(err)
	}
	a, err := agent.New(agent.Config{
		Controller: s.url, Name: "mini-1", StateDir: s.dir, EnrolmentToken: s.c.enrolmentToken(), Slots: 2,
		Machines: vms, Backends: []string{"process"}, Machine: "hardware", Log: log, BootTimeout: s.c.patience,
	})
	if err != nil {
		s.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			s.t.Errorf("the agent ended with: %v", err)
		}
	})
	s.t.Cleanup(stop)
	return stop
}

// startProgram runs the real agent program.
func (s *site) startProgram() *exec.Cmd {
	s.t.Helper()
	file := filepath.Join(filepath.Dir(s.dir), "agent.yaml")
	text := fmt.Sprintf("controller: %s\nname: mini-1\nstate_dir: %s\nimages_dir: %s\nbackend: process\nallow_copy: true\nlog_level: debug\n", s.url, s.dir, s.imgs)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		s.t.Fatal(err)
	}
	cmd := exec.Command(filepath.Join(s.bin, "minifleet-agent"), "run", "--config", file)
	cmd.Env = append(os.Environ(), "MINIFLEET_AGENT_ENROLMENT_TOKEN="+s.c.enrolmentToken().Reveal())
	cmd.Stdout, cmd.Stderr = s.t.Output(), s.t.Output()
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return cmd
}

// lines reads what a job has written so far.
func (s *site) lines(runner string) []string {
	raw, _ := os.ReadFile(filepath.Join(s.control(runner), "output"))
	return strings.Split(strings.TrimSpace(string(raw)), "\n")
}

func TestRealLife(t *testing.T) {
	s := newSite(t)
	s.start()
	s.c.want(up("r1"))
	s.c.awaitObserved("r1", "standby")
	s.c.want(armed("r1"))
	s.c.awaitObserved("r1", "idle")
	s.tell("r1", "job")
	s.c.awaitObserved("r1", "busy")
	s.tell("r1", "finish")
	got := s.c.awaitObserved("r1", "gone")
	if got.Result != "succeeded" || got.Failure != "" || got.HoldsSlot {
		t.Errorf("gone is reported as %+v", got)
	}
	if left, _ := os.ReadDir(filepath.Join(s.dir, "vms")); len(left) > 0 {
		t.Errorf("%d things are left of the VM, the first is %s", len(left), left[0].Name())
	}
	if _, err := os.Stat(filepath.Join(s.dir, "tombstones", "r1.json")); err != nil {
		t.Errorf("no tombstone: %v", err)
	}
	s.c.forget("r1")
	s.c.await("r1 is reported no more", func() bool { return s.c.runner("r1").ID == "" })
	err := filepath.WalkDir(s.dir, func(path string, e os.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			if raw, err := os.ReadFile(path); err == nil && strings.Contains(string(raw), s.control("r1")) {
				t.Errorf("the JIT config is on the disk: %s", path)
			}
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

func TestKilledAgentIsFollowedByOneThatAdoptsItsVMs(t *testing.T) {
	s := newSite(t)
	first := s.startProgram()
	s.c.want(armed("r1"))
	s.c.want(up("r2"))
	s.c.awaitObserved("r1", "idle")
	s.c.awaitObserved("r2", "standby")
	s.tell("r1", "job")
	s.c.awaitObserved("r1", "busy")
	s.awaitLines("r1", 3)
	if err := first.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = first.Wait()
	before := len(s.lines("r1"))
	s.awaitLines("r1", before+3) // while nobody watches it
	instances := len(s.c.hellos)

	s.startProgram()
	s.c.await("another instance says hello", func() bool { return len(s.c.hellos) > instances })
	s.c.await("both VMs are reported by it", func() bool {
		return s.c.runner("r1").Observed == "busy" && s.c.runner("r1").HasConfig && s.c.runner("r2").Observed == "standby" &&
			s.c.reports[len(s.c.reports)-1].Instance == s.c.hellos[instances].Instance
	})
	s.awaitLines("r1", len(s.lines("r1"))+3)
	s.tell("r1", "finish")
	if got := s.c.awaitObserved("r1", "gone"); got.Result != "succeeded" || got.Failure != "" {
		t.Errorf("the adopted job is reported as %+v", got)
	}
	s.continuous("r1")
	if n := s.c.mintedBy["r1"]; n != 1 {
		t.Errorf("%d configs were minted for one job", n)
	}
	s.c.want(gone("r2"))
	s.c.awaitObserved("r2", "gone")
}

// awaitLines returns when a job has written n lines.
func (s *site) awaitLines(runner string, n int) {
	s.t.Helper()
	look := time.NewTicker(5 * time.Millisecond)
	defer look.Stop()
	deadline := time.NewTimer(time.Minute)
	defer deadline.Stop()
	for len(s.lines(runner)) < n {
		select {
		case <-look.C:
		case <-deadline.C:
			s.t.Fatalf("job of %s has written %d lines in a minute: want %d", runner, len(s.lines(runner)), n)
		}
	}
}

// continuous checks that one process wrote all lines of a job, none missing.
func (s *site) continuous(runner string) {
	s.t.Helper()
	lines := s.lines(runner)
	pid := ""
	for i, line := range lines {
		who, n, _ := strings.Cut(line, " ")
		if pid == "" {
			pid = who
		}
		if who != pid || n != strconv.Itoa(i+1) {
			s.t.Fatalf("line %d is %q and the process was %s", i+1, line, pid)
		}
	}
}

func TestImageMissing(t *testing.T) {
	s := newSite(t)
	s.start()
	s.c.want(protocol.Desire{ID: "r1", Wanted: protocol.WantUp, Image: "absent"})
	got := s.c.awaitObserved("r1", "gone")
	for _, want := range []string{"absent", s.imgs, "image"} {
		if !strings.Contains(got.Failure, want) {
			t.Errorf("failure %q lacks %q", got.Failure, want)
		}
	}
	s.c.want(up("r2")) // the host is as good as before
	s.c.awaitObserved("r2", "standby")
	s.c.want(gone("r2"))
	s.c.awaitObserved("r2", "gone")
}

func TestRefusedListenerLeavesDiagnostics(t *testing.T) {
	s := newSite(t)
	s.start()
	s.tell("r1", "refuse")
	s.c.want(armed("r1"))
	got := s.c.awaitObserved("r1", "gone")
	if !strings.Contains(got.Failure, "refused") {
		t.Errorf("failure %q does not say that the runner was refused", got.Failure)
	}
	for _, name := range []string{"failure.json", "runner-output.txt", "vmm.log", "status.jsonl"} {
		info, err := os.Stat(filepath.Join(s.dir, "failures", "r1", name))
		if err != nil || info.Size() == 0 {
			t.Errorf("%s is not kept: %v", name, err)
		}
	}
	raw, _ := os.ReadFile(filepath.Join(s.dir, "failures", "r1", "runner-output.txt"))
	if !strings.Contains(string(raw), "deprecated") {
		t.Errorf("the kept output is %q", raw)
	}
}

func TestVMMDies(t *testing.T) {
	s := newSite(t)
	s.start()
	s.c.want(up("r1"))
	s.c.awaitObserved("r1", "standby")
	var vmm struct {
		PID int `json:"pid"`
	}
	raw, err := os.ReadFile(filepath.Join(s.dir, "vms", "r1", "vmm.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(raw, &vmm); err != nil || vmm.PID < 2 {
		t.Fatalf("no pid in %s: %v", raw, err)
	}
	if err := syscall.Kill(vmm.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if got := s.c.awaitObserved("r1", "gone"); !strings.Contains(got.Failure, "vmm") {
		t.Errorf("failure %q does not name the vmm", got.Failure)
	}
}

// TestReadOnlyStateDir runs the program as a user for whom the folder is read-only:
// for root no folder is.
func TestReadOnlyStateDir(t *testing.T) {
	s := newSite(t)
	if err := os.MkdirAll(s.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Dir(s.dir), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(s.dir, 0o555); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(filepath.Dir(s.dir), "agent.yaml")
	text := fmt.Sprintf("controller: %s\nname: mini-1\nstate_dir: %s\nimages_dir: %s\nbackend: process\nallow_copy: true\n", s.url, s.dir, s.imgs)
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), filepath.Join(s.bin, "minifleet-agent"), "run", "--config", file)
	if os.Getuid() == 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	}
	out, err := cmd.CombinedOutput()
	if err == nil {
		t.Fatal("the agent runs in a read-only folder")
	}
	for _, want := range []string{"state_dir", s.dir, "write"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("the error lacks %q: %s", want, out)
		}
	}
}

func TestSlowTeardownDoesNotHoldUpAReplacement(t *testing.T) {
	s := newSite(t)
	s.tell("r1", "stubborn") // its runner does not heed the signal to end
	s.start()
	s.c.want(armed("r1"))
	s.c.want(up("r2"))
	s.c.awaitObserved("r1", "idle")
	s.tell("r1", "job")
	s.c.awaitObserved("r1", "busy")
	s.c.awaitObserved("r2", "standby")
	going := gone("r1")
	going.EndGraceSeconds = 300
	s.c.want(going)
	s.c.want(gone("r2"))
	s.c.want(up("r3"))
	s.c.awaitObserved("r3", "standby")
	s.c.mu.Lock()
	if got := s.c.runner("r1"); got.Observed != "busy" || !got.HoldsSlot {
		t.Errorf("r1, which is slow to end, is reported as %+v", got)
	}
	s.c.mu.Unlock()
	s.tell("r1", "finish")
	s.c.awaitObserved("r1", "gone")
	s.c.want(gone("r3"))
	s.c.awaitObserved("r3", "gone")
}

func TestMain(m *testing.M) { leakcheck.Main(withPrograms{m}) }

// withPrograms deletes the programs when the tests are over.
type withPrograms struct{ m *testing.M }

func (w withPrograms) Run() int {
	code := w.m.Run()
	if dir := built.Load(); dir != nil {
		os.RemoveAll(*dir)
	}
	return code
}
