// SPDX-License-Identifier: MIT

package doctor

import (
	"context"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/minifleet/minifleet/internal/plist"
)

func macChecks() []check {
	return []check{
		{name: "macos", system: "darwin", backend: "vz", look: lookMacOS},
		{name: "hypervisor", system: "darwin", backend: "vz", look: lookHypervisor},
		{name: "vmm", system: "darwin", backend: "vz", configured: true, look: lookEntitlement},
		{name: "agent", system: "darwin", backend: "vz", configured: true, look: lookAgentUser},
		{name: "session", system: "darwin", backend: "vz", look: lookSession},
		{name: "screen", system: "darwin", backend: "vz", look: lookScreen},
		{name: "screen-lock", system: "darwin", backend: "vz", look: lookScreenLock},
		{name: "keychain", system: "darwin", backend: "vz", look: lookKeychain},
		{name: "auto-login", system: "darwin", backend: "vz", look: lookAutoLogin},
		{name: "filevault", system: "darwin", backend: "vz", look: lookFileVault},
		{name: "sleep", system: "darwin", look: lookSleep},
		{name: "dhcp-lease", system: "darwin", backend: "vz", look: lookLease},
	}
}

// sessionUID is the number of the user in whose session VMs run.
func (h *Host) sessionUID() int {
	if h.Target.SessionUser != "" {
		return h.Target.SessionUID
	}
	return h.UID
}

// asUser runs a program as the session's user, in that session if this process is root's.
func (h *Host) asUser(ctx context.Context, command ...string) (string, error) {
	if h.UID == 0 && h.Target.SessionUser != "" {
		command = append([]string{"/bin/launchctl", "asuser", strconv.Itoa(h.Target.SessionUID), "/usr/bin/sudo", "-n", "-u", h.Target.SessionUser}, command...)
	}
	return h.Run(ctx, command...)
}

func lookMacOS(ctx context.Context, h *Host) Finding {
	out, err := h.Run(ctx, "/usr/bin/sw_vers", "-productVersion")
	if err != nil {
		return fail("", "version not known: %v", err)
	}
	major, err := strconv.Atoi(strings.Split(strings.TrimSpace(out), ".")[0])
	switch {
	case err != nil:
		return fail("", "version %.40q is not understood", out)
	case h.Arch != "arm64":
		return fail("use a Mac with Apple silicon", "this Mac's processor is %s: it runs no macOS guests", h.Arch)
	case major < 13:
		return fail("update macOS", "macOS %s: 13 is needed", strings.TrimSpace(out))
	case major < 14:
		return warn("update macOS", "macOS %s: saved states need 14", strings.TrimSpace(out))
	}
	return ok("macOS %s", strings.TrimSpace(out))
}

func lookHypervisor(ctx context.Context, h *Host) Finding {
	out, err := h.Run(ctx, "/usr/sbin/sysctl", "-n", "kern.hv_support")
	switch {
	case err != nil:
		return fail("", "not known: %v", err)
	case strings.TrimSpace(out) != "1":
		return fail("use the Mac itself", "kern.hv_support is %.20q: no VM can run here, as inside of a VM", strings.TrimSpace(out))
	}
	return ok("kern.hv_support is 1")
}

// entitlement is what a vmm must be signed with.
const entitlement = "com.apple.security.virtualization"

// lookEntitlement reads what codesign prints with --xml, which is there since macOS 12: a
// property list, and on another line the program's path. Not yet seen on a Mac.
func lookEntitlement(ctx context.Context, h *Host) Finding {
	advice := "sign it again: codesign --force --sign - --entitlements deploy/vmm.entitlements " + h.Target.VMM
	out, err := h.Run(ctx, "/usr/bin/codesign", "-d", "--entitlements", "-", "--xml", h.Target.VMM)
	if err != nil {
		return fail(advice, "signature of %s: %v", h.Target.VMM, err)
	}
	switch granted, err := entitled(out); {
	case err != nil:
		return fail(advice, "signature of %s: %v", h.Target.VMM, err)
	case !granted:
		return fail(advice, "%s is not entitled (%s): it can have no machine", h.Target.VMM, entitlement)
	}
	return ok("%s is entitled", h.Target.VMM)
}

