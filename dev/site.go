// SPDX-License-Identifier: MIT

package dev

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/minifleet/minifleet/admin/api"
	"github.com/minifleet/minifleet/githubapp/githubsim"
	"github.com/minifleet/minifleet/secret"
)

// Options say what to run.
type Options struct {
	Programs string // folder of minifleet, minifleet-agent, minifleet-vmm and minifleet-guest
	Runner   string // listener program of the runners; "" is the built-in stand-in
	// Image is the folder of an image with a runner in it, of which VMs are booted under
	// QEMU. Without it each runner is an ordinary process: the backend process.
	Image    string
	Agents   int
	Slots    int // of each agent
	Seed     uint64
	Kind     bool // GitHub without misbehaviour
	Demo     bool // run the demo's workflow
	Keep     bool // leave the site running after the demo
	CI       bool // what is only second best is an error
	Out      io.Writer
	Terminal bool // Out is one: a live table
}

// Repository and labels of the site's one pool.
const (
	owner = "octo"
	repo  = "demo"
)

func poolLabels() []string { return []string{"self-hosted", "macOS", "ARM64", "demo"} }

// site is a running site.
type site struct {
	Options
	dir    string
	github *process
	server *process
	agents []*process
	sim    githubsim.Control
	api    *api.ClientWithResponses
	token  secret.Text
	client string      // the runner client's own words about itself
	image  string      // name of the image
	lines  chan string // for the display
}

// Run starts the site, runs the demo if asked, and returns when all of it is gone
// again. It returns an error if anything is not as it should be.
func Run(ctx context.Context, o Options) error {
	// The program must not die of a second signal before its children have: it makes
	// them die at once.
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	defer signal.Stop(signals)
	s, err := open(o)
	if err != nil {
		return err
	}
	err = s.run(ctx)
	over := make(chan struct{})
	var watch sync.WaitGroup
	watch.Go(func() { s.hurry(ctx.Err() != nil, signals, over) })
	defer watch.Wait()
	defer close(over)
	interrupted := ctx.Err() != nil
	if interrupted && err != nil {
		err = errors.New("interrupted before the end")
	}
	return errors.Join(err, s.close(err != nil && !interrupted))
}

func open(o Options) (*site, error) {
	temp := os.TempDir()
	if runtime.GOOS == "darwin" {
		temp = "/tmp" // the user's own is too long a path for sockets
	}
	dir, err := os.MkdirTemp(temp, "minifleet-")
	if err != nil {
		return nil, err
	}
	return &site{Options: o, dir: dir, lines: make(chan string, 16)}, os.Mkdir(filepath.Join(dir, "log"), 0o700)
}

func (s *site) run(ctx context.Context) error {
	began := time.Now()
	if err := s.prepareImage(ctx); err != nil {
		return err
	}
	if err := s.startGitHub(ctx); err != nil {
		return err
	}
	if err := s.startController(ctx); err != nil {
		return err
	}
	for i := range s.Agents {
		if err := s.startAgent(ctx, i); err != nil {
			return err
		}
	}
	if err := s.hostsOnline(ctx); err != nil {
		return err
	}
	fmt.Fprintf(s.Out, "site is up after %.1f s: simulated GitHub, controller, %d agents with %d slots each\nrunners run in: %s\nrunner client: %s\n",
		time.Since(began).Seconds(), s.Agents, s.Slots, s.kindOfVM(), s.client)
	var err error
	if s.Demo {
		err = s.demo(ctx)
		if err != nil || !s.Keep {
			return err
		}
	}
	s.addresses()
	<-ctx.Done()
	return nil
}

func (s *site) addresses() {
	token := filepath.Join(s.dir, "admin.token")
	fmt.Fprintf(s.Out, `
controller API   %s
  %s get jobs --server %s --token-file %s
  %s get runners --server %s --token-file %s
simulated GitHub %s
  curl -s %s/_sim/jobs
webhooks         %s
logs             %s
VMs              %s
Press Ctrl-C to end it all.
`, s.server.said["admin"], filepath.Join(s.Programs, "minifleet"), s.server.said["admin"], token,
		filepath.Join(s.Programs, "minifleet"), s.server.said["admin"], token,
		s.sim.BaseURL, s.sim.BaseURL, s.server.said["webhook"], filepath.Join(s.dir, "log"), filepath.Join(s.dir, "a*", "vms"))
}

// real reports whether the runners run in VMs.
func (s *site) real() bool { return s.Image != "" }

