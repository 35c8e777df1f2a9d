// SPDX-License-Identifier: MIT

package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"runtime/debug"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/go-chi/chi/v5"
	"golang.org/x/net/netutil"
	"golang.org/x/sync/errgroup"

	"github.com/minifleet/minifleet/admin"
	"github.com/minifleet/minifleet/autoscaler"
	"github.com/minifleet/minifleet/catchup"
	"github.com/minifleet/minifleet/crashpoint"
	"github.com/minifleet/minifleet/fleet"
	"github.com/minifleet/minifleet/githubapp"
	"github.com/minifleet/minifleet/hosts"
	"github.com/minifleet/minifleet/hosts/protocol"
	"github.com/minifleet/minifleet/metrics"
	"github.com/minifleet/minifleet/program"
	"github.com/minifleet/minifleet/reconcile"
	"github.com/minifleet/minifleet/releases"
	"github.com/minifleet/minifleet/rollout"
	"github.com/minifleet/minifleet/scalesets"
	"github.com/minifleet/minifleet/store"
	"github.com/minifleet/minifleet/webhook"
)

type serveCommand struct {
	Config      string `short:"c" required:"" type:"existingfile" help:"Configuration file (YAML)."`
	ReplacesOld bool   `xor:"copy" help:"Of a database restored elsewhere: the controller that it was copied from is gone for good."`
	NewSite     bool   `xor:"copy" help:"Of a database copied from a controller that goes on: be another site, without its hosts and runners."`
}

// copyAs says what a copied database is to be.
func (c serveCommand) copyAs() store.CopyAs {
	switch {
	case c.ReplacesOld:
		return store.CopyReplaces
	case c.NewSite:
		return store.CopyNewSite
	default:
		return store.CopyUndecided
	}
}

// Help lists what the configuration can hold.
func (serveCommand) Help() string {
	// Indented lines are left as they are.
	table := "    " + strings.ReplaceAll(strings.TrimSpace(configKeys()), "\n", "\n    ")
	return "Keys of the configuration file, each with its default. A variable " + envPrefix + "_<KEY> (all capitals, _ for the dot, " +
		"such as " + envPrefix + "_GITHUB_APP_ID) wins over the file.\n\n" + table
}

// Run serves until the context ends.
func (c serveCommand) Run(s *surroundings) error {
	cfg, err := loadSettings(c.Config, s.getenv)
	if err != nil {
		return err
	}
	cfg.copyAs = c.copyAs()
	log, err := program.NewLog(s.stderr, cfg.LogLevel, cfg.LogFormat)
	if err != nil {
		return err
	}
	if s.getenv("GOGC") == "" {
		debug.SetGCPercent(50) // most of what it holds are connections that wait: memory is dearer than the time to look at it
	}
	stop := program.Stop{
		Finishing: "requests under way are answered; agents, VMs and jobs go on, and the next controller takes over from the database",
		Within:    stopWithin, Log: log,
	}
	return stop.Run(s.ctx, func(ctx context.Context, parts *program.Parts) error {
		ctl, err := newController(ctx, cfg, filepath.Dir(c.Config), network{}, log)
		if err != nil {
			return err
		}
		for _, d := range ctl.doors {
			fmt.Fprintf(s.stdout, "%s %s\n", d.name, d.url)
		}
		err = ctl.run(ctx, parts)
		return errors.Join(err, parts.Do("closing the database", ctl.close))
	})
}

// controller is a wired `serve`.
type controller struct {
	cfg   settings
	net   network
	log   *slog.Logger
	store *store.Store
	app   *githubapp.Apps
	loop  *autoscaler.Loop
	hooks *webhook.Handler
	lists *reconcile.Reconciler
	pulls []*catchup.Puller // one for each App
	runs  *reconcile.Origins
	sets  *scalesets.Sets
	tags  *rollout.Tracker
	ages  *releases.Watch
	// images finds what the tags name.
	images  *resolver
	metrics *metrics.Metrics
	// installed is written to when a delivery told of an installation.
	installed chan struct{}
	doors     []*door
}

