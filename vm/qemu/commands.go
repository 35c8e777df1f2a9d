// SPDX-License-Identifier: MIT

//go:build linux

package qemu

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"time"

	"github.com/minifleet/minifleet/vm/options"
)

func (r *process) call(ctx context.Context, command string, arguments, result any, files ...int) error {
	return r.qmp.call(ctx, command, arguments, result, files...)
}

// replugPause is the pause before QEMU is asked again for what it is still busy with.
const replugPause = 5 * time.Millisecond

// replug takes the guest's port out and puts it in again: its driver sees an end.
func (r *process) replug(ctx context.Context) error {
	ctx, cancel := limited(ctx, "a new port of the guest")
	defer cancel()
	select {
	case <-r.deleted: // an earlier one's, given up
	default:
	}
	err := r.call(ctx, "device_del", obj{"id": idPort}, nil)
	if refused, ok := errors.AsType[*qmpError](err); err != nil && (!ok || refused.Class != "DeviceNotFound") {
		return err
	}
	if err == nil {
		select {
		case <-r.deleted:
		case <-r.gone:
			return errEnded
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	pause := time.NewTimer(0)
	defer pause.Stop()
	for {
		select {
		case <-pause.C:
		case <-r.gone:
			return errEnded
		case <-ctx.Done():
			return errors.Join(err, context.Cause(ctx))
		}
		err = r.call(ctx, "device_add", obj{
			"driver": "virtserialport", "id": idPort, "bus": "serial0.0", "nr": "1",
			"chardev": idPortChar, "name": options.GuestPortName,
		}, nil)
		// The channel is in use until the old port is gone from QEMU's last list.
		if _, refused := errors.AsType[*qmpError](err); !refused {
			return err
		}
		pause.Reset(replugPause)
	}
}

// sshAddress asks which port of the host's loopback leads to the guest's SSH.
func (r *process) sshAddress(ctx context.Context) (netip.AddrPort, error) {
	var text string
	if err := r.call(ctx, "human-monitor-command", obj{"command-line": "info usernet"}, &text); err != nil {
		return netip.AddrPort{}, r.explain("find the guest's SSH", err)
	}
	a, err := parseUsernet(text)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("find the guest's SSH: %w", err)
	}
	return a, nil
}

// forwarded is a line such as
//
//	TCP[HOST_FORWARD]  13       127.0.0.1 38745       10.0.2.15    22       0     0
var forwarded = regexp.MustCompile(`(?m)^\s*TCP\[HOST_FORWARD\]\s+\d+\s+(127\.0\.0\.1)\s+(\d{1,5})\s+\S+\s+22\s`)

func parseUsernet(text string) (netip.AddrPort, error) {
	found := forwarded.FindStringSubmatch(text)
	if found == nil {
		return netip.AddrPort{}, fmt.Errorf("QEMU's list of forwards has none to port 22: %.400q", text)
	}
	a, err := netip.ParseAddrPort(found[1] + ":" + found[2])
	if err == nil && a.Port() == 0 {
		err = errors.New("the port is 0")
	}
	return a, err
}
