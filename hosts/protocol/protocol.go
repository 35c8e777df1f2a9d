// SPDX-License-Identifier: MIT

// Package protocol is what an agent and the controller say to each other: JSON
// over HTTPS, always called by the agent. It owns the wire types, their limits
// and paths. Fields that a side does not know are ignored; a value of wanted that
// an agent does not know is refused by name.
package protocol

import (
	"time"

	"github.com/minifleet/minifleet/trust"
)

// Paths below the controller's address.
const (
	PathEnrol   = "/agent/v1/enrol"                 // POST Enrol -> Enrolled; no credential yet
	PathHello   = "/agent/v1/hello"                 // POST Hello -> Welcome
	PathDesired = "/agent/v1/desired"               // GET ?instance=&revision=&wait= -> Desired
	PathReport  = "/agent/v1/report"                // POST Report -> 204
	PathMint    = "/agent/v1/runners/{runner}/mint" // POST MintRequest -> Minted
)

// MaxBody is the most bytes either side reads of one message: 500 runners with
// long reasons are well below it.
const MaxBody = 4 << 20

// MaxWait bounds the time for which the controller holds a desired call open; half its
// deadline for hosts bounds it too.
const MaxWait = time.Hour

// Error is the body of every answer that is not 2xx.
type Error struct {
	Message string `json:"error"`
	Code    Code   `json:"code,omitempty"`
}

// Code tells an agent what to do about an error.
type Code string

// The codes.
const (
	CodeBadRequest     Code = "bad_request"
	CodeToken          Code = "token"           // 401: enrolment token unknown, used or expired
	CodeCredential     Code = "credential"      // 401: host unknown or revoked
	CodeSuperseded     Code = "superseded"      // 409: a newer instance of the same host's agent speaks now: stop
	CodeOtherMachine   Code = "other_machine"   // 409: another machine uses this credential and is live: stop
	CodeNoGrant        Code = "no_grant"        // 409: not armed: stay standby
	CodeRunnerBusy     Code = "runner_busy"     // 409: the earlier registration runs a job: keep the VM, do not ask again
	CodeLater          Code = "later"           // 503: try again after Retry-After
	CodeUnavailable    Code = "unavailable"     // 503: the controller's store is down
	CodeRefused        Code = "refused"         // 502: GitHub will not register this runner; asking again does not help soon
	CodeMethod         Code = "method"          // 404, 405
	CodeTooLarge       Code = "too_large"       // 413
	CodeNoSuchRunner   Code = "no_such_runner"  // 404
	CodeWrongHost      Code = "wrong_host"      // 403: the runner belongs to another host
	CodeInternalFailed Code = "internal_failed" // 500
)

// Enrol asks for a host identity. The agent makes its own credential, keeps it
// before it asks, and sends only the hash: a repetition after a lost answer is the
// same request.
type Enrol struct {
	Token          string `json:"token"`
	CredentialHash string `json:"credential_hash"` // hex SHA-256
	Name           string `json:"name"`            // wish; an enrolment can fix another
	Machine        string `json:"machine"`         // identity of the hardware
}

// Enrolled answers Enrol.
type Enrolled struct {
	Host string `json:"host"` // id
	Name string `json:"name"`
	Site string `json:"site"`
}

// Hello opens a new instance of an agent. From then on the controller takes
// nothing from an earlier one.
type Hello struct {
	Instance string `json:"instance"`
	Machine  string `json:"machine"`
	Facts    Facts  `json:"facts"`
}

// Facts describe the host.
type Facts struct {
	Slots    int      `json:"slots"`
	Backends []string `json:"backends"`
	// Images are what VMs can be cloned from at once: names of those put there by hand,
	// digests of those that were fetched.
	Images       []string `json:"images"`
	OS           string   `json:"os"`
	Arch         string   `json:"arch"`
	AgentVersion string   `json:"agent_version"`
	Degraded     string   `json:"degraded,omitempty"`
	// PeerAddress is where the host gives chunks of its images to others of its site, "" if
	// nowhere, and PeerPin the pin of the certificate it shows there.
	PeerAddress string `json:"peer_address,omitempty"`
	PeerPin     string `json:"peer_pin,omitempty"`
	// PeerGroup names the hosts with which it does: those on one local network.
	PeerGroup string `json:"peer_group,omitempty"`
}

