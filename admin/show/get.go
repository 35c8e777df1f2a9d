// SPDX-License-Identifier: MIT

package show

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/minifleet/minifleet/admin/api"
	"github.com/minifleet/minifleet/secret"
)

// What Get can show. Explain wants a job's id, Timeline a runner's.
const (
	KindJobs       = "jobs"
	KindRunners    = "runners"
	KindHosts      = "hosts"
	KindPools      = "pools"
	KindDeliveries = "deliveries"
	KindExplain    = "explain"
	KindTimeline   = "timeline"
)

// How Get can show it.
const (
	OutputTable = "table"
	OutputJSON  = "json"
	OutputWide  = "wide" // a table with more columns, of what has more
)

// Kinds lists what Get can show.
func Kinds() []string {
	return []string{KindJobs, KindRunners, KindHosts, KindPools, KindDeliveries, KindExplain, KindTimeline}
}

// Options say what to get and how to show it.
type Options struct {
	Server       string       // URL of the controller
	Token        secret.Text  // of the operator
	TokenSetting string       // where the caller took the token from, for errors; "" says "the token"
	HTTP         *http.Client // nil is a plain client with a timeout of 30 seconds

	Kind    string // one of Kinds
	ID      string // for explain and timeline
	Filters Filters
	Limit   int // most rows; 0 means 100

	Output string           // table or json; "" means table
	Out    io.Writer        // required
	Now    func() time.Time // for ages; nil means time.Now
}

// Get asks the controller and prints its answer.
func Get(ctx context.Context, o Options) error {
	o, err := o.checked()
	if err != nil {
		return err
	}
	client, err := api.Connect(o.Server, o.Token, o.HTTP)
	if err != nil {
		return err
	}
	g := getter{Options: o, client: client}
	f := o.Filters
	switch o.Kind {
	case KindJobs:
		return printList(ctx, g, Jobs, func(limit *int, cursor *string) (*http.Response, error) {
			return client.ListJobs(ctx, &api.ListJobsParams{
				State: as[api.JobState](f.State), Repository: set(f.Repository), RunID: set(f.RunID), Limit: limit, Cursor: cursor,
			})
		})
	case KindRunners:
		table := Runners
		if o.Output == OutputWide {
			table = RunnersWide
		}
		return printList(ctx, g, table, func(limit *int, cursor *string) (*http.Response, error) {
			return client.ListRunners(ctx, &api.ListRunnersParams{
				Pool: set(f.Pool), Host: set(f.Host), Phase: as[api.Phase](f.Phase), All: set(f.All), Limit: limit, Cursor: cursor,
			})
		})
	case KindHosts:
		return printList(ctx, g, Hosts, func(limit *int, cursor *string) (*http.Response, error) {
			return client.ListHosts(ctx, &api.ListHostsParams{
				State: set(api.HostState(strings.Join(f.State, ","))), Limit: limit, Cursor: cursor,
			})
		})
	case KindPools:
		return printList(ctx, g, Pools, func(limit *int, cursor *string) (*http.Response, error) {
			return client.ListPools(ctx, &api.ListPoolsParams{Repository: set(f.Repository), Limit: limit, Cursor: cursor})
		})
	case KindDeliveries:
		return printList(ctx, g, Deliveries, func(limit *int, cursor *string) (*http.Response, error) {
			return client.ListDeliveries(ctx, &api.ListDeliveriesParams{Status: set(api.DeliveryStatus(f.Status)), Limit: limit, Cursor: cursor})
		})
	case KindExplain:
		id, err := strconv.ParseInt(o.ID, 10, 64)
		if err != nil || id < 1 {
			return fmt.Errorf("job id %q: want GitHub's id, a whole number, as `minifleet get jobs` lists it", o.ID)
		}
		return printOne(g, Explanation, func() (*http.Response, error) { return client.ExplainJob(ctx, id) })
	default: // KindTimeline: checked
		return printOne(g, Timeline, func() (*http.Response, error) { return client.GetRunnerTimeline(ctx, o.ID) })
	}
}

func (o Options) checked() (Options, error) {
	var errs []error
	if !slices.Contains(Kinds(), o.Kind) {
		errs = append(errs, fmt.Errorf("%q cannot be shown: want one of %s", o.Kind, strings.Join(Kinds(), ", ")))
	}
	if o.Output == "" {
		o.Output = OutputTable
	}
	if o.Output != OutputTable && o.Output != OutputJSON && o.Output != OutputWide {
		errs = append(errs, fmt.Errorf("output %q: want table, wide or json", o.Output))
	}
	if o.Limit < 0 {
		errs = append(errs, fmt.Errorf("limit %d: want a whole number from 1", o.Limit))
	}
	if o.Kind == KindTimeline && !plainID(o.ID) {
		errs = append(errs, fmt.Errorf("runner id %q: want an id as `minifleet get runners` lists it", o.ID))
	}
	if o.Limit == 0 {
		o.Limit = 100
	}
	if o.TokenSetting == "" {
		o.TokenSetting = "the token"
	}
	if o.Token.Empty() {
		errs = append(errs, fmt.Errorf("no operator token: set %s to the one in the controller's configuration", o.TokenSetting))
	}
	if o.Out == nil {
		errs = append(errs, errors.New("show: no writer to print to"))
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	return o, errors.Join(append(errs, o.Filters.check(o.Kind))...)
}

// plainID reports whether an id can stand in a URL path as it is.
func plainID(id string) bool {
	return id != "" && id != "." && id != ".." && !strings.ContainsFunc(id, func(r rune) bool {
		return r != '-' && r != '_' && r != '.' && (r < '0' || r > '9') && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z')
	})
}

// Filters narrow a listing. An empty field selects all.
type Filters struct {
	State      []string // of jobs, or one of hosts
	Repository string   // owner/name, of jobs and pools
	RunID      int64    // of jobs
	Pool       string   // of runners
	Host       string   // id or name, of runners
	Phase      []string // of runners
	All        bool     // runners of the past too
	Status     string   // of deliveries
}

// check refuses a filter that the kind does not have, which would otherwise be
// lost without a word. Whether a value is good is for the API to say.
func (f Filters) check(kind string) error {
	var errs []error
	for _, filter := range []struct {
		name  string
		given bool
		kinds []string
	}{
		{"state", len(f.State) > 0, []string{KindJobs, KindHosts}},
		{"repository", f.Repository != "", []string{KindJobs, KindPools}},
		{"run", f.RunID != 0, []string{KindJobs}},
		{"pool", f.Pool != "", []string{KindRunners}},
		{"host", f.Host != "", []string{KindRunners}},
		{"phase", len(f.Phase) > 0, []string{KindRunners}},
		{"all", f.All, []string{KindRunners}},
		{"status", f.Status != "", []string{KindDeliveries}},
	} {
		if filter.given && !slices.Contains(filter.kinds, kind) {
			errs = append(errs, fmt.Errorf("the filter %q is for %s, not for %s", filter.name, strings.Join(filter.kinds, " and "), kind))
		}
	}
	return errors.Join(errs...)
}

// as makes words the values of a parameter, none if there are none.
func as[T ~string](words []string) *[]T {
	if len(words) == 0 {
		return nil
	}
	out := make([]T, len(words))
	for i, w := range words {
		out[i] = T(w)
	}
	return &out
}

// set makes a value that of a parameter, none if it is zero.
func set[T comparable](value T) *T {
	var zero T
	if value == zero {
		return nil
	}
	return &value
}

// indent writes JSON for people to read.
func indent(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(v)
}
