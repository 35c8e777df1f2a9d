// SPDX-License-Identifier: MIT

package guest

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"io"
	"io/fs"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// FuzzExecFrames lets a guest answer exec with any bytes: what is passed on is bounded,
// and an end is one.
func FuzzExecFrames(f *testing.F) {
	f.Fuzz(func(t *testing.T, raw []byte, limit uint16) {
		var stdout, stderr bytes.Buffer
		end, err := readFrames(bytes.NewReader(raw), &stdout, &stderr, int64(limit))
		if n := stdout.Len() + stderr.Len(); n > len(raw) || n > int(limit) {
			t.Fatalf("%d bytes of output of %d, at most %d are wanted", n, len(raw), limit)
		}
		if err != nil {
			said(t, foreign{err})
			return
		}
		if end.Code < -1 || end.Code > 255 || (end.Code == -1) != (end.Signal != "") || end.Signal != printable(end.Signal, 64, false) {
			t.Fatalf("end %+v", end)
		}
		// The same said by our own guest is read the same.
		var wire bytes.Buffer
		frames := &frameWriter{w: &wire, flush: func() error { return nil }}
		output{frames, frameStdout}.Write(stdout.Bytes())
		output{frames, frameStderr}.Write(stderr.Bytes())
		last, err := json.Marshal(end)
		if err != nil {
			t.Fatal(err)
		}
		frames.write(frameExit, last)
		var out, errs bytes.Buffer
		again, err := readFrames(&wire, &out, &errs, int64(limit))
		if err != nil || again != end || !bytes.Equal(out.Bytes(), stdout.Bytes()) || !bytes.Equal(errs.Bytes(), stderr.Bytes()) {
			t.Fatalf("%+v became %+v, %v", end, again, err)
		}
	})
}

// FuzzExecRequest gives the guest any request for a command: what is taken can be started.
func FuzzExecRequest(f *testing.F) {
	f.Fuzz(func(t *testing.T, body []byte) {
		var req execRequest
		w := httptest.NewRecorder()
		if decode(w, httptest.NewRequestWithContext(t.Context(), "POST", "/v1/exec", bytes.NewReader(body)), &req) != nil || req.check() != nil {
			return
		}
		req.User = "" // depends on the system
		cmd, err := fuzzAgent(t).command(req, execMark+"=x")
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range append(append(cmd.Args, cmd.Env...), cmd.Dir) {
			if strings.ContainsRune(s, 0) {
				t.Fatalf("NUL in %q", s)
			}
		}
		if len(cmd.Args) == 0 || cmd.Args[0] == "" || cmd.Dir != "" && !filepath.IsAbs(cmd.Dir) {
			t.Fatalf("%q in %q", cmd.Args, cmd.Dir)
		}
		if d := toDuration(req.TimeoutSeconds, maxExecTimeout); d < 0 || d > maxExecTimeout {
			t.Fatalf("limit %v", d)
		}
	})
}

// FuzzFileTarget gives the guest any file to write: what is taken has an absolute path, a
// plain mode and a digest.
func FuzzFileTarget(f *testing.F) {
	f.Fuzz(func(t *testing.T, query, digest string, size int64) {
		r := httptest.NewRequestWithContext(t.Context(), "PUT", "/v1/files", nil)
		r.URL.RawQuery, r.ContentLength = query, size
		r.Header.Set(digestHeader, digest)
		target, err := parseTarget(r)
		if err != nil {
			if len(err.Error()) > maxReasonBytes {
				t.Fatalf("error of %d bytes", len(err.Error()))
			}
			return
		}
		q, err := url.ParseQuery(query)
		switch {
		case err == nil && q.Get("path") != target.path:
			t.Fatalf("path %q", target.path)
		case !filepath.IsAbs(target.path) || filepath.Clean(target.path) != target.path || strings.ContainsRune(target.path, 0):
			t.Fatalf("path %q", target.path)
		case target.mode&^fs.ModePerm != 0 || target.size < 0 || target.size > MaxFileBytes:
			t.Fatalf("%+v", target)
		case !strings.EqualFold(hex.EncodeToString(target.digest), digest):
			t.Fatalf("digest %x", target.digest)
		}
	})
}

// FuzzUnpack unpacks any archive: whatever is in it, nothing comes to be outside of the
// folder, what is taken has no link that leads out of it, and nothing but files, folders
// and links is in it.
func FuzzUnpack(f *testing.F) {
	f.Fuzz(func(t *testing.T, archive []byte) {
		parent := t.TempDir()
		dir := filepath.Join(parent, "a", "runner")
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		err := unpack(io.LimitReader(bytes.NewReader(archive), 1<<20), dir, nil)
		if err != nil { // the folder is thrown away, and nobody follows its links
			said(t, foreign{err})
		}
		good := err == nil
		for _, d := range []string{parent, filepath.Dir(dir)} {
			if entries, err := os.ReadDir(d); err != nil || len(entries) != 1 {
				t.Fatalf("%s has %v, %v", d, entries, err)
			}
		}
		root, err := filepath.EvalSymlinks(dir)
		if err != nil {
			t.Fatal(err)
		}
		err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				t.Fatal(err)
			}
			switch d.Type() {
			case 0, fs.ModeDir:
			case fs.ModeSymlink:
				to, err := filepath.EvalSymlinks(path)
				if good && err == nil && to != root && !strings.HasPrefix(to, root+"/") {
					t.Fatalf("%s leads to %s", path, to)
				}
			default:
				t.Fatalf("%s is %v", path, d.Type())
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	})
}

// FuzzEnviron splits what should be an environment: each part has a name and no NUL.
func FuzzEnviron(f *testing.F) {
	f.Fuzz(func(t *testing.T, text string) {
		environ, err := splitEnviron(text)
		if err != nil {
			if strings.Contains(err.Error(), text) && len(text) > 3 {
				t.Fatalf("the error shows the environment: %v", err)
			}
			return
		}
		if text != "" && strings.Join(environ, "\x00")+"\x00" != text {
			t.Fatalf("%q became %q", text, environ)
		}
		for _, kv := range environ {
			if strings.ContainsRune(kv, 0) || strings.IndexByte(kv, '=') < 1 {
				t.Fatalf("%q", kv)
			}
		}
	})
}
