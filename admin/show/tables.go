// SPDX-License-Identifier: MIT

package show

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/minifleet/minifleet/admin/api"
)

// Jobs prints a table of jobs; the age is that of the state.
func Jobs(w io.Writer, jobs []api.Job, now time.Time) error {
	if len(jobs) == 0 {
		return say(w, "no jobs: GitHub has announced none, or none matches")
	}
	rows := make([][]string, len(jobs))
	for i, j := range jobs {
		rows[i] = []string{
			strconv.FormatInt(j.ID, 10), j.Repository, joined(" / ", j.Workflow, j.Name), string(j.State),
			age(jobSince(j), now), firstOf(j.RunnerName, j.Wait.Runner), firstOf(j.Wait.Reason, joined(": ", j.Conclusion, j.Refused)),
		}
	}
	return table(w, []string{"ID", "REPOSITORY", "JOB", "STATE", "AGE", "RUNNER", "WHY"}, rows)
}

func jobSince(j api.Job) time.Time {
	at := j.HeardAt
	switch j.State {
	case api.JobStateQueued:
		at = j.QueuedAt
	case api.JobStateInProgress:
		at = j.StartedAt
	case api.JobStateCompleted:
		at = j.CompletedAt
	}
	if at.IsZero() {
		return j.HeardAt
	}
	return at
}

// Runners prints a table of runners; the age is that of the phase.
func Runners(w io.Writer, runners []api.Runner, now time.Time) error {
	if len(runners) == 0 {
		return say(w, "no runners: no job needs one, or none matches")
	}
	rows := make([][]string, len(runners))
	for i, r := range runners {
		job := ""
		if r.Job != 0 {
			job = strconv.FormatInt(r.Job, 10)
		}
		rows[i] = []string{
			r.ID, r.Pool, firstOf(r.HostName, r.Host), string(r.Phase), age(r.Since, now), job,
			firstOf(r.Failure, r.JobRefused, r.Retired, r.Progress, r.Result, r.Reason),
		}
	}
	return table(w, []string{"ID", "POOL", "HOST", "PHASE", "AGE", "JOB", "NOTE"}, rows)
}

// RunnersWide is Runners with their versions, images and names at GitHub.
func RunnersWide(w io.Writer, runners []api.Runner, now time.Time) error {
	if len(runners) == 0 {
		return Runners(w, runners, now)
	}
	rows := make([][]string, len(runners))
	for i, r := range runners {
		rows[i] = []string{
			r.ID, r.Pool, firstOf(r.HostName, r.Host), string(r.Phase), age(r.Since, now), r.Version, r.Image, r.Scope, r.RunnerName,
			firstOf(r.Failure, r.JobRefused, r.Retired, r.Progress, r.Result, r.Reason),
		}
	}
	return table(w, []string{"ID", "POOL", "HOST", "PHASE", "AGE", "VERSION", "IMAGE", "SCOPE", "AT GITHUB", "NOTE"}, rows)
}

// runnerAge is a pool's runner in short.
func runnerAge(h api.RunnerHealth) string {
	switch {
	case h.Refused:
		return firstOf(h.Version, "?") + " (REFUSED)"
	case h.Age == api.RunnerHealthAgeOld || h.Age == api.RunnerHealthAgeTooOld:
		return h.Version + " (" + strings.ToUpper(strings.ReplaceAll(string(h.Age), "_", " ")) + ")"
	}
	return h.Version
}

// Hosts prints a table of hosts.
func Hosts(w io.Writer, hosts []api.Host, now time.Time) error {
	if len(hosts) == 0 {
		return say(w, "no hosts: let one join with an enrolment token")
	}
	rows := make([][]string, len(hosts))
	for i, h := range hosts {
		seen := "never"
		if !h.SeenAt.IsZero() {
			seen = age(h.SeenAt, now) + " ago"
		}
		failed := ""
		if h.Failures > 0 {
			failed = fmt.Sprintf("failures in a row: %d", h.Failures)
		}
		rows[i] = []string{
			h.ID, h.Name, string(h.State), seen, fmt.Sprintf("%d of %d", h.FreeSlots, h.Slots),
			joined("/", h.OS, h.Arch), h.AgentVersion, images(h), joined("; ", h.Degraded, failed, failedImages(h)),
		}
	}
	return table(w, []string{"ID", "NAME", "STATE", "SEEN", "FREE SLOTS", "SYSTEM", "AGENT", "IMAGES", "NOTE"}, rows)
}

// Pools prints a table of pools.
func Pools(w io.Writer, pools []api.Pool, _ time.Time) error {
	if len(pools) == 0 {
		return say(w, "no pools: the controller's configuration has none, or none matches")
	}
	rows := make([][]string, len(pools))
	for i, p := range pools {
		most := "slots"
		if p.MaxRunners > 0 {
			most = strconv.Itoa(p.MaxRunners)
		}
		rows[i] = []string{
			p.Name, strings.Join(p.Labels, ","), strings.Join(p.Scopes, ","), p.Image,
			strconv.Itoa(p.Standby), most, counts(p.Runners), runnerAge(p.Runner), rolling(p.Rollout),
		}
	}
	return table(w, []string{"NAME", "LABELS", "SCOPES", "IMAGE", "STANDBY", "MAX", "RUNNERS", "RUNNER", "ROLLOUT"}, rows)
}

