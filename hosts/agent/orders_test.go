// SPDX-License-Identifier: MIT

package agent_test

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/minifleet/minifleet/hosts/agent"
	"github.com/minifleet/minifleet/vm"
	"github.com/minifleet/minifleet/vm/options"
)

// host is a host's folders, with an image each of macOS and Linux that nobody boots.
type host struct {
	t   *testing.T
	dir string
	cfg agent.VMsConfig
}

func newHost(t *testing.T, backend vm.BackendName) *host {
	t.Helper()
	dir, err := os.MkdirTemp("", "mf")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	h := &host{t: t, dir: dir, cfg: agent.VMsConfig{
		Dir: filepath.Join(dir, agent.DirVMs), ImagesDir: filepath.Join(dir, "images"), Backend: backend, AllowCopy: true,
		VMMProgram: filepath.Join(dir, "vmm"), GuestProgram: filepath.Join(dir, "vmm"),
	}}
	h.write("vmm", "#!/bin/sh\nexit 1\n")
	h.write("images/tahoe/image.json", `{"schema":1,"name":"tahoe","guest_os":"darwin"}`)
	h.write("images/tahoe/disk.img", "macOS")
	h.write("images/debian/image.json", `{"schema":1,"name":"debian","guest_os":"linux"}`)
	h.write("images/debian/disk.img", "Linux")
	return h
}

func (h *host) write(path, text string) {
	h.t.Helper()
	path = filepath.Join(h.dir, path)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		h.t.Fatal(err)
	}
	// A child that another test forks meanwhile would have it open for writing until its exec,
	// and nobody could run it.
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
		h.t.Fatal(err)
	}
}

// vms are those of an agent that starts now.
func (h *host) vms() *agent.VMs {
	h.t.Helper()
	v, err := agent.NewVMs(h.cfg)
	if err != nil {
		h.t.Fatal(err)
	}
	return v
}

// create makes a VM and returns its spec.
func (h *host) create(v *agent.VMs, o agent.Order) vm.Spec {
	h.t.Helper()
	o.Pool = "pool"
	m, err := v.Create(h.t.Context(), o, func(string) {})
	if err != nil {
		h.t.Fatal(err)
	}
	m.Release()
	spec, err := vm.ReadSpec(filepath.Join(h.cfg.Dir, o.ID))
	if err != nil {
		h.t.Fatal(err)
	}
	return spec
}

func (h *host) qemu(v *agent.VMs, o agent.Order) options.QEMU {
	h.t.Helper()
	spec := h.create(v, o)
	got, err := options.ParseQEMU(spec.Options)
	if err != nil || spec.Backend != vm.BackendQEMU {
		h.t.Fatalf("backend %s: %v", spec.Backend, err)
	}
	return got
}

func TestOrdersOfQEMUMachines(t *testing.T) {
	t.Parallel()
	h := newHost(t, vm.BackendQEMU)
	ways := []options.Forward{{Guest: netip.MustParseAddrPort("10.0.2.100:443"), Host: netip.MustParseAddrPort("192.0.2.7:443")}}
	h.cfg.QEMU = agent.QEMUConfig{Network: options.NetworkNAT, Forwards: ways, Accelerator: "tcg"}
	v := h.vms()
	byHost := h.qemu(v, agent.Order{ID: "a", Slot: 1, Image: "debian"})
	byPool := h.qemu(v, agent.Order{ID: "b", Slot: 2, Image: "debian", Network: options.NetworkIsolated})
	if byHost.MAC == byPool.MAC {
		t.Errorf("slots 1 and 2 share the address %s", byHost.MAC)
	}
	again := h.qemu(h.vms(), agent.Order{ID: "c", Slot: 1, Image: "debian"})
	if again.Identity != byHost.Identity {
		t.Errorf("slot 1 had %v and has %v after a restart", byHost.Identity, again.Identity)
	}
	for name, tc := range map[string]struct{ got, want options.QEMU }{
		"the host's network, without forwards":    {byHost, options.QEMU{Network: options.NetworkNAT, Accelerator: "tcg", Console: true}},
		"the pool's network, the host's forwards": {byPool, options.QEMU{Network: options.NetworkIsolated, Accelerator: "tcg", Console: true, Forwards: ways}},
	} {
		tc.got.Identity = options.Identity{}
		if d := cmp.Diff(tc.want, tc.got, cmpopts.EquateComparable(netip.AddrPort{})); d != "" {
			t.Errorf("%s: %s", name, d)
		}
	}
	found, err := h.vms().Scan(t.Context())
	if err != nil || len(found) != 3 || found[1].Slot != 2 || found[1].Pool != "pool" || found[1].Mac {
		t.Errorf("found %+v, %v", found, err)
	}
	for _, f := range found {
		f.Machine.Release()
	}
}

