// SPDX-License-Identifier: MIT

package site_test

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/minifleet/minifleet/githubapp/githubsim"
	"github.com/minifleet/minifleet/internal/keepport"
)

const operatorToken = "the-operators-own-token"

// site is a site whose programs the test starts, kills and stops one by one. Its
// GitHub misbehaves as it does by default.
type site struct {
	t      *testing.T
	whole  *testing.T // while t is a part of it: programs outlast the part
	dir    string
	ctx    context.Context // ends before the test does
	sim    githubsim.Control
	config string // the controller's

	programs  string   // the folder of the programs
	env       []string // what they get beside their usual environment
	slots     int      // of each agent
	noMoreVMs func()   // lets those of other tests run; nil for ordinary processes
	vms       machines // what the runners are in; ordinary processes if open finds none

	webhook, agents, admin string // addresses, the same after a restart
	installation           int64  // of the App on octo
	redelivered            map[int64]bool
	fates                  map[int64]string // how jobs end that do not succeed
}

func newSite(t *testing.T, githubArgs ...string) *site {
	t.Helper()
	dir := folder(t)
	github := launch(t, dir, "minifleet", nil, append([]string{"githubsim"}, githubArgs...)...)
	return newSiteAt(t, dir, github.announced("github"))
}

// newSiteAt makes a site of a simulated GitHub that runs.
func newSiteAt(t *testing.T, dir, github string) *site {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*patience)
	t.Cleanup(cancel)
	s := &site{t: t, dir: dir, ctx: ctx, programs: programs(t), slots: 2}
	s.open(github)
	return s
}

// machines is a kind of VMs, as the configurations have it.
type machines struct {
	pool      string // of the controller's one pool: image, backend, size
	imagesDir string
	agent     string // further lines of an agent's
}

// processMachines are ordinary processes, made of the image that the site has in dir.
func processMachines(dir string) machines {
	return machines{
		pool:      "image: demo\n    backend: process\n    cpus: 1\n    memory_mib: 256",
		imagesDir: filepath.Join(dir, "images"),
		agent:     "backend: process\nboot_delay: 100ms\n",
	}
}

// open writes down what the programs of the site need.
func (s *site) open(github string) {
	t, ctx := s.t, s.ctx
	t.Helper()
	if s.vms == (machines{}) {
		s.vms = processMachines(s.dir)
		s.image()
	}
	s.sim, s.redelivered, s.fates = githubsim.Control{BaseURL: github}, map[int64]bool{}, map[int64]string{}
	var err error
	if s.installation, err = s.sim.AddInstallation(ctx, githubsim.Installation{Account: "octo", Repositories: []string{"demo"}}); err != nil {
		t.Fatal(err)
	}
	app, err := s.sim.App(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"app.pem": app.PrivateKeyPEM, "webhook.secret": app.WebhookSecret, "admin.token": operatorToken} {
		s.file(name, text)
	}
	s.config = fmt.Sprintf(`database: minifleet.db
log_level: debug
webhook: {address: "WEBHOOK"}
agents: {address: "AGENTS"}
admin: {address: "ADMIN", token_file: admin.token}
github: {url: %q, app_id: %d, private_key_file: app.pem, webhook_secret_file: webhook.secret}
timing: {host_deadline: 20s, repair: 1s, end_grace: 5s}
pools:
  - name: demo
    labels: [self-hosted, macOS, demo]
    scopes: [octo/demo]
    %s
    limits: {surplus: 1s, booting: 30s, registering: 30s, unnamed: 20s}
`, s.sim.BaseURL, app.ID, s.vms.pool)
}

// unhurried gives the runners what emulated processors need, or a busy machine where each
// runner is counted.
func (s *site) unhurried() {
	s.config = strings.Replace(s.config, "booting: 30s, registering: 30s", "booting: 2m, registering: 2m", 1)
}

func (s *site) launch(name string, args ...string) *program {
	s.t.Helper()
	return launch(cmp.Or(s.whole, s.t), s.dir, filepath.Join(s.programs, name), s.env, args...)
}

func (s *site) path(elements ...string) string {
	return filepath.Join(append([]string{s.dir}, elements...)...)
}

func (s *site) file(name, text string) string {
	s.t.Helper()
	if err := os.WriteFile(s.path(name), []byte(text), 0o600); err != nil {
		s.t.Fatal(err)
	}
	return s.path(name)
}

