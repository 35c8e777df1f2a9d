// SPDX-License-Identifier: MIT

package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	"github.com/minifleet/minifleet/autoscaler"
	"github.com/minifleet/minifleet/config"
	"github.com/minifleet/minifleet/fleet"
	"github.com/minifleet/minifleet/githubapp"
	"github.com/minifleet/minifleet/imagecache/manifest"
	"github.com/minifleet/minifleet/program"
	"github.com/minifleet/minifleet/secret"
	"github.com/minifleet/minifleet/store"
	"github.com/minifleet/minifleet/trust"
)

const envPrefix = "MINIFLEET"

// settings is the controller's configuration file.
type settings struct {
	Database   string          `yaml:"database" default:"minifleet.db" help:"SQLite file of the state; made if it is not there"`
	Webhook    webhookSettings `yaml:"webhook" help:"where GitHub delivers: the only public listener"`
	Agents     agentSettings   `yaml:"agents" help:"where agents call: TLS, or plain HTTP on loopback"`
	Admin      adminSettings   `yaml:"admin" help:"API for operators"`
	GitHub     gitHub          `yaml:"github" help:"the GitHub App"`
	Timing     timing          `yaml:"timing"`
	Images     imageSettings   `yaml:"images" help:"how images by reference come to the hosts"`
	Pools      []pool          `yaml:"pools" help:"what is served, by which machines"`
	LogLevel   string          `yaml:"log_level" default:"info" help:"debug, info, warn or error"`
	LogFormat  string          `yaml:"log_format" default:"text" help:"text or json"`
	KeepEvents time.Duration   `yaml:"keep_payloads" default:"168h" help:"how long payloads of deliveries are kept"`
	KeepPast   time.Duration   `yaml:"keep_history" default:"720h" help:"how long ended jobs, runners and deliveries are kept"`

	copyAs store.CopyAs // by serve's flags: what a copied database is to be
}

// listener is where one kind of callers is served.
type listener struct{ Address, CertFile, KeyFile string }

type webhookSettings struct {
	Address     string `yaml:"address" default:"127.0.0.1:8080" help:"host:port; an empty host is every interface"`
	CertFile    string `yaml:"cert_file" help:"TLS certificate chain, PEM"`
	KeyFile     string `yaml:"key_file" help:"its private key, PEM"`
	BehindProxy bool   `yaml:"behind_proxy" default:"false" help:"allow plain HTTP beyond loopback: a proxy on a network you trust ends TLS"`
}

func (s webhookSettings) listener() listener { return listener{s.Address, s.CertFile, s.KeyFile} }

type agentSettings struct {
	Address        string `yaml:"address" default:"127.0.0.1:8443" help:"host:port; an empty host is every interface"`
	CertFile       string `yaml:"cert_file" help:"TLS certificate chain, PEM"`
	KeyFile        string `yaml:"key_file" help:"its private key, PEM"`
	PinCertificate bool   `yaml:"pin_certificate" default:"true" help:"enrolment tokens carry a pin of the certificate's key; false where a public authority renews it with a new key"`
}

func (s agentSettings) listener() listener { return listener{s.Address, s.CertFile, s.KeyFile} }

type adminSettings struct {
	Address   string      `yaml:"address" default:"127.0.0.1:8090" help:"host:port; an empty host is every interface"`
	CertFile  string      `yaml:"cert_file" help:"TLS certificate chain, PEM"`
	KeyFile   string      `yaml:"key_file" help:"its private key, PEM"`
	Token     secret.Text `yaml:"token" help:"bearer token of operators"`
	TokenFile string      `yaml:"token_file" help:"file that holds it"`
}

func (s adminSettings) listener() listener { return listener{s.Address, s.CertFile, s.KeyFile} }