// network is how a controller is reached, and reaches GitHub. Its zero value is the
// machine's own.
type network struct {
	listen func(ctx context.Context, network, address string) (net.Listener, error)
	github http.RoundTripper
}

// door is one listener with what is behind it.
type door struct {
	name, url string
	listener  net.Listener
	server    *http.Server
	hangUp    context.CancelFunc // ends calls that wait
}

func newController(ctx context.Context, cfg settings, dir string, with network, log *slog.Logger) (_ *controller, err error) {
	if with.listen == nil {
		with.listen = (&net.ListenConfig{}).Listen
	}
	c := &controller{cfg: cfg, net: with, log: log, installed: make(chan struct{}, 1)}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.close())
		}
	}()
	if c.store, err = store.Open(ctx, store.Config{Path: under(dir, cfg.Database), Copy: cfg.copyAs, Log: log}); err != nil {
		return nil, err
	}
	var before time.Time
	if c.store.Copied() {
		before = time.Now()
		log.Error("the database is a copy: registrations from before are left alone until serve is told what it is", "do", "give --replaces-old or --new-site")
	}
	c.metrics = metrics.New(metrics.Config{
		Store: c.store, HostDeadline: cfg.Timing.HostDeadline, Version: program.Version(),
		Waits: func(ctx context.Context) (map[fleet.WaitCode]int, error) { return c.loop.Waits(ctx) },
		Rates: func() []metrics.Rate { return gitHubPort{c.app}.rates() },
		Apps:  func() []metrics.App { return gitHubPort{c.app}.apps() },
		CaughtUp: func() map[string]int {
			var n catchup.Counts
			for _, p := range c.pulls {
				n = n.Plus(p.Counts())
			}
			return map[string]int{"taken": n.Taken, "redelivered": n.Redelivered, "vanished": n.Vanished, "given_up": n.GivenUp}
		},
		Runners: func(ctx context.Context) (map[string]fleet.RunnerHealth, error) { return c.ages.Health(ctx) },
	})
	wake := func() { c.loop.Wake() } // not before the first call, which the loop precedes
	if c.app, err = cfg.newApps(c.metrics, wake, with.github, log.With("part", "github")); err != nil {
		return nil, err
	}
	pools := cfg.pools()
	cfg.Images.KeyFile, cfg.Images.RegistryFile = under(dir, cfg.Images.KeyFile), under(dir, cfg.Images.RegistryFile)
	c.images = newResolver(cfg.Images)
	if c.tags, err = rollout.New(rollout.Config{
		Store: c.store, Resolver: c.images, Pools: pools, Refresh: cfg.Images.Refresh, Log: log.With("part", "images"),
	}); err != nil {
		return nil, err
	}
	if err := c.tags.Configure(ctx); err != nil {
		return nil, err
	}
	c.loop = autoscaler.New(autoscaler.Config{
		Store: c.store, GitHub: sparing{gitHubPort{c.app}, before}, Pools: pools, Repair: cfg.Timing.Repair,
		Rules: autoscaler.Rules{HostDeadline: cfg.Timing.HostDeadline, MintsPerMinute: cfg.GitHub.MintsPerMinute, Images: cfg.Images.rules()},
		Fresh: func() bool { // while GitHub cannot be reached, nobody knows what it has queued
			_, _, out := c.app.Outage()
			return !out && fresh(c.lists, c.sets)
		},
		Policy:  func(st fleet.State) map[fleet.JobID]fleet.Verdict { return c.runs.Verdicts(st) },
		Trouble: c.app.Trouble,
		Decided: c.metrics.Decided, Log: log.With("part", "autoscaler"),
	})
	if c.hooks, err = c.webhooks(pools); err != nil {
		return nil, err
	}
	c.runs = reconcile.NewOrigins(reconcile.OriginsConfig{
		Store: c.store, GitHub: gitHubPort{c.app}, Learn: c.hooks.LearnRun, Pools: pools, Log: log.With("part", "reconcile"),
	})
	c.lists = reconcile.New(reconcile.Config{
		Store: c.store, GitHub: sparing{gitHubPort{c.app}, before}, Learn: c.hooks.Learn, Pools: pools,
		Ours:  func(name string) bool { return !c.store.Copied() && githubapp.OfSite(c.store.Site(), name) },
		Every: cfg.Timing.Reconcile, Percent: cfg.GitHub.PollPercent, Absence: cfg.Timing.Absence, HostDeadline: cfg.Timing.HostDeadline,
		Wake: c.loop.Wake, Log: log.With("part", "reconcile"),
	})
	c.pulls = c.pullers()
	if c.sets, err = c.scaleSets(pools, log.With("part", "scalesets")); err != nil {
		return nil, err
	}
	c.ages = releases.New(releases.Config{Store: c.store, GitHub: gitHubPort{c.app}, Pools: pools, Log: log.With("part", "releases")})
	agents := cfg.Agents.listener().in(dir)
	pin := ""
	if cfg.Agents.PinCertificate {
		if pin, err = agents.pin(); err != nil {
			return nil, err
		}
	}
	peerKey, err := hosts.LoadPeerKey(under(dir, cfg.Database) + ".peer-key")
	if err != nil {
		log.Warn("the key for hosts' tokens is not kept; until the next start another one does", slog.Any("error", err))
	}
	fleetHosts, err := hosts.New(hosts.Config{
		Store: c.store, GitHub: mintPort{sparing{gitHubPort{c.app}, before}, c.sets}, Pools: pools, Name: githubapp.RunnerName, Reported: c.loop.Reported, Held: gitHubPort{c.app}.held,
		Poll: cfg.Timing.Poll, Live: cfg.Timing.HostDeadline, Lease: cfg.Timing.Lease, EndGrace: cfg.Timing.EndGrace,
		CertificatePin: pin, PeerKey: peerKey, Log: log.With("part", "hosts"),
	})
	if err != nil {
		return nil, err
	}
	api, err := admin.New(admin.Config{
		Token: cfg.Admin.Token, Store: c.store, Explainer: c.loop, Enroller: fleetHosts, Roller: c.tags, Runners: c.ages, Pools: pools,
		HostDeadline: cfg.Timing.HostDeadline, Ready: (&readiness{ping: c.store.Ping}).ready, Metrics: c.metrics.Handler(), Version: program.Version(), Log: log.With("part", "admin"),
	})
	if err != nil {
		return nil, err
	}
	for _, d := range []struct {
		name   string
		at     listener
		routes func(chi.Router)
	}{
		{"webhook", cfg.Webhook.listener().in(dir), c.hooks.Routes},
		{"agents", agents, fleetHosts.Routes},
		{"admin", cfg.Admin.listener().in(dir), api.Routes},
	} {
		if d.name == "webhook" && cfg.GitHub.Deliveries == byPull {
			continue
		}
		if err := c.open(ctx, d.name, d.at, d.routes); err != nil {
			return nil, err
		}
	}
	return c, nil
}

