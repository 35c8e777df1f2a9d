// SPDX-License-Identifier: MIT

package manifest_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/minifleet/minifleet/imagecache/manifest"
)

func TestParseReference(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]manifest.Reference{
		"macos-15":                         {Name: "macos-15"},
		"macos-15@" + digest:               {Name: "macos-15", Digest: digest},
		"gs://bucket/macos-15":             {Scheme: "gs", Location: "bucket", Name: "macos-15", Tag: "latest"},
		"gs://bucket/a/b/macos:v1":         {Scheme: "gs", Location: "bucket/a/b", Name: "macos", Tag: "v1"},
		"gs://b.example.com/m@" + digest:   {Scheme: "gs", Location: "b.example.com", Name: "m", Digest: digest},
		"gs://bucket/m:v1@" + digest:       {Scheme: "gs", Location: "bucket", Name: "m", Tag: "v1", Digest: digest},
		"file:///srv/my images/m":          {Scheme: "file", Location: "/srv/my images", Name: "m", Tag: "latest"},
		"file:///m:x":                      {Scheme: "file", Location: "/", Name: "m", Tag: "x"},
		"file:///a:b@c/m:x":                {Scheme: "file", Location: "/a:b@c", Name: "m", Tag: "x"},
		"oci://ghcr.io/cirruslabs/macos":   {Scheme: "oci", Location: "ghcr.io/cirruslabs", Name: "macos", Tag: "latest"},
		"oci://localhost:5000/macos:Beta":  {Scheme: "oci", Location: "localhost:5000", Name: "macos", Tag: "Beta"},
		"oci://[::1]:5000/a/b/m@" + digest: {Scheme: "oci", Location: "[::1]:5000/a/b", Name: "m", Digest: digest},
	} {
		have, err := manifest.ParseReference(text)
		if err != nil {
			t.Error(err)
			continue
		}
		if diff := cmp.Diff(want, have); diff != "" {
			t.Errorf("%s: %s", text, diff)
		}
		if have.Remote() != strings.Contains(text, "://") {
			t.Errorf("%s: remote is %t", text, have.Remote())
		}
		written := text
		if have.Tag == "latest" {
			written += ":latest"
		}
		if have.String() != written {
			t.Errorf("%s is written %s", text, have)
		}
		at := have.At("sha256:" + strings.Repeat("1", 64))
		if back, err := manifest.ParseReference(at.String()); err != nil || back != at || at.Tag != "" {
			t.Errorf("%s at another digest: %s, %v", text, at, err)
		}
	}
}

func TestParseReferenceRefuses(t *testing.T) {
	t.Parallel()
	for _, text := range []string{
		"", "Name", "-a", ".a", "a b", "a/b", "a:tag", "a@", "a@sha256:12", "a@" + strings.ToUpper(digest), "../a", strings.Repeat("a", 101), "a\x00",
		"http://bucket/a", "GS://bucket/a", "gs://", "gs:///", "gs://bucket", "gs://bucket/", "gs://bucket//a", "gs://ab/a", "gs://Bucket/a", "gs://-bucket/a", "gs://bucket-/a",
		"gs://bucket/../a", "gs://bucket/./a", "gs://bucket/p q/a", "gs://user@bucket/a", "gs://bucket/a:", "gs://bucket/a:Upper", "gs://bucket/a:.x", "gs://bucket/a:x y", "gs://bucket/a:b:c",
		"gs://bucket/a:" + strings.Repeat("t", 129), "gs://bucket/a@" + digest + "@" + digest, "gs://bucket/a@" + digest + ":tag", "gs://bucket/.a", "gs://bucket/a?x=1",
		"file://", "file://relative/a", "file:///", "file:///../a", "file:///x/../a", "file:///x//a", "file:///x/./a", "file://localhost/srv/a", "file:///x\n/a", "file:///\xff/a",
		"oci://", "oci:///a", "oci://ghcr.io", "oci://user:pass@ghcr.io/a", "oci://ghcr.io/Upper/a", "oci://ghcr.io//a", "oci://ghcr.io/a:-x",
		"gs://bucket/" + strings.Repeat("p/", 600) + "a",
	} {
		r, err := manifest.ParseReference(text)
		if err == nil || r != (manifest.Reference{}) {
			t.Errorf("%q got through as %+v, %v", text, r, err)
		} else if len(err.Error()) > 2<<10 {
			t.Errorf("an error of %d bytes", len(err.Error()))
		}
	}
}

func TestParseLocation(t *testing.T) {
	t.Parallel()
	for text, want := range map[string][2]string{
		"gs://bucket":              {"gs", "bucket"},
		"gs://bucket/":             {"gs", "bucket"},
		"gs://bucket/images/ci":    {"gs", "bucket/images/ci"},
		"file:///srv/images/":      {"file", "/srv/images"},
		"file:///":                 {"file", "/"},
		"oci://ghcr.io/cirruslabs": {"oci", "ghcr.io/cirruslabs"},
	} {
		scheme, location, err := manifest.ParseLocation(text)
		if err != nil || scheme != want[0] || location != want[1] {
			t.Errorf("%s: %s, %s, %v", text, scheme, location, err)
		}
	}
	for _, text := range []string{"", "bucket", "gs://", "gs://b//", "file://", "file://x", "s3://bucket", "gs://" + strings.Repeat("x", 2000)} {
		if scheme, location, err := manifest.ParseLocation(text); err == nil {
			t.Errorf("%q got through as %s, %s", text, scheme, location)
		}
	}
}
