// SPDX-License-Identifier: MIT

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/minifleet/minifleet/imagecache/layout"
	"github.com/minifleet/minifleet/imagecache/manifest"
	"github.com/minifleet/minifleet/imagecache/objects"
	"github.com/minifleet/minifleet/imagecache/publish"
	"github.com/minifleet/minifleet/program"
)

type imageCommand struct {
	Push    imagePush    `cmd:"" help:"Publish the image in a folder."`
	Pull    imagePull    `cmd:"" help:"Write a published image into a folder."`
	List    imageList    `cmd:"" help:"List the images of a location."`
	Inspect imageInspect `cmd:"" help:"Show what an image is."`
	Diff    imageDiff    `cmd:"" help:"Compare two images: what is shared, new and gone."`
	Tag     imageTag     `cmd:"" help:"Give an image another tag, or move one to it."`
	Delete  imageDelete  `cmd:"" help:"Delete a tag, or an image that has none."`
	GC      imageGC      `cmd:"" name:"gc" help:"Delete images without a tag and chunks of no image, if they are old enough."`
	Verify  imageVerify  `cmd:"" help:"Read images wholly and check every byte."`
	Import  imageImport  `cmd:"" help:"Publish an image of another program's."`
}

// bucket is how a location is reached.
type bucket struct {
	KeyFile  string `env:"MINIFLEET_IMAGE_KEY_FILE" type:"path" help:"File with a service account's key for a bucket. Without it Application Default Credentials are used."`
	Endpoint string `env:"MINIFLEET_IMAGE_ENDPOINT" placeholder:"URL" help:"Where the storage API is, for an emulator."`
}

const (
	formsRef      = "gs://BUCKET[/PREFIX]/NAME[:TAG] or file:///FOLDER/NAME[:TAG], with @sha256:... behind it for that very version"
	formsLocation = "gs://BUCKET[/PREFIX] or file:///FOLDER"
)

func (b bucket) open(ctx context.Context, scheme, location string) (publish.Location, error) {
	if scheme == manifest.SchemeOCI {
		return publish.Location{}, fmt.Errorf("oci://%s: images are published at %s; `minifleet image import tart` takes one from a registry", location, formsLocation)
	}
	store, err := objects.Open(ctx, objects.Options{Scheme: scheme, Location: location, KeyFile: b.KeyFile, Endpoint: b.Endpoint})
	return publish.Location{Store: store}, err
}

// at opens the location of a reference.
func (b bucket) at(ctx context.Context, ref string) (publish.Location, manifest.Reference, error) {
	r, err := manifest.ParseReference(ref)
	if err != nil {
		return publish.Location{}, r, err
	}
	if !r.Remote() {
		return publish.Location{}, r, fmt.Errorf("%s names no published image: give %s", ref, formsRef)
	}
	l, err := b.open(ctx, r.Scheme, r.Location)
	return l, r, err
}

func (b bucket) location(ctx context.Context, s string) (publish.Location, error) {
	scheme, location, err := manifest.ParseLocation(s)
	if err != nil {
		return publish.Location{}, err
	}
	return b.open(ctx, scheme, location)
}

// published reports whether an argument is a reference, and not a folder.
func published(arg string) bool { return strings.Contains(arg, "://") }

// tagOnly refuses a reference with a digest where a tag is written.
func tagOnly(r manifest.Reference) error {
	if r.Digest != "" {
		return fmt.Errorf("%s: a tag is written, and its digest is not known before: leave @%s out", r, r.Digest)
	}
	return nil
}

// working runs what takes long, with its progress shown, and says after an interruption
// that nothing is lost.
func working(s *surroundings, what string, do func(context.Context, func(publish.Progress)) error) error {
	stop := program.Stop{Finishing: "what is under way is broken off: " + what, Within: 30 * time.Second}
	return stop.Run(s.ctx, func(ctx context.Context, parts *program.Parts) error {
		return parts.Do(what, func() error {
			p := newProgress(s.stderr, terminal(s.stderr), columns(s.stderr))
			err := do(ctx, p.set)
			p.end()
			if told, ok := errors.AsType[program.Signal](context.Cause(ctx)); ok && err != nil {
				return fmt.Errorf("ended by %w before it was done; run it again, and it goes on from there", told)
			}
			return err
		})
	})
}

func printJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

type imagePush struct {
	bucket
	Dir string `arg:"" type:"existingdir" help:"Folder of an image: with an image.json, the bundle of a VM that was shut down, a VM of tart's, or a template of shoes-vz."`
	Ref string `arg:"" name:"ref" help:"Where to, and under which name and tag: gs://BUCKET/PREFIX/NAME:TAG or file:///FOLDER/NAME:TAG. The tag is latest if it is left out."`
}

