// SPDX-License-Identifier: MIT

package manifest_test

import (
	"errors"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/minifleet/minifleet/imagecache/manifest"
	"github.com/minifleet/minifleet/vm"
)

const mib = 1 << 20

func chunk(name string, stored int64) manifest.Chunk {
	return manifest.Chunk{Sum: manifest.SumOf([]byte(name)), Stored: stored}
}

// good is a manifest with everything in it.
func good() *manifest.Manifest {
	return &manifest.Manifest{
		Schema: 1, GuestOS: "darwin", Arch: "arm64", Description: `macOS 15.1, Xcode 16.1 "RC" <3`, MinHostOS: "15.1",
		MinCPUs: 4, MinMemoryMiB: 4096, Display: &manifest.Display{Width: 1920, Height: 1200, PPI: 80},
		HardwareModel: []byte("bplist00 model"), ChunkBytes: mib,
		Files: []manifest.File{
			{Path: "disk.img", Mode: 0o644, Size: 3*mib + 5, Chunks: []manifest.Chunk{chunk("a", 1000), {}, chunk("a", 1000), chunk("b", 0)}},
			{Path: "empty", Mode: 0o400, Chunks: []manifest.Chunk{}},
			{Path: `folder/a "name"`, Mode: 0o600, Size: 1, Chunks: []manifest.Chunk{chunk("c", 14)}},
		},
	}
}

func encode(t *testing.T, m *manifest.Manifest) []byte {
	t.Helper()
	b, err := m.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// The golden file must never change: images are named by the digest of such bytes.
func TestEncode(t *testing.T) {
	t.Parallel()
	b := encode(t, good())
	want, err := os.ReadFile("testdata/golden.json")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(b)); diff != "" {
		t.Error(diff)
	}
	const digest = "sha256:b1f43e3ca43805a1c6c8feac2ddc664ef9bac4a3feb550245f3b5bdc05587dac"
	if have := manifest.Digest(b); have != digest {
		t.Errorf("digest %s, want %s", have, digest)
	}
	m, err := manifest.Parse(b)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(good(), m); diff != "" {
		t.Error(diff)
	}
	if m.Bytes() != 3*mib+6 {
		t.Errorf("%d bytes", m.Bytes())
	}
	f := &m.Files[0]
	if a, b := f.ChunkSize(2, m), f.ChunkSize(3, m); a != mib || b != 5 {
		t.Errorf("the last chunks have %d and %d bytes", a, b)
	}
}

func TestEncodeRefuses(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		change func(m *manifest.Manifest)
		want   string
	}{
		"guest":                {func(m *manifest.Manifest) { m.GuestOS = "plan9" }, "guest_os"},
		"arch":                 {func(m *manifest.Manifest) { m.Arch = "x86_64" }, "arch"},
		"long description":     {func(m *manifest.Manifest) { m.Description = strings.Repeat("x", 4097) }, "description"},
		"two lines":            {func(m *manifest.Manifest) { m.Description = "a\nb" }, "description"},
		"terminal":             {func(m *manifest.Manifest) { m.Description = "\x1b[2J" }, "description"},
		"bidi":                 {func(m *manifest.Manifest) { m.Description = "a\u202eb" }, "description"},
		"separator":            {func(m *manifest.Manifest) { m.Description = "a\u2028b" }, "description"},
		"not UTF-8":            {func(m *manifest.Manifest) { m.Description = "\xff" }, "description"},
		"host version":         {func(m *manifest.Manifest) { m.MinHostOS = "15.x" }, "min_host_os"},
		"host version's parts": {func(m *manifest.Manifest) { m.MinHostOS = "15.1.2.3" }, "min_host_os"},
		"CPUs":                 {func(m *manifest.Manifest) { m.MinCPUs = -1 }, "min_cpus"},
		"memory":               {func(m *manifest.Manifest) { m.MinMemoryMiB = 1 << 40 }, "min_memory_mib"},
		"display":              {func(m *manifest.Manifest) { m.Display.Width = 0 }, "display"},
		"large model":          {func(m *manifest.Manifest) { m.HardwareModel = make([]byte, 64<<10+1) }, "hardware_model"},
		"model of Linux":       {func(m *manifest.Manifest) { m.GuestOS = "linux" }, "hardware_model"},
		"small chunks":         {func(m *manifest.Manifest) { m.ChunkBytes = 1 << 19 }, "chunk_bytes"},
		"large chunks":         {func(m *manifest.Manifest) { m.ChunkBytes = 1 << 25 }, "chunk_bytes"},
		"odd chunks":           {func(m *manifest.Manifest) { m.ChunkBytes = 3 * mib }, "chunk_bytes"},
		"no files":             {func(m *manifest.Manifest) { m.Files = nil }, "0 files"},
		"many files":           {func(m *manifest.Manifest) { m.Files = make([]manifest.File, 1<<14+1) }, "16385 files"},
		"setuid":               {func(m *manifest.Manifest) { m.Files[0].Mode = 0o4755 }, "mode 4755"},
		"unreadable":           {func(m *manifest.Manifest) { m.Files[0].Mode = 0o200 }, "mode 200"},
		"negative":             {func(m *manifest.Manifest) { m.Files[0].Size = -1 }, "-1 bytes"},
		"too few chunks":       {func(m *manifest.Manifest) { m.Files[0].Size++; m.Files[0].Size += mib }, "it must have 5"},
		"too many chunks":      {func(m *manifest.Manifest) { m.Files[0].Size = 3 * mib }, "it must have 3"},
		"chunks of nothing":    {func(m *manifest.Manifest) { m.Files[1].Chunks = []manifest.Chunk{{}} }, "it must have 0"},
		"stored beyond":        {func(m *manifest.Manifest) { m.Files[0].Chunks[3].Stored = 5000 }, "chunk 3 takes"},
		"stored negative":      {func(m *manifest.Manifest) { m.Files[0].Chunks[3].Stored = -1 }, "chunk 3 takes"},
		"zeros stored":         {func(m *manifest.Manifest) { m.Files[0].Chunks[1].Stored = 1 }, "chunk 1 takes"},
		"order":                {func(m *manifest.Manifest) { slices.Reverse(m.Files) }, "in the order"},
		"twice":                {func(m *manifest.Manifest) { m.Files[1].Path = "disk.img" }, "list each once"},
		"twice, without case":  {func(m *manifest.Manifest) { m.Files[0].Path = "Empty" }, "without case"},
		"file and folder":      {func(m *manifest.Manifest) { m.Files[1].Path = "folder" }, "folder is a file and the folder of"},
		"folder without case":  {func(m *manifest.Manifest) { m.Files[0].Path = "FOLDER" }, "a file and the folder of"},
		"huge": {func(m *manifest.Manifest) {
			m.ChunkBytes, m.Files[0].Size = 16*mib, 1<<62
		}, "at most"},
		"too many in all": {func(m *manifest.Manifest) {
			m.Files[0] = manifest.File{Path: "a", Mode: 0o644, Size: 1 << 39, Chunks: make([]manifest.Chunk, 1<<19)}
		}, "use larger chunks"},
		"too large in text": {func(m *manifest.Manifest) {
			m.Files[0] = manifest.File{Path: "a", Mode: 0o644, Size: 450_000 * mib, Chunks: slices.Repeat([]manifest.Chunk{chunk("a", mib)}, 450_000)}
		}, "use larger chunks"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := good()
			test.change(m)
			b, err := m.Encode()
			if b != nil || err == nil || !strings.Contains(err.Error(), test.want) || len(err.Error()) > 2<<10 {
				t.Errorf("%d bytes, %v: want an error with %q", len(b), err, test.want)
			}
		})
	}
}