type gitHub struct {
	URL                 string        `yaml:"url" default:"https://api.github.com" help:"REST base; https://HOST/api/v3 for GitHub Enterprise Server"`
	AppID               int64         `yaml:"app_id" required:"true" help:"id of the GitHub App"`
	PrivateKey          secret.Text   `yaml:"private_key" help:"its private key, PEM"`
	PrivateKeyFile      string        `yaml:"private_key_file" help:"file that holds it"`
	WebhookSecret       secret.Text   `yaml:"webhook_secret" help:"its webhook secret"`
	WebhookSecretFile   string        `yaml:"webhook_secret_file" help:"file that holds it"`
	PreviousSecret      secret.Text   `yaml:"webhook_secret_previous" help:"the secret before, while GitHub changes over"`
	PreviousSecretFile  string        `yaml:"webhook_secret_previous_file" help:"file that holds it"`
	MintsPerMinute      int           `yaml:"mints_per_minute" default:"180" help:"registrations begun per owner and minute; GitHub allows 180 for one App, and 300 for several; 0 sets no limit"`
	Limits              string        `yaml:"limits" default:"auto" help:"auto keeps to GitHub's rate limits, at other servers once an answer tells of one; off never does"`
	MoreApps            []gitHubApp   `yaml:"more_apps" help:"further Apps, each with limits of its own"`
	Deliveries          string        `yaml:"deliveries" default:"push" help:"push: GitHub delivers to the webhook listener; pull: nothing listens, and deliveries are read from GitHub"`
	PollPercent         int           `yaml:"poll_percent" default:"30" help:"share of each installation's hourly calls that reading GitHub's lists may take"`
	InstallationRefresh time.Duration `yaml:"installation_refresh" default:"15m" help:"how often the list of installations is read again"`
}

// The ways in which deliveries come here.
const (
	byPush = "push"
	byPull = "pull"
)

// gitHubApp is one App beside the first.
type gitHubApp struct {
	AppID              int64       `yaml:"app_id" required:"true" help:"id of the GitHub App"`
	PrivateKey         secret.Text `yaml:"private_key" help:"its private key, PEM"`
	PrivateKeyFile     string      `yaml:"private_key_file" help:"file that holds it"`
	WebhookSecret      secret.Text `yaml:"webhook_secret" help:"its webhook secret"`
	WebhookSecretFile  string      `yaml:"webhook_secret_file" help:"file that holds it"`
	PreviousSecret     secret.Text `yaml:"webhook_secret_previous" help:"the secret before, while GitHub changes over"`
	PreviousSecretFile string      `yaml:"webhook_secret_previous_file" help:"file that holds it"`
}

// apps returns all Apps, the first one first.
func (g gitHub) apps() []gitHubApp {
	first := gitHubApp{AppID: g.AppID, PrivateKey: g.PrivateKey, WebhookSecret: g.WebhookSecret, PreviousSecret: g.PreviousSecret}
	return append([]gitHubApp{first}, g.MoreApps...)
}

func (a gitHubApp) secrets() (out []secret.Text) {
	for _, s := range []secret.Text{a.WebhookSecret, a.PreviousSecret} {
		if !s.Empty() {
			out = append(out, s)
		}
	}
	return out
}

// validateMore checks what goes beyond the first App.
func (g gitHub) validateMore() error {
	var errs []error
	if g.Limits != string(githubapp.LimitsAuto) && g.Limits != string(githubapp.LimitsOff) {
		errs = append(errs, fmt.Errorf("github.limits is %q: want auto or off", g.Limits))
	}
	seen := map[int64]bool{g.AppID: true}
	for i, a := range g.MoreApps {
		switch {
		case a.AppID <= 0:
			errs = append(errs, fmt.Errorf("github.more_apps[%d].app_id is %d: give the id that the App's settings page shows", i, a.AppID))
		case seen[a.AppID]:
			errs = append(errs, fmt.Errorf("github.more_apps[%d]: App %d stands twice", i, a.AppID))
		}
		seen[a.AppID] = true
		if a.PrivateKey.Empty() || a.WebhookSecret.Empty() && g.Deliveries != byPull {
			errs = append(errs, fmt.Errorf("github.more_apps[%d]: App %d needs its own private_key and webhook_secret, or the files that hold them", i, a.AppID))
		}
	}
	return errors.Join(errs...)
}