func (c *controller) webhooks(pools []fleet.Pool) (*webhook.Handler, error) {
	apps := c.cfg.GitHub.apps()
	var more []webhook.App
	for _, a := range apps[1:] {
		more = append(more, webhook.App{ID: a.AppID, Secrets: a.secrets()})
	}
	return webhook.New(webhook.Config{
		Secrets: apps[0].secrets(), Pulled: c.cfg.GitHub.Deliveries == byPull, AppID: apps[0].AppID, More: more,
		Store: ingest{c.store, c.app, c.installed, func() { c.lists.Anew() }, c.metrics}, Wake: c.loop.Wake, Log: c.log.With("part", "webhook"),
		Claimed: claimed(pools),
		Serves: func(owner, repo string) bool {
			for _, p := range pools {
				if _, ok := p.ScopeFor(owner, repo); ok {
					return true
				}
			}
			return false
		},
	})
}

// pullers read from GitHub what it could not deliver, or all of it where nothing listens.
func (c *controller) pullers() []*catchup.Puller {
	var all []*catchup.Puller
	for _, app := range c.app.All() {
		conf := catchup.Config{
			App: app.ID(), GitHub: gitHubPort{githubapp.NewApps(app)}, Store: c.store, Take: pulled{c.hooks}.take, Handles: webhook.Handles,
			Every: c.cfg.Timing.Redelivery, Log: c.log.With("part", "catchup", "app", app.ID()),
		}
		if c.cfg.GitHub.Deliveries == byPull {
			conf.All, conf.Every = true, c.cfg.Timing.Pull
		}
		all = append(all, catchup.New(conf))
	}
	return all
}

