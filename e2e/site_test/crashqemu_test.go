// SPDX-License-Identifier: MIT

package site_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/minifleet/minifleet/crashpoint"
	"github.com/minifleet/minifleet/guest"
	"github.com/minifleet/minifleet/internal/testimage"
	"github.com/minifleet/minifleet/vm"
)

// noPoint is none.
const noPoint crashpoint.Point = -1

// pointsInside is the folder in a machine in which points of its guest program are armed.
const pointsInside = "/run/crashpoints"

// The guest program of the crash image tells the console at which point it died.
const diedInside = "minifleet-guest died at "

func (c *crashSite) onMachines() bool { return c.images != "" }

// crashMachines are machines whose guest program dies at armed points.
func (c *crashSite) crashMachines(github string) machines {
	return machines{
		pool:      "image: " + testimage.Guest + "\n    backend: qemu\n    cpus: 1\n    memory_mib: 256",
		imagesDir: c.images,
		agent: fmt.Sprintf("backend: qemu\nqemu: {accelerator: tcg, network: isolated, forwards: [{guest: %q, host: %q}]}\nkeep_failures: 1000\n",
			guestGitHub, strings.TrimPrefix(github, "http://")),
	}
}

// crashImages makes a folder with the image of the test guest in which minifleet-guest is
// the one that dies at armed points.
func crashImages(t *testing.T, programs string) string {
	t.Helper()
	images, dir := testimage.Need(t), t.TempDir()
	image := filepath.Join(dir, testimage.Guest)
	run := func(input, name string, args ...string) {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), name, args...)
		cmd.Stdin = strings.NewReader(input)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", cmd, err, out)
		}
	}
	run("", "cp", "-R", "--sparse=always", images.Image(testimage.Guest), image)
	wrapper := filepath.Join(dir, "wrapper")
	script := fmt.Sprintf(`#!/bin/sh
%s=%s %s "$@"
for again in 1 2 3; do # the kernel may speak in between
	for mark in %[2]s/*/killed-*; do [ ! -e "$mark" ] || echo "%[4]s$mark."; done
done
`, crashpoint.Variable, pointsInside, "/usr/sbin/minifleet-guest-crash", diedInside)
	if err := os.WriteFile(wrapper, []byte(script), 0o600); err != nil {
		t.Fatal(err)
	}
	edits := "rm /usr/sbin/minifleet-guest\n"
	for name, from := range map[string]string{"minifleet-guest": wrapper, "minifleet-guest-crash": filepath.Join(programs, "minifleet-guest")} {
		edits += fmt.Sprintf("cd /usr/sbin\nwrite \"%s\" %s\nset_inode_field %[2]s mode 0100755\nset_inode_field %[2]s uid 0\nset_inode_field %[2]s gid 0\n", from, name)
	}
	run(edits, "debugfs", "-w", "-f", "-", filepath.Join(image, "disk.img"))
	return dir
}

// inside runs a shell's script in a machine, by the way that the agent goes, and reports
// whether the machine lasted so long: one that an agent told to end may outlive the agent
// by a moment.
func (c *crashSite) inside(bundle, script string) bool {
	c.t.Helper()
	client := guest.NewClient(func(ctx context.Context) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(bundle, vm.FileGuestSocket))
	})
	defer client.Close()
	ctx, cancel := context.WithTimeout(c.ctx, patience)
	defer cancel()
	var out bytes.Buffer
	// A guest program that has just been started anew may be met in the middle of it.
	for {
		out.Reset()
		code, err := client.Exec(ctx, guest.ExecRequest{Argv: []string{"sh", "-c", script}}, &out, &out)
		switch {
		case err == nil && code == 0:
			return true
		case err == nil || ctx.Err() != nil:
			c.t.Fatalf("in the machine of %s: %s: %d, %v\n%s", bundle, script, code, err, &out)
		case !c.runs(bundle):
			return false
		}
	}
}

// armNext has a point of the guest program armed in the next machine.
func (c *crashSite) armNext(p crashpoint.Point) {
	c.t.Helper()
	c.rearm(crashpoint.VMMReady)
	c.inNext = p
}

// rearm arms a point at which a program may have died already.
func (c *crashSite) rearm(p crashpoint.Point) {
	c.t.Helper()
	if err := os.RemoveAll(filepath.Join(c.points, p.String())); err != nil {
		c.t.Fatal(err)
	}
	c.arm(p)
}

// armInside arms the point that is to be armed in the next machine, if there is one, in the
// machine that the agent has just started, and in any other that has no config either:
// the agent dies before it has spoken with it, and is started again, with the point armed
// at which it is to die next.
func (c *crashSite) armInside() {
	c.t.Helper()
	p, then := c.inNext, c.thenArm
	if p == noPoint {
		return
	}
	c.inNext, c.thenArm = noPoint, noPoint
	c.untilDead(crashpoint.VMMReady)
	bundles, err := filepath.Glob(c.path(host, "vms", "*"))
	if err != nil {
		c.t.Fatal(err)
	}
	at := path.Join(pointsInside, p.String())
	for _, b := range bundles {
		if !c.runs(b) {
			continue
		}
		// A guest program that has a config runs a job by now, or its agent is done with it.
		c.inside(b, fmt.Sprintf("pidof Runner.Listener || { mkdir -p %s && touch %[1]s/armed; }", at))
	}
	if then != noPoint {
		c.rearm(then)
	}
	c.revive(crashpoint.VMMReady)
}

// runs reports whether a bundle's machine was started and is not over. Of a vmm that another
// machine's death has left before its first word, the word is waited for.
func (c *crashSite) runs(bundle string) bool {
	c.t.Helper()
	var vmm bool
	var states []vm.State
	eventually(c.t, "the vmm of "+bundle+" says what it does", func() bool {
		vmm = slices.ContainsFunc(processesOf(c.t, c.dir), func(line string) bool {
			return strings.Contains(line, "minifleet-vmm run --bundle "+bundle+" ")
		})
		var err error
		states, err = vm.ReadStatus(bundle) // after the look, in which it may have ended
		return !vmm || err == nil && len(states) > 0
	})
	return vmm && len(states) > 0 && states[len(states)-1].Phase != vm.PhaseFinal
}

// killedInside returns the guest program's process that died at the point, 0 as long as
// none did. Its machine's console tells, which is kept with the failure.
func (c *crashSite) killedInside(p crashpoint.Point) int {
	c.t.Helper()
	mark := regexp.MustCompile(regexp.QuoteMeta(diedInside+path.Join(pointsInside, p.String())) + `/killed-([0-9]+)\.`)
	for _, pattern := range []string{"vms", "failures"} {
		files, err := filepath.Glob(c.path(host, pattern, "*", vm.FileConsole))
		if err != nil {
			c.t.Fatal(err)
		}
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				c.t.Fatal(err)
			}
			if found := mark.FindSubmatch(text); found != nil {
				pid, err := strconv.Atoi(string(found[1]))
				if err != nil {
					c.t.Fatal(err)
				}
				return pid
			}
		}
	}
	return 0
}

// endLong tells the long job to end.
func (c *crashSite) endLong() {
	c.t.Helper()
	if c.onMachines() {
		if b := c.bundleOf(c.long); !c.inside(b, "touch "+c.stop) {
			c.t.Fatalf("the machine of the long job, %s, has ended", b)
		}
		return
	}
	if err := os.WriteFile(c.stop, nil, 0o600); err != nil {
		c.t.Fatal(err)
	}
}
