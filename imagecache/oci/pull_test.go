// SPDX-License-Identifier: MIT

package oci_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/minifleet/minifleet/imagecache/assemble"
	"github.com/minifleet/minifleet/imagecache/layout"
	"github.com/minifleet/minifleet/imagecache/manifest"
	"github.com/minifleet/minifleet/imagecache/oci"
)

func TestPull(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	nvram, disks := mac()
	layers := tart(nvram, disks...)
	want := s.push(layers...)
	r := s.open(oci.Options{Arch: "arm64"})
	got, err := r.Resolve(t.Context())
	if err != nil || got != want {
		t.Fatalf("latest is %s, %v, want %s", got, err, want)
	}
	img, err := r.Image(t.Context(), got)
	if err != nil {
		t.Fatal(err)
	}
	size := int64(len(bytes.Join(disks, nil)))
	about := manifest.Manifest{
		Schema: 1, GuestOS: "darwin", Arch: "arm64", MinCPUs: 4, MinMemoryMiB: 4096, HardwareModel: model, ChunkBytes: manifest.ChunkBytes,
		Files: []manifest.File{
			{Path: "disk.img", Mode: 0o644, Size: size},
			{Path: "hardware-model.bin", Mode: 0o644, Size: int64(len(model))},
			{Path: "nvram.bin", Mode: 0o644, Size: int64(len(nvram))},
		},
	}
	if diff := cmp.Diff(about, img.Template()); diff != "" {
		t.Error(diff)
	}
	if img.Bytes() != size+int64(len(model)+len(nvram)) {
		t.Errorf("it has %d bytes", img.Bytes())
	}
	s.make(nil)
	dir := t.TempDir()
	var last assemble.Progress
	m, err := img.Pull(t.Context(), dir, oci.PullOptions{Progress: func(p assemble.Progress) {
		if p.DoneBytes < last.DoneBytes || p.FetchedBytes < last.FetchedBytes {
			t.Errorf("progress goes back from %+v to %+v", last, p)
		}
		last = p
	}})
	if err != nil {
		t.Fatal(err)
	}
	holds(t, dir, m, nvram, disks...)
	// Each blob crosses the network once, however often it occurs.
	once, fetched, largest := map[string]int{}, int64(0), int64(0)
	for _, l := range layers[1:] {
		if d := digest(l.content); once[d] == 0 {
			once[d] = 1
			fetched += int64(len(l.content))
		}
		largest = max(largest, int64(len(l.content)))
	}
	if diff := cmp.Diff(once, s.asked()); diff != "" {
		t.Error(diff)
	}
	if last != (assemble.Progress{DoneBytes: img.Bytes(), TotalBytes: img.Bytes(), FetchedBytes: fetched}) {
		t.Errorf("progress ends with %+v, of %d bytes, %d fetched", last, img.Bytes(), fetched)
	}
	if n := stored(t, filepath.Join(dir, "disk.img")); n > size-9<<20+1<<20 {
		t.Errorf("%d bytes are stored of a disk of %d with 9 MiB of zeros in layers of their own", n, size)
	}
	if n := img.Scratch(); n < largest || n > 4*largest {
		t.Errorf("%d bytes of scratch for layers of up to %d", n, largest)
	}

	// Again there is nothing to do.
	s.make(nil)
	again, err := img.Pull(t.Context(), dir, oci.PullOptions{})
	if err != nil || len(s.asked()) > 0 {
		t.Errorf("an image that is whole: %v, asked for %v", err, s.asked())
	}
	if diff := cmp.Diff(m, again); diff != "" {
		t.Error(diff)
	}
}