// image makes the image that the process backend clones.
func (s *site) image() {
	s.t.Helper()
	bin := s.path("images", "demo", "root", "runner", "bin")
	if err := os.MkdirAll(bin, 0o755); err != nil {
		s.t.Fatal(err)
	}
	client, err := os.ReadFile(os.Getenv(runnerEnv))
	if err != nil {
		s.t.Fatal(err)
	}
	for path, content := range map[string][]byte{
		filepath.Join(bin, "Runner.Listener"):  client,
		s.path("images", "demo", "image.json"): fmt.Appendf(nil, `{"schema": 1, "name": "demo", "guest_os": %q, "description": "a runner and nothing else"}`, runtime.GOOS),
	} {
		if err := os.WriteFile(path, content, 0o755); err != nil {
			s.t.Fatal(err)
		}
	}
}

// startController starts the controller: at any addresses the first time, at the same
// ones from then on, which are kept for it meanwhile.
func (s *site) startController() *program {
	s.t.Helper()
	address := func(url string) string {
		if url == "" {
			return keepport.Address(cmp.Or(s.whole, s.t))
		}
		return strings.TrimPrefix(url, "http://")
	}
	text := strings.NewReplacer("WEBHOOK", address(s.webhook), "AGENTS", address(s.agents), "ADMIN", address(s.admin)).Replace(s.config)
	p := s.launch("minifleet", "serve", "--config", s.file("controller.yaml", text))
	s.webhook, s.agents, s.admin = p.announced("webhook"), p.announced("agents"), p.announced("admin")
	if err := s.sim.SetWebhook(s.ctx, githubsim.Webhook{URL: s.webhook + "/webhook"}); err != nil {
		s.t.Fatal(err)
	}
	return p
}

// row is what these tests read of a host, runner or job.
type row struct {
	ID      any    `json:"id"`
	Name    string `json:"name"`
	State   string `json:"state"`
	Phase   string `json:"phase"`
	Failure string `json:"failure"`

	Attempts int `json:"attempts"`

	Job   int64  `json:"job"`   // of a runner
	Image string `json:"image"` // of a runner: what it was made of
}

// list asks the controller's API.
func (s *site) list(what string) []row {
	s.t.Helper()
	req, err := http.NewRequestWithContext(s.ctx, http.MethodGet, s.admin+"/api/v1/"+what, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+operatorToken)
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	defer res.Body.Close()
	var page struct {
		Items []row `json:"items"`
	}
	if err := json.NewDecoder(res.Body).Decode(&page); err != nil || res.StatusCode != http.StatusOK {
		s.t.Fatalf("%s: %s %v", what, res.Status, err)
	}
	return page.Items
}

// hostToken makes an enrolment token with the operator's program.
func (s *site) hostToken(name string) string {
	s.t.Helper()
	cmd := s.operator("host", "token", "--name", name)
	var complaint bytes.Buffer
	cmd.Stderr = &complaint
	out, err := cmd.Output()
	if err != nil {
		s.t.Fatalf("minifleet host token: %v\n%s", err, &complaint)
	}
	return string(out)
}

// operator is a command of the operator's program.
func (s *site) operator(args ...string) *exec.Cmd {
	return s.tool(append(args, "--server", s.admin)...)
}

// tool is a command of the operator's program that needs no controller.
func (s *site) tool(args ...string) *exec.Cmd {
	cmd := exec.CommandContext(s.ctx, filepath.Join(s.programs, "minifleet"), args...)
	cmd.Env = append(append(os.Environ(), s.env...), "MINIFLEET_TOKEN="+operatorToken)
	return cmd
}

// agentConfig writes the configuration of an agent with a fresh enrolment token.
func (s *site) agentConfig(name string) string {
	s.t.Helper()
	return s.file(name+".yaml", fmt.Sprintf("controller: %s\nname: %s\nstate_dir: %s\nenrolment_token_file: %s\nslots: %d\nallow_copy: true\nimages_dir: %s\n%slog_level: debug\n",
		s.agents, name, s.path(name), s.file(name+".token", s.hostToken(name)), s.slots, s.vms.imagesDir, s.vms.agent))
}

func (s *site) startAgent(name string) *program {
	s.t.Helper()
	p := s.launch("minifleet-agent", "run", "--config", s.agentConfig(name))
	s.online(p, name)
	return p
}

// online waits until an agent has said hello.
func (s *site) online(agent *program, name string) {
	s.t.Helper()
	eventually(s.t, name+" is online", func() bool {
		select {
		case <-agent.done:
			s.t.Fatalf("the agent of %s ended: %v", name, agent.err)
		default:
		}
		return slices.ContainsFunc(s.list("hosts"), func(h row) bool { return h.Name == name && h.State == "online" })
	})
}

