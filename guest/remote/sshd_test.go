// SPDX-License-Identifier: MIT

package remote_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/minifleet/minifleet/guest"
	"github.com/minifleet/minifleet/guest/remote"
	"github.com/minifleet/minifleet/secret"
)

// patience is how long a test waits for what must happen. It is no measurement.
const patience = 60 * time.Second

const image = "sha256:0123456789abcdef"

// sshd is a guest with OpenSSH: this machine, in a folder of its own.
type sshd struct {
	t        *testing.T
	dir      string // of the test
	home     string // of the user in the guest
	config   []string
	address  string
	userKey  secret.Text
	programs string
	log      *logBuffer

	mu       sync.Mutex
	sessions []*exec.Cmd
}

// sshdPath finds OpenSSH's server, or skips the test.
func sshdPath(t *testing.T) string {
	t.Helper()
	for _, path := range []string{"/usr/sbin/sshd", "/usr/local/sbin/sshd"} {
		if _, err := os.Stat(path); err == nil {
			return path
		}
	}
	if os.Getenv("CI") == "true" {
		t.Fatal("there is no sshd: install openssh-server")
	}
	t.Skip("there is no sshd: install openssh-server")
	return ""
}

// newSSHD serves each connection by an sshd of its own, which is not a service and needs no
// privileges. A test changes its config before the first connection.
func newSSHD(t *testing.T, config ...string) *sshd {
	t.Helper()
	program := sshdPath(t)
	if os.Geteuid() == 0 { // what the service's start makes otherwise; sshd insists
		if err := os.MkdirAll("/run/sshd", 0o755); err != nil {
			t.Fatal(err)
		}
	}
	dir, err := os.MkdirTemp("", "mf")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	s := &sshd{t: t, dir: dir, home: filepath.Join(dir, "home"), programs: guestPrograms(t), log: &logBuffer{}}
	if err := os.Mkdir(s.home, 0o700); err != nil {
		t.Fatal(err)
	}
	s.newHostKey("host_key", "ed25519")
	key, public := newKey(t)
	s.userKey = key
	s.write("authorized_keys", ssh.MarshalAuthorizedKey(public))
	s.config = append([]string{
		"HostKey " + filepath.Join(dir, "host_key"), "AuthorizedKeysFile " + filepath.Join(dir, "authorized_keys"),
		"UsePAM no", "StrictModes no", "PidFile none", "PasswordAuthentication no", "KbdInteractiveAuthentication no",
		"PrintMotd no", "SetEnv HOME=" + s.home,
	}, config...)

	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.address = l.Addr().String()
	var work sync.WaitGroup
	work.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			work.Go(func() { s.serve(program, conn) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		s.killSessions()
		work.Wait()
		s.killGuests()
	})
	return s
}

func (s *sshd) serve(program string, conn net.Conn) {
	file, err := conn.(*net.TCPConn).File()
	conn.Close()
	if err != nil {
		s.t.Error(err)
		return
	}
	defer file.Close()
	s.mu.Lock()
	s.write("sshd_config", []byte(strings.Join(s.config, "\n")+"\n"))
	cmd := exec.Command(program, "-i", "-e", "-f", filepath.Join(s.dir, "sshd_config")) //nolint:noctx // killSessions ends it
	cmd.Stdin, cmd.Stdout, cmd.Stderr = file, file, s.log
	err = cmd.Start()
	if err == nil {
		s.sessions = append(s.sessions, cmd)
	}
	s.mu.Unlock()
	if err != nil {
		s.t.Error(err)
		return
	}
	file.Close()
	cmd.Wait() //nolint:errcheck // it may be killed
}

// killSessions breaks all connections. What hangs on them has to notice.
func (s *sshd) killSessions() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, cmd := range s.sessions {
		cmd.Process.Kill()
	}
}

func (s *sshd) write(name string, b []byte) {
	s.t.Helper()
	if err := os.WriteFile(filepath.Join(s.dir, name), b, 0o600); err != nil {
		s.t.Fatal(err)
	}
}

