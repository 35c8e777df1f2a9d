// SPDX-License-Identifier: MIT

package githubsim

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"time"

	"github.com/minifleet/minifleet/secret"
)

// Flow is the protocol that the Actions service offers to runners.
type Flow string

const (
	// FlowV1 is the older service: sessions with encrypted messages.
	FlowV1 Flow = "v1"
	// FlowMigrate opens a v1 session that sends the runner on to the broker.
	FlowMigrate Flow = "migrate"
)

// Options configure a Sim. The zero value is a whole, unkind GitHub with a new
// App key and webhook secret, and no webhook URL.
type Options struct {
	AppID         int64       // default 4242
	AppSlug       string      // default "minifleet-dev"
	PrivateKey    secret.Text // RSA key of the App in PEM; default: generated
	WebhookSecret secret.Text // default: generated
	WebhookURL    string      // empty: nothing is delivered until SetWebhook

	Listen  string // address for Start; default 127.0.0.1:0; loopback only
	BaseURL string // how clients reach the Sim; default: Start's address, else the request's Host
	// RunnerURL is how runners reach the Sim, where that differs: from inside a VM.
	RunnerURL string

	Seed   uint64 // of all randomness; default 1
	Kind   bool   // no misbehaviour but what Inject asks for
	OneKey bool   // all runners share one RSA key, which spares much time
	Prompt bool   // answers at once: OneKey, and no rate limit refuses a call
	// Enterprise is the version of an Enterprise Server, such as 3.15.0; empty: github.com. Its
	// API is below /api/v3 only, it knows no rate limits, and says its version.
	Enterprise string
	Latency    time.Duration // added to every REST answer
	Ahead      time.Duration // of GitHub's clock before this machine's, in all that GitHub tells and checks; negative: behind
	Flow       Flow          // default FlowV1
	Acquire    bool          // scale sets have to ask for jobs that are available, as on older servers; default: they are given them
	Timing     Timing

	RepeatRate float64 // share of deliveries sent twice; default 0.05, none when Kind; negative: none
	FaultRate  float64 // share of REST calls that fail at random; default none
	Faults     []Fault // injected from the start
	KeyPool    int     // RSA keys kept ready for JIT configs; default 4

	// OldServer leaves out what older Enterprise Servers do not know: the filter of
	// deliveries by status, which they ignore.
	OldServer bool

	WebhookClient *http.Client // sends deliveries; default: a client of the Sim's own
	Log           *slog.Logger // default: discards
}

// Timing holds every period of the simulation. A zero field has its default;
// a negative lag or delay means none.
type Timing struct {
	Poll               time.Duration // a runner's long poll; default 50 s
	AssignTimeout      time.Duration // a job offered but not taken is queued again; default 60 s
	Lease              time.Duration // a job whose runner stops renewing fails; default 10 min
	CancelGrace        time.Duration // a cancelled job ends by force; default 5 min
	UnusedRegistration time.Duration // a runner that never connects is removed; default 24 h
	OfflineAfter       time.Duration // a runner that stops polling is offline; default 60 s
	SessionTimeout     time.Duration // a silent session no longer causes 409; default 4 min
	InstallationToken  time.Duration // default 1 h
	RunnerToken        time.Duration // default 50 min
	DeliveryTimeout    time.Duration // default 10 s
	ManifestCode       time.Duration // a code of the manifest flow can be exchanged for so long; default 1 h
	DeliveriesKept     time.Duration // in GitHub's list of them; default 72 h
	SetToken           time.Duration // of a scale set's client; default 1 h
	QueueToken         time.Duration // of a scale set's message queue; default 1 h

	ListLag       time.Duration // upper bound until a new runner is listed, twice the time until lists of runs show a new status; default 500 ms, none when Kind
	BusyLag       time.Duration // upper bound until `busy` shows; default 2 s, none when Kind
	DeliveryDelay time.Duration // upper bound of a delivery's delay; default 200 ms, none when Kind
}

