// SPDX-License-Identifier: MIT

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/minifleet/minifleet/guest"
	"github.com/minifleet/minifleet/hosts/agent"
	"github.com/minifleet/minifleet/mux"
	"github.com/minifleet/minifleet/vm"
)

// measureBoot boots clones of one image in turns through the agent's way and by hand, so
// that both meet the same slow moments of the machine, and takes the times of the stop on
// the way.
func measureBoot(ctx context.Context, b *bencher) error {
	const figure, target = "boot to guest's answer, beyond QEMU by hand", "p50 < 3 %"
	if why := b.noMachines(); why != "" {
		b.skip(figure, target, why)
		return nil
	}
	m, err := newMachines(b, "boot", 0)
	if err != nil {
		return err
	}
	// The first boot finds out about the accelerator, fills the page cache and tells the
	// command line.
	var hand byHand
	if _, err := m.live(ctx, true, func(_ agent.Machine, dir string) (err error) {
		hand, err = commandLineOf(dir)
		return err
	}); err != nil {
		return err
	}
	b.note("QEMU runs the guest by", hand.accelerator())
	var agents, starts, stops, hands, extra times
	for i := range b.few(11) {
		for turn := range 2 {
			if (turn == 0) == (i%2 == 0) {
				l, err := m.live(ctx, true, nil)
				if err != nil {
					return err
				}
				agents, starts, stops = append(agents, l.answered), append(starts, l.started), append(stops, l.stopped)
				continue
			}
			t, err := m.liveByHand(ctx, hand)
			if err != nil {
				return fmt.Errorf("QEMU by hand: %w", err)
			}
			hands = append(hands, t)
		}
		extra = append(extra, agents[i]-hands[i])
	}
	part := float64(extra.at(0.5)) / float64(hands.at(0.5))
	b.note("boot to guest's answer, by the agent", agents.String())
	b.note("the same, QEMU started by hand", hands.String())
	b.note("of the former: vmm and QEMU started", starts.String())
	b.limit(figure, target, fmt.Sprintf("%.1f %%: %s in the median of %d pairs", 100*part, short(extra.at(0.5)), len(extra)), part < 0.03)
	b.limit("stop to slot free", "max < 250 ms", stops.String(), stops.at(1) < 250*time.Millisecond)
	return nil
}

// byHand is a command line of QEMU, of another bundle.
type byHand struct {
	program string
	bundle  string
	args    []string
}

// commandLineOf takes the command line of a running VM and leaves out what only the vmm has
// use for: its control connection, and that the machine halts until that says go on. What
// the guest prints goes into a file instead of the vmm's descriptor.
func commandLineOf(bundle string) (byHand, error) {
	id, err := vm.ReadIdentity(bundle, vm.FileWriter)
	if err != nil {
		return byHand{}, err
	}
	proc := filepath.Join("/proc", strconv.Itoa(id.PID))
	h := byHand{bundle: bundle}
	if h.program, err = os.Readlink(filepath.Join(proc, "exe")); err != nil {
		return byHand{}, err
	}
	line, err := os.ReadFile(filepath.Join(proc, "cmdline"))
	if err != nil {
		return byHand{}, err
	}
	words := strings.Split(string(bytes.TrimRight(line, "\x00")), "\x00")[1:]
	for i := 0; i < len(words); i++ {
		switch {
		case words[i] == "-S":
		case words[i] == "-mon", words[i] == "-chardev" && i+1 < len(words) && strings.Contains(words[i+1], "id=monitor"):
			i++
		case words[i] == "-add-fd":
			i++
		case words[i] == "-chardev" && i+1 < len(words) && strings.Contains(words[i+1], "id=console"):
			h.args = append(h.args, words[i], "file,id=console,path="+filepath.Join(bundle, vm.FileConsole))
			i++
		default:
			h.args = append(h.args, words[i])
		}
	}
	return h, nil
}

func (h byHand) accelerator() string {
	if i := slices.Index(h.args, "-accel"); i >= 0 && i+1 < len(h.args) {
		return h.args[i+1]
	}
	return "its default"
}

// liveByHand starts QEMU in a bundle of its own and waits for the guest's first answer at
// the port, with nothing in between.
func (m *machines) liveByHand(ctx context.Context, h byHand) (took time.Duration, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, machineTime, fmt.Errorf("the guest does not answer within %s", machineTime))
	defer cancel()
	_, dir, remove, err := m.clone(ctx, true)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, remove()) }()
	var args []string
	for _, a := range h.args {
		args = append(args, strings.ReplaceAll(a, h.bundle, dir))
	}
	var said bytes.Buffer
	cmd := exec.CommandContext(ctx, h.program, args...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = "/", &said, &said
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // as the vmm does: Linux shares processors between sessions
	began := time.Now()
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = cmd.Wait() // it is killed below, or has said why it ended
		cancel()
	}()
	channel := mux.NewClient(func(ctx context.Context) (net.Conn, error) {
		return dialSoon(ctx, filepath.Join(dir, vm.FileInnerSocket))
	})
	client := guest.NewClient(channel.Connect)
	err = firstAnswer(ctx, client)
	took = time.Since(began)
	client.Close()
	channel.Close()
	_ = cmd.Process.Kill() // it may be gone
	<-ended
	if err != nil {
		return 0, fmt.Errorf("%w\n%s", err, &said)
	}
	return took, nil
}

// dialSoon connects to a socket that a program that was just started is about to make.
func dialSoon(ctx context.Context, path string) (conn net.Conn, err error) {
	err = until(ctx, machineTime, time.Millisecond, "the socket is there", func() (bool, error) {
		var d net.Dialer
		conn, err = d.DialContext(ctx, "unix", path)
		return err == nil, nil
	})
	return conn, err
}
