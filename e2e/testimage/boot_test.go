// SPDX-License-Identifier: MIT

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/minifleet/minifleet/guest"
	"github.com/minifleet/minifleet/internal/testimage"
	"github.com/minifleet/minifleet/mux"
	"github.com/minifleet/minifleet/secret"
	"github.com/minifleet/minifleet/vm/options"
)

// patience is for a machine without hardware support on a busy host.
const patience = 5 * time.Minute

// machine is a clone of an image under QEMU, until the test ends.
type machine struct {
	images  testimage.Images
	dir     string
	process *exec.Cmd
	exited  chan error // carries the one end of the process
	qmp     net.Conn   // the machine's monitor
	replies *json.Decoder
	port    net.Listener // where QEMU has connected the guest's serial port to
	started time.Time
}

// boot starts a machine. QEMU connects to the test, so that nothing has to wait for its
// sockets to appear.
func boot(ctx context.Context, t *testing.T, image string) *machine {
	t.Helper()
	images := testimage.Need(t)
	dir, err := os.MkdirTemp("", "mf")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	m := &machine{images: images, dir: dir, exited: make(chan error, 1)}
	if out, err := exec.CommandContext(ctx, "cp", "--sparse=always", filepath.Join(images.Image(image), options.FileDisk), m.path("disk")).CombinedOutput(); err != nil {
		t.Fatalf("cp: %v\n%s", err, out)
	}
	line, err := os.ReadFile(filepath.Join(images.Image(image), options.FileCommandLine))
	if err != nil {
		t.Fatal(err)
	}
	monitor := listen(t, m.path("qmp"))
	m.port = listen(t, m.path("guest"))
	m.process = exec.Command(images.QEMU,
		"-accel", "tcg,thread=multi", "-machine", "q35", "-cpu", "qemu64,+rdrand,+aes,+ssse3,+sse4.1,+sse4.2,+popcnt",
		"-m", "512", "-smp", "1", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-kernel", filepath.Join(images.Image(image), options.FileKernel),
		"-initrd", filepath.Join(images.Image(image), options.FileInitrd), "-append", strings.TrimSpace(string(line)),
		"-drive", "if=virtio,format=raw,file="+m.path("disk"),
		"-netdev", "user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:0-:22", "-device", "virtio-net-pci,netdev=net,romfile=",
		"-device", "virtio-rng-pci", "-device", "virtio-serial-pci",
		"-chardev", "socket,id=guest,path="+m.path("guest"), "-device", "virtserialport,chardev=guest,name="+options.GuestPortName,
		"-serial", "file:"+m.path("console"), "-qmp", "unix:"+m.path("qmp"))
	var complaint bytes.Buffer
	m.process.Stderr = &complaint
	m.started = time.Now()
	if err := m.process.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { m.exited <- m.process.Wait() }()
	t.Cleanup(func() {
		m.process.Process.Kill()
		m.exited <- <-m.exited
		if t.Failed() {
			console, _ := os.ReadFile(m.path("console"))
			t.Logf("QEMU: %s\nthe guest's console:\n%s", &complaint, console)
		}
	})
	if m.qmp, err = accept(ctx, monitor); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.qmp.Close() })
	m.replies = json.NewDecoder(m.qmp)
	m.ask(t, "qmp_capabilities", nil)
	return m
}

func (m *machine) path(name string) string { return filepath.Join(m.dir, name) }

func (m *machine) since() string { return fmt.Sprintf("%.2f s", time.Since(m.started).Seconds()) }

