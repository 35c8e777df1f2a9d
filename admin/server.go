// SPDX-License-Identifier: MIT

package admin

import (
	"context"
	_ "embed" // the contract
	"errors"
	"log/slog"
	"net/http"
	"net/http/pprof"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/go-chi/chi/v5"

	"github.com/minifleet/minifleet/admin/api"
	"github.com/minifleet/minifleet/fleet"
	"github.com/minifleet/minifleet/secret"
)

//go:embed openapi.yaml
var spec []byte

// Store is what the API shows. Each listing returns one page and the cursor of
// the next, "" on the last; a cursor that is not the store's own is
// fleet.ErrCursor.
type Store interface {
	ListJobs(ctx context.Context, q fleet.JobQuery) ([]fleet.Job, string, error)
	Job(ctx context.Context, id fleet.JobID) (fleet.Job, bool, error)
	ListRunners(ctx context.Context, q fleet.RunnerQuery) ([]fleet.Runner, string, error)
	Runner(ctx context.Context, id fleet.RunnerID) (fleet.Runner, bool, error)
	// RunnerCounts counts the runners that are not over, by pool and phase.
	RunnerCounts(ctx context.Context) (map[string]map[fleet.Phase]int, error)
	// Timeline returns the moments of a runner, oldest first.
	Timeline(ctx context.Context, id fleet.RunnerID) ([]fleet.Moment, error)
	ListHosts(ctx context.Context, q fleet.HostQuery) ([]fleet.Host, string, error)
	// SlotsTaken counts the slots that runners hold, by host.
	SlotsTaken(ctx context.Context) (map[fleet.HostID]int, error)
	// RemoveHost forgets a host; one that is not there is fleet.ErrNotFound.
	RemoveHost(ctx context.Context, id fleet.HostID) error
	ListDeliveries(ctx context.Context, q fleet.DeliveryQuery) ([]fleet.DeliverySummary, string, error)
	// Rollouts returns the rollouts of the pools whose image is a reference, by pool.
	Rollouts(ctx context.Context) (map[string]fleet.Rollout, error)
}

// RunnerWatch knows how old the runners in the pools' images are.
type RunnerWatch interface {
	Health(context.Context) (map[string]fleet.RunnerHealth, error)
	// Sentence says what is wrong with a pool's runner and what to do, "" if nothing is.
	Sentence(pool string, h fleet.RunnerHealth) string
}

// Roller changes rollouts. Errors are those of package fleet: ErrNotFound where there is
// no such pool, ErrLocalImage, ErrNoRollout and ErrNoPrevious where it cannot be done,
// ErrConflict where something else was to be left, ErrNoImage where there is no such image.
type Roller interface {
	// Take rolls out what the tag names now, or the digest that is given; at once, if now.
	Take(ctx context.Context, pool, digest string, now bool) (fleet.Rollout, error)
	Promote(ctx context.Context, pool string) (fleet.Rollout, error)
	// Back goes back, if leave is "" or the digest that is left by it.
	Back(ctx context.Context, pool, leave string) (fleet.Rollout, error)
}

// Explainer knows why queued jobs wait.
type Explainer interface {
	// Explain returns what the newest decision said of a queued job, and false if
	// it said nothing of it.
	Explain(ctx context.Context, id fleet.JobID) (fleet.Wait, bool, error)
}

// Enroller makes the tokens with which hosts join.
type Enroller interface {
	// NewEnrolment returns a token that is good for so many hosts until ttl is over;
	// an empty name lets the host choose its own.
	NewEnrolment(ctx context.Context, hostName string, ttl time.Duration, uses int) (secret.Text, error)
}

// Config says what a Server serves.
type Config struct {
	Token        secret.Text // of the operator; required
	Store        Store       // required
	Explainer    Explainer   // required
	Enroller     Enroller    // required
	Roller       Roller      // required
	Runners      RunnerWatch // nil: nothing is said of the runners' age
	Pools        []fleet.Pool
	HostDeadline time.Duration                   // without a word from a host until it is unreachable; 0 means one minute
	Ready        func(ctx context.Context) error // nil means always ready
	Metrics      http.Handler                    // answers /metrics, nil means that there is none
	Version      string                          // "" means (devel)
	Now          func() time.Time                // nil means time.Now
	Log          *slog.Logger                    // nil discards
}

