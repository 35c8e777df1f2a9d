// SPDX-License-Identifier: MIT

package guest_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/iotest"

	"github.com/minifleet/minifleet/guest"
	"github.com/minifleet/minifleet/secret"
)

func digestOf(b []byte) []byte {
	sum := sha256.Sum256(b)
	return sum[:]
}

func (h *host) put(path string, content []byte) error {
	return h.client.PutFile(h.ctx(), path, 0o640, "", int64(len(content)), digestOf(content), bytes.NewReader(content))
}

func TestFiles(t *testing.T) {
	t.Parallel()
	h := startGuest(t, "exit 0")
	dir := t.TempDir()
	path := filepath.Join(dir, "a file")
	for _, content := range [][]byte{[]byte("hello"), nil, bytes.Repeat([]byte("0123456789"), 300_000)} {
		h.must(h.put(path, content))
		got, err := os.ReadFile(path)
		if err != nil || !bytes.Equal(got, content) {
			t.Errorf("%d bytes are there, %v", len(got), err)
		}
		if info, err := os.Stat(path); err != nil || info.Mode() != 0o640 {
			t.Errorf("mode %v, %v", info.Mode(), err)
		}
		var back bytes.Buffer
		if n, err := h.client.GetFile(h.ctx(), path, int64(len(content)), &back); err != nil || n != int64(len(content)) || !bytes.Equal(back.Bytes(), content) {
			t.Errorf("%d bytes came back, %v", n, err)
		}
	}
	if _, err := h.client.GetFile(h.ctx(), path, 100, io.Discard); err == nil || !strings.Contains(err.Error(), "more than 100") {
		t.Errorf("a file that is too large: %v", err)
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 1 {
		t.Errorf("left behind: %v", entries)
	}
}

func TestFilesRefused(t *testing.T) {
	t.Parallel()
	h := startGuest(t, "exit 0")
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	h.must(h.put(path, []byte("as it was")))
	h.must(syscall.Mkfifo(filepath.Join(dir, "pipe"), 0o600))
	content := []byte("new")
	broken := io.MultiReader(strings.NewReader("n"), iotest.ErrReader(errors.New("the test's error")))
	for name, tt := range map[string]struct {
		err  error
		want string
	}{
		"other digest":   {h.client.PutFile(h.ctx(), path, 0o600, "", 3, digestOf(nil), bytes.NewReader(content)), "SHA-256 differs"},
		"no digest":      {h.client.PutFile(h.ctx(), path, 0o600, "", 3, nil, bytes.NewReader(content)), "SHA-256"},
		"too large":      {h.client.PutFile(h.ctx(), path, 0o600, "", guest.MaxFileBytes+1, digestOf(content), bytes.NewReader(content)), "at most"},
		"breaks off":     {h.client.PutFile(h.ctx(), path, 0o600, "", 3, digestOf(content), broken), "the test's error"},
		"no such owner":  {h.client.PutFile(h.ctx(), path, 0o600, "nobody-of-that-name", 3, digestOf(content), bytes.NewReader(content)), "user"},
		"relative":       {h.put("x", content), "absolute"},
		"not clean":      {h.put("/tmp/../etc/x", content), "absolute"},
		"the root":       {h.put("/", content), "absolute"},
		"no such folder": {h.put("/no/such/folder/x", content), "no such file"},
		"onto a folder":  {h.put(dir, content), ""},
		"read relative":  {second(h.client.GetFile(h.ctx(), "x", 10, io.Discard)), "absolute"},
		"read nothing":   {second(h.client.GetFile(h.ctx(), "/no/such/file", 10, io.Discard)), "no such file"},
		"read a folder":  {second(h.client.GetFile(h.ctx(), dir, 10, io.Discard)), "not a regular file"},
		"read a pipe":    {second(h.client.GetFile(h.ctx(), filepath.Join(dir, "pipe"), 10, io.Discard)), "not a regular file"},
	} {
		if tt.err == nil || !strings.Contains(tt.err.Error(), tt.want) {
			t.Errorf("%s: %v; want %q", name, tt.err, tt.want)
		}
	}
	if b, _ := os.ReadFile(path); string(b) != "as it was" {
		t.Errorf("the file is %q", b)
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 2 {
		t.Errorf("left behind: %v", entries)
	}
}

func second[T any](_ T, err error) error { return err }

// archive makes a .tar.gz.
func archive(t *testing.T, entries ...tar.Header) []byte {
	t.Helper()
	var buf bytes.Buffer
	zip := gzip.NewWriter(&buf)
	tw := tar.NewWriter(zip)
	for _, e := range entries {
		e.Format = tar.FormatPAX
		if e.Typeflag == tar.TypeReg {
			e.Size = int64(len(e.Name))
		}
		if err := tw.WriteHeader(&e); err != nil {
			t.Fatal(err)
		}
		if e.Typeflag == tar.TypeReg { // each file has its name in it
			io.WriteString(tw, e.Name)
		}
	}
	if err := errors.Join(tw.Close(), zip.Close()); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

var listenerEntry = tar.Header{Typeflag: tar.TypeReg, Name: "./bin/Runner.Listener", Mode: 0o755}

func (h *host) install(data []byte) error {
	return h.client.InstallRunner(h.ctx(), int64(len(data)), digestOf(data), bytes.NewReader(data))
}

func TestInstallRunner(t *testing.T) {
	t.Parallel()
	h := startGuest(t, "exit 0")
	h.must(h.install(archive(t,
		tar.Header{Typeflag: tar.TypeDir, Name: "./", Mode: 0o700},
		listenerEntry,
		tar.Header{Typeflag: tar.TypeReg, Name: "./run.sh", Mode: 0o6777},
		tar.Header{Typeflag: tar.TypeReg, Name: "./externals/node/LICENSE", Mode: 0o600},
		tar.Header{Typeflag: tar.TypeSymlink, Name: "./externals/npm", Linkname: "node/LICENSE"},
		tar.Header{Typeflag: tar.TypeSymlink, Name: "./externals/node/up", Linkname: "../../run.sh"},
		tar.Header{Typeflag: tar.TypeLink, Name: "./hard", Linkname: "./run.sh"},
	)))
	for name, want := range map[string]struct {
		content string
		mode    os.FileMode
	}{
		"bin/Runner.Listener":    {"./bin/Runner.Listener", 0o755},
		"run.sh":                 {"./run.sh", 0o755},
		"hard":                   {"./run.sh", 0o755},
		"externals/node/LICENSE": {"./externals/node/LICENSE", 0o644},
		"externals/npm":          {"./externals/node/LICENSE", 0o644},
		"externals/node/up":      {"./run.sh", 0o755},
	} {
		b, err := os.ReadFile(filepath.Join(h.dir, name))
		info, statErr := os.Stat(filepath.Join(h.dir, name))
		if err != nil || statErr != nil || string(b) != want.content || info.Mode() != want.mode {
			t.Errorf("%s: %q, %v, %v", name, b, info, err)
		}
	}
	if _, err := os.Stat(filepath.Join(h.dir, "run")); err == nil {
		t.Error("the former runner is still there")
	}
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(h.dir), ".minifleet-runner-*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	h.run(nil)
	if err := h.install(archive(t, listenerEntry)); !errors.Is(err, guest.ErrHasConfig) {
		t.Errorf("after the config: %v", err)
	}
}

func TestInstallRefused(t *testing.T) {
	t.Parallel()
	h := startGuest(t, "exit 0")
	good := archive(t, listenerEntry)
	file := func(name string) tar.Header { return tar.Header{Typeflag: tar.TypeReg, Name: name} }
	link := func(name, to string) tar.Header {
		return tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: to}
	}
	for name, tt := range map[string]struct {
		data []byte
		want string
	}{
		"no archive":                {[]byte("hello"), "no .tar.gz"},
		"nothing":                   {nil, "no .tar.gz"},
		"cut":                       {good[:len(good)/2], "EOF"},
		"no listener":               {archive(t, file("run.sh")), "bin/Runner.Listener"},
		"listener that is a folder": {archive(t, tar.Header{Typeflag: tar.TypeDir, Name: "bin/Runner.Listener/"}), "bin/Runner.Listener"},
		"name above":                {archive(t, listenerEntry, file("../x")), "out of the folder"},
		"name above, hidden":        {archive(t, listenerEntry, file("a/../../x")), "out of the folder"},
		"absolute name":             {archive(t, listenerEntry, file("/etc/x")), "out of the folder"},
		"link above":                {archive(t, listenerEntry, link("a/l", "../../x")), "link leads out"},
		"absolute link":             {archive(t, listenerEntry, link("l", "/etc")), "link leads out"},
		"link above by another":     {archive(t, listenerEntry, link("x/y/up", ".."), link("d", "x/y/up/.."), link("e", "d/..")), "escapes"},
		"through a link":            {archive(t, listenerEntry, link("l", "bin"), file("l/x")), "no folder"},
		"over a link":               {archive(t, listenerEntry, link("l", "bin/x"), file("l")), "twice"},
		"over a file":               {archive(t, listenerEntry, listenerEntry), "twice"},
		"hard link above":           {archive(t, listenerEntry, tar.Header{Typeflag: tar.TypeLink, Name: "l", Linkname: "../x"}), "no file of the archive"},
		"hard link to a link":       {archive(t, listenerEntry, link("l", "bin"), tar.Header{Typeflag: tar.TypeLink, Name: "h", Linkname: "l"}), "no file of the archive"},
		"device":                    {archive(t, listenerEntry, tar.Header{Typeflag: tar.TypeChar, Name: "null", Devmajor: 1, Devminor: 3}), "not unpacked"},
		"pipe":                      {archive(t, listenerEntry, tar.Header{Typeflag: tar.TypeFifo, Name: "p"}), "not unpacked"},
	} {
		if err := h.install(tt.data); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v; want %q", name, err, tt.want)
		}
	}
	err := h.client.InstallRunner(h.ctx(), int64(len(good)), digestOf(nil), bytes.NewReader(good))
	if err == nil || !strings.Contains(err.Error(), "SHA-256 differs") {
		t.Errorf("other digest: %v", err)
	}
	if _, err := os.Stat(filepath.Join(h.dir, "run")); err != nil {
		t.Errorf("the former runner is gone: %v", err)
	}
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(h.dir), ".minifleet-runner-*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	h.must(h.install(good))
}

// TestNoRunnerDuringInstall: a config that comes meanwhile is not lost: it is refused.
func TestNoRunnerDuringInstall(t *testing.T) {
	t.Parallel()
	h := startGuest(t, "exit 0")
	good := archive(t, listenerEntry)
	r, w := io.Pipe()
	installed := make(chan error, 1)
	ctx := h.ctx()
	go func() { installed <- h.client.InstallRunner(ctx, int64(len(good)), digestOf(good), r) }()
	if _, err := w.Write(good[:10]); err != nil { // it asks for the body: it has begun
		t.Fatal(err)
	}
	for name, err := range map[string]error{
		"run":             h.client.Run(h.ctx(), secret.New(jit), nil, nil),
		"another install": h.install(good),
	} {
		if re, ok := errors.AsType[*guest.ResponseError](err); !ok || re.Code != 503 || !strings.Contains(re.Message, "being installed") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := w.Write(good[10:]); err != nil {
		t.Fatal(err)
	}
	h.must(<-installed)
	h.run(nil)
}
