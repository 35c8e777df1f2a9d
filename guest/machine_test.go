// SPDX-License-Identifier: MIT

package guest

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// fakeMachine notes what it is asked for.
type fakeMachine struct {
	asked []string
	err   error
}

func (m *fakeMachine) note(what string) error {
	m.asked = append(m.asked, what)
	return m.err
}

func (m *fakeMachine) SetClock(to time.Time) error { return m.note(to.UTC().Format(time.RFC3339)) }
func (m *fakeMachine) Resize() error               { return m.note("resize") }
func (m *fakeMachine) CanPowerOff() error          { return m.err }
func (m *fakeMachine) PowerOff() error             { return m.note("power off") }

func agentWith(t *testing.T, change func(*Config)) *Client {
	t.Helper()
	cfg := Config{RunnerDir: t.TempDir()}
	change(&cfg)
	a, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(a.handler())
	c := NewClient(func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "tcp", srv.Listener.Addr().String())
	})
	t.Cleanup(func() {
		c.Close()
		srv.Close()
		a.close()
	})
	return c
}

func TestMachineRequests(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 11, 22, 5, 0, 0, 0, time.UTC)
	calls := []func(*Client) error{
		func(c *Client) error { return c.SetClock(t.Context(), at) },
		func(c *Client) error { return c.Resize(t.Context()) },
		func(c *Client) error { return c.PowerOff(t.Context()) },
	}
	m := &fakeMachine{}
	own := agentWith(t, func(c *Config) { c.Machine = m })
	for _, call := range calls {
		if err := call(own); err != nil {
			t.Error(err)
		}
	}
	for _, nonsense := range []time.Time{{}, time.Unix(0, 0), time.Date(2019, 12, 31, 23, 59, 59, 0, time.UTC), time.Date(2250, 1, 1, 0, 0, 0, 0, time.UTC)} {
		if err := own.SetClock(t.Context(), nonsense); err == nil || !strings.Contains(err.Error(), "not the present time") {
			t.Errorf("%v: %v", nonsense, err)
		}
	}
	if diff := cmp.Diff([]string{"2026-11-22T05:00:00Z", "resize", "power off"}, m.asked); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	shared := agentWith(t, func(*Config) {})
	refusing := agentWith(t, func(c *Config) { c.Machine = &fakeMachine{err: errors.New("the test's reason")} })
	for i, call := range calls {
		if err := call(shared); err == nil || !strings.Contains(err.Error(), "--own-machine") {
			t.Errorf("call %d of a shared machine: %v", i, err)
		}
		err := call(refusing)
		if re, ok := errors.AsType[*ResponseError](err); !ok || re.Code != http.StatusInternalServerError || !strings.Contains(re.Message, "the test's reason") {
			t.Errorf("call %d: %v", i, err)
		}
	}
}

func TestSessionReady(t *testing.T) {
	t.Parallel()
	looks := 0
	s := session{look: func(context.Context) bool { looks++; return looks == 2 }}
	for i, want := range []bool{false, true, true} {
		if got := s.ready(t.Context()); got != want {
			t.Errorf("look %d: %t", i, got)
		}
	}
	if looks != 2 {
		t.Errorf("%d looks: one that succeeded is enough", looks)
	}
	if h, err := agentWith(t, func(*Config) {}).Health(t.Context()); err != nil || !h.SessionReady {
		t.Errorf("where no session is needed: %+v, %v", h, err)
	}
}

