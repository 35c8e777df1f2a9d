// SPDX-License-Identifier: MIT

package scalesets_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/minifleet/minifleet/fleet"
	"github.com/minifleet/minifleet/githubapp/githubsim"
	"github.com/minifleet/minifleet/scalesets"
	"github.com/minifleet/minifleet/store"
)

// A job from its beginning to its end, on servers that give jobs to scale sets and on those
// that have them ask.
func TestJobThroughScaleSet(t *testing.T) {
	for name, acquire := range map[string]bool{"given": false, "acquired": true} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, githubsim.Options{Acquire: acquire})
			if w.make(); w.sets.Fresh() {
				t.Error("all is known before GitHub was asked")
			}
			w.start()
			set := w.reads(2)
			if set.Name != "big macs" || set.Group != "Macs" || set.Scope != "octo" || !set.DisableUpdate || !slices.Equal(set.Labels, []string{"Mac-Set", "M4"}) {
				t.Errorf("the scale set is %+v", set)
			}
			if !w.sets.Fresh() {
				t.Error("its queue is read and its jobs are not known")
			}
			id := w.queue("build")[0]
			w.untilBooks("build queued")
			jobs, err := w.store.SetJobs(w.ctx, "macs")
			w.must(err)
			j := jobs[0]
			if j.Pool != "macs" || j.ID <= fleet.SetJobIDs || j.Repository() != "octo/demo" || j.Labels.String() != "mac-set" || j.RunID == 0 ||
				j.Workflow != ".github/workflows/ci.yml" || !strings.HasSuffix(j.URL, fmt.Sprintf("/octo/demo/actions/runs/%d", j.RunID)) || time.Since(j.CreatedAt) > time.Minute {
				t.Errorf("the job in the books is %+v", j)
			}
			r := w.work("site-macs-1")
			w.untilBooks("build completed success")
			after, _, err := w.store.Job(w.ctx, j.ID)
			w.must(err)
			if after.RunnerName != "site-macs-1" || after.StartedAt.IsZero() {
				t.Errorf("the job after its end is %+v", after)
			}
			if at, _ := w.sim.Job(id); at.RunnerID != r.ID || at.Conclusion != "success" {
				t.Errorf("at GitHub the job ran on %d, want %d: %+v", at.RunnerID, r.ID, at)
			}
			w.untilSet("all messages are acknowledged", func(s githubsim.ScaleSet) bool { return s.Unread == 0 && s.Assigned == 0 })
			w.stop()
			want := []scalesets.Call{
				{Kind: "connect", Status: 200},
				{Kind: "group", Status: 200},
				{Kind: "set", Status: 200},
				{Kind: "session", Status: 200},
				{Kind: "session", Status: 204},
				{Kind: "poll", Status: 200},
				{Kind: "acknowledge", Status: 204},
				{Kind: "register", Status: 200},
			}
			if acquire {
				want = append(want, scalesets.Call{Kind: "acquire", Status: 200})
			}
			for _, call := range want {
				call.Pool = "macs"
				if _, seen := w.calls.LoadAndDelete(call); !seen {
					t.Errorf("not observed: %+v", call)
				}
			}
			w.calls.Delete(scalesets.Call{Pool: "macs", Kind: "poll"}) // broken off at the end, or for the room
			w.calls.Range(func(k, _ any) bool {
				t.Errorf("observed: %+v", k)
				return true
			})
			if s := w.sim.ScaleSets()[0]; s.Session != "" {
				t.Errorf("after the end the session of %s is open", s.Session)
			}
			kept, err := w.store.ScaleSets(w.ctx)
			w.must(err)
			if len(kept) != 1 || kept[0].Session != "" || kept[0].LastMessage == 0 || kept[0].Assigned != 0 {
				t.Errorf("kept is %+v", kept)
			}
		})
	}
}

// GitHub is told what the pool has room for, and gives it no more jobs.
func TestRoom(t *testing.T) {
	w := newWorld(t, githubsim.Options{})
	w.run()
	w.reads(2)
	w.queue("a", "b", "c", "d")
	w.untilBooks("a queued", "b queued")
	w.host("mini-2", 4) // beyond max_runners
	w.reads(3)
	w.untilBooks("a queued", "b queued", "c queued")
}