func (s *site) kindOfVM() string {
	if s.real() {
		return "VMs under QEMU, of the image " + s.image
	}
	return "ordinary processes, without isolation"
}

// prepareImage finds the image that VMs are made of, or makes one for the backend process.
func (s *site) prepareImage(ctx context.Context) error {
	s.image = "demo"
	if !s.real() {
		return s.makeImage(ctx)
	}
	var manifest struct {
		Description string `json:"description"`
	}
	b, err := os.ReadFile(filepath.Join(s.Image, "image.json"))
	if err == nil {
		err = json.Unmarshal(b, &manifest)
	}
	if err != nil {
		return fmt.Errorf("--image: %w: give the folder of an image, such as the one of `make test-image`", err)
	}
	s.image, s.client = filepath.Base(s.Image), "the image's own"
	if manifest.Description != "" {
		fmt.Fprintf(s.Out, "image %s: %s\n", s.image, manifest.Description)
	}
	return nil
}

// imagesDir is the folder of all images.
func (s *site) imagesDir() string {
	if s.real() {
		return filepath.Dir(s.Image)
	}
	return filepath.Join(s.dir, "images")
}

// guestGitHub is where guests in an isolated network find the simulated GitHub.
const guestGitHub = "10.0.2.100:80"

// makeImage makes the image that the process backend clones: a folder with the
// listener where the runner's own archive has it.
func (s *site) makeImage(ctx context.Context) error {
	bin := filepath.Join(s.dir, "images", "demo", "root", "runner", "bin")
	if err := os.MkdirAll(bin, 0o755); err != nil {
		return err
	}
	manifest := `{"schema": 1, "name": "demo", "guest_os": "` + runtime.GOOS + `", "description": "a runner and nothing else"}`
	if err := os.WriteFile(filepath.Join(s.dir, "images", "demo", "image.json"), []byte(manifest), 0o644); err != nil {
		return err
	}
	listener := filepath.Join(bin, "Runner.Listener")
	if s.Runner == "" {
		if s.CI {
			return errors.New("no runner client was given (--runner), and the built-in stand-in proves nothing under CI=true")
		}
		s.client = "the built-in stand-in, NOT a real runner: give one with --runner"
		self := filepath.Join(s.Programs, "minifleet")
		return os.WriteFile(listener, []byte("#!/bin/sh\nexec '"+self+"' standin \"$@\"\n"), 0o755)
	}
	if err := copyProgram(s.Runner, listener); err != nil {
		return fmt.Errorf("runner client: %w", err)
	}
	words, err := exec.CommandContext(ctx, listener, "--version").Output()
	if err != nil {
		return fmt.Errorf("runner client %s does not tell its version: %w", s.Runner, err)
	}
	s.client = strings.TrimSpace(string(words))
	return nil
}