// Help says what is moved.
func (imagePush) Help() string {
	return "Uploads the chunks that the location lacks, then the manifest, then moves the tag. It can be interrupted at any moment, by a " +
		"power cut too: run again, it uploads what is missing. The folder must not change meanwhile.\n\n" +
		"Example:\n  minifleet image push ./sonoma gs://acme-images/macos/sonoma:14.5"
}

// Run pushes.
func (c imagePush) Run(s *surroundings) error {
	t, err := layout.Open(c.Dir)
	if err != nil {
		return err
	}
	l, r, err := c.at(s.ctx, c.Ref)
	if err != nil {
		return err
	}
	defer l.Store.Close()
	return push(s, l, r, t)
}

func push(s *surroundings, l publish.Location, r manifest.Reference, t *layout.Template) error {
	if err := tagOnly(r); err != nil {
		return err
	}
	began := time.Now()
	var done publish.Pushed
	err := working(s, "the push", func(ctx context.Context, show func(publish.Progress)) (err error) {
		done, err = l.Push(ctx, t, publish.PushOptions{Name: r.Name, Tag: r.Tag, Progress: show})
		return err
	})
	if err != nil {
		return err
	}
	fmt.Fprintf(s.stdout, "%s is %s\n", r, done.Digest)
	if done.Previous != "" && done.Previous != done.Digest {
		fmt.Fprintf(s.stdout, "it was %s\n", done.Previous)
	}
	_, err = fmt.Fprintf(s.stdout, "%s in %s: %d of %d chunks uploaded, %s of %s\n", size(done.Bytes), time.Since(began).Round(100*time.Millisecond),
		done.Uploaded, done.Chunks, size(done.UploadedBytes), size(done.StoredBytes))
	return err
}

type imagePull struct {
	bucket
	Ref string `arg:"" name:"ref" help:"Image: gs://BUCKET/PREFIX/NAME:TAG, or with @sha256:... for that very version."`
	Dir string `arg:"" type:"path" help:"Folder to write, which is not there yet or empty."`
}

// Help says what the folder is good for.
func (imagePull) Help() string {
	return "Writes the image's files and an image.json: a folder that an agent takes as an image by its folder's name, and that can be changed and pushed again. " +
		"Hosts need no such folder of an image that a pool names by its reference. Until it is whole the image is in DIR" + publish.EndPulling + "; an interrupted pull goes on there."
}

// Run pulls.
func (c imagePull) Run(s *surroundings) error {
	l, r, err := c.at(s.ctx, c.Ref)
	if err != nil {
		return err
	}
	defer l.Store.Close()
	digest, err := l.Resolve(s.ctx, r)
	if err != nil {
		return err
	}
	var m *manifest.Manifest
	err = working(s, "the pull", func(ctx context.Context, show func(publish.Progress)) (err error) {
		m, err = l.Pull(ctx, digest, r.Name, c.Dir, show)
		return err
	})
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(s.stdout, "%s is in %s: %s, %s\n", r.At(digest), c.Dir, size(m.Bytes()), m.GuestOS)
	return err
}

type imageList struct {
	bucket
	Location string `arg:"" help:"Where the images are: gs://BUCKET/PREFIX or file:///FOLDER."`
	Output   string `short:"o" default:"table" enum:"table,json" help:"table or json."`
}