func TestPaths(t *testing.T) {
	t.Parallel()
	for _, path := range []string{"disk.img", "nvram.bin", "root/.profile", "root/a b", "a/lock", "locks", "~", strings.Repeat("a/", 255) + "a"} {
		if err := manifest.ValidatePath(path); err != nil {
			t.Error(err)
		}
	}
	for _, path := range []string{
		"", "/", "/etc/passwd", "..", "../x", "a/../b", "a/..", "./a", ".", "a//b", "a/", `a\b`, `..\x`, "a\x00b", "a\nb", "ä", "a\x7f",
		".hidden", ".cache/x", "image.json", "Image.JSON", "LOCK", "lock/x", "spec.json.tmp", "vmm.sock",
		strings.Repeat("a/", 256) + "a", strings.Repeat("a", 201),
	} {
		err := manifest.ValidatePath(path)
		if err == nil {
			t.Errorf("%q got through", path)
			continue
		}
		m := good()
		m.Files = []manifest.File{{Path: path, Mode: 0o644}}
		if _, err := m.Encode(); err == nil {
			t.Errorf("%q got through in a manifest", path)
		}
	}
}

// TestBundleNames: whatever a bundle holds itself, no image may bring.
func TestBundleNames(t *testing.T) {
	t.Parallel()
	for _, name := range []string{
		vm.FileSpec, vm.FileLock, vm.FileVMM, vm.FileWriter, vm.FileStatus, vm.FileVMMSocket, vm.FileGuestSocket, vm.FileInnerSocket, vm.FileVMMLog, vm.FileConsole,
	} {
		if manifest.ValidatePath(name) == nil {
			t.Errorf("an image may bring %s", name)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	t.Parallel()
	text := string(encode(t, good()))
	for name, test := range map[string]struct{ text, want string }{
		"nothing":             {"", "no manifest"},
		"HTML":                {"<html>", "no manifest"},
		"a list":              {"[]", "no manifest"},
		"schema not first":    {strings.Replace(text, `"schema":1,"guest_os":"darwin"`, `"guest_os":"darwin","schema":1`, 1), "no manifest"},
		"schema is text":      {strings.Replace(text, `"schema":1`, `"schema":"1"`, 1), "no number"},
		"cut":                 {text[:len(text)-1], "manifest: "},
		"something follows":   {text + "{}", "manifest: "},
		"a line ends":         {text + "\n", "not in the form"},
		"spaces":              {strings.Replace(text, `,"arch"`, `, "arch"`, 1), "not in the form"},
		"unknown key":         {strings.Replace(text, `"arch"`, `"more":1,"arch"`, 1), "not in the form"},
		"key twice":           {strings.Replace(text, `"arch"`, `"guest_os":"darwin","arch"`, 1), "not in the form"},
		"key in other case":   {strings.Replace(text, `"arch"`, `"Arch"`, 1), "not in the form"},
		"order of keys":       {strings.Replace(text, `"min_cpus":4,"min_memory_mib":4096`, `"min_memory_mib":4096,"min_cpus":4`, 1), "not in the form"},
		"zero given":          {strings.Replace(text, `"min_cpus":4`, `"min_cpus":0`, 1), "not in the form"},
		"null":                {strings.Replace(text, `"display":{"width":1920,"height":1200,"ppi":80}`, `"display":null`, 1), "not in the form"},
		"escapes":             {strings.Replace(text, `disk.img`, `disk\u002eimg`, 1), "not in the form"},
		"a sum in upper case": {strings.Replace(text, "ca978112", "CA978112", 1), "not 64 of"},
		"a short sum":         {strings.Replace(text, "ca978112", "ca97811", 1), "not 64 of"},
		"a sum of zeros":      {strings.Replace(text, `""`, `"`+strings.Repeat("0", 64)+`"`, 1), "left out"},
		"stored is no number": {strings.Replace(text, ":1000", ":1x", 1), "not the number of bytes"},
		"stored is none":      {strings.Replace(text, ":1000", ":0", 1), "not the number of bytes"},
		"stored with zeros":   {strings.Replace(text, ":1000", ":01000", 1), "not in the form"},
		"a chunk is a number": {strings.Replace(text, `""`, `0`, 1), "manifest: "},
		"climbs":              {strings.Replace(text, `"disk.img"`, `"../disk.img"`, 1), "climbs"},
		"very large":          {strings.Repeat(" ", 32<<20+1), "at most"},
		"many elements":       {`{"schema":1,"files":[{"chunks":[` + strings.Repeat("0,", 1<<20) + `0]}]}`, "lists more than"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if test.text == text {
				t.Fatal("the text is the good one")
			}
			m, err := manifest.Parse([]byte(test.text))
			if m != nil || err == nil || !strings.Contains(err.Error(), test.want) || len(err.Error()) > 2<<10 {
				t.Errorf("%v: want an error with %q", err, test.want)
			}
		})
	}
}

func TestOtherSchema(t *testing.T) {
	t.Parallel()
	var wrong *manifest.SchemaError
	for _, text := range []string{`{"schema":2}`, `{"schema":2,"anything":[`, `{"schema": 2 ,`} {
		if _, err := manifest.Parse([]byte(text)); !errors.As(err, &wrong) || wrong.Have != 2 || !strings.Contains(err.Error(), "schema 2") ||
			!strings.Contains(err.Error(), "schema 1") || !strings.Contains(err.Error(), "upgrade") {
			t.Errorf("%s: %v", text, err)
		}
	}
	if _, err := manifest.Parse([]byte(`{"schema":0}`)); !errors.As(err, &wrong) || strings.Contains(err.Error(), "upgrade") {
		t.Error(err)
	}
	if _, err := manifest.ParseTag([]byte(`{"schema":2,"manifests":[]}`)); !errors.As(err, &wrong) || !strings.Contains(err.Error(), "upgrade") {
		t.Error(err)
	}
	m := good()
	m.Schema = 2
	if _, err := m.Encode(); !errors.As(err, &wrong) {
		t.Error(err)
	}
}

// large is a manifest of an image of so many bytes, none of whose chunks is like another.
func large(bytes, chunkBytes int64) *manifest.Manifest {
	m := good()
	random := rand.NewChaCha8([32]byte{1})
	chunks := make([]manifest.Chunk, (bytes+chunkBytes-1)/chunkBytes)
	for i := range chunks {
		random.Read(chunks[i].Sum[:])
		chunks[i].Stored = min(chunkBytes, bytes-int64(i)*chunkBytes)
	}
	m.ChunkBytes = chunkBytes
	m.Files = []manifest.File{{Path: "disk.img", Mode: 0o644, Size: bytes, Chunks: chunks}}
	return m
}

// TestLargest: 150 GB of the smallest chunks, with no zeros among them, are published.
func TestLargest(t *testing.T) {
	t.Parallel()
	m := large(150e9, manifest.MinChunkBytes)
	back, err := manifest.Parse(encode(t, m))
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(m.Files[0].Chunks, back.Files[0].Chunks) {
		t.Error("it comes back different")
	}
}

func BenchmarkManifest(b *testing.B) {
	m := large(150e9, manifest.ChunkBytes)
	text, err := m.Encode()
	if err != nil {
		b.Fatal(err)
	}
	b.Run("Parse", func(b *testing.B) {
		b.ReportAllocs()
		b.ReportMetric(float64(len(text)), "bytes")
		for b.Loop() {
			if _, err := manifest.Parse(text); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("Encode", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := m.Encode(); err != nil {
				b.Fatal(err)
			}
		}
	})
}