// Validate returns all that is missing.
func (c Config) Validate() error {
	var errs []error
	if strings.TrimSpace(c.Token.Reveal()) == "" {
		errs = append(errs, errors.New("admin: the operator's token is empty: without one anybody could read the fleet and add hosts"))
	}
	if c.Store == nil || c.Explainer == nil || c.Enroller == nil || c.Roller == nil {
		errs = append(errs, errors.New("admin: a store, an explainer, an enroller and a roller are required"))
	}
	if c.HostDeadline < 0 {
		errs = append(errs, errors.New("admin: the host deadline must not be negative"))
	}
	return errors.Join(errs...)
}

func (c Config) withDefaults() Config {
	if c.HostDeadline == 0 {
		c.HostDeadline = time.Minute
	}
	if c.Ready == nil {
		c.Ready = func(context.Context) error { return nil }
	}
	if c.Version == "" {
		c.Version = "(devel)"
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	c.Pools = slices.SortedFunc(slices.Values(c.Pools), func(a, b fleet.Pool) int {
		return strings.Compare(a.Name, b.Name)
	})
	return c
}

// Server is the operator API.
type Server struct {
	cfg     Config
	handler http.Handler
	unready atomic.Bool // whether the last probe found the controller not ready
}

// New returns a server for the configuration.
func New(cfg Config) (*Server, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	s := &Server{cfg: cfg.withDefaults()}
	s.handler = s.build()
	return s, nil
}

// Routes adds the API's paths to the root router of a listener, which may serve
// others beside them. The profiles of the running program, which are Go's own, and its
// metrics are for the operator's token alone, on loopback too: jobs run there as well.
func (s *Server) Routes(r chi.Router) {
	for _, pattern := range []string{"/healthz", "/readyz", "/api/v1", "/api/v1/*", "/debug/pprof/*", "/metrics"} {
		r.Handle(pattern, s.handler)
	}
}

// build makes the API's own router, so that a path below /api/v1 which does not
// exist is answered in the API's manner and not in that of the router around it.
func (s *Server) build() http.Handler {
	mux := chi.NewRouter()
	mux.Use(secure, s.recoverPanics, s.authenticate, checkQuery, headAsGet)
	mux.NotFound(func(w http.ResponseWriter, r *http.Request) {
		writeError(w, http.StatusNotFound, "no such path: /api/v1/openapi.yaml lists all")
	})
	mux.MethodNotAllowed(func(w http.ResponseWriter, r *http.Request) {
		var allowed []string
		for _, m := range []string{http.MethodGet, http.MethodHead, http.MethodPost, http.MethodDelete} {
			if mux.Match(chi.NewRouteContext(), strings.Replace(m, http.MethodHead, http.MethodGet, 1), r.URL.Path) {
				allowed = append(allowed, m)
			}
		}
		w.Header().Set("Allow", strings.Join(allowed, ", "))
		writeError(w, http.StatusMethodNotAllowed, "this path takes "+strings.Join(allowed, ", "))
	})
	if s.cfg.Metrics != nil {
		mux.Method(http.MethodGet, "/metrics", s.cfg.Metrics)
	}
	mux.Get("/debug/pprof/profile", pprof.Profile)
	mux.Get("/debug/pprof/{name}", pprof.Index)
	strict := api.NewStrictHandlerWithOptions(handlers{s.cfg, s}, []api.StrictMiddlewareFunc{knownParameters},
		api.StrictHTTPServerOptions{RequestErrorHandlerFunc: s.refuse, ResponseErrorHandlerFunc: s.refuse})
	return api.HandlerWithOptions(strict, api.ChiServerOptions{
		BaseRouter:       mux,
		Middlewares:      []api.MiddlewareFunc{s.strictBody},
		ErrorHandlerFunc: refuseParameter,
	})
}

// handlers implements the generated interface; each method is one operation.
type handlers struct {
	Config
	server *Server
}

var _ api.StrictServerInterface = handlers{}