type timing struct {
	HostDeadline time.Duration `yaml:"host_deadline" default:"1m" help:"silence after which a host is unreachable"`
	Poll         time.Duration `yaml:"poll" default:"20s" help:"how long an agent leaves its call open, at most half of host_deadline"`
	Lease        time.Duration `yaml:"lease" default:"10m" help:"how long an agent keeps clean VMs without an answer"`
	EndGrace     time.Duration `yaml:"end_grace" default:"30s" help:"how long a listener may take to end"`
	Repair       time.Duration `yaml:"repair" default:"30s" help:"longest time between two decisions"`
	Reconcile    time.Duration `yaml:"reconcile" default:"5m" help:"how often GitHub's own lists of jobs and registrations are compared with what webhooks told; repositories silent for an hour, 12 times as seldom"`
	Redelivery   time.Duration `yaml:"redelivery" default:"3m" help:"how often deliveries that failed are looked for at GitHub"`
	Pull         time.Duration `yaml:"pull" default:"10s" help:"how often deliveries are read from GitHub where github.deliveries is pull"`
	Absence      time.Duration `yaml:"absence" default:"3m" help:"how long a job or registration must be missing, at GitHub or here, before it counts as gone"`
	Prune        time.Duration `yaml:"prune" default:"1h" help:"how often what was kept for long enough is deleted"`
}

// imageSettings say how images by reference come to the hosts.
type imageSettings struct {
	Refresh       time.Duration `yaml:"refresh" default:"1m" help:"how often the tags of the pools' images are read"`
	PrefetchHosts int           `yaml:"prefetch_hosts" default:"2" help:"how many hosts fetch images at once, before any VM needs them"`
	BandwidthMiB  int           `yaml:"bandwidth_mib" help:"MiB per second that those hosts share; 0 sets no limit"`
	ReadyPercent  int           `yaml:"ready_percent" default:"100" help:"share of a pool's live hosts that must have its next image before that serves"`
	PrefetchLimit time.Duration `yaml:"prefetch_limit" default:"1h" help:"after which the next image serves although fewer have it, if one has; 0 waits for them"`
	Stall         time.Duration `yaml:"stall" default:"5m" help:"without progress, after which a host gives up its turn to fetch, if others wait for one"`
	KeyFile       string        `yaml:"key_file" help:"service account's key for gs://; without it, Application Default Credentials"`
	Endpoint      string        `yaml:"endpoint" help:"of the storage service, for an emulator"`
	RegistryFile  string        `yaml:"registry_file" help:"user:password, or a token, for oci://"`
}

func (s imageSettings) rules() autoscaler.ImageRules {
	return autoscaler.ImageRules{
		ReadyPercent: s.ReadyPercent, PrefetchLimit: s.PrefetchLimit, PrefetchHosts: s.PrefetchHosts,
		BytesPerSecond: int64(s.BandwidthMiB) << 20, Stall: s.Stall,
	}
}

func (s imageSettings) validate() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf("images."+format, args...)) }
	if s.Refresh < time.Second {
		bad("refresh %s: want at least 1s; each reading is a call of the bucket or the registry", s.Refresh)
	}
	if s.PrefetchHosts < 1 {
		bad("prefetch_hosts is %d: want at least 1, or no host ever fetches what is to be rolled out", s.PrefetchHosts)
	}
	if s.BandwidthMiB < 0 || s.BandwidthMiB > 1<<20 {
		bad("bandwidth_mib is %d: want 0 for no limit, or MiB per second", s.BandwidthMiB)
	}
	if s.ReadyPercent < 1 || s.ReadyPercent > 100 {
		bad("ready_percent is %d: want 1 to 100", s.ReadyPercent)
	}
	if s.PrefetchLimit < 0 {
		bad("prefetch_limit %s: it must not be negative", s.PrefetchLimit)
	}
	if s.Stall < 10*time.Second {
		bad("stall %s: want at least 10s; a host reports how far it is every few seconds", s.Stall)
	}
	return errors.Join(errs...)
}