// Run lists.
func (c imageList) Run(s *surroundings) error {
	l, err := c.location(s.ctx, c.Location)
	if err != nil {
		return err
	}
	defer l.Store.Close()
	all, err := l.List(s.ctx)
	if err != nil {
		return err
	}
	if c.Output == "json" {
		return printJSON(s.stdout, append([]publish.Listed{}, all...))
	}
	w := tabwriter.NewWriter(s.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "IMAGE\tGUEST\tSIZE\tSTORED\tMOVED\tDIGEST")
	for _, i := range all {
		name, guest, bytes, stored := "(no tag)", "?", "?", "?"
		if i.Name != "" {
			name = i.Name + ":" + i.Tag
		}
		if i.Summary != nil {
			guest, bytes, stored = i.GuestOS, size(i.Bytes), size(i.StoredBytes)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", name, guest, bytes, stored, i.Moved.UTC().Format("2006-01-02 15:04"), i.Digest)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for _, i := range all {
		if i.Error != "" {
			fmt.Fprintf(s.stdout, "%s: %s\n", i.Digest, i.Error)
		}
	}
	return nil
}

type imageInspect struct {
	bucket
	Image  string `arg:"" help:"Reference of a published image, or a folder."`
	Output string `short:"o" default:"table" enum:"table,json" help:"table or json."`
}

// inspected is what inspect shows.
type inspected struct {
	Ref    string `json:"ref,omitempty"`
	Digest string `json:"digest,omitempty"`
	// The sums are nil for a folder, whose files are not read.
	*publish.Summary
	Manifest manifest.Manifest `json:"manifest"` // without the files' chunks
}

// Run shows an image.
func (c imageInspect) Run(s *surroundings) error {
	var i inspected
	if published(c.Image) {
		l, r, err := c.at(s.ctx, c.Image)
		if err != nil {
			return err
		}
		defer l.Store.Close()
		if i.Digest, err = l.Resolve(s.ctx, r); err != nil {
			return err
		}
		m, err := l.Manifest(s.ctx, i.Digest)
		if err != nil {
			return err
		}
		i.Ref, i.Summary, i.Manifest = r.String(), new(publish.Summarize(m)), *m
		for f := range i.Manifest.Files {
			i.Manifest.Files[f].Chunks = []manifest.Chunk{}
		}
	} else {
		t, err := layout.Open(c.Image)
		if err != nil {
			return err
		}
		i.Ref, i.Manifest = t.Dir, t.Manifest
		i.Manifest.Files = []manifest.File{}
		for _, f := range t.Files {
			file := manifest.File{Path: f.Path, Mode: f.Mode, Size: int64(len(f.Content)), Chunks: []manifest.Chunk{}}
			if f.Source != "" {
				info, err := os.Stat(f.Source)
				if err != nil {
					return err
				}
				file.Size = info.Size()
			}
			i.Manifest.Files = append(i.Manifest.Files, file)
		}
	}
	if c.Output == "json" {
		return printJSON(s.stdout, i)
	}
	return i.print(s.stdout)
}

func (i inspected) print(out io.Writer) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	row := func(name, value string) {
		if value != "" && value != "0" {
			fmt.Fprintf(w, "%s\t%s\n", name, value)
		}
	}
	m := i.Manifest
	row("image", i.Ref)
	row("digest", i.Digest)
	row("description", m.Description)
	row("guest", strings.TrimSpace(m.GuestOS+" "+m.Arch))
	row("host's system, at least", m.MinHostOS)
	row("CPUs, at least", fmt.Sprint(m.MinCPUs))
	row("MiB of memory, at least", fmt.Sprint(m.MinMemoryMiB))
	if d := m.Display; d != nil {
		row("display", fmt.Sprintf("%d x %d", d.Width, d.Height))
	}
	row("size", size(m.Bytes()))
	if i.Summary != nil {
		row("stored", fmt.Sprintf("%s in %d chunks of %s", size(i.StoredBytes), i.Chunks, size(m.ChunkBytes)))
	}
	for _, f := range m.Files {
		row("file", fmt.Sprintf("%s  %04o  %s", f.Path, f.Mode, size(f.Size)))
	}
	return w.Flush()
}

type imageDiff struct {
	bucket
	A      string `arg:"" help:"The older image: a reference, or a folder."`
	B      string `arg:"" help:"The newer image: a reference, or a folder."`
	Output string `short:"o" default:"table" enum:"table,json" help:"table or json."`
}

// Help says what the sums mean.
func (imageDiff) Help() string {
	return "What is new is what a host fetches that has A in its cache. Folders are read wholly. Sizes are of chunks that are not all zeros, each counted once."
}

// Run compares.
func (c imageDiff) Run(s *surroundings) error {
	var d publish.Difference
	err := working(s, "the comparison", func(ctx context.Context, show func(publish.Progress)) error {
		a, err := c.read(ctx, c.A, nil, show)
		if err != nil {
			return err
		}
		b, err := c.read(ctx, c.B, a, show)
		if err != nil {
			return err
		}
		if a.ChunkBytes != b.ChunkBytes {
			return fmt.Errorf("%s has chunks of %s, and %s of %s: such images share none", c.A, size(a.ChunkBytes), c.B, size(b.ChunkBytes))
		}
		d = publish.Diff(a, b)
		return nil
	})
	if err != nil {
		return err
	}
	if c.Output == "json" {
		return printJSON(s.stdout, d)
	}
	w := tabwriter.NewWriter(s.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "\tCHUNKS\tSIZE\tSTORED")
	for _, r := range []struct {
		name string
		publish.Amount
	}{{"shared", d.Shared}, {"new", d.New}, {"gone", d.Gone}} {
		stored := size(r.StoredBytes)
		if r.Unsized > 0 {
			stored = "?"
		}
		fmt.Fprintf(w, "%s\t%d\t%s\t%s\n", r.name, r.Chunks, size(r.Bytes), stored)
	}
	for _, f := range d.Files {
		fmt.Fprintf(w, "%s\t%d\t%s\n", f.Change, f.Chunks, f.Path)
	}
	return w.Flush()
}

