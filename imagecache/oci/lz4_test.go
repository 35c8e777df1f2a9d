// SPDX-License-Identifier: MIT

package oci_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/minifleet/minifleet/imagecache/oci"
)

// realistic is content as a disk has it: text, code, noise and zeros.
func realistic(seed uint64, size int) []byte {
	r := rand.New(rand.NewPCG(seed, 7))
	words := strings.Fields("the kernel Frameworks /usr/lib/dyld CFBundleIdentifier com.apple. <key> </string> 0123456789 return static void")
	b := make([]byte, 0, size+1<<16)
	for len(b) < size {
		switch n := 1 + r.IntN(48<<10); r.IntN(4) {
		case 0:
			b = append(b, make([]byte, n)...)
		case 1:
			noise := make([]byte, n)
			for i := 0; i+8 <= n; i += 8 {
				binary.LittleEndian.PutUint64(noise[i:], r.Uint64())
			}
			b = append(b, noise...)
		case 2:
			for end := len(b) + n; len(b) < end; {
				b = append(b, words[r.IntN(len(words))]...)
			}
		case 3: // what was there before, from anywhere
			if len(b) > 0 {
				from := r.IntN(len(b))
				b = append(b, b[from:min(len(b), from+n)]...)
			}
		}
	}
	return b[:size]
}

// unpack collects what the decoder gives, and holds it to its word.
func unpack(t testing.TB, r io.Reader, size int64) ([]byte, error) {
	t.Helper()
	var got []byte
	err := oci.DecodeLZ4(r, size, func(p []byte) error {
		if len(p) == 0 || len(p) > 1<<20+64<<10 {
			t.Fatalf("a piece of %d bytes", len(p))
		}
		got = append(got, p...)
		return nil
	})
	if int64(len(got)) > size {
		t.Fatalf("%d bytes of %d", len(got), size)
	}
	return got, err
}

func TestLZ4(t *testing.T) {
	t.Parallel()
	for _, size := range []int{0, 1, 4, 12, 13, 100, 64 << 10, lz4Block, lz4Block + 1, 1<<20 + 64<<10, 3<<20 + 3} {
		for name, content := range map[string][]byte{
			"zeros": make([]byte, size), "realistic": realistic(1, size), "repeated": bytes.Repeat([]byte("abc"), size)[:size],
		} {
			packed := encodeLZ4(content)
			if name == "realistic" && size > 2<<20 && (len(packed) > size*9/10 || !bytes.Contains(packed, []byte("bv4-"))) {
				t.Fatalf("the encoder made %d of %d bytes, or stored nothing: this tests little", len(packed), size)
			}
			for how, r := range map[string]io.Reader{"at once": bytes.NewReader(packed), "bit by bit": iotest.HalfReader(bytes.NewReader(packed))} {
				if got, err := unpack(t, r, int64(size)); err != nil || !bytes.Equal(got, content) {
					t.Errorf("%s of %d bytes, %s: %d bytes, %v", name, size, how, len(got), err)
				}
			}
			if size == 0 {
				continue
			}
			if _, err := unpack(t, bytes.NewReader(packed), int64(size-1)); !strings.Contains(errText(err), "it has more") {
				t.Errorf("%s of %d bytes as one less: %v", name, size, err)
			}
			if _, err := unpack(t, bytes.NewReader(packed), int64(size+1)); !strings.Contains(errText(err), "1 bytes are missing") {
				t.Errorf("%s of %d bytes as one more: %v", name, size, err)
			}
		}
	}
}

func errText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func block(content, encoded uint32, body string) string {
	b := binary.LittleEndian.AppendUint32([]byte("bv41"), content)
	return string(binary.LittleEndian.AppendUint32(b, encoded)) + body
}

