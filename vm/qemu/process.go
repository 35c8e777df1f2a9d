// SPDX-License-Identifier: MIT

//go:build linux

package qemu

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/minifleet/minifleet/crashpoint"
	"github.com/minifleet/minifleet/vm"
	"github.com/minifleet/minifleet/vm/console"
)

// process is one run of QEMU with all that belongs to it. It lives in a session of its own
// and survives the vmm, whose death closes nothing but the conversation.
type process struct {
	cmd       *exec.Cmd
	qmp       *monitor
	dir       string
	belongs   []func()      // end what is not QEMU, in this order, once it is gone
	gone      chan struct{} // closed when QEMU and all of that are
	exit      error         // set before
	migration chan string   // how a migration goes on
	deleted   chan struct{} // a token when the guest's port is gone

	mu       sync.Mutex // guards what follows
	shutdown string     // the reason of QEMU's last word on it
	guest    bool       // which came from the guest
	channel  net.Conn   // to the guest's port; nil before the first
	held     bool       // the guest has opened its port, for this connection or the next
	halted   bool       // by the vmm, which continues it
	refused  int        // writes for which the volume had no room
	waiting  bool       // for room
	full     bool       // there was none for too long

	log      *slog.Logger
	roomTime time.Duration
	asking   sync.WaitGroup // for the port, and for room
}

// spawn starts QEMU, its processors halted, and waits for its greeting. After an error
// nothing of it is left.
func spawn(ctx context.Context, cfg vm.OpenConfig, p plan, accelerator string, incoming bool) (*process, error) {
	r := &process{dir: p.dir, log: cfg.Log, roomTime: p.roomTime, gone: make(chan struct{}), migration: make(chan string, 16), deleted: make(chan struct{}, 1)}
	if err := r.launch(cfg, p, accelerator, incoming); err != nil {
		r.tidy()
		return nil, err
	}
	crashpoint.Reached(crashpoint.WriterSpawned)
	go r.await() // ends with QEMU
	err := cfg.RecordWriter(r.cmd.Process.Pid)
	if err == nil {
		crashpoint.Reached(crashpoint.WriterRecorded)
		err = r.qmp.greet(ctx)
	}
	if err == nil {
		err = r.qmp.call(ctx, "migrate-set-capabilities", obj{"capabilities": []obj{{"capability": "events", "state": true}}}, nil)
	}
	if err != nil {
		r.kill()
		<-r.gone // killed; nobody can keep it
		return nil, r.explain("start QEMU", err)
	}
	return r, nil
}

// obj is the arguments of a command.
type obj map[string]any

// launch starts the process with the descriptors that it inherits: the lock first, which it
// does not know and keeps open.
func (r *process) launch(cfg vm.OpenConfig, p plan, accelerator string, incoming bool) error {
	inherited := []*os.File{cfg.Lock}
	inherit := func(f *os.File) int {
		inherited = append(inherited, f)
		return 2 + len(inherited)
	}
	log, err := console.Open(filepath.Join(p.dir, fileLog))
	if err != nil {
		return err
	}
	r.belongs = append(r.belongs, log.Close)
	var fd descriptors
	if p.options.Console {
		out, err := console.Open(filepath.Join(p.dir, vm.FileConsole))
		if err != nil {
			return err
		}
		defer out.Started()
		r.belongs = append(r.belongs, out.Close)
		fd.console = inherit(out.Input())
	}
	network, err := connectNetwork(cfg.Log, p)
	if err != nil {
		return err
	}
	r.belongs = append(r.belongs, network.end)
	if network.wire != nil {
		defer network.wire.Close()
		fd.net = inherit(network.wire)
	}
	ours, theirs, err := socketPair("qmp")
	if err != nil {
		return err
	}
	defer theirs.Close()
	fd.monitor = inherit(theirs)
	conn, err := unixConn(ours)
	if err != nil {
		return err
	}
	// Not CommandContext: a ctx ends the start and not the machine.
	r.cmd = exec.Command(p.program, p.arguments(accelerator, fd, incoming)...) //nolint:noctx // see above
	r.cmd.Dir, r.cmd.Env = "/", append(crashpoint.Environ(), "PATH=/usr/local/bin:/usr/bin:/bin", "LANG=C.UTF-8")
	r.cmd.Stdout, r.cmd.Stderr = log.Input(), log.Input()
	r.cmd.ExtraFiles = inherited
	r.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = r.cmd.Start()
	log.Started()
	if err != nil {
		conn.Close()
		return fmt.Errorf("start QEMU: %w", err)
	}
	r.qmp = newMonitor(conn, r.hear)
	return nil
}

// socketPair returns both ends of a connection that only this process and its heirs have.
func socketPair(name string) (ours, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make a pair of sockets: %w", err)
	}
	return os.NewFile(uintptr(fds[0]), name), os.NewFile(uintptr(fds[1]), name), nil
}

// unixConn takes the file over.
func unixConn(f *os.File) (*net.UnixConn, error) {
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	return c.(*net.UnixConn), nil
}

// hear notes what QEMU tells unasked.
func (r *process) hear(m message) {
	var data struct {
		Guest  bool   `json:"guest"`
		Reason string `json:"reason"`
		Status string `json:"status"`
		Device string `json:"device"`
		ID     string `json:"id"`
		Open   bool   `json:"open"`
		Action string `json:"action"`
		Full   bool   `json:"nospace"`
	}
	if len(m.Data) > 0 && json.Unmarshal(m.Data, &data) != nil {
		return
	}
	switch m.Event {
	case "SHUTDOWN":
		r.mu.Lock()
		r.shutdown, r.guest = data.Reason, data.Guest
		r.mu.Unlock()
	case "MIGRATION":
		select {
		case r.migration <- data.Status:
		default: // nobody waits for one
		}
	case "VSERPORT_CHANGE":
		if data.ID == idPort {
			r.portChanged(data.Open)
		}
	case "BLOCK_IO_ERROR":
		if data.Full && data.Action == "stop" {
			r.noRoom()
		}
	case "DEVICE_DELETED":
		if data.Device == idPort {
			select {
			case r.deleted <- struct{}{}:
			default:
			}
		}
	}
}