// read returns the manifest of an image. Of a folder, what is not in older is compressed to
// learn its size.
func (c imageDiff) read(ctx context.Context, image string, older *manifest.Manifest, show func(publish.Progress)) (*manifest.Manifest, error) {
	if published(image) {
		l, r, err := c.at(ctx, image)
		if err != nil {
			return nil, err
		}
		defer l.Store.Close()
		digest, err := l.Resolve(ctx, r)
		if err != nil {
			return nil, err
		}
		return l.Manifest(ctx, digest)
	}
	t, err := layout.Open(image)
	if err != nil {
		return nil, err
	}
	known := map[manifest.Sum]bool{}
	if older != nil {
		for _, f := range older.Files {
			for _, chunk := range f.Chunks {
				known[chunk.Sum] = true
			}
		}
	}
	return publish.Describe(ctx, t, func(sum manifest.Sum) bool { return older != nil && !known[sum] }, show)
}

type imageTag struct {
	bucket
	Ref    string `arg:"" name:"ref" help:"Image: by its tag, or by @sha256:..."`
	NewTag string `arg:"" name:"new-tag" help:"Tag to make or to move, of the same name."`
}

// Run tags.
func (c imageTag) Run(s *surroundings) error {
	l, r, err := c.at(s.ctx, c.Ref)
	if err != nil {
		return err
	}
	defer l.Store.Close()
	n, err := l.Tag(s.ctx, r, c.NewTag)
	if err != nil {
		return err
	}
	r.Tag, r.Digest = c.NewTag, ""
	was := ""
	if n.Previous != "" && n.Previous != n.Digest {
		was = ", it was " + n.Previous
	}
	_, err = fmt.Fprintf(s.stdout, "%s is %s%s\n", r, n.Digest, was)
	return err
}

type imageDelete struct {
	bucket
	Ref   string `arg:"" name:"ref" help:"Tag to delete; or, with @sha256:..., the image itself."`
	Force bool   `help:"Delete an image together with the tags that name it, and one that was used less than an hour ago."`
}

// Help says what becomes of the rest.
func (imageDelete) Help() string {
	return "Without its tag an image is still there for those who know its digest, until gc deletes it. Its chunks go with the gc after it is gone."
}

// Run deletes.
func (c imageDelete) Run(s *surroundings) error {
	l, r, err := c.at(s.ctx, c.Ref)
	if err != nil {
		return err
	}
	defer l.Store.Close()
	d, err := l.Delete(s.ctx, r, c.Force)
	if err != nil {
		return err
	}
	for _, t := range d.Tags {
		fmt.Fprintf(s.stdout, "tag %s is deleted\n", t)
	}
	if d.Digest != "" {
		fmt.Fprintf(s.stdout, "image %s is deleted\n", d.Digest)
	}
	return nil
}

type imageGC struct {
	bucket
	Location     string        `arg:"" help:"Where the images are: gs://BUCKET/PREFIX or file:///FOLDER."`
	Grace        time.Duration `default:"24h" help:"How long chunks are kept that belong to no image, such as those of a push that was interrupted."`
	KeepUntagged time.Duration `default:"168h" help:"How long images are kept that lost their last tag: pools, hosts and rollbacks use them by their digests."`
	DryRun       bool          `help:"Delete nothing; say what would be."`
}

// Help says what it is safe beside.
func (imageGC) Help() string {
	return "Safe beside pushes and other collections. All ages are by the store's own clock, to read which gc/clock.json is written there, by --dry-run too."
}

// Run collects.
func (c imageGC) Run(s *surroundings) error {
	l, err := c.location(s.ctx, c.Location)
	if err != nil {
		return err
	}
	defer l.Store.Close()
	var done publish.Collected
	err = working(s, "the collection", func(ctx context.Context, show func(publish.Progress)) (err error) {
		done, err = l.GC(ctx, publish.GCOptions{Grace: c.Grace, KeepUntagged: c.KeepUntagged, DryRun: c.DryRun, Progress: show})
		return err
	})
	if err != nil {
		return err
	}
	verb := "deleted"
	if c.DryRun {
		verb = "to be deleted"
	}
	for _, digest := range done.Manifests {
		fmt.Fprintf(s.stdout, "image %s\n", digest)
	}
	_, err = fmt.Fprintf(s.stdout, "%s: %d images without a tag, %d chunks of no image, %s; kept for their age or use: %d and %d\n",
		verb, len(done.Manifests), done.Chunks, size(done.Bytes), done.KeptManifests, done.KeptChunks)
	return err
}

