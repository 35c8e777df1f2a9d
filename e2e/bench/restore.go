// SPDX-License-Identifier: MIT

package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/minifleet/minifleet/hosts/agent"
)

// measureRestore has one VM saved, and then others continue from its state and boot in turns.
func measureRestore(ctx context.Context, b *bencher) error {
	const figure, target = "restore to guest's answer", "p50 < that of a boot"
	if why := b.noMachines(); why != "" {
		b.skip(figure, target, why)
		return nil
	}
	m, err := newMachines(b, "restore", 4<<30)
	if err != nil {
		return err
	}
	var saved time.Duration
	if _, err := m.live(ctx, true, func(one agent.Machine, _ string) error {
		s, ok := one.(agent.Saved)
		if !ok {
			return errors.New("VMs of this host cannot be saved")
		}
		began := time.Now()
		err := s.Save(ctx, func(context.Context) error { return nil })
		saved = time.Since(began)
		return err
	}); err != nil {
		return err
	}
	var restored, booted times
	for i := range b.few(9) {
		for turn := range 2 {
			cold := (turn == 0) == (i%2 == 0)
			l, err := m.live(ctx, cold, func(one agent.Machine, _ string) error {
				if s, ok := one.(agent.Saved); !ok || s.Restored() == cold {
					return errors.New("the VM did not continue from the state that was saved")
				}
				return nil
			})
			if err != nil {
				return err
			}
			if cold {
				booted = append(booted, l.answered)
			} else {
				restored = append(restored, l.answered)
			}
		}
	}
	b.limit(figure, target, restored.String(), restored.at(0.5) < booted.at(0.5))
	b.note("boot to guest's answer", fmt.Sprintf("%s: %.1f times that", booted, float64(booted.at(0.5))/float64(restored.at(0.5))))
	b.note("save of a VM, once per image and slot", short(saved))
	return nil
}