// connected notes the connection to the guest's port; nil before there is a new one.
func (r *process) connected(c net.Conn) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.channel = c; c == nil {
		r.held = false
	}
}

// portChanged ends the connection to a port that the guest has let go of, as it does when
// its guest program dies: QEMU leaves it open, and whoever asks would wait in vain. Of
// several changes within a second QEMU tells not all, and the last one late: an end that
// follows no beginning can be that of an earlier connection, and QEMU is asked.
func (r *process) portChanged(open bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	held, channel := r.held, r.channel
	r.held = open
	switch {
	case open || channel == nil:
	case held:
		_ = channel.Close()
	default:
		r.asking.Go(func() {
			if !r.portIsOpen() {
				_ = channel.Close()
			}
		})
	}
}

// portIsOpen asks whether the guest has its port open.
func (r *process) portIsOpen() bool {
	var all []struct {
		Label string `json:"label"`
		Open  bool   `json:"frontend-open"`
	}
	if r.call(context.Background(), "query-chardev", nil, &all) != nil {
		return false
	}
	for _, c := range all {
		if c.Label == idPortChar {
			return c.Open
		}
	}
	return false
}

// await waits for QEMU's end, asked for or not, and ends what belonged to it.
func (r *process) await() {
	r.exit = r.cmd.Wait()
	<-r.qmp.done
	r.asking.Wait()
	r.tidy()
	crashpoint.Reached(crashpoint.WriterGone)
	close(r.gone)
}

func (r *process) tidy() {
	for _, end := range r.belongs {
		end()
	}
}

// buttonLimit is how long a guest may take to shut down. It is well below what a vmm waits
// for a stop.
var buttonLimit = 8 * time.Second

// pressButton asks the guest to shut down and waits for that: not for longer than half of
// the time that there is.
func (r *process) pressButton(ctx context.Context) {
	limit := buttonLimit
	if deadline, ok := ctx.Deadline(); ok {
		limit = min(limit, time.Until(deadline)/2)
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	if r.qmp.call(ctx, "system_powerdown", nil, nil) != nil {
		return
	}
	select {
	case <-r.gone:
	case <-ctx.Done():
	}
}

// kill ends QEMU for certain: the signal goes by the process's descriptor (pidfd), so that
// it can reach no other.
func (r *process) kill() { _ = r.cmd.Process.Kill() }

// quitLimit is how long QEMU may take to end by itself. A machine's slot is to be free soon.
const quitLimit = 150 * time.Millisecond

// powerOff ends QEMU at once: it is told to quit, and killed if it does not.
func (r *process) powerOff(ctx context.Context) error {
	soon, cancel := context.WithTimeout(ctx, quitLimit)
	_ = r.qmp.call(soon, "quit", nil, nil)
	select {
	case <-r.gone:
	case <-soon.Done():
	}
	cancel()
	r.kill()
	select {
	case <-r.gone:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("QEMU, process %d, cannot be killed: %w", r.cmd.Process.Pid, context.Cause(ctx))
	}
}

// explain adds to an error what QEMU said on its end, if it has ended.
func (r *process) explain(what string, err error) error {
	select {
	case <-r.gone:
		if line := lastLine(filepath.Join(r.dir, fileLog)); line != "" {
			return fmt.Errorf("%s: %w; %s ends with: %s", what, err, fileLog, line)
		}
	default:
	}
	return fmt.Errorf("%s: %w", what, err)
}

// ending says why QEMU ended by itself.
func (r *process) ending() vm.Ending {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.exit == nil && r.guest {
		detail := "the guest shut down"
		switch r.shutdown {
		case "guest-reset":
			detail = "the guest restarted, or its kernel panicked: its machine ends with that"
		case "guest-panic":
			detail = "the guest's kernel panicked"
		}
		return vm.Ending{Reason: vm.ReasonGuestEnded, Detail: detail}
	}
	if r.full {
		return vm.Ending{Reason: vm.ReasonBackendFailed, Detail: fmt.Sprintf(
			"the volume of the VMs is full, and no room was made within %v for what the guest wrote: free some space on this host, or raise disk_reserve_mib", r.roomTime)}
	}
	detail := "QEMU ended by itself"
	switch exit, ok := errors.AsType[*exec.ExitError](r.exit); {
	case ok:
		detail = fmt.Sprintf("QEMU ended with %s", exit)
	case r.shutdown != "":
		detail = fmt.Sprintf("QEMU was made to end (%.40q)", r.shutdown)
	}
	if line := lastLine(filepath.Join(r.dir, fileLog)); line != "" {
		detail += fmt.Sprintf("; %s ends with: %s", fileLog, line)
	}
	return vm.Ending{Reason: vm.ReasonHypervisorCrashed, Detail: detail}
}

// lastLine returns the last line of a log, printable and cut.
func lastLine(path string) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	const tail = 4 << 10
	if info, err := f.Stat(); err == nil && info.Size() > tail {
		_, _ = f.Seek(-tail, 2)
	}
	last := ""
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if line := strings.TrimSpace(lines.Text()); line != "" {
			last = line
		}
	}
	if last == "" {
		return ""
	}
	return fmt.Sprintf("%.400q", last)
}