type imageVerify struct {
	bucket
	Image   string `arg:"" help:"Reference of a published image; a location, with a slash at its end, for all of its images; or a folder, with --against."`
	Against string `placeholder:"REF" help:"Published image that the folder should hold."`
	Output  string `short:"o" default:"table" enum:"table,json" help:"table or json."`
}

// Help says what to do with what it finds.
func (imageVerify) Help() string {
	return "Reads every chunk and checks it; changes nothing. What is missing or damaged is listed, and the exit status is then 1: delete a damaged " +
		"object and push the image again, which brings it back.\n\nExamples:\n  minifleet image verify gs://acme-images/macos/sonoma:14.5\n" +
		"  minifleet image verify gs://acme-images/macos/\n  minifleet image verify ./sonoma --against gs://acme-images/macos/sonoma:14.5"
}

// Run verifies.
func (c imageVerify) Run(s *surroundings) error {
	v := publish.Verified{Problems: []publish.Problem{}}
	err := working(s, "the verification", func(ctx context.Context, show func(publish.Progress)) (err error) {
		switch {
		case !published(c.Image):
			v, err = c.folder(ctx, show)
		case c.Against != "":
			err = errors.New("--against is for a folder")
		case strings.HasSuffix(c.Image, "/"):
			var l publish.Location
			if l, err = c.location(ctx, c.Image); err == nil {
				defer l.Store.Close()
				v, err = l.Verify(ctx, "", show)
			}
		default:
			var (
				l publish.Location
				r manifest.Reference
			)
			if l, r, err = c.at(ctx, c.Image); err != nil {
				return err
			}
			defer l.Store.Close()
			var digest string
			if digest, err = l.Resolve(ctx, r); err == nil {
				v, err = l.Verify(ctx, digest, show)
			}
		}
		return err
	})
	if err != nil {
		return err
	}
	if c.Output == "json" {
		if err := printJSON(s.stdout, v); err != nil {
			return err
		}
	} else {
		for _, p := range v.Problems {
			fmt.Fprintf(s.stdout, "%s: %s\n", p.Object, p.What)
			for _, d := range p.Images {
				fmt.Fprintf(s.stdout, "  image %s\n", d)
			}
		}
		fmt.Fprintf(s.stdout, "%d images, %d chunks, %s: %d problems\n", v.Images, v.Chunks, size(v.Bytes), len(v.Problems))
	}
	if len(v.Problems) > 0 {
		return program.Exit(1)
	}
	return nil
}

// folder compares a folder with a published image.
func (c imageVerify) folder(ctx context.Context, show func(publish.Progress)) (publish.Verified, error) {
	v := publish.Verified{Images: 1, Problems: []publish.Problem{}}
	if c.Against == "" {
		return v, fmt.Errorf("%s is a folder: give the published image that it should hold, with --against", c.Image)
	}
	l, r, err := c.at(ctx, c.Against)
	if err != nil {
		return v, err
	}
	defer l.Store.Close()
	digest, err := l.Resolve(ctx, r)
	if err != nil {
		return v, err
	}
	want, err := l.Manifest(ctx, digest)
	if err != nil {
		return v, err
	}
	t, err := layout.Open(c.Image)
	if err != nil {
		return v, err
	}
	have, err := publish.Describe(ctx, t, func(manifest.Sum) bool { return false }, show)
	if err != nil {
		return v, err
	}
	sum := publish.Summarize(have)
	v.Chunks, v.Bytes = sum.Chunks, sum.Bytes
	if have.ChunkBytes != want.ChunkBytes {
		return v, fmt.Errorf("%s has chunks of %s, and this program makes chunks of %s: they cannot be compared", r, size(want.ChunkBytes), size(have.ChunkBytes))
	}
	for _, f := range publish.Diff(want, have).Files {
		what := fmt.Sprintf("%d of its chunks, its size or its mode are not what they should be", f.Chunks)
		switch f.Change {
		case "gone":
			what = "it is missing"
		case "new":
			what = "it is no part of the image"
		}
		v.Problems = append(v.Problems, publish.Problem{Object: filepath.Join(c.Image, f.Path), Images: []string{digest}, What: what})
	}
	return v, nil
}