// Welcome answers Hello.
type Welcome struct {
	Site  string `json:"site"`
	Epoch int64  `json:"epoch"`
	Host  string `json:"host"`
	Name  string `json:"name"`
	// PollSeconds is how long a desired call should ask to wait.
	PollSeconds int `json:"poll_seconds"`
	// LeaseSeconds is how long the agent may go without an answer before VMs that
	// are still booting without a JIT config are ended; standbys last twice as long
	// and a random part more.
	LeaseSeconds int `json:"lease_seconds"`
	// PeerKey is the Ed25519 public key, in base64, by which hosts know the tokens of others.
	PeerKey string `json:"peer_key,omitempty"`
}

// Desired is all that is wanted of a host.
type Desired struct {
	Site     string   `json:"site"`
	Epoch    int64    `json:"epoch"`
	Revision int64    `json:"revision"`
	Runners  []Desire `json:"runners"`
	// Images are to be in the cache before any VM needs them, most wanted first.
	Images []Prefetch `json:"images,omitempty"`
	// Peers have a listener for chunks and are of the same group; PeerToken lets this host
	// in there, and is renewed well before it expires. PeerKey is Welcome's, or its successor.
	// All three may change without a new revision: each answer has the newest.
	Peers     []Peer `json:"peers,omitempty"`
	PeerToken string `json:"peer_token,omitempty"`
	PeerKey   string `json:"peer_key,omitempty"`
}

// Prefetch is an image that a host is to fetch while nothing waits for it.
type Prefetch struct {
	Image string `json:"image"` // a reference with a digest
	// BytesPerSecond limits the fetching; 0 sets no limit.
	BytesPerSecond int64 `json:"bytes_per_second,omitempty"`
	// Hold keeps it from being begun, and from being evicted once it is there.
	Hold bool `json:"hold,omitempty"`
}

// Peer is another host of the site that gives out chunks.
type Peer struct {
	Address string `json:"address"` // host:port
	Pin     string `json:"pin"`     // of its certificate, as func Pin makes it
}

// The values of Desire.Wanted.
const (
	WantUp    = "up"
	WantArmed = "armed"
	WantGone  = "gone"
)

// Desire is what is wanted of one runner.
type Desire struct {
	ID     string `json:"id"`
	Wanted string `json:"wanted"`
	// UnlessBusy goes with gone: the guest is asked first, and a runner that runs a
	// job is left alone until it ends.
	UnlessBusy bool   `json:"unless_busy,omitempty"`
	Scope      string `json:"scope,omitempty"` // goes with armed
	Pool       string `json:"pool"`
	Image      string `json:"image"`
	Backend    string `json:"backend,omitempty"` // "" lets the agent choose
	CPUs       int    `json:"cpus,omitempty"`
	MemoryMiB  int    `json:"memory_mib,omitempty"`
	// Guest is "ssh" for an image that has only an SSH server, and "" for one that starts
	// the guest program.
	Guest   string `json:"guest,omitempty"`
	Network string `json:"network,omitempty"` // isolated or nat; "" lets the agent choose
	// Runner is put into the guest before it is given a JIT config; zero leaves the image's.
	Runner RunnerArchive `json:"runner,omitzero"`
	// EndGraceSeconds is how long a guest that is told to end may take to do so.
	EndGraceSeconds int `json:"end_grace_seconds,omitempty"`
}

// RunnerArchive is one version of the runner, as GitHub publishes it.
type RunnerArchive struct {
	URL    string `json:"url"`
	SHA256 string `json:"sha256"` // hex, of the .tar.gz
}

// Report is the full observed state of a host. A runner that was reported once
// stays in every report, gone at last, until no Desired names it any more.
type Report struct {
	Instance string         `json:"instance"`
	Sequence int64          `json:"sequence"`
	Revision int64          `json:"revision"` // newest Desired acted on
	Facts    Facts          `json:"facts"`
	Runners  []RunnerReport `json:"runners"`
	// Images are those that the host has or fetches, without those put there by hand.
	Images []ImageReport `json:"images,omitempty"`
}

