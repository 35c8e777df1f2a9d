// SPDX-License-Identifier: MIT

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/minifleet/minifleet/imagecache/publish"
	"github.com/minifleet/minifleet/program"
)

// library is a location in a folder, and the CLI that works on it.
type library struct {
	t   *testing.T
	dir string
}

func newLibrary(t *testing.T) library {
	t.Helper()
	l := library{t, t.TempDir()}
	if err := os.Mkdir(filepath.Join(l.dir, "location"), 0o755); err != nil {
		t.Fatal(err)
	}
	return l
}

func (l library) path(name string) string { return filepath.Join(l.dir, name) }

func (l library) location() string { return "file://" + l.path("location") }

func (l library) ref(name string) string { return l.location() + "/" + name }

// image makes an image's folder.
func (l library) image(name, disk string) string {
	l.t.Helper()
	dir := l.path(name)
	err := errors.Join(os.MkdirAll(dir, 0o755), os.WriteFile(filepath.Join(dir, "disk.img"), []byte(disk), 0o600),
		os.WriteFile(filepath.Join(dir, "image.json"), []byte(`{"schema":1,"name":"dev","guest_os":"linux","min_cpus":2,"display":{"width":1024,"height":768}}`), 0o600))
	if err != nil {
		l.t.Fatal(err)
	}
	return dir
}

// run runs a command and returns what it prints.
func (l library) run(args ...string) (string, error) {
	l.t.Helper()
	var out bytes.Buffer
	err := run(l.t.Context(), append([]string{"image"}, args...), strings.NewReader(""), &out, io.Discard, nothing)
	return out.String(), err
}

func (l library) must(args ...string) string {
	l.t.Helper()
	out, err := l.run(args...)
	if err != nil {
		l.t.Fatalf("image %s: %v", strings.Join(args, " "), err)
	}
	return out
}

var digests = regexp.MustCompile(`sha256:[0-9a-f]{64}`)

func wants(t *testing.T, what, text string, parts ...string) {
	t.Helper()
	for _, p := range parts {
		if !strings.Contains(text, p) {
			t.Errorf("%s says\n%swithout %q", what, text, p)
		}
	}
}

