// SPDX-License-Identifier: MIT

package doctor

import (
	"context"
	"regexp"
	"strconv"
)

func linuxChecks() []check {
	return []check{
		{name: "qemu", system: "linux", backend: "qemu", look: lookQEMU},
		{name: "kvm", system: "linux", backend: "qemu", look: lookKVM},
		{name: "passt", system: "linux", backend: "qemu", look: lookPasst},
		{name: "agent", system: "linux", look: lookLinuxUser},
	}
}

// emulator is QEMU's program for guests of this processor.
func (h *Host) emulator() string {
	if h.Arch == "arm64" {
		return "qemu-system-aarch64"
	}
	return "qemu-system-x86_64"
}

const qemuPackages = "install QEMU (Debian: apt-get install qemu-system-x86 qemu-utils; on ARM qemu-system-arm)"

var qemuVersion = regexp.MustCompile(`QEMU emulator version (\d{1,4})\.(\d{1,4})[.\d]*`)

// oldestQEMU is the oldest with which this was tried.
const oldestQEMU = 7

func lookQEMU(ctx context.Context, h *Host) Finding {
	out, err := h.Run(ctx, h.emulator(), "--version")
	if err != nil {
		return fail(qemuPackages, "%s: %v", h.emulator(), err)
	}
	m := qemuVersion.FindStringSubmatch(out)
	if m == nil {
		return warn(qemuPackages, "%s: version %.60q is not understood", h.emulator(), out)
	}
	if major, err := strconv.Atoi(m[1]); err != nil || major < oldestQEMU {
		return warn("update QEMU", "%s: %d.0 is the oldest with which this was tried", m[0], oldestQEMU)
	}
	return ok("%s", m[0])
}

// lookKVM boots: an openable /dev/kvm, and a QEMU that makes a machine with it, prove nothing.
// On x86 the guest is a boot sector that ends the emulator with the status 43, which takes
// some 0.2 s even without KVM; KVM inside of VMs can be far slower than none. On ARM the
// machine is only made.
func lookKVM(ctx context.Context, h *Host) Finding {
	if h.Target.Accelerator == "tcg" {
		return ok("not needed: qemu.accelerator is tcg, so guests are emulated")
	}
	script := bootSector
	if h.Arch == "arm64" {
		script = `echo quit | timeout -s KILL 3 "$0" -accel kvm -machine none -nodefaults -display none -monitor stdio -S`
	}
	_, err := h.Run(ctx, "sh", "-c", script, h.emulator())
	const advice = "load the module (kvm_intel or kvm_amd) and let the agent's user into the group kvm; on a machine without good KVM "
	switch {
	case err == nil:
	case h.Target.Accelerator == "kvm":
		return fail(advice+"set qemu.accelerator to tcg, or remove it", "qemu.accelerator is kvm, and KVM boots nothing here within 3 s: %v", err)
	default:
		return warn(advice+"nothing can be done", "KVM boots nothing here within 3 s, so guests are emulated and slow: %v", err)
	}
	return ok("it works")
}

// mov al, 21; out 0xf4, al; hlt; jmp to the hlt; and a boot sector's signature at its end.
const bootSector = `f=$(mktemp) || exit
trap 'rm -f "$f"' EXIT
{ printf '\260\025\346\364\364\353\375' && head -c 503 /dev/zero && printf '\125\252'; } > "$f"
timeout -s KILL 3 "$0" -accel kvm -m 16 -nodefaults -display none -no-reboot -device isa-debug-exit,iobase=0xf4,iosize=1 -drive if=ide,format=raw,snapshot=on,file="$f"
code=$?
test $code = 43 || { echo "QEMU ended with status $code"; exit 1; }`

func lookPasst(ctx context.Context, h *Host) Finding {
	if _, err := h.Run(ctx, "passt", "--version"); err != nil {
		return warn("install passt (Debian: apt-get install passt)", "pools with the network nat need it, those with isolated do not: %v", err)
	}
	return ok("it is there, for pools with the network nat")
}

func lookLinuxUser(_ context.Context, h *Host) Finding {
	switch {
	case h.UID == 0 && h.Target.StateDir != "" && h.Target.SessionUser == "":
		return warn("run the agent as a user of its own, as minifleet-agent install does, or set session_user", "as root's agent, VMs would run as root")
	case h.UID != 0 && h.Target.SessionUser != "":
		return warn("run this with sudo, as the agent runs", "session_user is %s: the agent runs as root, and this looks at the host as another user", h.Target.SessionUser)
	}
	return ok("user %d", h.UID)
}
