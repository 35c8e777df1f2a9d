// SPDX-License-Identifier: MIT

package agent_test

import (
	"context"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/minifleet/minifleet/guest"
	"github.com/minifleet/minifleet/guest/remote"
	"github.com/minifleet/minifleet/hosts/agent"
	"github.com/minifleet/minifleet/internal/testimage"
	"github.com/minifleet/minifleet/secret"
	"github.com/minifleet/minifleet/vm"
)

// sshPatience is for a machine without hardware support on a busy host.
const sshPatience = 2 * time.Minute

func TestOrdersOverSSHThatAHostRefuses(t *testing.T) {
	for name, tt := range map[string]struct {
		backend vm.BackendName
		guest   string
		words   string
	}{
		"no login":          {vm.BackendQEMU, agent.GuestSSH, "ssh.key_file"},
		"no such way":       {vm.BackendQEMU, "telnet", "upgrade it"},
		"process has guest": {vm.BackendProcess, agent.GuestSSH, "remove guest: ssh"},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t, tt.backend)
			_, err := h.vms().Create(t.Context(), agent.Order{ID: "r-1", Slot: 1, Pool: "p", Image: "debian", Guest: tt.guest}, func(string) {})
			if err == nil || !strings.Contains(err.Error(), tt.words) || !strings.Contains(err.Error(), "pool p") {
				t.Errorf("error %v, want %q", err, tt.words)
			}
		})
	}
}

func TestSSHConfigIsChecked(t *testing.T) {
	for name, tt := range map[string]struct {
		cfg   agent.SSHConfig
		words string
	}{
		"none":          {agent.SSHConfig{}, ""},
		"no user":       {agent.SSHConfig{RunnerDir: "r", Credentials: remote.Credentials{Password: secret.New("x")}}, "no user"},
		"no way in":     {agent.SSHConfig{RunnerDir: "r", Credentials: remote.Credentials{User: "admin"}}, "neither a key nor a password"},
		"no runner":     {agent.SSHConfig{Credentials: remote.Credentials{User: "admin", Password: secret.New("x")}}, "runner_dir"},
		"with password": {agent.SSHConfig{RunnerDir: "r", Credentials: remote.Credentials{User: "admin", Password: secret.New("x")}}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t, vm.BackendQEMU)
			h.cfg.SSH = tt.cfg
			_, err := agent.NewVMs(h.cfg)
			if (err == nil) != (tt.words == "") || err != nil && !strings.Contains(err.Error(), tt.words) {
				t.Errorf("error %v, want %q", err, tt.words)
			}
		})
	}
}

// TestImageWithOnlySSH boots an image in which nothing of ours runs, has its guest program
// put in and started, finds it again as the next agent, and runs its runner.
func TestImageWithOnlySSH(t *testing.T) {
	images := testimage.Need(t)
	key, err := os.ReadFile(images.Key)
	if err != nil {
		t.Fatal(err)
	}
	bin, err := programs()
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "mf")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	ctx, cancel := context.WithTimeout(t.Context(), 2*sshPatience)
	defer cancel()
	build := exec.CommandContext(ctx, "go", "build", "-o", filepath.Join(dir, "guests", "minifleet-guest-linux-amd64"), "github.com/minifleet/minifleet/cmd/minifleet-guest")
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	log := &lockedBuffer{}
	cfg := agent.VMsConfig{
		Dir: filepath.Join(dir, agent.DirVMs), ImagesDir: images.Dir, Backend: vm.BackendQEMU, AllowCopy: true,
		QEMU: agent.QEMUConfig{Accelerator: "tcg"}, VMMProgram: filepath.Join(bin, "minifleet-vmm"),
		SSH: agent.SSHConfig{
			Credentials: remote.Credentials{User: "runner", Key: secret.New(string(key))},
			GuestsDir:   filepath.Join(dir, "guests"), RunnerDir: "actions-runner",
		},
	}
	first, err := agent.NewVMs(cfg)
	if err != nil {
		t.Fatal(err)
	}
	m, err := first.Create(ctx, agent.Order{ID: "ssh-1", Slot: 1, Pool: "p", Image: testimage.SSH, Guest: agent.GuestSSH, CPUs: 1, MemoryMiB: 512}, func(string) {})
	if err != nil {
		t.Fatal(err)
	}
	// Whichever agent's it is, it is ended.
	end := func() {
		stop, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), sshPatience)
		defer cancel()
		if err := m.Stop(stop); err != nil {
			t.Error(err)
		}
		m.Release()
		if err := m.Remove(stop); err != nil {
			t.Error(err)
		}
	}
	defer func() { end() }()
	if err := m.Start(ctx); err != nil {
		t.Fatal(err)
	}
	status := reach(ctx, t, m, func(s guest.Status) bool { return s.Phase == guest.PhaseReady })
	if _, err := os.Stat(filepath.Join(dir, "hostkeys")); err != nil {
		t.Errorf("no host key is kept: %v", err)
	}

	m.Release() // as the first agent's end does
	cfg.Log = slog.New(slog.NewTextHandler(log, nil))
	second, err := agent.NewVMs(cfg)
	if err != nil {
		t.Fatal(err)
	}
	found, err := second.Scan(ctx)
	if err != nil || len(found) != 1 || !found[0].Running || found[0].Orphan {
		t.Fatalf("found %+v, %v", found, err)
	}
	m = found[0].Machine
	again := reach(ctx, t, m, func(guest.Status) bool { return true })
	if again.Instance != status.Instance || strings.Contains(log.String(), "was copied") {
		t.Errorf("the next agent did not find the guest program that runs: %s", log)
	}
	if err := m.Guest().Run(ctx, secret.New("bm8gY29uZmln"), nil, nil); err != nil {
		t.Fatal(err)
	}
	reach(ctx, t, m, func(s guest.Status) bool { return s.HasConfig && s.Phase == guest.PhaseFinished })
	if tail, err := m.Guest().Tail(ctx); err != nil || tail == "" {
		t.Errorf("the runner's output is %q, %v", tail, err)
	}
}

// reach asks the guest until its status is as wanted.
func reach(ctx context.Context, t *testing.T, m agent.Machine, wanted func(guest.Status) bool) guest.Status {
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, sshPatience)
	defer cancel()
	var last error
	for after := uint64(0); ; {
		s, err := m.Guest().Status(ctx, after, 10*time.Second)
		switch {
		case err == nil && wanted(s):
			return s
		case err == nil:
			after, last = s.Revision, nil
		case ctx.Err() != nil:
			t.Fatalf("the guest is not as wanted: %v, %v", last, err)
		default:
			last = err
		}
	}
}