// What was not acknowledged comes again, and changes nothing.
func TestMessageComesAgain(t *testing.T) {
	w := newWorld(t, githubsim.Options{})
	w.run()
	w.reads(2)
	w.must(w.sim.Inject(githubsim.Fault{Kind: githubsim.FaultStatus, Status: 500, Method: http.MethodDelete, Match: queued, Count: 2}))
	w.queue("build")
	w.untilLog("duplicate=true", 2)
	set := w.untilSet("the message is acknowledged", func(s githubsim.ScaleSet) bool { return s.Unread == 0 })
	if set.Sent != 3 {
		t.Errorf("the message was sent %d times, want 3", set.Sent)
	}
	if got := w.books(); !slices.Equal(got, []string{"build queued"}) {
		t.Errorf("the books hold %q", got)
	}
}

// queued matches calls of a message queue.
func queued(r *http.Request) bool { return strings.Contains(r.URL.Path, "/queue/") }

// A message whose content could not be stored is not acknowledged.
func TestNothingIsAcknowledgedBeforeItIsStored(t *testing.T) {
	w := newWorld(t, githubsim.Options{})
	w.run()
	w.reads(2)
	set := w.sim.ScaleSets()[0]
	// Another set is in the books: nothing for this one is taken.
	_, err := w.store.UseScaleSet(w.ctx, "macs", macs().Scopes[0], "other", set.ID+1)
	w.must(err)
	w.queue("build")
	w.untilLog("not "+fmt.Sprint(set.ID), 1)
	w.untilBooks("build queued") // after the session is opened anew, with the right set
	if s := w.untilSet("the message is acknowledged", func(s githubsim.ScaleSet) bool { return s.Unread == 0 }); s.Sent != 2 {
		t.Errorf("the message was sent %d times, want 2", s.Sent)
	}
}

// One queue has one reader.
func TestSessionIsTaken(t *testing.T) {
	w := newWorld(t, githubsim.Options{})
	w.run()
	id := w.reads(2).ID
	w.stop()
	w.sim.OccupyScaleSet(id, "somebody else")
	w.run()
	w.untilLog("another client holds the message session", 1)
	w.queue("build")
	w.sim.EndSetSessions()
	w.untilBooks("build queued")
	w.untilLog("the scale set's queue is read again", 1)
}

// A session that this site left open is closed before another is opened.
func TestSessionOfADeadController(t *testing.T) {
	w := newWorld(t, githubsim.Options{})
	w.run()
	w.reads(2)
	// The end of the session gets lost, as everything does when the program is killed.
	w.must(w.sim.Inject(githubsim.Fault{Kind: githubsim.FaultDrop, Method: http.MethodDelete, Path: "/sessions/"}))
	w.stop()
	if s := w.sim.ScaleSets()[0]; s.Session == "" {
		t.Fatal("the session is closed")
	}
	w.run()
	w.queue("build")
	w.untilBooks("build queued")
	if strings.Contains(w.log.String(), "is not read") {
		t.Error("its own session was in the way")
	}
}

// forgetful is a database that cannot be written when a session was opened, a few times.
type forgetful struct {
	*store.Store
	times atomic.Int32
}

func (f *forgetful) KeepSession(ctx context.Context, pool, session string) error {
	if session != "" && f.times.Add(-1) >= 0 {
		return errors.New("disk full")
	}
	return f.Store.KeepSession(ctx, pool, session)
}

// A session that cannot be noted is closed: nobody would, and it would be in the way.
func TestSessionThatIsNotNoted(t *testing.T) {
	w := newWorld(t, githubsim.Options{})
	books := &forgetful{Store: w.store}
	books.times.Store(2)
	w.kept = books
	w.run()
	w.reads(2)
	if log := w.log.String(); !strings.Contains(log, "disk full") || strings.Contains(log, "another client") {
		t.Error("its own session was in the way")
	}
}

// slowSession is a network that tells how long the first opening of a session may take.
type slowSession struct {
	once   sync.Once
	opened chan time.Duration // gets how long it may take yet
}

func (n *slowSession) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.Method == http.MethodPost && strings.HasSuffix(req.URL.Path, "/sessions") {
		n.once.Do(func() {
			deadline, _ := req.Context().Deadline()
			n.opened <- time.Until(deadline)
		})
	}
	return http.DefaultTransport.RoundTrip(req)
}