// readiness remembers for a moment that all was well: everybody may ask, and each
// answer costs a write.
type readiness struct {
	ping func(context.Context) error

	mu   sync.Mutex // guards well, and lets one ask at a time
	well time.Time
}

func (r *readiness) ready(ctx context.Context) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if time.Since(r.well) < 2*time.Second {
		return nil
	}
	err := r.ping(ctx)
	if err == nil {
		r.well = time.Now()
	}
	return err
}

// under resolves a path of the configuration against its folder.
func under(dir, path string) string {
	if path == "" || filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(dir, path)
}

// in resolves the files of a listener.
func (l listener) in(dir string) listener {
	return listener{l.Address, under(dir, l.CertFile), under(dir, l.KeyFile)}
}

// pin returns the pin of the certificate that the listener shows, "" without TLS.
func (l listener) pin() (string, error) {
	if l.CertFile == "" {
		return "", nil
	}
	pair, err := tls.LoadX509KeyPair(l.CertFile, l.KeyFile)
	if err != nil {
		return "", fmt.Errorf("certificate %s: %w", l.CertFile, err)
	}
	return protocol.Pin(pair.Leaf), nil
}

// open listens, so that an address in use is an error at once.
func (c *controller) open(ctx context.Context, name string, at listener, routes func(chi.Router)) error {
	r := chi.NewRouter()
	r.Use(readSoon)
	routes(r)
	l, err := c.net.listen(ctx, "tcp", at.Address)
	if errors.Is(err, syscall.EADDRINUSE) {
		return fmt.Errorf("%s: %w: end the program that listens there, which may be another controller, or set another %s.address", name, err, name)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	l = netutil.LimitListener(l, maxConnections(name))
	d := &door{name: name, url: "http://" + l.Addr().String(), listener: l}
	if at.CertFile != "" {
		pair, err := tls.LoadX509KeyPair(at.CertFile, at.KeyFile)
		if err != nil {
			l.Close()
			return fmt.Errorf("%s: certificate %s: %w", name, at.CertFile, err)
		}
		d.listener = tls.NewListener(l, &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12})
		d.url = "https://" + l.Addr().String()
	}
	base, hangUp := context.WithCancel(context.WithoutCancel(ctx))
	d.hangUp = hangUp
	d.server = &http.Server{
		Handler: r, BaseContext: func(net.Listener) context.Context { return base },
		ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 64 << 10,
		ErrorLog: slog.NewLogLogger(c.log.Handler(), slog.LevelDebug),
	}
	c.doors = append(c.doors, d)
	c.log.Info("listening", "part", name, "address", d.url)
	return nil
}

// maxConnections bounds each listener, so that strangers at one cannot take the
// descriptors of the others. Each host needs two: five thousand have room.
func maxConnections(door string) int {
	if door == "agents" {
		return 12 << 10
	}
	return 2 << 10
}

// readSoon bounds how long a body may take to arrive, whoever sends it: the server
// reads what a handler leaves of it before it answers. A handler that waits after it
// has read the body lifts the deadline.
func readSoon(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ContentLength != 0 {
			// Every writer of net/http can do this.
			http.NewResponseController(w).SetReadDeadline(time.Now().Add(15 * time.Second)) //nolint:errcheck
		}
		next.ServeHTTP(w, r)
	})
}