func (s *sshd) newHostKey(file, kind string) {
	s.t.Helper()
	path := filepath.Join(s.dir, file)
	os.Remove(path)
	os.Remove(path + ".pub")
	if out, err := exec.CommandContext(s.t.Context(), "ssh-keygen", "-q", "-t", kind, "-N", "", "-f", path).CombinedOutput(); err != nil {
		s.t.Fatalf("%v\n%s", err, out)
	}
}

// pids are the guest programs that were started in the guest.
func (s *sshd) pids() []int {
	var out []int
	files, _ := filepath.Glob(filepath.Join(s.home, ".minifleet", "*", "pid"))
	for _, f := range files {
		b, err := os.ReadFile(f)
		pid, convErr := strconv.Atoi(strings.TrimSpace(string(b)))
		if err := errors.Join(err, convErr); err != nil {
			s.t.Error(err)
			continue
		}
		out = append(out, pid)
	}
	return out
}

func (s *sshd) killGuests() {
	for _, pid := range s.pids() {
		syscall.Kill(pid, syscall.SIGKILL) //nolint:errcheck // it may be over
	}
}

func newKey(t *testing.T) (secret.Text, ssh.PublicKey) {
	t.Helper()
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	block, err := ssh.MarshalPrivateKey(private, "")
	if err != nil {
		t.Fatal(err)
	}
	key, err := ssh.NewPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	return secret.New(string(pem.EncodeToMemory(block))), key
}

// built is where the guest program is, once it was built.
var built string

// buildGuest builds the real guest program once for all tests.
var buildGuest = sync.OnceValue(func() error {
	dir, err := os.MkdirTemp("", "mfbin")
	if err != nil {
		return err
	}
	built = dir
	build := exec.Command("go", "build", "-o", filepath.Join(dir, programName()), "github.com/minifleet/minifleet/cmd/minifleet-guest") //nolint:noctx // the tests' own time limit
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("%w\n%s", err, out)
	}
	return nil
})

// guestPrograms is a folder with the guest program for this machine.
func guestPrograms(t *testing.T) string {
	t.Helper()
	if err := buildGuest(); err != nil {
		t.Fatal(err)
	}
	return built
}

func programName() string { return fmt.Sprintf("minifleet-guest-%s-%s", runtime.GOOS, runtime.GOARCH) }

func (s *sshd) remoteConfig() remote.Config {
	me, err := user.Current()
	if err != nil {
		s.t.Fatal(err)
	}
	return remote.Config{
		Address:     func(context.Context) (string, error) { return s.address, nil },
		Credentials: remote.Credentials{User: me.Username, Key: s.userKey},
		HostKeys:    remote.HostKeys{Dir: filepath.Join(s.dir, "hostkeys")}, Image: image,
		Programs: remote.Programs{Dir: s.programs}, RunnerDir: "actions-runner",
		Log: slog.New(slog.NewTextHandler(s.log, nil)),
	}
}

// way is a new way into the guest, as an agent that starts has it.
func (s *sshd) way(change ...func(*remote.Config)) (*remote.Guest, *guest.Client) {
	s.t.Helper()
	cfg := s.remoteConfig()
	for _, f := range change {
		f(&cfg)
	}
	g, err := remote.New(cfg)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(g.Close)
	return g, guest.NewClient(g.Dial)
}

func (s *sshd) health(c *guest.Client) guest.Health {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), patience)
	defer cancel()
	h, err := c.Health(ctx)
	if err != nil {
		s.t.Fatalf("%v\n%s", err, s.log)
	}
	return h
}

// refused dials and wants a failure in the step.
func (s *sshd) refused(g *remote.Guest, step remote.Step, words string) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), patience)
	defer cancel()
	conn, err := g.Dial(ctx)
	if err == nil {
		conn.Close()
	}
	wantStep(s.t, err, step, words)
}

func wantStep(t *testing.T, err error, step remote.Step, words string) {
	t.Helper()
	e, ok := errors.AsType[*remote.Error](err)
	if !ok || e.Step != step || !strings.Contains(err.Error(), words) {
		t.Errorf("error %v, want step %q and %q", err, step, words)
	}
}