// A session may take as long to be opened as any other call: GitHub has opened one whose answer
// came too late, and it would be in the way.
func TestSessionThatIsSlowToOpen(t *testing.T) {
	w := newWorld(t, githubsim.Options{})
	slow := &slowSession{opened: make(chan time.Duration, 1)}
	w.wire = slow
	w.run()
	if within := <-slow.opened; within < 10*time.Second {
		t.Errorf("it is given up after %s", within)
	}
	w.reads(2)
}

// The token of a queue expires in the middle of a poll; so does a session.
func TestExpiry(t *testing.T) {
	w := newWorld(t, githubsim.Options{})
	w.run()
	w.reads(2)
	w.sim.ExpireSetTokens()
	w.queue("a")
	w.untilBooks("a queued")
	if strings.Contains(w.log.String(), "is not read") {
		t.Error("for a new token a new session was opened")
	}
	w.sim.EndSetSessions()
	w.queue("b")
	w.untilBooks("a queued", "b queued")
}

// A server's errors and limits stop nothing for long.
func TestTroubleAtGitHub(t *testing.T) {
	w := newWorld(t, githubsim.Options{Timing: githubsim.Timing{SetToken: 61 * time.Second}})
	for _, f := range []githubsim.Fault{
		{Kind: githubsim.FaultStatus, Status: 502, Path: "/actions/runner-registration"},
		{Kind: githubsim.FaultStatus, Status: 503, Path: "/runnergroups/"},
		{Kind: githubsim.FaultTimeoutAfterSuccess, Status: 504, Method: http.MethodPost, Path: "/runnerscalesets"},
		{Kind: githubsim.FaultDrop, Method: http.MethodPost, Path: "/sessions"},
		{Kind: githubsim.FaultStatus, Status: 500, Method: http.MethodGet, Match: queued, Count: 2},
		{Kind: githubsim.FaultDrop, Method: http.MethodGet, Match: queued},
	} {
		w.must(w.sim.Inject(f))
	}
	w.run()
	w.queue("build")
	w.untilBooks("build queued")
}

// uncounted is a network on which GitHub can be kept from telling its count of a set's jobs.
type uncounted struct {
	mu   sync.RWMutex // guards kept
	kept bool
}

var countCall = regexp.MustCompile(`/runnerscalesets/[0-9]+$`)

func (u *uncounted) RoundTrip(req *http.Request) (*http.Response, error) {
	if countCall.MatchString(req.URL.Path) {
		u.mu.RLock()
		defer u.mu.RUnlock()
		if u.kept {
			return nil, errors.New("kept from telling its count")
		}
	}
	return http.DefaultTransport.RoundTrip(req)
}

// keep returns when no such call is under way any more.
func (u *uncounted) keep(on bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.kept = on
}

// What messages did not tell, GitHub's count shows.
func TestLostMessages(t *testing.T) {
	w := newWorld(t, githubsim.Options{Timing: githubsim.Timing{Poll: 50 * time.Millisecond}})
	w.every = 200 * time.Millisecond
	net := &uncounted{}
	w.wire = net
	w.run()
	w.reads(2)
	w.must(w.sim.Inject(githubsim.Fault{Kind: githubsim.MessageLost, Path: "JobAssigned"}))
	net.keep(true) // or the count may come before the message, and neither job has a name
	ids := w.queue("lost", "told")
	w.untilBooks("told queued")
	net.keep(false)
	w.untilBooks("told queued", "? queued")
	jobs, err := w.store.SetJobs(w.ctx, "macs")
	w.must(err)
	if nameless := jobs[1]; nameless.Repository() != "octo" || nameless.Pool != "macs" {
		t.Errorf("the job without a name is %+v", nameless)
	}
	// The end of one that was named is lost: its run tells of it.
	w.must(w.sim.Inject(githubsim.Fault{Kind: githubsim.MessageLost, Path: "JobCompleted"}))
	w.must(w.sim.CancelJob(ids[1]))
	w.untilBooks("told completed cancelled", "? queued")
	// The start of the other gives it its name back.
	w.work("site-macs-1")
	w.untilBooks("told completed cancelled", "? completed", "lost completed success")
}