// TestPullMakesWhatTheFolderIs compares an image from a registry with the same in tart's
// folder.
func TestPullMakesWhatTheFolderIs(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	content, nvram := realistic(21, 5<<20), realistic(22, 1000)
	want := s.image(t, s.push(tart(nvram, content)...)).Template()
	dir := t.TempDir()
	for name, b := range map[string][]byte{"config.json": []byte(config()), "disk.img": content, "nvram.bin": nvram} {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	folder, err := layout.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	var files []manifest.File
	for _, f := range folder.Files {
		size := int64(len(f.Content))
		if f.Source != "" {
			info, err := os.Stat(f.Source)
			if err != nil {
				t.Fatal(err)
			}
			size = info.Size()
		}
		files = append(files, manifest.File{Path: f.Path, Mode: f.Mode, Size: size})
	}
	got := folder.Manifest
	got.ChunkBytes, got.Files = want.ChunkBytes, files
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestPullOfLinux(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	content, nvram := realistic(31, 1<<20), realistic(32, 64<<10)
	layers := tart(nvram, content)
	layers[0].content = []byte(`{"version":1,"os":"linux","arch":"arm64","cpuCountMin":1,"memorySizeMin":1}`)
	layers = append(layers, pushed{kind: "application/vnd.example.signature", content: []byte("x")})
	dir := t.TempDir()
	m, err := s.image(t, s.push(layers...)).Pull(t.Context(), dir, oci.PullOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if len(m.Files) != 2 || m.GuestOS != "linux" || m.HardwareModel != nil || m.MinMemoryMiB != 1 {
		t.Errorf("%+v", m)
	}
	if b, err := os.ReadFile(filepath.Join(dir, "disk.img")); err != nil || !bytes.Equal(b, content) {
		t.Errorf("%d bytes, %v", len(b), err)
	}
}

// TestPullOverAnother begins with what is not the image: another one, larger and smaller,
// with content where the image has zeros, and with layers of it in their places.
func TestPullOverAnother(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	nvram, disks := mac()
	image := s.push(tart(nvram, disks...)...)
	whole := bytes.Join(disks, nil)
	other := realistic(41, len(whole)+1<<20)
	mixed := bytes.Clone(whole)
	copy(mixed[len(disks[0])+7:], other[:len(disks[1])+20]) // the first zeros, and a bit of what follows
	for name, there := range map[string][]byte{
		"larger": other, "smaller": other[:3<<20+5], "cut": whole[:len(whole)/2], "empty": nil,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			for file, b := range map[string][]byte{"disk.img": there, "nvram.bin": there[:len(there)/100], "hardware-model.bin": []byte("bplist00 another one, which is longer")} {
				if err := os.WriteFile(filepath.Join(dir, file), b, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			s.pull(t, image, dir, nvram, disks...)
		})
	}
	t.Run("asks only for what differs", func(t *testing.T) {
		one := newSite(t)
		layers := tart(nvram, disks...)
		image := one.push(layers...)
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "disk.img"), mixed, 0o600); err != nil {
			t.Fatal(err)
		}
		one.make(nil)
		one.pull(t, image, dir, nvram, disks...)
		want := map[string]int{digest(layers[0].content): 1, digest(layers[3].content): 1, digest(layers[len(layers)-1].content): 1}
		if diff := cmp.Diff(want, one.asked()); diff != "" {
			t.Error(diff)
		}
	})
}

const pullVariable = "OCI_TEST_PULL"

// pullIn pulls in a process of its own.
func pullIn(t testing.TB, ref manifest.Reference, dir string, layers int) *exec.Cmd {
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestPullInAProcess$")
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%s|%s|%d", pullVariable, ref, dir, layers))
	return cmd
}

// TestPullInAProcess is the process that another test kills, when it starts it as such.
func TestPullInAProcess(t *testing.T) {
	order := strings.Split(os.Getenv(pullVariable), "|")
	if len(order) != 3 {
		t.Skip("this test is a part of others")
	}
	ref, err := manifest.ParseReference(order[0])
	if err != nil {
		t.Fatal(err)
	}
	layers, err := strconv.Atoi(order[2])
	if err != nil {
		t.Fatal(err)
	}
	r, err := oci.Open(ref, oci.Options{Layers: layers})
	if err != nil {
		t.Fatal(err)
	}
	img, err := r.Image(t.Context(), ref.Digest)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := img.Pull(t.Context(), order[1], oci.PullOptions{}); err != nil {
		t.Fatal(err)
	}
	// The most memory that it had, for the benchmark. Only Linux tells.
	if b, err := os.ReadFile("/proc/self/status"); err == nil {
		fmt.Printf("%s\n", b)
	}
}

// TestPullGoesOnAfterAKill kills the program that pulls at one of its requests, or in
// the middle of the answer. With one layer at a time all that were asked for before
// are written then, and must not be asked for again.
func TestPullGoesOnAfterAKill(t *testing.T) {
	t.Parallel()
	nvram, disks := mac()
	for n := 1; n <= 5; n++ {
		t.Run(fmt.Sprintf("request %d", n), func(t *testing.T) {
			t.Parallel()
			s := newSite(t)
			layers := tart(nvram, disks...)
			image := s.push(layers...)
			content := map[string][]byte{}
			for _, l := range layers {
				content[digest(l.content)] = l.content
			}
			dir := t.TempDir()
			cmd := pullIn(t, s.ref().At(image), dir, 1)
			started := make(chan struct{})
			var before []string
			requests := 0
			s.make(func(w http.ResponseWriter, q *http.Request, blob string, _ int) bool {
				<-started
				if b := content[blob]; b == nil || blob == digest(layers[0].content) {
					return false
				}
				if requests++; requests < n {
					before = append(before, blob)
					return false
				}
				if n%2 == 1 {
					b := content[blob]
					w.Header().Set("Content-Length", fmt.Sprint(len(b)))
					_, _ = w.Write(b[:len(b)/2])
					_ = http.NewResponseController(w).Flush()
				}
				if err := cmd.Process.Signal(syscall.SIGKILL); err != nil {
					t.Error(err)
				}
				<-q.Context().Done()
				return true
			})
			err := cmd.Start()
			close(started)
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Wait(); err == nil {
				t.Fatal("it was not killed")
			}
			s.make(nil)
			s.pull(t, image, dir, nvram, disks...)
			for _, blob := range before {
				if s.asked()[blob] != 0 {
					t.Errorf("%s was written and is asked for again", blob)
				}
			}
			if n == 5 && len(before) != 4 {
				t.Errorf("only %d blobs were written: this tests little", len(before))
			}
		})
	}
}

func TestPullCalledOff(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	nvram, disks := mac()
	image := s.push(tart(nvram, disks...)...)
	dir := t.TempDir()
	for _, after := range []int64{1, 3 << 20, 10 << 20} {
		ctx, cancel := context.WithCancelCause(t.Context())
		_, err := s.image(t, image).Pull(ctx, dir, oci.PullOptions{Progress: func(p assemble.Progress) {
			if p.DoneBytes >= after {
				cancel(errTest)
			}
		}})
		if !errors.Is(err, errTest) {
			t.Errorf("called off after %d bytes: %v", after, err)
		}
	}
	s.pull(t, image, dir, nvram, disks...)
}

func TestPullNeedsAFolder(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	nvram, disks := mac()
	img := s.image(t, s.push(tart(nvram, disks...)...))
	for name, change := range map[string]func(dir string) error{
		"none":                nil,
		"a disk that is link": func(dir string) error { return os.Symlink("/etc/passwd", filepath.Join(dir, "disk.img")) },
		"a disk that is pipe": func(dir string) error { return syscall.Mkfifo(filepath.Join(dir, "disk.img"), 0o600) },
		"a spool that is none": func(dir string) error {
			return os.Symlink("/tmp", filepath.Join(dir, oci.DirSpool))
		},
	} {
		dir := t.TempDir()
		if change == nil {
			dir = filepath.Join(dir, "none")
		} else if err := change(dir); err != nil {
			t.Fatal(err)
		}
		if m, err := img.Pull(t.Context(), dir, oci.PullOptions{}); err == nil {
			t.Errorf("%s: %v", name, m)
		}
	}
}

// BenchmarkPull pulls 512 MiB in layers of 64 MiB, in a process of its own, whose memory is
// measured.
func BenchmarkPull(b *testing.B) {
	s := newSite(b)
	layers := []pushed{{kind: typeConfig, content: []byte(config())}}
	size, network := int64(0), 0
	for i := range 8 {
		l := disk(realistic(uint64(i), 64<<20))
		layers = append(layers, l)
		size += 64 << 20
		network += len(l.content)
	}
	packed.Clear()
	image := s.push(append(layers, pushed{kind: typeNVRAM, content: realistic(99, 1<<20)})...)
	b.SetBytes(size)
	memory, cpu := 0, time.Duration(0)
	for b.Loop() {
		cmd := pullIn(b, s.ref().At(image), b.TempDir(), 4)
		out, err := cmd.CombinedOutput()
		if err != nil {
			b.Fatalf("%v\n%s", err, out)
		}
		_, kib, _ := strings.Cut(string(out), "VmHWM:")
		n, err := strconv.Atoi(strings.Fields(kib + " 0")[0])
		if err != nil {
			b.Fatal(err)
		}
		memory = max(memory, n)
		cpu += cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
	}
	b.ReportMetric(cpu.Seconds()*float64(1<<30)/float64(size)/float64(b.N), "cpu-s/GiB")
	b.ReportMetric(float64(memory)/1024, "MiB-resident")
	b.ReportMetric(float64(network)/float64(size), "packed/content")
}