type pool struct {
	Name           string        `yaml:"name" required:"true" help:"lower-case letters, digits and dashes"`
	Labels         []string      `yaml:"labels" required:"true" help:"all labels of its runners: GitHub adds none, so list self-hosted, macOS, ARM64"`
	Scopes         []string      `yaml:"scopes" required:"true" help:"organizations, or owner/repository"`
	Image          string        `yaml:"image" required:"true" help:"name of a VM image on the hosts, or a reference: gs://, file:// or oci://, with a tag or @digest"`
	Backend        string        `yaml:"backend" help:"kind of VM; empty takes what the host offers"`
	CPUs           int           `yaml:"cpus" default:"4" help:"of each VM"`
	MemoryMiB      int           `yaml:"memory_mib" default:"8192" help:"of each VM"`
	MaxRunners     int           `yaml:"max_runners" help:"0: as many as there are slots"`
	Standby        int           `yaml:"standby" help:"VMs kept booted beyond demand"`
	RunnerGroup    string        `yaml:"runner_group" help:"of an organization; empty is the default group"`
	Demand         string        `yaml:"demand" default:"webhook" help:"what tells of its jobs: webhook, or scale_set for the message queue of a runner scale set"`
	ScaleSet       string        `yaml:"scale_set" help:"name of that scale set; empty is the pool's name"`
	Guest          string        `yaml:"guest" help:"ssh for images that have only an SSH server; empty where the image starts minifleet-guest"`
	Network        string        `yaml:"network" help:"isolated or nat; empty is the backend's default"`
	CanaryPercent  int           `yaml:"canary_percent" help:"share of the runners that tries the next image before it serves, at least one; 0 tries nothing"`
	CanaryFor      time.Duration `yaml:"canary_for" help:"how long without a failure until the next image serves; 0 leaves that to minifleet pool promote"`
	CanaryFailures int           `yaml:"canary_failures" help:"failures of runners with the next image after which the pool goes back by itself; 0 is 3"`
	Runner         archive       `yaml:"runner" help:"the runner that is put into every guest, instead of the image's own"`
	Trust          trustPolicy   `yaml:"trust" help:"whose code it runs; docs/trust.md"`
	Limits         limits        `yaml:"limits" help:"how long a runner may take in each phase"`
}

type trustPolicy struct {
	Repositories []string `yaml:"repositories" help:"owner/name, * for any part of one of the two; empty: all of the scopes"`
	Deny         []string `yaml:"deny" help:"repositories that are refused, likewise; it wins over all else"`
	Public       bool     `yaml:"public" default:"false" help:"also public repositories"`
	Forks        bool     `yaml:"forks" default:"false" help:"also code that comes from forks"`
	ForkActors   []string `yaml:"fork_actors" help:"logins whose own forks are allowed although forks is false, if they began run and attempt"`
	DenyEvents   []string `yaml:"deny_events" help:"events whose runs are refused, such as pull_request_target"`
}

type archive struct {
	URL    string `yaml:"url" help:"of the runner's .tar.gz: https, or file for one that lies on every host"`
	SHA256 string `yaml:"sha256" help:"its digest, from the runner's release page"`
}

