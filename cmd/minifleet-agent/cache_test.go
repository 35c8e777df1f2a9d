// SPDX-License-Identifier: MIT

package main

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/minifleet/minifleet/imagecache"
	"github.com/minifleet/minifleet/imagecache/manifest"
	"github.com/minifleet/minifleet/imagecache/objects"
	"github.com/minifleet/minifleet/program"
)

// publish puts an image into a folder of images as one chunk, and returns its reference.
func publish(t *testing.T, place, name string, content []byte) (ref, digest string) {
	t.Helper()
	store, err := objects.Open(t.Context(), objects.Options{Scheme: manifest.SchemeFile, Location: place})
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	sum := manifest.SumOf(content)
	m := manifest.Manifest{
		Schema: manifest.Schema, GuestOS: "linux", ChunkBytes: manifest.ChunkBytes,
		Files: []manifest.File{{Path: "disk.img", Mode: 0o644, Size: int64(len(content)), Chunks: []manifest.Chunk{{Sum: sum}}}},
	}
	raw, err := m.Encode()
	if err != nil {
		t.Fatal(err)
	}
	digest = manifest.Digest(raw)
	for object, b := range map[string][]byte{manifest.ChunkObject(sum): manifest.Compress(nil, content), manifest.ManifestObject(digest): raw} {
		if _, err := store.Put(t.Context(), object, b, objects.Condition{}); err != nil {
			t.Fatal(err)
		}
	}
	return manifest.Reference{Scheme: manifest.SchemeFile, Location: place, Name: name}.At(digest).String(), digest
}

// TestCache looks after the cache of an agent that runs meanwhile.
func TestCache(t *testing.T) {
	dir, place := t.TempDir(), t.TempDir()
	config := write(t, strings.Replace(good, "/var/lib/minifleet-images", dir, 1))
	on := func(args ...string) (string, error) {
		t.Helper()
		return call(t, nil, append([]string{"cache", args[0], "--config", config}, args[1:]...)...)
	}
	want := func(out string, err error, words ...string) {
		t.Helper()
		if err != nil {
			t.Error(err)
		}
		for _, w := range words {
			if !strings.Contains(out, w) {
				t.Errorf("%q is not in:\n%s", w, out)
			}
		}
	}
	refuse := func(out string, err error, words ...string) {
		t.Helper()
		if err == nil {
			t.Errorf("it was done:\n%s", out)
			return
		}
		want(err.Error(), nil, words...)
	}
	out, err := on("list")
	want(out, err, "Nothing was fetched")
	if entries, err := os.ReadDir(dir); err != nil || len(entries) > 0 {
		t.Errorf("listing made %v, %v", entries, err)
	}
	out, err = on("pin", "tahoe")
	refuse(out, err, "tahoe", "nothing was fetched")

	agent, err := imagecache.Open(imagecache.Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	defer agent.Close()
	tahoe, digest := publish(t, place, "tahoe", []byte("tahoe's disk"))
	sonoma, _ := publish(t, place, "sonoma", []byte("sonoma's disk"))
	using, err := agent.Ensure(t.Context(), tahoe, nil)
	if err != nil {
		t.Fatal(err)
	}
	img, err := agent.Ensure(t.Context(), sonoma, nil)
	if err != nil {
		t.Fatal(err)
	}
	img.Release()

	out, err = on("list")
	want(out, err, tahoe, sonoma, "whole", "in use by another process")
	out, err = on("evict", "tahoe")
	refuse(out, err, "in use by the agent")
	using.Release()
	out, err = on("pin", "tahoe")
	want(out, err, tahoe+" is pinned")
	out, err = on("evict", digest[:20], "--force")
	refuse(out, err, "pinned by an operator")
	out, err = on("list", "-o", "json")
	want(out, err)
	var list []imagecache.Status
	if err := json.Unmarshal([]byte(out), &list); err != nil || len(list) != 2 ||
		!slices.ContainsFunc(list, func(s imagecache.Status) bool {
			return s.Digest == digest && slices.Equal(s.Pins, []string{"pinned by an operator"})
		}) {
		t.Errorf("%v in\n%s", err, out)
	}
	out, err = on("unpin", "tahoe")
	want(out, err, tahoe+" is unpinned")
	out, err = on("unpin", "tahoe")
	refuse(out, err, "is not pinned")
	out, err = on("evict", "sonoma", "-o", "json")
	want(out, err, `"done": "evicted"`, sonoma)

	out, err = on("verify")
	want(out, err, tahoe+" is what its manifest says")
	path := filepath.Join(imagecache.FetchedDir(dir), strings.TrimPrefix(digest, "sha256:"), "disk.img")
	if err := os.WriteFile(path, []byte("tahoe's risk"), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err = on("verify", "tahoe")
	if code := program.Exit(0); !errors.As(err, &code) || code != 1 {
		t.Errorf("damage ends with %v", err)
	}
	want(out, nil, "disk.img, chunk 0: its content has another sum", "repairs it")
	out, err = on("verify", "-o", "json")
	if err == nil {
		t.Error("damage ends with success")
	}
	want(out, nil, `"path": "disk.img"`)
	out, err = on("list")
	want(out, err, "damaged", "chunk 0")
	img, err = agent.Ensure(context.Background(), tahoe, nil)
	if err != nil {
		t.Fatal(err)
	}
	img.Release()
	out, err = on("verify")
	want(out, err, tahoe+" is what its manifest says")
}