// ImageReport is what is observed of one image in a host's cache.
type ImageReport struct {
	Image  string `json:"image"`  // the reference by which it was asked for first
	Digest string `json:"digest"` // sha256:...
	State  string `json:"state"`  // whole, fetching, waiting, failed
	// DoneBytes of TotalBytes were brought so far, FetchedBytes of them over the network.
	DoneBytes    int64  `json:"done_bytes,omitempty"`
	TotalBytes   int64  `json:"total_bytes,omitempty"`
	FetchedBytes int64  `json:"fetched_bytes,omitempty"`
	Failure      string `json:"failure,omitempty"`
}

// The values of ImageReport.State.
const (
	ImageWhole    = "whole"
	ImageFetching = "fetching"
	ImageWaiting  = "waiting"
	ImageFailed   = "failed"
)

// RunnerReport is what is observed of one runner. Observed is one of the words of
// fleet.Observed: preparing, booting, standby, registering, idle, busy, finished,
// failed, destroying, gone.
type RunnerReport struct {
	ID        string `json:"id"`
	Observed  string `json:"observed"`
	HoldsSlot bool   `json:"holds_slot"`
	HasConfig bool   `json:"has_config"` // the guest was given a JIT config
	Failure   string `json:"failure,omitempty"`
	Result    string `json:"result,omitempty"` // of the one job: succeeded, failed, canceled, ...
	Progress  string `json:"progress,omitempty"`
	Pool      string `json:"pool"`
	Scope     string `json:"scope,omitempty"`
	// RunnerName is the name at GitHub of the config that the guest was given.
	RunnerName string `json:"runner_name,omitempty"`
	// What the runner's job-started hook told of its one job, and why the guest ended that,
	// if it did.
	JobRepository string    `json:"job_repository,omitempty"`
	JobRun        int64     `json:"job_run,omitempty"`
	JobRefused    string    `json:"job_refused,omitempty"`
	Took          StepTimes `json:"took,omitzero"`
	// RunnerVersion is that of GitHub's runner in the guest, as it names itself;
	// RunnerRefused says that GitHub refuses that version as too old.
	RunnerVersion string `json:"runner_version,omitempty"`
	RunnerRefused bool   `json:"runner_refused,omitempty"`
}

// StepTimes is how long each step of a runner took, in microseconds and by a clock that
// nobody sets; 0 is a step that was not taken, not yet, or while no agent looked. A step
// that took less counts as one microsecond. No two overlap.
type StepTimes struct {
	Runner   int64 `json:"runner,omitempty"`   // bringing the pool's pinned runner to the host
	Image    int64 `json:"image,omitempty"`    // finding, fetching and checking the image
	Clone    int64 `json:"clone,omitempty"`    // cloning it
	Restore  int64 `json:"restore,omitempty"`  // reading a saved state back
	Boot     int64 `json:"boot,omitempty"`     // VM's start, or the end of its restore, to the guest's first answer
	Install  int64 `json:"install,omitempty"`  // putting the pinned runner into the guest
	Session  int64 `json:"session,omitempty"`  // from there until the session was ready in which the runner runs
	Listener int64 `json:"listener,omitempty"` // JIT config's hand-over to a runner that listens
	Job      int64 `json:"job,omitempty"`      // from there until it took a job
	Stop     int64 `json:"stop,omitempty"`     // powering the VM off
	Delete   int64 `json:"delete,omitempty"`   // deleting its files
}

// MaxStep bounds the time of one step. GitHub ends a job after five days, and a runner
// that waits longer than that for one has long been replaced.
const MaxStep = 31 * 24 * time.Hour

// MintRequest asks for a JIT config for an armed runner whose guest has none.
type MintRequest struct {
	Instance string `json:"instance"`
}

// Minted is a JIT config. It is a secret: the agent hands it to the guest and
// keeps it nowhere.
type Minted struct {
	Name      string `json:"name"`
	JITConfig string `json:"jit_config"`
	// Trust is the pool's policy, by which the guest ends a job that GitHub should not have
	// given to this runner.
	Trust *trust.Policy `json:"trust,omitempty"`
}

// Longest texts that a report may carry; an agent cuts, a controller refuses.
const (
	MaxText    = 2000
	MaxRunners = 1000
	MaxImages  = 1000
	MaxID      = 64
)