type limits struct {
	Placed      time.Duration `yaml:"placed" default:"1m" help:"until the agent begins"`
	Preparing   time.Duration `yaml:"preparing" default:"10m" help:"without progress of the image"`
	Booting     time.Duration `yaml:"booting" default:"5m" help:"until the guest answers"`
	Registering time.Duration `yaml:"registering" default:"4m" help:"until the listener is online"`
	Surplus     time.Duration `yaml:"surplus" default:"1m" help:"how long a runner nobody needs is kept"`
	Unnamed     time.Duration `yaml:"unnamed" default:"2m" help:"how long a busy guest stands for a job that GitHub has not named"`
	Assignment  time.Duration `yaml:"assignment" default:"3m" help:"how long a listening runner stands for a job that GitHub does not give it"`
	Job         time.Duration `yaml:"job" default:"120h" help:"how long a job may run before its runner is ended"`
	Ending      time.Duration `yaml:"ending" default:"5m" help:"from the order to go until the slot is free"`
	Arming      time.Duration `yaml:"arming" default:"10m" help:"from the grant until the config is in the guest"`
}

// loadSettings reads and checks the file.
func loadSettings(path string, getenv func(string) string) (settings, error) {
	return config.Load[settings](path, envPrefix, getenv)
}

// configKeys lists every key with its default, for --help.
func configKeys() string {
	var b strings.Builder
	if err := config.WriteHelp[settings](&b, envPrefix); err != nil {
		return err.Error()
	}
	return b.String()
}

