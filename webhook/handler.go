// SPDX-License-Identifier: MIT

package webhook

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/go-chi/chi/v5"

	"github.com/minifleet/minifleet/crashpoint"
	"github.com/minifleet/minifleet/fleet"
	"github.com/minifleet/minifleet/secret"
)

// GitHub counts a delivery as failed after 10 s without an answer.
const (
	readTimeout  = 10 * time.Second
	storeTimeout = 8 * time.Second
)

// Store keeps deliveries and what they say.
type Store interface {
	// Ingest stores a delivery and its news in one transaction. A GUID that is
	// known and has not failed changes nothing.
	Ingest(ctx context.Context, in fleet.Ingest) (fleet.Ingested, error)
	// KnownInstallation reports whether the App is known to be installed as id.
	// While the set of installations was never loaded, every one is known:
	// missing knowledge must not lose a delivery.
	KnownInstallation(ctx context.Context, id int64) (known bool, err error)
}

// Config is what a Handler needs. Secrets, AppID and Store have no default.
type Config struct {
	Secrets []secret.Text // one, or two during a rotation: either is accepted
	Pulled  bool          // nothing is pushed: there may be no secret, and without one post answers 401
	AppID   int64
	More    []App // further Apps whose webhooks come here
	Store   Store
	Wake    func()                        // called after each change; must not block. nil: nobody
	Serves  func(owner, repo string) bool // whether any pool serves the repository. nil: all
	// Claimed returns the pool whose scale set is given a job: the queue of that tells of
	// it, and what a delivery says is passed over. nil: none
	Claimed func(fleet.Job) (pool string, yes bool)
	Log     *slog.Logger     // nil: discard
	Now     func() time.Time // nil: time.Now
}

// App is one whose deliveries are taken, and what they are signed with.
type App struct {
	ID      int64
	Secrets []secret.Text // one, or two during a rotation
}

// apps returns all Apps, the first one first.
func (c Config) apps() []App { return append([]App{{c.AppID, c.Secrets}}, c.More...) }

// Validate returns all that is wrong with the configuration.
func (c Config) Validate() error {
	var errs []error
	seen := map[int64]bool{}
	for _, a := range c.apps() {
		errs = append(errs, a.validate(c.Pulled))
		if seen[a.ID] {
			errs = append(errs, fmt.Errorf("GitHub App %d stands twice", a.ID))
		}
		seen[a.ID] = true
	}
	if c.Store == nil {
		errs = append(errs, errors.New("no store for deliveries"))
	}
	return errors.Join(errs...)
}

func (a App) validate(pulled bool) error {
	var errs []error
	switch len(a.Secrets) {
	case 1, 2:
		for i, s := range a.Secrets {
			if s.Empty() {
				errs = append(errs, fmt.Errorf("webhook secret %d is empty: without a secret anyone could send deliveries", i+1))
			}
		}
	case 0:
		if pulled {
			break
		}
		errs = append(errs, errors.New("no webhook secret: set the secret of the GitHub App's webhook, without one anyone could send deliveries"))
	default:
		errs = append(errs, fmt.Errorf("%d webhook secrets: give one, or two during a rotation", len(a.Secrets)))
	}
	if a.ID <= 0 {
		errs = append(errs, fmt.Errorf("GitHub App id %d: set the id that the App's settings page shows", a.ID))
	}
	return errors.Join(errs...)
}

// Handler takes deliveries.
type Handler struct {
	apps    []App
	appID   int64 // of the first
	store   Store
	wake    func()
	serves  func(owner, repo string) bool
	claimed func(fleet.Job) (string, bool)
	log     *slog.Logger
	now     func() time.Time
	large   chan struct{} // a place for each large body in memory
}

// New returns a Handler. It refuses a configuration without a secret.
func New(c Config) (*Handler, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	h := &Handler{
		apps: c.apps(), appID: c.AppID, store: c.Store,
		wake: c.Wake, serves: c.Serves, claimed: c.Claimed, log: c.Log, now: c.Now,
		large: make(chan struct{}, largeBodies),
	}
	if h.wake == nil {
		h.wake = func() {}
	}
	if h.serves == nil {
		h.serves = func(string, string) bool { return true }
	}
	if h.claimed == nil {
		h.claimed = func(fleet.Job) (string, bool) { return "", false }
	}
	if h.log == nil {
		h.log = slog.New(slog.DiscardHandler)
	}
	if h.now == nil {
		h.now = time.Now
	}
	return h, nil
}