// A job that runs is not thought over because a count says so.
func TestCountAloneEndsNothing(t *testing.T) {
	w := newWorld(t, githubsim.Options{Timing: githubsim.Timing{Poll: 50 * time.Millisecond}})
	w.run()
	set := w.reads(2)
	w.queue("build")
	w.untilBooks("build queued")
	_, err := w.store.Ingest(w.ctx, fleet.Ingest{Message: &fleet.SetMessage{Pool: "macs", Set: set.ID, ID: 7, Assigned: 2, Jobs: []fleet.JobNews{
		{Event: fleet.ToldInProgress, Job: fleet.Job{SetKey: "x/1", Owner: "octo", Repo: "demo", RunID: w.sim.Runs()[0].ID, Name: "build", RunnerName: "r"}},
	}}})
	w.must(err)
	w.queue("another") // its message brings the count, which is one too low
	w.untilBooks("build queued", "build in_progress", "another queued")
	const looked = "their runs are looked at"
	w.untilLog(looked, w.logged(looked)+2)
	if got := w.books(); !slices.Equal(got, []string{"build queued", "build in_progress", "another queued"}) {
		t.Errorf("the books hold %q", got)
	}
}

// Each way in which a registration fails says whether there may be one.
func TestRegister(t *testing.T) {
	w := newWorld(t, githubsim.Options{})
	w.pools = append(w.pools, fleet.Pool{Name: "plain", Scopes: macs().Scopes})
	w.make()
	if _, err := w.sets.Register(w.ctx, "macs", "site-macs-0"); !errors.Is(err, fleet.ErrLater) {
		t.Errorf("before the set is known: %v", err)
	}
	w.start()
	w.reads(2)
	fault := func(f githubsim.Fault) error {
		f.Path = "/generatejitconfig"
		w.must(w.sim.Inject(f))
		_, err := w.sets.Register(w.ctx, "macs", "site-macs-2")
		w.sim.ClearFaults()
		return err
	}
	var limited *fleet.RateLimited
	if err := fault(githubsim.Fault{Kind: githubsim.FaultRetryAfter, Delay: 40 * time.Minute}); !errors.As(err, &limited) || time.Until(limited.Until) < 30*time.Minute {
		t.Errorf("limited: %v", err)
	}
	if err := fault(githubsim.Fault{Kind: githubsim.FaultStatus, Status: 403}); !errors.Is(err, fleet.ErrRefused) {
		t.Errorf("refused: %v", err)
	}
	for _, f := range []githubsim.Fault{{Kind: githubsim.FaultStatus, Status: 502}, {Kind: githubsim.FaultDrop}, {Kind: githubsim.FaultTimeoutAfterSuccess}} {
		if err := fault(f); !errors.Is(err, fleet.ErrUncertain) {
			t.Errorf("%s: %v", f.Kind, err)
		}
	}
	if n := len(w.sim.Runners()); n != 1 {
		t.Errorf("%d registrations: a request was repeated", n)
	}
	if _, err := w.sets.Register(w.ctx, "macs", "site-macs-2"); !errors.Is(err, fleet.ErrNameTaken) {
		t.Errorf("the name is taken: %v", err)
	}
	if _, err := w.sets.Register(w.ctx, "plain", "site-macs-3"); !errors.Is(err, fleet.ErrRefused) {
		t.Errorf("a pool without a set: %v", err)
	}
	ctx, cancel := context.WithCancel(w.ctx)
	cancel()
	if _, err := w.sets.Register(ctx, "macs", "site-macs-4"); err == nil {
		t.Error("registered for nobody")
	}
}

// A pool that changes its labels changes its set; one that has no set any more is forgotten.
func TestConfigurationChanges(t *testing.T) {
	w := newWorld(t, githubsim.Options{})
	w.run()
	w.reads(2)
	w.queue("build")
	w.untilBooks("build queued")
	w.stop()
	w.pools[0].LabelNames = []string{"Mac-Set", "M5"}
	w.run()
	w.untilSet("it has the new labels", func(s githubsim.ScaleSet) bool { return slices.Equal(s.Labels, []string{"Mac-Set", "M5"}) })
	w.reads(2)
	w.must(w.sim.Inject(githubsim.Fault{Kind: githubsim.FaultDrop, Method: http.MethodDelete, Path: "/sessions/"}))
	w.stop()
	w.pools = nil
	w.run()
	w.untilLog("has no scale set any more", 1)
	w.untilBooks("build completed")
	if kept, err := w.store.ScaleSets(w.ctx); err != nil || len(kept) != 0 {
		t.Errorf("kept is %+v, %v", kept, err)
	}
	if sets := w.sim.ScaleSets(); len(sets) != 1 || sets[0].Session != "" {
		t.Errorf("at GitHub are %+v, want the set without a session", sets)
	}
}