func listen(t *testing.T, path string) *net.UnixListener {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func accept(ctx context.Context, l net.Listener) (net.Conn, error) {
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	return l.Accept()
}

type call struct {
	Execute   string            `json:"execute"`
	Arguments map[string]string `json:"arguments,omitempty"`
}

// ask has the monitor carry out a command and returns its answer.
func (m *machine) ask(t *testing.T, command string, arguments map[string]string) string {
	t.Helper()
	m.qmp.SetDeadline(time.Now().Add(patience))
	if err := json.NewEncoder(m.qmp).Encode(call{command, arguments}); err != nil {
		t.Fatal(err)
	}
	for {
		var reply struct {
			Return json.RawMessage
			Error  any
		}
		if err := m.replies.Decode(&reply); err != nil {
			t.Fatalf("%s: %v", command, err)
		}
		if reply.Error != nil {
			t.Fatalf("%s: %v", command, reply.Error)
		}
		if reply.Return != nil { // neither the greeting nor an event
			return string(reply.Return)
		}
	}
}

// ssh runs a command in the guest and returns what it prints. The guest may still be
// booting.
func (m *machine) ssh(ctx context.Context, t *testing.T, user, command string) string {
	t.Helper()
	network := m.ask(t, "human-monitor-command", map[string]string{"command-line": "info usernet"})
	found := regexp.MustCompile(`127\.0\.0\.1 +(\d+)`).FindStringSubmatch(network)
	if found == nil {
		t.Fatalf("no port is forwarded: %s", network)
	}
	if err := os.WriteFile(m.path("known"), []byte("[127.0.0.1]:"+found[1]+" "+m.images.HostKey), 0o600); err != nil {
		t.Fatal(err)
	}
	// A first try that the guest was not ready for is never answered; one that it answers can
	// take long.
	for timeout := 2; ; timeout = min(2*timeout, 64) { // others are refused at once, any number of them
		cmd := exec.CommandContext(ctx, "ssh", "-F", "none", "-p", found[1], "-i", m.images.Key, "-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes",
			"-o", "StrictHostKeyChecking=yes", "-o", "UserKnownHostsFile="+m.path("known"), "-o", fmt.Sprintf("ConnectTimeout=%d", timeout), user+"@127.0.0.1", command)
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		var exit *exec.ExitError
		switch {
		case err == nil:
			return string(out)
		case ctx.Err() != nil || !errors.As(err, &exit) || exit.ExitCode() != 255:
			t.Fatalf("ssh %s@guest %s: %v\n%s%s", user, command, err, out, &stderr)
		}
	}
}

// powerOff presses the button and looks at what the guest leaves.
func (m *machine) powerOff(ctx context.Context, t *testing.T) {
	t.Helper()
	pressed := time.Now()
	m.ask(t, "system_powerdown", nil)
	select {
	case err := <-m.exited:
		m.exited <- err
		if err != nil {
			t.Errorf("QEMU: %v", err)
		}
	case <-ctx.Done():
		t.Fatal("the guest ignores the power button")
	}
	took := time.Since(pressed)
	out, err := output(command(ctx, "dumpe2fs", "-h", m.path("disk")))
	if err != nil {
		t.Fatal(err)
	}
	if !regexp.MustCompile(`(?m)^Filesystem state: +clean$`).Match(out) {
		t.Errorf("the guest leaves its disk in use:\n%s", out)
	}
	t.Logf("off %.2f s after the button", took.Seconds())
}

func TestGuestBoots(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	m := boot(ctx, t, testimage.Guest)
	// QEMU connects its port once: whoever gives a guest up that boots slowly has lost it.
	if got := m.ssh(ctx, t, "root", "hostname; stat -c %U /home/runner/actions-runner/bin/Runner.Listener"); got != "testguest\nrunner\n" {
		t.Errorf("root@guest says %q", got)
	}
	t.Logf("a command by SSH is done after %s", m.since())
	channel := mux.NewClient(func(ctx context.Context) (net.Conn, error) { return accept(ctx, m.port) })
	defer channel.Close()
	client := guest.NewClient(channel.Connect)
	defer client.Close()
	for {
		health, err := client.Health(ctx)
		if err == nil {
			t.Logf("minifleet-guest %s answers after %s", health.Version, m.since())
			break
		}
		if ctx.Err() != nil {
			t.Fatal(err)
		}
	}
	var network strings.Builder
	if _, err := client.Exec(ctx, guest.ExecRequest{Argv: []string{"ip", "-4", "addr", "show", "eth0"}}, &network, &network); err != nil || !strings.Contains(network.String(), "inet 10.0.2.") {
		t.Errorf("the guest answers before it has a network, which a runner would not find either: %v\n%s", err, &network)
	}
	// This is "no config" to the runner client, which says so: it is there, and was started.
	if err := client.Run(ctx, secret.New("bm8gY29uZmln"), nil, nil); err != nil {
		t.Fatal(err)
	}
	for s := (guest.Status{}); s.Phase != guest.PhaseFinished; {
		var err error
		if s, err = client.Status(ctx, s.Revision, time.Minute); err != nil {
			t.Fatal(err)
		}
	}
	if tail, err := client.Tail(ctx); err != nil || !strings.Contains(tail, "the JIT config in") {
		t.Errorf("the runner says %q, %v", tail, err)
	}
	m.powerOff(ctx, t)
}

func TestSSHOnlyBoots(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	m := boot(ctx, t, testimage.SSH)
	if got := m.ssh(ctx, t, "runner", "id -un; pwd; pidof minifleet-guest || echo none"); got != "runner\n/home/runner\nnone\n" {
		t.Errorf("runner@guest says %q", got)
	}
	t.Logf("a command by SSH is done after %s", m.since())
	m.powerOff(ctx, t)
}