func copyProgram(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_EXCL, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

func (s *site) startGitHub(ctx context.Context) (err error) {
	args := []string{"githubsim", "--seed", fmt.Sprint(s.Seed)}
	if s.Kind {
		args = append(args, "--kind")
	}
	if s.real() {
		args = append(args, "--runner-url", "http://"+guestGitHub)
	}
	s.github, err = start(ctx, "github", filepath.Join(s.dir, "log"), []string{"github"}, filepath.Join(s.Programs, "minifleet"), args...)
	if err != nil {
		return err
	}
	s.sim = githubsim.Control{BaseURL: s.github.said["github"]}
	_, err = s.sim.AddInstallation(ctx, githubsim.Installation{Account: owner, Repositories: []string{repo}})
	return err
}

func (s *site) startController(ctx context.Context) error {
	app, err := s.sim.App(ctx)
	if err != nil {
		return err
	}
	s.token = secret.Generate()
	for name, text := range map[string]string{
		"app.pem": app.PrivateKeyPEM, "webhook.secret": app.WebhookSecret, "admin.token": s.token.Reveal(),
		"controller.yaml": s.controllerConfig(app.ID),
	} {
		if err := os.WriteFile(filepath.Join(s.dir, name), []byte(text), 0o600); err != nil {
			return err
		}
	}
	s.server, err = start(ctx, "controller", filepath.Join(s.dir, "log"), []string{"webhook", "agents", "admin"},
		filepath.Join(s.Programs, "minifleet"), "serve", "--config", filepath.Join(s.dir, "controller.yaml"))
	if err != nil {
		return err
	}
	if s.api, err = api.Connect(s.server.said["admin"], s.token, nil); err != nil {
		return err
	}
	kind := s.Kind
	return s.sim.SetWebhook(ctx, githubsim.Webhook{URL: s.server.said["webhook"] + "/webhook", Kind: &kind})
}

// controllerConfig is short on patience, as befits a demo: what nobody needs goes
// after two seconds.
func (s *site) controllerConfig(app int64) string {
	// Emulated processors are slow, and the machine may be busy with other things.
	backend, memory, limits := "process", 256, "surplus: 2s, booting: 20s, registering: 30s, unnamed: 10s"
	if s.real() {
		backend, memory, limits = "qemu", 512, "surplus: 5s, booting: 2m, registering: 2m, unnamed: 30s"
	}
	return fmt.Sprintf(`database: minifleet.db
log_level: debug
webhook: {address: "127.0.0.1:0"}
agents: {address: "127.0.0.1:0"}
admin: {address: "127.0.0.1:0", token_file: admin.token}
github:
  url: %s
  app_id: %d
  private_key_file: app.pem
  webhook_secret_file: webhook.secret
timing: {host_deadline: 20s, repair: 5s, end_grace: 5s}
pools:
  - name: demo
    labels: [%s]
    scopes: [%s/%s]
    image: %s
    backend: %s
    cpus: 1
    memory_mib: %d
    limits: {%s}
`, s.sim.BaseURL, app, strings.Join(poolLabels(), ", "), owner, repo, s.image, backend, memory, limits)
}

func (s *site) agentDir(i int) string { return filepath.Join(s.dir, fmt.Sprintf("a%d", i+1)) }

func (s *site) startAgent(ctx context.Context, i int) error {
	dir := s.agentDir(i)
	name := fmt.Sprintf("mini-%d", i+1)
	config := dir + ".yaml"
	if _, err := os.Stat(config); errors.Is(err, os.ErrNotExist) {
		token, err := s.enrolment(ctx, name)
		if err != nil {
			return err
		}
		if err := os.WriteFile(dir+".token", []byte(token.Reveal()), 0o600); err != nil {
			return err
		}
		machines := "backend: process\nboot_delay: 300ms\n"
		if s.real() {
			github := strings.TrimPrefix(s.sim.BaseURL, "http://")
			machines = fmt.Sprintf("backend: qemu\nqemu: {network: isolated, forwards: [{guest: %q, host: %q}]}\n", guestGitHub, github)
		}
		text := fmt.Sprintf("controller: %s\nname: %s\nstate_dir: %s\nenrolment_token_file: %s\nslots: %d\nallow_copy: true\nimages_dir: %s\n%slog_level: debug\n",
			s.server.said["agents"], name, dir, dir+".token", s.Slots, s.imagesDir(), machines)
		if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
			return err
		}
	}
	p, err := start(ctx, name, filepath.Join(s.dir, "log"), nil, filepath.Join(s.Programs, "minifleet-agent"), "run", "--config", config)
	if err != nil {
		return err
	}
	if i < len(s.agents) {
		s.agents[i] = p
	} else {
		s.agents = append(s.agents, p)
	}
	return nil
}

func (s *site) enrolment(ctx context.Context, name string) (secret.Text, error) {
	res, err := s.api.CreateEnrolmentToken(ctx, api.EnrolmentRequest{HostName: name})
	if err != nil {
		return secret.Text{}, err
	}
	defer res.Body.Close()
	var out struct {
		Token string `json:"token"`
	}
	if err := json.NewDecoder(io.LimitReader(res.Body, 64<<10)).Decode(&out); err != nil || out.Token == "" {
		return secret.Text{}, fmt.Errorf("enrolment token: the controller answered %s: %w", res.Status, err)
	}
	return secret.New(out.Token), nil
}

// hostsOnline waits until every agent has said hello.
func (s *site) hostsOnline(ctx context.Context) error {
	return s.until(ctx, patience, "all agents are online", func() (bool, error) {
		for _, a := range s.agents {
			select {
			case <-a.done:
				return false, fmt.Errorf("%s ended: %w:\n%s", a.name, a.exit(), a.tail())
			default:
			}
		}
		hosts, err := s.hosts(ctx)
		online := 0
		for _, h := range hosts {
			if h.State == api.HostStateOnline {
				online++
			}
		}
		return online == s.Agents, err
	})
}

// until asks a question every 50 ms.
func (s *site) until(ctx context.Context, atMost time.Duration, what string, ask func() (bool, error)) error {
	ctx, cancel := context.WithTimeoutCause(ctx, atMost, fmt.Errorf("%s: not within %s", what, atMost))
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		ok, err := ask()
		if ok || (err != nil && ctx.Err() == nil) {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