func TestImageFromPushToGC(t *testing.T) {
	t.Parallel()
	l := newLibrary(t)
	first := l.image("one", strings.Repeat("one ", 1000))
	out := l.must("push", first, l.ref("dev:v1"))
	wants(t, "push", out, l.ref("dev:v1")+" is sha256:", "1 of 1 chunks uploaded")
	one := digests.FindString(out)
	wants(t, "the same again", l.must("push", first, l.ref("dev:v1")), one, "0 of 1 chunks uploaded")
	out = l.must("push", l.image("two", strings.Repeat("two ", 1000)), l.ref("dev:v1"))
	wants(t, "push of another", out, "it was "+one)
	two := digests.FindString(out)
	wants(t, "list", l.must("list", l.location()), "IMAGE", "dev:v1", "(no tag)", one, two, "linux")
	var listed []publish.Listed
	if err := json.Unmarshal([]byte(l.must("list", "-o", "json", l.location()+"/")), &listed); err != nil || len(listed) != 2 || listed[0].Digest != two || listed[0].Bytes != 4000 {
		t.Errorf("%+v, %v", listed, err)
	}
	wants(t, "tag", l.must("tag", l.ref("dev@"+one), "latest"), l.ref("dev:latest")+" is "+one)
	wants(t, "inspect", l.must("inspect", l.ref("dev")), one, "linux", "CPUs, at least", "1024 x 768", "disk.img  0600  4 KiB", "in 1 chunks")
	var shown inspected
	if err := json.Unmarshal([]byte(l.must("inspect", l.ref("dev:v1"), "-o", "json")), &shown); err != nil || shown.Digest != two || shown.Chunks != 1 || shown.Manifest.MinCPUs != 2 {
		t.Errorf("%+v, %v", shown, err)
	}
	wants(t, "inspect of a folder", l.must("inspect", first), "linux", "disk.img  0600  4 KiB")
	wants(t, "diff", l.must("diff", l.ref("dev"), l.ref("dev:v1")), "shared   0 ", "new      1       4 KiB", "changed", "disk.img")
	wants(t, "diff of folders", l.must("diff", first, first), "shared  1 ", "new     0 ")
	wants(t, "diff with a folder", l.must("diff", l.ref("dev:v1"), first, "-o", "json"), `"path": "disk.img"`)

	wants(t, "pull", l.must("pull", l.ref("dev"), l.path("pulled")), one, l.path("pulled"))
	if b, err := os.ReadFile(l.path("pulled/disk.img")); err != nil || string(b) != strings.Repeat("one ", 1000) {
		t.Errorf("%d bytes, %v", len(b), err)
	}
	wants(t, "verify of a folder", l.must("verify", l.path("pulled"), "--against", l.ref("dev")), "0 problems")
	out, err := l.run("verify", l.path("pulled"), "--against", l.ref("dev:v1"))
	wants(t, "verify against another", out, "disk.img", "1 problems")
	if !errors.Is(err, program.Exit(1)) {
		t.Errorf("verify of what is wrong: %v", err)
	}
	wants(t, "verify of an image", l.must("verify", l.ref("dev")), "1 images, 1 chunks", "0 problems")
	wants(t, "verify of all", l.must("verify", l.location()+"/"), "2 images, 2 chunks", "0 problems")

	if _, err := l.run("delete", l.ref("dev@"+two)); err == nil || !strings.Contains(err.Error(), "named by dev:v1") {
		t.Errorf("an image with a tag: %v", err)
	}
	wants(t, "delete", l.must("delete", l.ref("dev:latest")), "tag dev:latest is deleted")
	wants(t, "gc", l.must("gc", l.location(), "--dry-run"), "to be deleted: 0 images", "kept for their age or use: 1 and 0")
	wants(t, "delete by force", l.must("delete", l.ref("dev@"+two), "--force"), "tag dev:v1 is deleted", two)
	wants(t, "gc", l.must("gc", l.location()), "deleted: 0 images", "kept for their age or use: 1 and 1")

	chunks, err := filepath.Glob(l.path("location/chunks/*/*.zst"))
	if err != nil || len(chunks) != 2 {
		t.Fatalf("%v, %v", chunks, err)
	}
	for _, c := range chunks {
		if err := os.WriteFile(c, []byte("not what it should be"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	out, err = l.run("verify", l.ref("dev@"+one))
	wants(t, "verify of a damaged image", out, "chunks/", "push the image again", "1 problems", one)
	if !errors.Is(err, program.Exit(1)) {
		t.Errorf("verify of what is damaged: %v", err)
	}
}

func TestImageOfTart(t *testing.T) {
	t.Parallel()
	l := newLibrary(t)
	vm := l.path("tart")
	model := "YnBsaXN0MDAgYSBoYXJkd2FyZSBtb2RlbA==" // bplist00 a hardware model
	for name, text := range map[string]string{
		"config.json": `{"version":1,"os":"darwin","arch":"arm64","ecid":"` + model + `","hardwareModel":"` + model + `","cpuCountMin":2,"cpuCount":4,
			"memorySizeMin":4294967296,"memorySize":8589934592,"macAddress":"5e:00:00:00:00:01","display":{"width":1024,"height":768},"diskFormat":"raw"}`,
		"disk.img": "disk", "nvram.bin": "nvram",
	} {
		if err := errors.Join(os.MkdirAll(vm, 0o755), os.WriteFile(filepath.Join(vm, name), []byte(text), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	l.must("import", "tart", vm, l.ref("mac:v1"))
	wants(t, "inspect", l.must("inspect", l.ref("mac:v1")), "darwin arm64", "nvram.bin", "hardware-model.bin", "disk.img")
	// What is pulled is an image of ours, and the same.
	l.must("pull", l.ref("mac:v1"), l.path("pulled"))
	out := l.must("push", l.path("pulled"), l.ref("mac:v2"))
	wants(t, "push", out, digests.FindString(l.must("push", vm, l.ref("mac:v1"))), "0 of 3 chunks")
}

func TestImageRefuses(t *testing.T) {
	t.Parallel()
	l := newLibrary(t)
	dir := l.image("one", "disk")
	digest := "@sha256:" + strings.Repeat("0", 64)
	for name, tc := range map[string]struct {
		args []string
		want []string
	}{
		"no such tag":              {[]string{"inspect", l.ref("dev:v1")}, []string{"no tag dev:v1", "image list"}},
		"no such image":            {[]string{"pull", l.ref("dev" + digest), l.path("x")}, []string{"no such image", strings.Repeat("0", 64)}},
		"a name without a scheme":  {[]string{"push", dir, "dev"}, []string{"gs://BUCKET"}},
		"a digest to push to":      {[]string{"push", dir, l.ref("dev" + digest)}, []string{"leave @sha256:"}},
		"a registry to push to":    {[]string{"push", dir, "oci://ghcr.io/acme/dev:v1"}, []string{"image import tart"}},
		"no such location":         {[]string{"list", "file://" + l.path("none")}, []string{"there is no such folder"}},
		"a folder as a location":   {[]string{"list", l.dir}, []string{"gs://BUCKET"}},
		"no image to push":         {[]string{"push", l.path("location"), l.ref("dev:v1")}, []string{"it is no image"}},
		"a grace too short":        {[]string{"gc", l.location(), "--grace", "10m"}, []string{"1h0m0s at least"}},
		"a tag that is none":       {[]string{"tag", l.ref("dev:v1"), "V 1"}, []string{"give 1 to 128"}},
		"a folder against nothing": {[]string{"verify", dir}, []string{"--against"}},
		"an image against one":     {[]string{"verify", l.ref("dev"), "--against", l.ref("dev")}, []string{"--against is for a folder"}},
		"import without room":      {[]string{"import", "tart", "oci://ghcr.io/acme/dev:v1", l.ref("dev:v1")}, []string{"--scratch"}},
		"import of no registry":    {[]string{"import", "tart", "gs://acme/dev:v1", l.ref("dev:v1")}, []string{"give oci://"}},
		"a folder that is not":     {[]string{"push", l.path("none"), l.ref("dev:v1")}, []string{"none"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			out, err := library{t, l.dir}.run(tc.args...)
			if err == nil {
				t.Fatalf("no error, and it prints %q", out)
			}
			for _, want := range tc.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error %v, want %q in it", err, want)
				}
			}
		})
	}
}

// A signal ends a push with the word that it can be run again.
func TestImagePushInterrupted(t *testing.T) {
	t.Parallel()
	l := newLibrary(t)
	dir := l.image("one", "disk")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(program.Signal{Signal: syscall.SIGINT})
	err := run(ctx, []string{"image", "push", dir, l.ref("dev:v1")}, strings.NewReader(""), io.Discard, io.Discard, nothing)
	if err == nil || !strings.Contains(err.Error(), "SIGINT") || !strings.Contains(err.Error(), "run it again") {
		t.Errorf("error %v", err)
	}
	l.must("push", dir, l.ref("dev:v1"))
	if tags, err := filepath.Glob(l.path("location/tags/dev/*")); err != nil || len(tags) != 1 {
		t.Errorf("%v, %v", tags, err)
	}
}