func entitled(out string) (bool, error) {
	_, list, found := strings.Cut(out, "<plist")
	list, _, closed := strings.Cut(list, "</plist>")
	if !found || !closed {
		return false, nil // a signature without any
	}
	v, err := plist.Parse([]byte("<plist" + list + "</plist>"))
	if err != nil {
		return false, err
	}
	d, _ := v.(plist.Dict)
	return d[entitlement] == true, nil
}

func lookAgentUser(_ context.Context, h *Host) Finding {
	switch {
	case h.UID == 0 && h.Target.SessionUser == "":
		return fail("set session_user to the user who is logged in at the screen", "VMs would run as root, who has no keychain that macOS guests can use")
	case h.Target.SessionUser != "" && h.UID != 0:
		return warn("run this with sudo, as the agent runs", "session_user is %s: the agent runs as root, and this looks at the host as another user", h.Target.SessionUser)
	case h.Target.SessionUser != "":
		return ok("root's, with VMs in the session of %s", h.Target.SessionUser)
	}
	return ok("in its user's session; macOS 15 and later ask at the screen before it may reach the local network")
}

func lookSession(ctx context.Context, h *Host) Finding {
	domain := "gui/" + strconv.Itoa(h.sessionUID())
	if _, err := h.Run(ctx, "/bin/launchctl", "print", domain); err != nil {
		return fail("log in at the screen, and turn automatic login on; a session that got lost: sudo killall -HUP loginwindow", "there is no login session %s", domain)
	}
	return ok("%s is there", domain)
}

var (
	consoleLocked = regexp.MustCompile(`"IOConsoleLocked"\s*=\s*(Yes|No)`)
	screenLocked  = regexp.MustCompile(`"CGSSessionScreenIsLocked"\s*=\s*Yes`)
)

// lookScreen reads the registry's root. While the screen is locked, keys of the keychain
// that belong to VMs are not to be had.
func lookScreen(ctx context.Context, h *Host) Finding {
	out, err := h.Run(ctx, "/usr/sbin/ioreg", "-n", "Root", "-d1")
	const advice = "unlock it at the screen (or by screen sharing), and turn the screen lock off"
	if err != nil {
		return warn(advice, "not known whether it is locked: %v", err)
	}
	m := consoleLocked.FindStringSubmatch(out)
	switch {
	case screenLocked.MatchString(out) || m != nil && m[1] == "Yes":
		return fail(advice, "it is locked: macOS guests and saved states need its user's keychain")
	case m == nil:
		return warn(advice, "not known whether it is locked: ioreg does not say IOConsoleLocked")
	}
	return ok("it is not locked")
}

// lookScreenLock reads "screenLock is off", "screenLock delay is 300 seconds" and "screenLock
// delay is immediate". Not yet seen on a Mac.
func lookScreenLock(ctx context.Context, h *Host) Finding {
	out, err := h.asUser(ctx, "/usr/sbin/sysadminctl", "-screenLock", "status")
	const advice = "as that user: sysadminctl -screenLock off -password -; defaults -currentHost write com.apple.screensaver idleTime 0"
	switch {
	case err != nil:
		return warn(advice, "not known: %v", err)
	case strings.Contains(out, "screenLock is off"):
		return ok("off")
	case strings.Contains(out, "screenLock"):
		return fail(advice, "the screen locks by itself, and then no VM starts: %s", afterLast(out, "screenLock"))
	}
	return warn(advice, "not known: %.80q", out)
}

func afterLast(text, word string) string {
	return text[strings.LastIndex(text, word):]
}

// keychainPatience is short: where the keychain is locked macOS may ask for its password at
// the screen.
const keychainPatience = 10 * time.Second

var keychainTimeout = regexp.MustCompile(`lock-on-sleep|timeout=\d+s`)