func TestResizePlan(t *testing.T) {
	t.Parallel()
	mount := func(number, fstype string) string {
		return "22 1 0:5 / /proc rw - proc proc rw\n1 0 " + number + " / / rw,relatime shared:1 - " + fstype + " /dev/root rw\n"
	}
	all := func(string) bool { return true }
	tests := []struct {
		name   string
		mounts string
		sys    map[string]string
		has    func(string) bool
		want   [][]string
		err    string
	}{
		{"ext4 on a whole disk", mount("254:0", "ext4"), map[string]string{"uevent": "MAJOR=254\nDEVNAME=vda\n"}, all, [][]string{{"resize2fs", "/dev/vda"}}, ""},
		{
			"xfs on a partition", mount("254:1", "xfs"),
			map[string]string{"uevent": "DEVNAME=vda1\n", "partition": "1\n"},
			all,
			[][]string{{"growpart", "/dev/vda", "1"}, {"xfs_growfs", "/"}},
			"",
		},
		{
			"btrfs on NVMe", mount("259:12", "btrfs"),
			map[string]string{"uevent": "DEVNAME=nvme0n1p12\n", "partition": "12\n"},
			all,
			[][]string{{"growpart", "/dev/nvme0n1", "12"}, {"btrfs", "filesystem", "resize", "max", "/"}},
			"",
		},
		{"later mount on /", mount("0:2", "rootfs") + mount("254:0", "ext4"), map[string]string{"uevent": "DEVNAME=vda\n"}, all, [][]string{{"resize2fs", "/dev/vda"}}, ""},
		{"memory", mount("0:2", "tmpfs"), nil, all, nil, "no disk of its own"},
		{"no mounts", "", nil, all, nil, "no mount on /"},
		{"no tool", mount("254:0", "ext4"), map[string]string{"uevent": "DEVNAME=vda\n"}, func(string) bool { return false }, nil, "resize2fs is not installed"},
		{"no growpart", mount("254:1", "ext4"), map[string]string{"uevent": "DEVNAME=vda1\n", "partition": "1\n"}, func(p string) bool { return p != "growpart" }, nil, "growpart is not installed"},
		{"other type", mount("254:0", "f2fs"), map[string]string{"uevent": "DEVNAME=vda\n"}, all, nil, `"f2fs" cannot be resized`},
		{"partition that is none", mount("254:1", "ext4"), map[string]string{"uevent": "DEVNAME=dm-0\n", "partition": "1\n"}, all, nil, "not understood"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			sys := fstest.MapFS{}
			for name, text := range tt.sys {
				for line := range strings.Lines(tt.mounts) {
					sys["dev/block/"+strings.Fields(line)[2]+"/"+name] = &fstest.MapFile{Data: []byte(text)}
				}
			}
			disk, err := findRoot(fstest.MapFS{"self/mountinfo": {Data: []byte(tt.mounts)}}, sys)
			var steps []step
			if err == nil {
				steps, err = disk.plan(tt.has)
			}
			var got [][]string
			for _, s := range steps {
				got = append(got, s.argv)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
				t.Errorf("%v; want %q", err, tt.err)
			}
		})
	}
}

func TestRunSteps(t *testing.T) {
	t.Parallel()
	sh := func(script string, noWork int) step { return step{[]string{"/bin/sh", "-c", script}, noWork} }
	if err := runSteps([]step{sh("exit 1", 1), sh("exit 0", 0)}); err != nil {
		t.Errorf("nothing to do: %v", err)
	}
	if err := runSteps([]step{sh("echo why; exit 2", 1), sh("exit 0", 0)}); err == nil || !strings.Contains(err.Error(), "why") {
		t.Errorf("%v", err)
	}
}

// TestInSession: nothing of the environment, where the config is, gets into arguments or
// into the environment of launchctl.
func TestInSession(t *testing.T) {
	t.Parallel()
	cmd := &exec.Cmd{Path: "/r/bin/Runner.Listener", Args: []string{"/r/bin/Runner.Listener", "run"}, Env: []string{"A=b", "ACTIONS_RUNNER_INPUT_JITCONFIG=" + fuzzJIT}}
	inSession(cmd, "/usr/local/bin/minifleet-guest", account{name: "admin", uid: 501})
	want := []string{"/bin/launchctl", "asuser", "501", "/usr/local/bin/minifleet-guest", "become", "admin", "/r/bin/Runner.Listener", "run"}
	if !slices.Equal(cmd.Args, want) || cmd.Path != want[0] {
		t.Errorf("%s %q", cmd.Path, cmd.Args)
	}
	if strings.Contains(strings.Join(cmd.Env, " "), fuzzJIT) {
		t.Errorf("environment %q", cmd.Env)
	}
	text := make([]byte, 4096)
	n, _ := cmd.Stdin.Read(text)
	environ, err := splitEnviron(string(text[:n]))
	if err != nil || !slices.Equal(environ, []string{"A=b", "ACTIONS_RUNNER_INPUT_JITCONFIG=" + fuzzJIT}) {
		t.Errorf("%q, %v", environ, err)
	}
}
