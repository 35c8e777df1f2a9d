// SPDX-License-Identifier: MIT

package manifest_test

import (
	"strings"
	"testing"

	"github.com/minifleet/minifleet/imagecache/manifest"
)

var digest = "sha256:" + strings.Repeat("0a", 32)

func TestObjects(t *testing.T) {
	t.Parallel()
	sum := manifest.SumOf([]byte("a"))
	object := manifest.ChunkObject(sum)
	if object != "chunks/ca/ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb.zst" {
		t.Error(object)
	}
	if back, ok := manifest.ParseChunkObject(object); !ok || back != sum {
		t.Error(back)
	}
	if have := manifest.ManifestObject(digest); have != "manifests/"+strings.Repeat("0a", 32)+".json" {
		t.Error(have)
	}
	if back, ok := manifest.ParseManifestObject(manifest.ManifestObject(digest)); !ok || back != digest {
		t.Error(back)
	}
	if have := manifest.TagObject("macos-15", "v1.2"); have != "tags/macos-15/v1.2.json" {
		t.Error(have)
	}
	if name, tag, ok := manifest.ParseTagObject("tags/macos-15/v1.2.json"); !ok || name != "macos-15" || tag != "v1.2" {
		t.Error(name, tag)
	}
	for _, other := range []string{
		"", "/", "chunks/", "tags/a", "tags/a.json", "tags//a.json", "tags/a/.json", "tags/a/b", "tags/a/b/c.json", "tags/A/b.json", "tags/a/B.json", "x/a/b.json",
		strings.Replace(object, "/ca/", "/cb/", 1), strings.ToUpper(object), strings.TrimSuffix(object, ".zst"), "x" + object, object + "~",
		"manifests/" + strings.Repeat("0a", 31) + ".json", strings.Repeat("0a", 32), "manifests/" + strings.Repeat("0a", 32),
	} {
		_, isChunk := manifest.ParseChunkObject(other)
		_, isManifest := manifest.ParseManifestObject(other)
		_, _, isTag := manifest.ParseTagObject(other)
		if isChunk || isManifest || isTag {
			t.Errorf("%q is taken for one of ours: %t %t %t", other, isChunk, isManifest, isTag)
		}
	}
}

func TestTag(t *testing.T) {
	t.Parallel()
	b := manifest.EncodeTag(digest)
	if string(b) != `{"schema":1,"manifest":"`+digest+`"}` {
		t.Errorf("%s", b)
	}
	if back, err := manifest.ParseTag(b); err != nil || back != digest {
		t.Error(back, err)
	}
	for name, text := range map[string]string{
		"nothing": "", "null": "null", "no schema": `{"manifest":"` + digest + `"}`, "no digest": `{"schema":1}`,
		"a digest without its kind": `{"schema":1,"manifest":"` + digest[7:] + `"}`, "unknown key": `{"schema":1,"manifest":"` + digest + `","x":1}`,
		"something follows": string(b) + "{}", "large": string(b) + strings.Repeat(" ", 4<<10), "HTML": "<html>" + strings.Repeat("x", 3000),
		"long digest": `{"schema":1,"manifest":"` + strings.Repeat("a", 3000) + `"}`,
	} {
		if d, err := manifest.ParseTag([]byte(text)); err == nil || d != "" || len(err.Error()) > 2<<10 {
			t.Errorf("%s: %q, %v", name, d, err)
		}
	}
}

func TestSums(t *testing.T) {
	t.Parallel()
	sum := manifest.SumOf([]byte("a"))
	if back, err := manifest.ParseSum(sum.String()); err != nil || back != sum {
		t.Error(back, err)
	}
	for _, text := range []string{"", "a", strings.ToUpper(sum.String()), sum.String() + "0", strings.Repeat("g", 64)} {
		if _, err := manifest.ParseSum(text); err == nil {
			t.Errorf("%q got through", text)
		}
	}
}