func (t Timing) withDefaults(kind bool) Timing {
	t.Poll = cmp.Or(t.Poll, 50*time.Second)
	t.AssignTimeout = cmp.Or(t.AssignTimeout, 60*time.Second)
	t.Lease = cmp.Or(t.Lease, 10*time.Minute)
	t.CancelGrace = cmp.Or(t.CancelGrace, 5*time.Minute)
	t.UnusedRegistration = cmp.Or(t.UnusedRegistration, 24*time.Hour)
	t.OfflineAfter = cmp.Or(t.OfflineAfter, 60*time.Second)
	t.SessionTimeout = cmp.Or(t.SessionTimeout, 4*time.Minute)
	t.InstallationToken = cmp.Or(t.InstallationToken, time.Hour)
	t.RunnerToken = cmp.Or(t.RunnerToken, 50*time.Minute)
	t.SetToken = cmp.Or(t.SetToken, time.Hour)
	t.QueueToken = cmp.Or(t.QueueToken, time.Hour)
	t.DeliveryTimeout = cmp.Or(t.DeliveryTimeout, 10*time.Second)
	t.ManifestCode = cmp.Or(t.ManifestCode, time.Hour)
	t.DeliveriesKept = cmp.Or(t.DeliveriesKept, 72*time.Hour)
	if !kind {
		t.ListLag = cmp.Or(t.ListLag, 500*time.Millisecond)
		t.BusyLag = cmp.Or(t.BusyLag, 2*time.Second)
		t.DeliveryDelay = cmp.Or(t.DeliveryDelay, 200*time.Millisecond)
	}
	return t
}

func (o Options) withDefaults() Options {
	o.AppID = cmp.Or(o.AppID, 4242)
	o.AppSlug = cmp.Or(o.AppSlug, "minifleet-dev")
	o.Listen = cmp.Or(o.Listen, "127.0.0.1:0")
	o.Seed = cmp.Or(o.Seed, 1)
	o.Flow = cmp.Or(o.Flow, FlowV1)
	o.KeyPool = cmp.Or(o.KeyPool, 4)
	o.Timing = o.Timing.withDefaults(o.Kind)
	if !o.Kind {
		o.RepeatRate = cmp.Or(o.RepeatRate, 0.05)
	}
	if o.WebhookSecret.Empty() {
		o.WebhookSecret = secret.Generate()
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return o
}

// Validate reports everything that is wrong with the options.
func (o Options) Validate() error {
	var errs []error
	if o.Flow != "" && o.Flow != FlowV1 && o.Flow != FlowMigrate {
		errs = append(errs, fmt.Errorf("flow %q: use %q or %q", o.Flow, FlowV1, FlowMigrate))
	}
	if o.WebhookURL != "" {
		errs = append(errs, validURL("webhook URL", o.WebhookURL))
	}
	if o.BaseURL != "" {
		errs = append(errs, validURL("base URL", o.BaseURL))
	}
	if o.RunnerURL != "" {
		errs = append(errs, validURL("runner URL", o.RunnerURL))
	}
	if o.Listen != "" {
		host, _, err := net.SplitHostPort(o.Listen)
		if ip := net.ParseIP(host); err != nil || (host != "localhost" && (ip == nil || !ip.IsLoopback())) {
			errs = append(errs, fmt.Errorf("listen address %q: the simulated GitHub gives its keys to every caller, so use a loopback address such as 127.0.0.1:0", o.Listen))
		}
	}
	if _, _, ok := enterpriseVersion(o.Enterprise); o.Enterprise != "" && !ok {
		errs = append(errs, fmt.Errorf("enterprise version %q: give one such as 3.15.0", o.Enterprise))
	}
	if o.FaultRate < 0 || o.FaultRate > 1 || o.RepeatRate > 1 {
		errs = append(errs, errors.New("fault rate and repeat rate are shares between 0 and 1"))
	}
	for _, f := range o.Faults {
		errs = append(errs, f.Validate())
	}
	return errors.Join(errs...)
}

func validURL(what, s string) error {
	u, err := url.Parse(s)
	if err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") {
		return fmt.Errorf("%s %q: give an absolute http or https URL", what, s)
	}
	return nil
}