// lookKeychain reads lines such as `Keychain "<NULL>" no-timeout` and `... lock-on-sleep
// timeout=300s`. Not yet seen on a Mac.
func lookKeychain(ctx context.Context, h *Host) Finding {
	ctx, cancel := context.WithTimeoutCause(ctx, keychainPatience, fmt.Errorf("no answer within %v: macOS may be asking at the screen", keychainPatience))
	defer cancel()
	out, err := h.asUser(ctx, "/usr/bin/security", "show-keychain-info")
	const advice = "as that user: security unlock-keychain; security set-keychain-settings (which then never locks it)"
	switch {
	case err != nil:
		return fail(advice, "the login keychain cannot be used: %v", err)
	case keychainTimeout.MatchString(out):
		return warn(advice, "the login keychain locks by itself: %s", out)
	case !strings.Contains(out, "no-timeout"):
		return warn(advice, "not known: %.80q", out)
	}
	return ok("unlocked, and it stays so")
}

func lookAutoLogin(ctx context.Context, h *Host) Finding {
	out, err := h.Run(ctx, "/usr/bin/defaults", "read", "/Library/Preferences/com.apple.loginwindow", "autoLoginUser")
	const advice = "System Settings, Users & Groups, Automatically log in as: the user of the VMs"
	user := strings.TrimSpace(out)
	switch {
	case err != nil || user == "":
		return warn(advice, "nobody is logged in after a restart: no VM starts then")
	case h.Target.SessionUser != "" && user != h.Target.SessionUser:
		return warn(advice, "%s is logged in after a restart, and session_user is %s", user, h.Target.SessionUser)
	}
	return ok("%s", user)
}

// lookFileVault reads "FileVault is Off." and "FileVault is On.".
func lookFileVault(ctx context.Context, h *Host) Finding {
	out, err := h.Run(ctx, "/usr/bin/fdesetup", "status")
	const advice = "sudo fdesetup disable, or restart this Mac with sudo fdesetup authrestart only"
	switch {
	case err != nil:
		return warn(advice, "not known: %v", err)
	case strings.Contains(out, "FileVault is Off"):
		return ok("off")
	case strings.Contains(out, "FileVault is On"):
		return warn(advice, "on: after a restart the Mac waits at the screen for a password")
	}
	return warn(advice, "not known: %.80q", out)
}

// settingsOf reads the settings of pmset -g: lines of a name and a number.
func settingsOf(out string) map[string]int {
	all := map[string]int{}
	for line := range strings.Lines(out) {
		words := strings.Fields(line)
		if len(words) < 2 {
			continue
		}
		if n, err := strconv.Atoi(words[1]); err == nil {
			all[words[0]] = n
		}
	}
	return all
}

func lookSleep(ctx context.Context, h *Host) Finding {
	out, err := h.Run(ctx, "/usr/bin/pmset", "-g")
	const advice = "sudo pmset -a sleep 0 displaysleep 0 disksleep 0 autorestart 1 womp 1"
	if err != nil {
		return warn(advice, "not known: %v", err)
	}
	all := settingsOf(out)
	sleep, known := all["sleep"]
	switch {
	case !known:
		return warn(advice, "not known: pmset does not say sleep")
	case sleep != 0:
		return fail(advice, "this Mac sleeps after %d min, with the jobs in its VMs", sleep)
	case all["autorestart"] == 0:
		return warn(advice, "it never sleeps, but stays off after a power failure")
	}
	return ok("it never sleeps, and starts again after a power failure")
}

// leaseFile has the settings of the DHCP server of VMs.
const leaseFile = "/Library/Preferences/SystemConfiguration/com.apple.InternetSharing.default.plist"

// longestLease in seconds: the network of VMs has 253 addresses, and 86400 is the default.
const longestLease = 3600

func lookLease(ctx context.Context, h *Host) Finding {
	out, err := h.Run(ctx, "/usr/bin/plutil", "-extract", "bootpd.DHCPLeaseTimeSecs", "raw", "-o", "-", leaseFile)
	const advice = "sudo defaults write " + leaseFile + " bootpd -dict DHCPLeaseTimeSecs -int 600"
	seconds, notNumber := strconv.Atoi(strings.TrimSpace(out))
	switch {
	case err != nil || notNumber != nil:
		return warn(advice, "addresses of VMs are taken for a day, the default: many VMs with new addresses use them up")
	case seconds > longestLease:
		return warn(advice, "addresses of VMs are taken for %v: many VMs with new addresses use them up", time.Duration(seconds)*time.Second)
	case seconds <= 0:
		return warn(advice, "the time for which VMs have their addresses is %d s", seconds)
	}
	return ok("%v", time.Duration(seconds)*time.Second)
}