func TestLZ4Refuses(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct{ stream, want string }{
		"nothing":                     {"", "cut off"},
		"another magic":               {"bv42", `begins with "bv42"`},
		"no end":                      {"bv4-\x08\x00\x00\x0012345678", "cut off"},
		"cut in a size":               {"bv4-\x08\x00", "cut off"},
		"cut in what is stored":       {"bv4-\x08\x00\x00\x001234", "cut off"},
		"cut in a block":              {block(8, 9, "\x80123"), "cut off"},
		"bomb stored":                 {"bv4-\xff\xff\xff\xff", "it has more"},
		"bomb packed":                 {block(0xffffffff, 8, "\x1fa\x01\x00\xff\xff\xff\xff"), "it has more"},
		"block that ends early":       {block(8, 5, "\x401234bv4$"), "4 bytes too early"},
		"block without encoding":      {block(8, 0, "bv4$"), "8 bytes too early"},
		"more literals than encoded":  {block(8, 5, "\x8012345678bv4$"), "more literals"},
		"more literals than content":  {block(4, 9, "\x8012345678"), "more literals"},
		"length without an end":       {block(8, 3, "\xf0\xff\xff"), "within a length"},
		"copy without an offset":      {block(8, 3, "\x1012"), "within a copy"},
		"copy from nowhere":           {block(8, 4, "\x101\x00\x00"), "before the beginning"},
		"copy from before all":        {block(8, 4, "\x101\x02\x00"), "before the beginning"},
		"copy of more than there is":  {block(8, 5, "\x1f1\x01\x00\x00"), "copies more"},
		"copy's length without end":   {block(8, 4, "\x1f1\x01\x00"), "within a length"},
		"content that nothing filled": {block(8, 4, "\x101\x01\x00bv4$"), "3 bytes too early"},
	} {
		got, err := unpack(t, strings.NewReader(tt.stream), 8)
		if !strings.Contains(errText(err), tt.want) {
			t.Errorf("%s: %q, %v, want %q", name, got, err, tt.want)
		}
	}
	broken := errors.New("the test's error")
	if _, err := unpack(t, iotest.ErrReader(broken), 8); !errors.Is(err, broken) {
		t.Errorf("a reader's error: %v", err)
	}
	if err := oci.DecodeLZ4(strings.NewReader("bv4-\x08\x00\x00\x0012345678bv4$"), 8, func([]byte) error { return broken }); !errors.Is(err, broken) {
		t.Errorf("a writer's error: %v", err)
	}
}

// TestLZ4ReachesBack copies from exactly the end of what a copy can reach, over the borders
// of blocks and of the decoder's buffer.
func TestLZ4ReachesBack(t *testing.T) {
	t.Parallel()
	content := realistic(3, 1<<20+64<<10)
	var stream []byte
	stored := func(b []byte) {
		stream = append(stream, "bv4-"...)
		stream = binary.LittleEndian.AppendUint32(stream, uint32(len(b)))
		stream = append(stream, b...)
	}
	stored(content)
	want := bytes.Clone(content)
	for range 15 {
		from := want[len(want)-0xffff:]
		add := append(bytes.Clone(from), from...)[:100_000] // repeats itself
		body := appendSequence(nil, nil, 0xffff, len(add))
		body = append(body, 0)
		stream = append(stream, block(uint32(len(add)), uint32(len(body)), string(body))...)
		want = append(want, add...)
	}
	stream = append(stream, "bv4$"...)
	if got, err := unpack(t, bytes.NewReader(stream), int64(len(want))); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d bytes of %d, %v", len(got), len(want), err)
	}
}

// FuzzLZ4 holds the decoder to the size that it is told and to bounded work, and packs what
// came out to get it again.
func FuzzLZ4(f *testing.F) {
	f.Fuzz(func(t *testing.T, stream []byte, size uint32) {
		size %= 1 << 20
		got, err := unpack(t, bytes.NewReader(stream), int64(size))
		if err != nil {
			return
		}
		if len(got) != int(size) {
			t.Fatalf("%d bytes of %d", len(got), size)
		}
		if again, err := unpack(t, bytes.NewReader(encodeLZ4(got)), int64(size)); err != nil || !bytes.Equal(again, got) {
			t.Fatalf("%d bytes come back as %d, %v", len(got), len(again), err)
		}
	})
}

func BenchmarkLZ4(b *testing.B) {
	content := realistic(2, 64<<20)
	packed := encodeLZ4(content)
	b.SetBytes(int64(len(content)))
	for b.Loop() {
		if err := oci.DecodeLZ4(bytes.NewReader(packed), int64(len(content)), func([]byte) error { return nil }); err != nil {
			b.Fatal(err)
		}
	}
}