// run serves until ctx ends, then lets requests finish.
func (c *controller) run(ctx context.Context, parts *program.Parts) error {
	g, ctx := errgroup.WithContext(ctx)
	run := func(part string, f func() error) { g.Go(func() error { return parts.Do(part, f) }) }
	for _, d := range c.doors {
		run("the listener "+d.name, func() error {
			if err := d.server.Serve(d.listener); !errors.Is(err, http.ErrServerClosed) {
				return fmt.Errorf("%s: %w", d.name, err)
			}
			return nil
		})
	}
	run("decisions", func() error { return c.loop.Run(ctx) })
	run("GitHub's lists", func() error { return c.lists.Run(ctx) })
	for _, p := range c.pulls {
		run("GitHub's deliveries", func() error { return p.Run(ctx) })
	}
	run("GitHub's runs", func() error { return c.runs.Run(ctx) })
	run("the queues of scale sets", func() error { return c.sets.Run(ctx) })
	run("the tags of images", func() error { return c.tags.Run(ctx) })
	run("the runner's releases", func() error { return c.ages.Run(ctx) })
	run("the list of installations", func() error {
		return c.every(ctx, c.cfg.GitHub.InstallationRefresh, c.installed, "installations not read", c.refreshInstallations)
	})
	run("pruning", func() error { return c.every(ctx, c.cfg.Timing.Prune, nil, "old records not pruned", c.prune) })
	g.Go(func() error {
		<-ctx.Done()
		return c.shut(context.WithoutCancel(ctx))
	})
	return g.Wait()
}

// requestGrace is what requests under way get to finish when the controller stops, and
// stopWithin what all of the stop takes at most.
const (
	requestGrace = 15 * time.Second
	stopWithin   = requestGrace + 5*time.Second
)

// shut closes all doors and lets requests finish: those that only wait are answered
// at once, and what takes too long is broken off.
func (c *controller) shut(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, requestGrace)
	defer cancel()
	errs := make([]error, len(c.doors))
	var closing sync.WaitGroup
	for i, d := range c.doors {
		closing.Go(func() {
			if d.name != "webhook" {
				d.hangUp()
			}
			err := d.server.Shutdown(ctx)
			d.hangUp()
			if err != nil {
				errs[i] = errors.Join(fmt.Errorf("%s: requests under way were broken off after %s", d.name, requestGrace), d.server.Close())
			}
		})
	}
	closing.Wait()
	return errors.Join(errs...)
}

// every calls f now and then, and when it is woken; its failure is logged and
// mended by the next call.
func (c *controller) every(ctx context.Context, period time.Duration, wake <-chan struct{}, complaint string, f func(context.Context) error) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-wake:
		case <-timer.C:
		}
		next := period
		if err := f(ctx); err != nil && ctx.Err() == nil {
			c.log.Warn("work that is due now and then failed", "what", complaint, "error", err)
			next = min(period, time.Minute)
		}
		timer.Reset(next)
	}
}

func (c *controller) refreshInstallations(ctx context.Context) error {
	before, err := c.store.InstallationIDs(ctx)
	if err != nil {
		return err
	}
	list, err := c.app.Installations(ctx)
	if err != nil {
		return err
	}
	defer c.loop.Wake() // where the App is gone or back, jobs wait for another reason, or no more
	crashpoint.Reached(crashpoint.InstallationsListed)
	if err := c.store.SetInstallations(ctx, list, before); err != nil {
		return err
	}
	crashpoint.Reached(crashpoint.InstallationsStored)
	early, err := c.store.FailedDeliveries(ctx)
	if err != nil {
		return err
	}
	return c.hooks.Retry(ctx, early)
}

func (c *controller) prune(ctx context.Context) error {
	return c.store.Prune(ctx, store.Retention{Payloads: c.cfg.KeepEvents, History: c.cfg.KeepPast})
}

func (c *controller) close() error {
	for _, d := range c.doors {
		d.hangUp()
		d.listener.Close()
	}
	if c.app != nil {
		c.app.Close()
	}
	if c.images != nil {
		if err := c.images.close(); err != nil {
			c.log.Warn("the place of images not closed", "error", err)
		}
	}
	if c.store == nil {
		return nil
	}
	if err := c.store.Close(); err != nil {
		return fmt.Errorf("database not closed: %w", err)
	}
	return nil
}