// A VM that runs has the identity of its slot, whatever became of the file.
func TestASlotWhoseFileIsLostKeepsTheIdentityOfItsVM(t *testing.T) {
	t.Parallel()
	h := newHost(t, vm.BackendQEMU)
	before := h.qemu(h.vms(), agent.Order{ID: "a", Slot: 1, Image: "debian"})
	if err := os.Remove(filepath.Join(h.dir, "slots.json")); err != nil {
		t.Fatal(err)
	}
	lock, err := vm.AcquireLock(t.Context(), filepath.Join(h.cfg.Dir, "a")) // as what runs has it
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if err := vm.WriteIdentity(filepath.Join(h.cfg.Dir, "a"), vm.FileVMM, vm.ProcessID{PID: 2, Start: 1}); err != nil {
		t.Fatal(err)
	}
	v := h.vms()
	found, err := v.Scan(t.Context())
	if err != nil || len(found) != 1 || !found[0].Running {
		t.Fatalf("found %+v, %v", found, err)
	}
	found[0].Machine.Release()
	if after := h.qemu(v, agent.Order{ID: "b", Slot: 1, Image: "debian"}); after.Identity != before.Identity {
		t.Errorf("the VM runs with %v and its slot has %v now", before.Identity, after.Identity)
	}
}

func TestOrdersOfVZMachines(t *testing.T) {
	t.Parallel()
	h := newHost(t, vm.BackendVZ)
	v := h.vms()
	for image, want := range map[string]string{"tahoe": options.GuestMacOS, "debian": options.GuestLinux} {
		mac, err := v.IsMac(t.Context(), image)
		if err != nil || mac != (want == options.GuestMacOS) {
			t.Errorf("image %s is of a macOS guest: %v, %v", image, mac, err)
		}
		spec := h.create(v, agent.Order{ID: image, Slot: 1, Mac: mac, Image: image})
		if got, err := options.ParseVZ(spec.Options); err != nil || got.Guest != want || got.Durable || got.Console {
			t.Errorf("image %s: %+v, %v", image, got, err)
		}
	}
	if _, err := v.IsMac(t.Context(), "none"); err == nil || !strings.Contains(err.Error(), "debian") {
		t.Errorf("an image that is not there: %v", err)
	}
}

func TestOrdersThatAHostCannotCarryOut(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		backend vm.BackendName
		order   agent.Order
		want    string
	}{
		"another backend":        {vm.BackendQEMU, agent.Order{Backend: "vz"}, "this host has qemu"},
		"a network of no kind":   {vm.BackendVZ, agent.Order{Network: options.NetworkIsolated}, "isolated"},
		"a network of a process": {vm.BackendProcess, agent.Order{Network: options.NetworkNAT}, "nat"},
		"a guest reached by air": {vm.BackendQEMU, agent.Order{Guest: "air"}, "upgrade"},
		"an image that changed":  {vm.BackendVZ, agent.Order{Image: "debian", Mac: true}, "try again"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHost(t, tc.backend)
			tc.order.ID, tc.order.Slot, tc.order.Pool = "r1", 1, "pool"
			if tc.order.Image == "" {
				tc.order.Image = "debian"
			}
			if _, err := h.vms().Create(t.Context(), tc.order, func(string) {}); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want it to contain %q", err, tc.want)
			}
			if left, err := os.ReadDir(h.cfg.Dir); err != nil || len(left) > 0 {
				t.Errorf("left: %v, %v", left, err)
			}
		})
	}
}
