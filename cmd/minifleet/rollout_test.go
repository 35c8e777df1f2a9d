// SPDX-License-Identifier: MIT

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/minifleet/minifleet/imagecache/manifest"
	"github.com/minifleet/minifleet/internal/keepport"
)

// folder is a place of images that hosts only pretend to fetch from.
type folder struct {
	t   *testing.T
	dir string
}

func (f folder) put(object string, content []byte) {
	f.t.Helper()
	path := filepath.Join(f.dir, filepath.FromSlash(object))
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		f.t.Fatal(err)
	}
	if err := os.WriteFile(path+".new", content, 0o644); err != nil {
		f.t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil { // a tag moves in one step
		f.t.Fatal(err)
	}
}

func (f folder) tag(letter string) {
	f.put(manifest.TagObject("mac", "stable"), manifest.EncodeTag(imageDigest(letter)))
}

func imageDigest(letter string) string { return "sha256:" + strings.Repeat(letter, 64) }

// image of the only runner of pool mac that stands by, "" if there is none.
func (c *served) standbyOf() string {
	c.t.Helper()
	list := c.list("runners", "--pool", "mac", "--phase", "standby")
	if len(list) != 1 {
		return ""
	}
	return fmt.Sprint(list[0]["image"])
}

// A tag in a folder is followed: hosts have the new image before it serves, standbys are
// replaced, and an operator goes back in one command.
func TestRollOutAndBack(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	f := folder{t, filepath.Join(s.dir, "images")}
	f.tag("a")
	s.pools = fmt.Sprintf(`
  - {name: mac, labels: [self-hosted, macOS, ARM64], scopes: [octo/demo], image: "file://%s/mac:stable", standby: 1}
  - {name: big, labels: [big], scopes: [octo/demo], image: sonoma}
images: {refresh: 1s, bandwidth_mib: 100}`, f.dir)
	s.agents = fmt.Sprintf(`{address: %q}`, keepport.Address(t))
	c := s.serve()
	startHost(t, hostConfig(t, c.agents, "mini-1", "", c.hostToken("mini-1")), nil)
	image := func(letter string) string { return "file://" + f.dir + "/mac@" + imageDigest(letter) }
	eventually(t, "a runner stands by with the tag's image", func() bool { return c.standbyOf() == image("a") })

	f.tag("b")
	eventually(t, "the standby is replaced", func() bool { return c.standbyOf() == image("b") })
	pool := func(args ...string) string {
		t.Helper()
		out, err := c.cli(append([]string{"pool"}, args...)...)
		if err != nil {
			t.Fatalf("minifleet pool %s: %v", strings.Join(args, " "), err)
		}
		return out
	}
	refusedWith := func(says string, args ...string) {
		t.Helper()
		if out, err := c.cli(append([]string{"pool"}, args...)...); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("minifleet pool %s: %v\n%s; want %q", strings.Join(args, " "), err, out, says)
		}
	}
	if out := pool("images", "mac"); !strings.Contains(out, "current: "+image("b")) || !strings.Contains(out, "previous: "+image("a")) || !strings.Contains(out, "1 of 1 hosts hold it") {
		t.Error(out)
	}
	if out := pool("images", "mac", "-o", "json"); !strings.Contains(out, `"current": "`+image("b")+`"`) {
		t.Error(out)
	}
	if out := c.get("hosts"); !strings.Contains(out, imageDigest("b")[7:19]) {
		t.Error(out)
	}
	if out := c.get("pools"); !strings.Contains(out, imageDigest("b")[7:19]) {
		t.Error(out)
	}

	if out := pool("rollback", "mac"); !strings.Contains(out, "current: "+image("a")) || !strings.Contains(out, "held: "+image("b")) {
		t.Error(out)
	}
	eventually(t, "the standby is of the image before", func() bool { return c.standbyOf() == image("a") })
	refusedWith("no image is known that served before", "rollback", "mac")
	refusedWith("no image is being rolled out", "promote", "mac")
	refusedWith("is a name and not a reference", "rollout", "big")
	refusedWith("no pool has the name", "images", "none")
	refusedWith("has no image", "rollout", "mac", "--digest", imageDigest("c"))
	f.put(manifest.ManifestObject(imageDigest("c")), []byte("{}"))
	if out := pool("rollout", "mac", "--digest", imageDigest("c"), "--now"); !strings.Contains(out, "current: "+image("c")) {
		t.Error(out)
	}
	if out := pool("rollout", "mac"); !strings.Contains(out, "next: "+image("b")) && !strings.Contains(out, "current: "+image("b")) {
		t.Error(out)
	}
	eventually(t, "what was gone back from is taken again", func() bool { return c.standbyOf() == image("b") })

	// The state survives a restart, and what serves goes on where the tag is gone.
	c.stop()
	if err := os.Remove(filepath.Join(f.dir, filepath.FromSlash(manifest.TagObject("mac", "stable")))); err != nil {
		t.Fatal(err)
	}
	c = s.serve()
	eventually(t, "the tag cannot be read", func() bool { return strings.Contains(c.get("pools"), "has no image") })
	if out := c.get("pools"); !strings.Contains(out, imageDigest("b")[7:19]) {
		t.Error(out)
	}
}