func TestGuestIsPutInOnceAndFoundAgain(t *testing.T) {
	s := newSSHD(t)
	first, c := s.way()
	h := s.health(c)
	// Several streams at once go over the one connection.
	var streams sync.WaitGroup
	for range 8 {
		streams.Go(func() {
			if again := s.health(c); again.Instance != h.Instance {
				t.Error("another instance answers")
			}
		})
	}
	streams.Wait()
	first.Close()
	if _, err := first.Dial(t.Context()); !errors.Is(err, remote.ErrClosed) {
		t.Errorf("error %v after Close", err)
	}

	_, c = s.way()
	if again := s.health(c); again.Instance != h.Instance {
		t.Error("a second agent started a second guest program")
	}
	s.killSessions()
	if again := s.health(c); again.Instance != h.Instance {
		t.Error("after a broken connection there is a second guest program")
	}
	s.killSessions()
	_, c = s.way()
	if again := s.health(c); again.Instance != h.Instance {
		t.Error("after a broken connection a new agent started a second guest program")
	}
	if n := strings.Count(s.log.String(), "was copied"); n != 1 {
		t.Errorf("it was copied %d times", n)
	}
	if len(s.pids()) != 1 {
		t.Errorf("guest programs %v", s.pids())
	}
	info, err := os.Stat(filepath.Join(s.home, ".minifleet"))
	if err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the folder: %v, %v", info.Mode(), err)
	}
}

func TestTwoAgentsAtOnceStartOneGuest(t *testing.T) {
	s := newSSHD(t)
	instances := make([]string, 2)
	var ways sync.WaitGroup
	for i := range instances {
		_, c := s.way()
		ways.Go(func() { instances[i] = s.health(c).Instance })
	}
	ways.Wait()
	if instances[0] != instances[1] || instances[0] == "" {
		t.Errorf("instances %q", instances)
	}
}

func TestSameProgramIsNotCopiedTwice(t *testing.T) {
	s := newSSHD(t)
	g, c := s.way()
	h := s.health(c)
	// As after a boot: the program is there, nothing runs.
	s.killGuests()
	runs, _ := filepath.Glob(filepath.Join(s.home, ".minifleet", "*", "pid"))
	for _, f := range runs {
		os.RemoveAll(filepath.Dir(f))
	}
	g.Close()
	_, c = s.way()
	if again := s.health(c); again.Instance == h.Instance {
		t.Error("the killed program answers")
	}
	if n := strings.Count(s.log.String(), "was copied"); n != 1 {
		t.Errorf("it was copied %d times", n)
	}
}

func TestDamagedProgramIsCopiedAnew(t *testing.T) {
	s := newSSHD(t)
	b, err := os.ReadFile(filepath.Join(s.programs, programName()))
	if err != nil {
		t.Fatal(err)
	}
	sum := secret.New(string(b)).Hash()
	if err := os.Mkdir(filepath.Join(s.home, ".minifleet"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(s.home, ".minifleet", "minifleet-guest-"+sum[:16]), b[:len(b)/2], 0o700); err != nil {
		t.Fatal(err)
	}
	_, c := s.way()
	s.health(c)
}

func TestGuestThatEndedIsNotStartedAgain(t *testing.T) {
	s := newSSHD(t)
	g, c := s.way()
	s.health(c)
	s.killGuests()
	s.killSessions()
	s.refused(g, remote.StepStart, "not started a second time")
}

func TestGuestThatCannotStart(t *testing.T) {
	s := newSSHD(t)
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, programName()), []byte("#!/bin/sh\necho no such luck\nexit 1\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	g, _ := s.way(func(c *remote.Config) { c.Programs.Dir = dir })
	s.refused(g, remote.StepStart, "no such luck")
}

func TestRefusals(t *testing.T) {
	other, _ := newKey(t)
	empty := t.TempDir()
	for name, tt := range map[string]struct {
		config []string
		change func(*remote.Config)
		step   remote.Step
		words  string
	}{
		"wrong key":         {nil, func(c *remote.Config) { c.Credentials.Key = other }, remote.StepLogin, "unable to authenticate"},
		"unknown user":      {nil, func(c *remote.Config) { c.Credentials.User = "nobody-of-this-name" }, remote.StepLogin, "as nobody-of-this-name"},
		"no program":        {nil, func(c *remote.Config) { c.Programs.Dir = empty }, remote.StepCopy, "minifleet-guest-" + runtime.GOOS},
		"no forwarding":     {[]string{"AllowStreamLocalForwarding no"}, nil, remote.StepReach, "set AllowStreamLocalForwarding yes"},
		"forwarding is off": {[]string{"DisableForwarding yes"}, nil, remote.StepReach, "no DisableForwarding"},
		"no shell":          {[]string{"ForceCommand echo Welcome"}, nil, remote.StepSurvey, "ordinary login shell"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSSHD(t, tt.config...)
			g, _ := s.way(func(c *remote.Config) {
				if tt.change != nil {
					tt.change(c)
				}
			})
			s.refused(g, tt.step, tt.words)
		})
	}
}

