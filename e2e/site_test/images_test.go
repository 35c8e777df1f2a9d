// SPDX-License-Identifier: MIT

package site_test

import (
	"context"
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/minifleet/minifleet/e2e/disks"
	"github.com/minifleet/minifleet/e2e/emulator"
	"github.com/minifleet/minifleet/githubapp/githubsim"
)

// imageSite is a site whose pool names an image by its reference in a bucket.
type imageSite struct {
	*site
	bucket *emulator.Server
}

const (
	bucketImage = "gs://images/site/demo"
	imageDisk   = 20 << 20
)

// newImageSite makes the site and an image that is published nowhere yet.
func newImageSite(t *testing.T, githubArgs ...string) *imageSite {
	t.Helper()
	bucket, err := emulator.Start(emulator.Options{Buckets: []string{"images"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(bucket.Stop)
	dir := folder(t)
	github := launch(t, dir, "minifleet", nil, append([]string{"githubsim"}, githubArgs...)...).announced("github")
	ctx, cancel := context.WithTimeout(t.Context(), 3*patience)
	t.Cleanup(cancel)
	s := &imageSite{site: &site{t: t, dir: dir, ctx: ctx, programs: programs(t), slots: 2}, bucket: bucket}
	s.env = []string{"STORAGE_EMULATOR_HOST=" + strings.TrimPrefix(bucket.URL, "http://")}
	s.image()
	s.vms = processMachines(dir)
	s.vms.pool = strings.Replace(s.vms.pool, "image: demo", "image: "+bucketImage+":latest", 1)
	s.vms.imagesDir = s.path("cache")
	s.open(github)
	s.config += "images: {refresh: 1s}\n"
	if err := os.Mkdir(s.path("cache"), 0o700); err != nil {
		t.Fatal(err)
	}
	return s
}

var digestWord = regexp.MustCompile(`sha256:[0-9a-f]{64}`)

// push publishes the image as it is now, and returns its digest.
func (s *imageSite) push(image string) string {
	s.t.Helper()
	bin, err := crashPrograms() // the race detector makes compression many times slower
	if err != nil {
		s.t.Fatal(err)
	}
	cmd := s.tool("image", "push", s.path("images", "demo"), image+":latest")
	cmd.Path = filepath.Join(bin, "minifleet")
	out, err := cmd.CombinedOutput()
	digest := digestWord.FindString(string(out))
	if err != nil || digest == "" {
		s.t.Fatalf("minifleet image push: %v\n%s", err, out)
	}
	return digest
}

// chunks counts the chunks that were uploaded and fetched so far.
func (s *imageSite) chunks() (up, down int) {
	return s.stored(), s.bucket.Asked(http.MethodGet, "/chunks/")
}

// stored counts the chunks that are in the bucket.
func (s *imageSite) stored() int {
	s.t.Helper()
	req, err := http.NewRequestWithContext(s.ctx, http.MethodGet, s.bucket.URL+"/storage/v1/b/images/o?prefix=site/chunks/", nil)
	if err != nil {
		s.t.Fatal(err)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	defer res.Body.Close()
	var list struct{ Items []struct{ Name string } }
	if err := json.NewDecoder(res.Body).Decode(&list); err != nil {
		s.t.Fatal(err)
	}
	return len(list.Items)
}

// runs has a job run, and demands that its VM was made of a version.
func (s *imageSite) runs(name, digest string) {
	s.t.Helper()
	// A runner of an earlier version, made for a job that is over and of whose end no word
	// came yet, would rightly take it.
	s.settled()
	id := s.queue(githubsim.JobSpec{Name: name, Steps: []githubsim.Step{{Run: "echo it runs"}}})[0]
	if j := s.untilEnd(id, name+" ends"); j.Conclusion != "success" {
		s.t.Fatalf("%s: %s %s", name, j.Conclusion, j.Reason)
	}
	var made string
	eventually(s.t, "a runner says that it ran "+name, func() bool {
		runners := s.list("runners?all=true&limit=1000")
		of := slices.IndexFunc(runners, func(r row) bool { return r.Job == id })
		if of >= 0 {
			made = runners[of].Image
		}
		return of >= 0
	})
	if !strings.HasSuffix(made, digest) {
		s.t.Errorf("%s ran on %q, want %s", name, made, digest)
	}
}

// serves waits until the pool's new runners are made of a version.
func (s *imageSite) serves(digest string) {
	s.t.Helper()
	eventually(s.t, "the pool is served from "+digest, func() bool {
		type pool struct {
			Name    string `json:"name"`
			Rollout struct {
				Current string `json:"current"`
				Next    string `json:"next"`
			} `json:"rollout"`
		}
		return slices.ContainsFunc(all[pool](s.site, "pools"), func(p pool) bool {
			return p.Name == "demo" && p.Rollout.Next == "" && strings.HasSuffix(p.Rollout.Current, digest)
		})
	})
}

// From a folder to a bucket, to a host, to a job; an update of the image, of which only
// what changed moves; and back, for which nothing does.
func TestImageFromBucketToJob(t *testing.T) {
	turn(t)
	s := newImageSite(t, "--seed", "91")
	sources, err := disks.Load(s.ctx, 4<<20)
	if err != nil {
		t.Fatal(err)
	}
	if err := sources.Write(s.ctx, s.path("images", "demo", "disk.img"), imageDisk, 1); err != nil {
		t.Fatal(err)
	}
	first := s.push(bucketImage)
	controller := s.startController()
	agent := s.startAgent("mini-1")
	s.runs("first", first)
	up, down := s.chunks()
	if down != up {
		t.Errorf("%d chunks were fetched, the image has %d", down, up)
	}
	s.runs("again", first)
	if _, now := s.chunks(); now != down {
		t.Errorf("%d chunks were fetched for an image that is there", now-down)
	}

	if _, err := sources.Update(s.ctx, s.path("images", "demo", "disk.img"), 2, 0.01); err != nil {
		t.Fatal(err)
	}
	second := s.push(bucketImage)
	if second == first {
		t.Fatal("the update changes nothing")
	}
	s.serves(second)
	s.runs("updated", second)
	newUp, newDown := s.chunks()
	if newUp == up || newDown-down != newUp-up {
		t.Errorf("%d chunks were fetched for the update, %d are new", newDown-down, newUp-up)
	}

	if out, err := s.operator("pool", "rollback", "demo").CombinedOutput(); err != nil {
		t.Fatalf("minifleet pool rollback: %v\n%s", err, out)
	}
	s.serves(first)
	s.runs("back", first)
	if _, now := s.chunks(); now != newDown {
		t.Errorf("%d chunks were fetched to go back", now-newDown)
	}
	s.settled()
	agent.stop()
	controller.stop()
	if whole, err := filepath.Glob(s.path("cache", ".cache", "images", "*")); err != nil || len(whole) != 2 {
		t.Errorf("the cache has %v, %v", whole, err)
	}
}

// Of what can be wrong with a bucket, each of several pools meets something: the tag that
// the controller reads, or the chunks that the host fetches. Its job waits, and says for
// what, for as long as that lasts, and runs then; what is wrong once delays it.
func TestImagesOfAFaultyBucket(t *testing.T) {
	turn(t)
	s := newImageSite(t, "--seed", "92")
	tests := []struct {
		pool  string
		fault emulator.Fault // in the pool's own part of the bucket; for good if Count is 0
		waits string         // the code while it lasts
		says  string
	}{
		{"forbidden", emulator.Fault{Kind: emulator.Status, Status: http.StatusForbidden, Part: "/tags/"}, "image", "was never found"},
		{"vanished", emulator.Fault{Kind: emulator.Vanished, Part: "/tags/"}, "image", "was never found"},
		{"busy", emulator.Fault{Kind: emulator.Status, Status: http.StatusTooManyRequests, Part: "/chunks/"}, "booting", ""},
		{"broken", emulator.Fault{Kind: emulator.Status, Status: http.StatusServiceUnavailable, Part: "/manifests/"}, "booting", ""},
		{"stalled", emulator.Fault{Kind: emulator.Stall, Part: "/chunks/"}, "booting", ""},
		{"cut", emulator.Fault{Kind: emulator.Cut, Part: "/chunks/", Count: 1}, "", ""},
		{"garbage", emulator.Fault{Kind: emulator.Garbage, Part: "/chunks/", Count: 1}, "", ""},
		{"shorter", emulator.Fault{Kind: emulator.Shorter, Part: "/chunks/", Count: 1}, "", ""},
		{"longer", emulator.Fault{Kind: emulator.Longer, Part: "/chunks/", Count: 1}, "", ""},
	}
	s.slots = len(tests)
	head, pool, _ := strings.Cut(s.config, "pools:\n")
	pool, tail, _ := strings.Cut(pool, "images:")
	s.config = head + "images:" + tail + "pools:\n"
	for _, c := range tests {
		s.config += strings.NewReplacer("name: demo", "name: "+c.pool, "macOS, demo]", "macOS, "+c.pool+"]", bucketImage, "gs://images/"+c.pool+"/demo").Replace(pool)
		if err := os.WriteFile(s.path("images", "demo", "root", "name"), []byte(c.pool), 0o600); err != nil { // a chunk of its own
			t.Fatal(err)
		}
		s.push("gs://images/" + c.pool + "/demo")
		c.fault.Method, c.fault.Part = http.MethodGet, "/"+c.pool+c.fault.Part
		s.bucket.Faults.Add(c.fault)
	}
	controller := s.startController()
	agent := s.startAgent("mini-1")
	jobs := map[int64]int{} // the test of each
	ids := make([]int64, len(tests))
	for i, c := range tests {
		r, err := s.sim.QueueRun(s.ctx, githubsim.Workflow{Repo: "octo/demo", Jobs: []githubsim.JobSpec{
			{Name: c.pool, Labels: []string{"self-hosted", c.pool}, Steps: []githubsim.Step{{Run: "echo it runs"}}},
		}})
		if err != nil {
			t.Fatal(err)
		}
		ids[i] = r.JobIDs[0]
		jobs[ids[i]] = i
	}
	var waiting []string
	eventually(t, "each job that meets what lasts says what it waits for", func() bool {
		s.redeliver()
		waiting = nil
		for _, j := range all[jobRow](s.site, "jobs") {
			if c := tests[jobs[j.ID]]; c.waits != "" && j.Wait.Code == c.waits && strings.Contains(j.Wait.Reason, c.says) {
				waiting = append(waiting, c.pool)
			}
		}
		return len(waiting) == 5
	})
	for _, c := range tests {
		eventually(t, c.pool+" meets what is wrong", func() bool { return s.bucket.Asked(http.MethodGet, "/"+c.pool+c.fault.Part) > 0 })
	}
	for i, c := range tests {
		j := s.job(ids[i])
		if c.waits == "" {
			j = s.untilEnd(ids[i], c.pool+" ends, what was wrong once being over")
		}
		if over := j.Done(); over != (c.waits == "") {
			t.Errorf("%s: it is over: %t, while %+v", c.pool, over, c.fault)
		}
	}
	s.bucket.Faults.Clear()
	for i, c := range tests {
		if j := s.untilEnd(ids[i], c.pool+" ends"); j.Conclusion != "success" {
			t.Errorf("%s: %s %s", c.pool, j.Conclusion, j.Reason)
		}
	}
	s.settled()
	agent.stop()
	controller.stop()
}