func (s *site) queue(jobs ...githubsim.JobSpec) []int64 {
	s.t.Helper()
	for i := range jobs {
		jobs[i].Labels = []string{"self-hosted", "demo"}
	}
	r, err := s.sim.QueueRun(s.ctx, githubsim.Workflow{Repo: "octo/demo", Jobs: jobs})
	if err != nil {
		s.t.Fatal(err)
	}
	return r.JobIDs
}

func (s *site) job(id int64) githubsim.Job {
	s.t.Helper()
	j, err := s.sim.Job(s.ctx, id)
	if err != nil {
		s.t.Fatal(err)
	}
	return j
}

// untilJob waits until a job is as wanted.
func (s *site) untilJob(id int64, what string, ok func(githubsim.Job) bool) githubsim.Job {
	s.t.Helper()
	var j githubsim.Job
	eventually(s.t, what, func() bool {
		j = s.job(id)
		return ok(j)
	})
	return j
}

// untilEnd waits until a job has ended, redelivering whatever does not arrive meanwhile.
func (s *site) untilEnd(id int64, what string) githubsim.Job {
	s.t.Helper()
	return s.untilJob(id, what, func(j githubsim.Job) bool {
		s.redeliver()
		return j.Done()
	})
}

// redeliver has GitHub send again whatever has not arrived, as its operator can.
func (s *site) redeliver() {
	s.t.Helper()
	all, err := s.sim.Deliveries(s.ctx)
	if err != nil {
		s.t.Fatal(err)
	}
	arrived := map[string]bool{}
	for _, d := range all {
		arrived[d.GUID] = arrived[d.GUID] || d.StatusCode/100 == 2
	}
	for _, d := range all {
		if arrived[d.GUID] || s.redelivered[d.ID] {
			continue
		}
		s.redelivered[d.ID] = true
		if err := s.sim.Redeliver(s.ctx, d.ID); err != nil {
			s.t.Fatal(err)
		}
	}
}

// leftovers names what should be gone and is not: at GitHub, in the books, on hosts.
func (s *site) leftovers() []string {
	s.t.Helper()
	left := []string{}
	registered, err := s.sim.Runners(s.ctx)
	if err != nil {
		s.t.Fatal(err)
	}
	for _, r := range registered {
		if r.RemovedAt.IsZero() {
			left = append(left, "registration "+r.Name)
		}
	}
	for _, r := range s.list("runners") {
		left = append(left, fmt.Sprintf("runner %v: %s", r.ID, r.Phase))
	}
	bundles, err := filepath.Glob(s.path("*", "vms", "*"))
	if err != nil {
		s.t.Fatal(err)
	}
	return append(left, bundles...)
}

// nothingLeft waits until every runner is gone everywhere.
func (s *site) nothingLeft() {
	s.t.Helper()
	var left []string
	defer func() {
		if s.t.Failed() && len(left) > 0 {
			s.t.Logf("left over:\n  %s", strings.Join(left, "\n  "))
		}
	}()
	eventually(s.t, "every runner is gone", func() bool {
		left = s.leftovers()
		return len(left) == 0
	})
}

// ticking is a job that prints a number every 200 ms: that none is missing proves
// that nothing interrupted it.
func ticking(name string, ticks int) githubsim.JobSpec {
	return githubsim.JobSpec{Name: name, Steps: []githubsim.Step{
		{Name: "Tick", Run: fmt.Sprintf(`i=0; while [ $i -lt %d ]; do i=$((i+1)); echo "tick $i."; sleep 0.2; done`, ticks)},
		{Name: "End", Run: `echo "ran to the end"`},
	}}
}

// held is a step that goes on, and says so, until a file is in the site's folder: what a test
// does beside the job lasts as long as it lasts. No VM sees that folder.
func (s *site) held(file string) githubsim.Step {
	return githubsim.Step{Name: "Hold", Run: fmt.Sprintf(`until [ -e '%s' ]; do echo "it is held"; sleep 0.2; done`, s.path(file))}
}

// complete checks the log of such a job.
func complete(t *testing.T, j githubsim.Job, ticks int) {
	t.Helper()
	at := 0
	for i := range ticks {
		word := fmt.Sprintf("tick %d.", i+1)
		next := strings.Index(j.Logs[at:], word)
		if next < 0 {
			t.Errorf("%s: %q is not in its log, or out of order", j.Name, word)
			return
		}
		at += next
	}
	if j.Conclusion != "success" || !strings.Contains(j.Logs[at:], "ran to the end") {
		t.Errorf("%s: %s, and its log ends so:\n%s", j.Name, j.Conclusion, j.Logs[at:])
	}
}