// counts lists how many runners are in each phase, the most first.
func counts(byPhase map[string]int) string {
	phases := slices.SortedFunc(maps.Keys(byPhase), func(a, b string) int {
		if n := byPhase[b] - byPhase[a]; n != 0 {
			return n
		}
		return strings.Compare(a, b)
	})
	parts := make([]string, len(phases))
	for i, phase := range phases {
		parts[i] = fmt.Sprintf("%d %s", byPhase[phase], phase)
	}
	return strings.Join(parts, ", ")
}

// Deliveries prints a table of deliveries.
func Deliveries(w io.Writer, deliveries []api.Delivery, now time.Time) error {
	if len(deliveries) == 0 {
		return say(w, "no deliveries: GitHub has sent none, or none matches")
	}
	rows := make([][]string, len(deliveries))
	for i, d := range deliveries {
		rows[i] = []string{
			d.GUID, joined(".", d.Event, d.Action), d.Repository, age(d.ReceivedAt, now),
			strconv.Itoa(d.Times), string(d.Status), d.Reason,
		}
	}
	return table(w, []string{"GUID", "EVENT", "REPOSITORY", "AGE", "TIMES", "STATUS", "REASON"}, rows)
}

// Timeline prints the phases of a runner and how long each took.
func Timeline(w io.Writer, t api.Timeline, now time.Time) error {
	r := t.Runner
	if err := say(w, fmt.Sprintf("runner %s of pool %s at host %s: %s%s", r.ID, r.Pool, firstOf(r.HostName, r.Host, "-"), r.Phase, madeFrom(r))); err != nil {
		return err
	}
	if len(t.Moments) == 0 {
		return say(w, "nothing is recorded of its way")
	}
	rows := make([][]string, len(t.Moments))
	for i, m := range t.Moments {
		took := ""
		switch {
		case i+1 < len(t.Moments):
			took = exact(t.Moments[i+1].At.Sub(m.At))
		case m.Phase != api.PhaseGone:
			took = exact(now.Sub(m.At)) + " so far"
		}
		rows[i] = []string{m.At.UTC().Format("2006-01-02 15:04:05.000Z"), string(m.Phase), took, m.Detail}
	}
	if err := table(w, []string{"AT", "PHASE", "TOOK", "DETAIL"}, rows); err != nil || len(r.Steps) == 0 {
		return err
	}
	if err := say(w, "measured by the host:"); err != nil {
		return err
	}
	return steps(w, r.Steps)
}

// steps prints how long each step took and its share of them all.
func steps(w io.Writer, list []api.StepTime) error {
	total := stepsTotal(list)
	rows := make([][]string, len(list), len(list)+1)
	for i, s := range list {
		rows[i] = []string{string(s.Step), exact(stepTook(s)), share(stepTook(s), total)}
	}
	rows = append(rows, []string{"all", exact(total), "100 %"})
	return table(w, []string{"STEP", "TOOK", "SHARE"}, rows)
}

// stepsLine is the same in one line, the longest first.
func stepsLine(list []api.StepTime) string {
	total := stepsTotal(list)
	list = slices.SortedStableFunc(slices.Values(list), func(a, b api.StepTime) int { return cmp.Compare(b.Microseconds, a.Microseconds) })
	parts := make([]string, len(list))
	for i, s := range list {
		parts[i] = fmt.Sprintf("%s %s (%s)", s.Step, exact(stepTook(s)), share(stepTook(s), total))
	}
	return strings.Join(parts, ", ")
}

func stepTook(s api.StepTime) time.Duration { return time.Duration(s.Microseconds) * time.Microsecond }

func stepsTotal(list []api.StepTime) (sum time.Duration) {
	for _, s := range list {
		sum += stepTook(s)
	}
	return sum
}

// share is a part of a whole in percent.
func share(part, whole time.Duration) string {
	if whole <= 0 {
		return "-"
	}
	return fmt.Sprintf("%.1f %%", 100*part.Seconds()/whole.Seconds())
}

// exact is a duration as a timeline needs it: a boot takes seconds, and their
// fractions matter.
func exact(d time.Duration) string {
	d = max(0, d)
	switch {
	case d < 10*time.Millisecond:
		return d.Round(10 * time.Microsecond).String()
	case d < time.Minute:
		return d.Round(time.Millisecond).String()
	}
	return d.Round(time.Second).String()
}

// Explanation prints why a job is where it is.
func Explanation(w io.Writer, e api.Explanation, now time.Time) error {
	j := e.Job
	state := string(j.State)
	if a := age(e.Since, now); a != "" {
		state += " for " + a
	}
	if j.State == api.JobStateCompleted {
		state = string(j.State) + " " + age(e.Since, now) + " ago"
	}
	lines := []string{
		fmt.Sprintf("job %d: %s, %s", j.ID, j.Repository, joined(" / ", j.Workflow, j.Name)),
		"labels: " + strings.Join(j.Labels, ", "),
		"state: " + state,
		"why: " + e.Reason,
	}
	if j.Wait.Code != "" {
		lines[3] += " (" + string(j.Wait.Code) + ")"
	}
	if r := e.Runner; r.ID != "" {
		lines = append(lines, fmt.Sprintf("runner: %s at host %s, %s for %s%s", r.ID, firstOf(r.HostName, r.Host, "-"), r.Phase, age(r.Since, now), madeFrom(r)))
		if len(r.Steps) > 0 {
			lines = append(lines, "its time: "+stepsLine(r.Steps))
		}
	}
	for _, alarm := range e.Alarms {
		lines = append(lines, "alarm: "+alarm)
	}
	for _, line := range lines {
		if err := say(w, line); err != nil {
			return err
		}
	}
	return nil
}

func say(w io.Writer, line string) error {
	_, err := fmt.Fprintln(w, clean(line, 0))
	return err
}