func TestChangedHostKey(t *testing.T) {
	for name, kind := range map[string]string{"of the same type": "ed25519", "of another type": "ecdsa"} {
		t.Run(name, func(t *testing.T) {
			s := newSSHD(t)
			g, c := s.way()
			s.health(c)
			g.Close()
			s.newHostKey("host_key", kind)
			g, _ = s.way()
			s.refused(g, remote.StepHostKey, "clones of this image are known by")
			// Another image has a key of its own.
			_, c = s.way(func(cfg *remote.Config) { cfg.Image = "sha256:other" })
			s.health(c)
		})
	}
}

// TestHostKeysOfSeveralTypes: an image that got another key beside the one that it is known
// by shows that one when asked for it.
func TestHostKeysOfSeveralTypes(t *testing.T) {
	for first, second := range map[string]string{"ed25519": "ecdsa", "ecdsa": "rsa", "rsa": "ed25519"} {
		t.Run(second+" beside "+first, func(t *testing.T) {
			s := newSSHD(t)
			s.newHostKey("host_key", first)
			g, c := s.way()
			s.health(c)
			g.Close()
			s.newHostKey("other_key", second)
			s.mu.Lock()
			s.config = append([]string{"HostKey " + filepath.Join(s.dir, "other_key")}, s.config...)
			s.mu.Unlock()
			_, c = s.way()
			s.health(c)
		})
	}
}

// TestShellsThatTalk: what a login shell prints by itself is not taken for an answer.
func TestShellsThatTalk(t *testing.T) {
	s := newSSHD(t, `ForceCommand echo "Last login: minifleet"; /bin/sh -c "$SSH_ORIGINAL_COMMAND"`)
	_, c := s.way()
	s.health(c)
}

// TestToolsOfAMac: there is neither setsid nor, on older ones, sha256sum.
func TestToolsOfAMac(t *testing.T) {
	tools := t.TempDir()
	for _, name := range []string{"uname", "cat", "mkdir", "chmod", "mv", "rm", "cut", "tail"} {
		path, err := exec.LookPath(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(path, filepath.Join(tools, name)); err != nil {
			t.Fatal(err)
		}
	}
	sum, err := exec.LookPath("sha256sum")
	if err != nil {
		t.Skip("there is no sha256sum to stand in for shasum")
	}
	if err := os.WriteFile(filepath.Join(tools, "shasum"), []byte("#!/bin/sh\n[ \"$*\" = \"-a 256\" ] && exec "+sum+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	s := newSSHD(t)
	s.mu.Lock()
	s.config[len(s.config)-1] += " PATH=" + tools // to the user's environment
	s.mu.Unlock()
	_, c := s.way()
	h := s.health(c)
	s.killSessions()
	if again := s.health(c); again.Instance != h.Instance {
		t.Error("the guest program ended with the connection")
	}
	if n := strings.Count(s.log.String(), "was copied"); n != 1 {
		t.Errorf("it was copied %d times", n)
	}
}

// logBuffer collects what several goroutines and processes write.
type logBuffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}