// Validate returns all that is wrong.
func (s *settings) Validate() error {
	var errs []error
	if s.GitHub.AppID < 0 {
		errs = append(errs, fmt.Errorf("github.app_id is %d: give the id that the App's settings page shows", s.GitHub.AppID))
	}
	if s.GitHub.MintsPerMinute < 0 {
		errs = append(errs, fmt.Errorf("github.mints_per_minute is %d: it must not be negative", s.GitHub.MintsPerMinute))
	}
	if s.GitHub.PrivateKey.Empty() {
		errs = append(errs, errors.New("github.private_key or github.private_key_file is required"))
	}
	if s.GitHub.Deliveries != byPush && s.GitHub.Deliveries != byPull {
		errs = append(errs, fmt.Errorf("github.deliveries is %q: want %s or %s", s.GitHub.Deliveries, byPush, byPull))
	}
	if s.GitHub.PollPercent < 1 || s.GitHub.PollPercent > 90 {
		errs = append(errs, fmt.Errorf("github.poll_percent is %d: want 1 to 90; runners need the rest", s.GitHub.PollPercent))
	}
	if s.GitHub.WebhookSecret.Empty() && s.GitHub.Deliveries != byPull {
		errs = append(errs, errors.New("github.webhook_secret or github.webhook_secret_file is required: without it anybody could start runners"))
	}
	errs = append(errs, s.GitHub.validateMore())
	if s.Admin.Token.Empty() {
		errs = append(errs, errors.New("admin.token or admin.token_file is required"))
	}
	errs = append(errs,
		s.Webhook.listener().validate("webhook", s.Webhook.BehindProxy, " or, behind a proxy that ends TLS, webhook.behind_proxy"),
		s.Agents.listener().validate("agents", false, ""), s.Admin.listener().validate("admin", false, ""))
	if s.Timing.HostDeadline < 10*time.Second {
		errs = append(errs, fmt.Errorf("timing.host_deadline %s: want at least 10s", s.Timing.HostDeadline))
	}
	if s.Timing.Reconcile < time.Second {
		errs = append(errs, fmt.Errorf("timing.reconcile %s: want at least 1s; each look costs calls of GitHub's hourly limit", s.Timing.Reconcile))
	}
	if s.Timing.Redelivery < time.Second {
		errs = append(errs, fmt.Errorf("timing.redelivery %s: want at least 1s; each look costs a call of the App's hourly limit", s.Timing.Redelivery))
	}
	if s.Timing.Pull < time.Second {
		errs = append(errs, fmt.Errorf("timing.pull %s: want at least 1s; each look costs a call of the App's hourly limit", s.Timing.Pull))
	}
	if s.Timing.Absence < time.Second {
		errs = append(errs, fmt.Errorf("timing.absence %s: want at least 1s; GitHub's lists lag, and one look proves nothing", s.Timing.Absence))
	}
	if s.Timing.Prune < time.Second {
		errs = append(errs, fmt.Errorf("timing.prune %s: want at least 1s", s.Timing.Prune))
	}
	errs = append(errs, s.Images.validate())
	if len(s.Pools) == 0 {
		errs = append(errs, errors.New("pools: at least one is needed, or no job is served"))
	}
	seen := map[string]bool{}
	for _, p := range s.Pools {
		if seen[p.Name] {
			errs = append(errs, fmt.Errorf("pool %q stands twice", p.Name))
		}
		seen[p.Name] = true
		_, err := p.domain()
		errs = append(errs, err)
	}
	errs = append(errs, fleet.Disjoint(s.pools()))
	if _, err := program.NewLog(io.Discard, s.LogLevel, s.LogFormat); err != nil {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// validate checks that nothing is said in clear beyond loopback, unless that is
// asked for.
func (l listener) validate(name string, plain bool, instead string) error {
	host, _, err := net.SplitHostPort(l.Address)
	switch {
	case err != nil:
		return fmt.Errorf("%s.address %q: want host:port", name, l.Address)
	case (l.CertFile == "") != (l.KeyFile == ""):
		return fmt.Errorf("%s: cert_file and key_file go together", name)
	case !plain && l.CertFile == "" && !loopback(host):
		return fmt.Errorf("%s.address %q is not loopback: set %s.cert_file and %s.key_file%s", name, l.Address, name, name, instead)
	}
	return nil
}

func loopback(host string) bool {
	if host == "localhost" {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}

// domain returns the pool in the domain's words.
func (p pool) domain() (fleet.Pool, error) {
	out := fleet.Pool{
		Name: p.Name, Labels: fleet.NewLabels(p.Labels...), LabelNames: p.Labels,
		Image: p.Image, Canary: fleet.Canary{Percent: p.CanaryPercent, For: p.CanaryFor, Failures: p.CanaryFailures}, Backend: p.Backend, CPUs: p.CPUs, MemoryMiB: p.MemoryMiB,
		MaxRunners: p.MaxRunners, Standby: p.Standby, RunnerGroup: cmp.Or(p.RunnerGroup, "default"),
		Guest: p.Guest, Network: p.Network, Runner: fleet.RunnerArchive(p.Runner), Trust: trust.Policy(p.Trust),
		Limits: fleet.Limits{
			Placed: p.Limits.Placed, Preparing: p.Limits.Preparing, Booting: p.Limits.Booting,
			Registering: p.Limits.Registering, Surplus: p.Limits.Surplus, Unnamed: p.Limits.Unnamed,
			Assignment: p.Limits.Assignment, Job: p.Limits.Job, Ending: p.Limits.Ending, Arming: p.Limits.Arming,
		}.WithDefaults(),
	}
	var errs []error
	switch p.Demand {
	case "", "webhook":
		if p.ScaleSet != "" {
			errs = append(errs, fmt.Errorf("pool %q: scale_set is set and demand is not: give demand: scale_set", p.Name))
		}
	case "scale_set":
		out.ScaleSet = cmp.Or(p.ScaleSet, p.Name)
	default:
		errs = append(errs, fmt.Errorf("pool %q: demand is %.40q: give webhook or scale_set", p.Name, p.Demand))
	}
	if fleet.RemoteImage(p.Image) {
		if _, err := manifest.ParseReference(p.Image); err != nil {
			errs = append(errs, fmt.Errorf("pool %q: image: %w", p.Name, err))
		}
	}
	for _, text := range p.Scopes {
		s, err := fleet.ParseScope(text)
		if err != nil {
			errs = append(errs, fmt.Errorf("pool %q: %w", p.Name, err))
			continue
		}
		out.Scopes = append(out.Scopes, s)
	}
	return out, errors.Join(append(errs, out.Validate())...)
}

func (s *settings) pools() []fleet.Pool {
	var out []fleet.Pool
	for _, p := range s.Pools {
		d, _ := p.domain() // checked by Validate
		out = append(out, d)
	}
	return out
}