// Routes adds POST /webhook to a router.
func (h *Handler) Routes(r chi.Router) { r.Post("/webhook", h.post) }

// post answers 401 to what is not authentic and 2xx to what is, whatever it says:
// GitHub shows any other answer as a failed delivery, and it is not GitHub's
// failure when a delivery means nothing here.
func (h *Handler) post(w http.ResponseWriter, r *http.Request) {
	claimed, err := claimedSignature(r.Header)
	if err != nil {
		h.refuse(w, r, http.StatusUnauthorized, err)
		return
	}
	body, release, status, err := h.readBody(w, r)
	if err != nil {
		h.refuse(w, r, status, err)
		return
	}
	defer release()
	if !slices.ContainsFunc(h.speakers(r.Header), func(a App) bool { return signedByAny(a.Secrets, body, claimed) }) {
		h.refuse(w, r, http.StatusUnauthorized, errSignature)
		return
	}
	env, err := envelope(r.Header, body)
	if err != nil {
		h.refuse(w, r, http.StatusBadRequest, err)
		return
	}
	// The sender hanging up must not undo a commit half made.
	ctx, cancel := context.WithTimeoutCause(context.WithoutCancel(r.Context()), storeTimeout, errStoreSlow)
	defer cancel()
	out, err := h.Take(ctx, env)
	switch {
	case errors.Is(err, ErrEnvelope):
		h.refuse(w, r, http.StatusBadRequest, err)
	case err != nil:
		h.log.ErrorContext(ctx, "delivery not stored", slog.String("delivery", env.GUID), slog.String("event", env.Event), slog.Any("error", err))
		w.Header().Set("Retry-After", "30")
		writeJSON(w, http.StatusServiceUnavailable, answer{Error: "the delivery could not be stored: redeliver it later"})
	default:
		crashpoint.Reached(crashpoint.DeliveryTaken)
		writeJSON(w, http.StatusAccepted, answer{Status: out.Status, Reason: out.Reason, Duplicate: out.Duplicate})
	}
}

// speakers returns the Apps that may have signed a delivery: the one that it is said to be
// for, as no App can speak for another, or all where that is none of them.
func (h *Handler) speakers(header http.Header) []App {
	target, _ := single(header, "X-GitHub-Hook-Installation-Target-ID")
	id, _ := strconv.ParseInt(target, 10, 64) // 0 is no App's id
	if i := h.app(id); i >= 0 {
		return h.apps[i : i+1]
	}
	return h.apps
}

// app returns the index of an App whose deliveries are taken, -1 for others.
func (h *Handler) app(id int64) int {
	return slices.IndexFunc(h.apps, func(a App) bool { return a.ID == id })
}

// knows reports whether an App is one of those whose deliveries are taken.
func (h *Handler) knows(app int64) bool { return h.app(app) >= 0 }

var errStoreSlow = errors.New("the store did not answer in time")

// refuse answers a request of which nothing is stored.
func (h *Handler) refuse(w http.ResponseWriter, r *http.Request, status int, err error) {
	h.log.WarnContext(r.Context(), "webhook request refused",
		slog.Int("status", status), slog.String("remote", r.RemoteAddr), slog.Any("error", err))
	if status == http.StatusServiceUnavailable {
		w.Header().Set("Retry-After", strconv.Itoa(int(readTimeout/time.Second)))
	}
	writeJSON(w, status, answer{Error: err.Error()})
}

// answer is what GitHub shows to the App's owner beside a delivery.
type answer struct {
	Status    fleet.DeliveryStatus `json:"status,omitempty"`
	Reason    string               `json:"reason,omitempty"`
	Duplicate bool                 `json:"duplicate,omitempty"`
	Error     string               `json:"error,omitempty"`
}

func writeJSON(w http.ResponseWriter, status int, v answer) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	// An error here means that the sender is gone; nobody is left to tell.
	_ = json.NewEncoder(w).Encode(v)
}
