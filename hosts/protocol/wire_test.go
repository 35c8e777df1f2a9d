// SPDX-License-Identifier: MIT

package protocol_test

import (
	"bytes"
	"encoding/json"
	"go/ast"
	"go/parser"
	"go/token"
	"reflect"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/minifleet/minifleet/hosts/protocol"
	"github.com/minifleet/minifleet/trust"
)

// golden is every wire type, filled and empty, with its JSON. A change here is a
// change of the protocol between agents and controllers of different versions.
var golden = []struct {
	name string
	v    any
	full string
	zero string
}{
	{
		"Error",
		protocol.Error{Message: "m", Code: protocol.CodeLater},
		`{"error":"m","code":"later"}`, `{"error":""}`,
	},
	{
		"Enrol",
		protocol.Enrol{Token: "t", CredentialHash: "h", Name: "n", Machine: "m"},
		`{"token":"t","credential_hash":"h","name":"n","machine":"m"}`, `{"token":"","credential_hash":"","name":"","machine":""}`,
	},
	{
		"Enrolled",
		protocol.Enrolled{Host: "h", Name: "n", Site: "s"},
		`{"host":"h","name":"n","site":"s"}`, `{"host":"","name":"","site":""}`,
	},
	{
		"Hello",
		protocol.Hello{Instance: "i", Machine: "m", Facts: protocol.Facts{Slots: 2}},
		`{"instance":"i","machine":"m","facts":{"slots":2,"backends":null,"images":null,"os":"","arch":"","agent_version":""}}`,
		`{"instance":"","machine":"","facts":{"slots":0,"backends":null,"images":null,"os":"","arch":"","agent_version":""}}`,
	},
	{
		"Facts",
		protocol.Facts{
			Slots: 2, Backends: []string{"vz"}, Images: []string{"a", "b"}, OS: "darwin", Arch: "arm64", AgentVersion: "1.2.3", Degraded: "disk",
			PeerAddress: "192.0.2.1:7443", PeerPin: "p", PeerGroup: "default",
		},
		`{"slots":2,"backends":["vz"],"images":["a","b"],"os":"darwin","arch":"arm64","agent_version":"1.2.3","degraded":"disk","peer_address":"192.0.2.1:7443","peer_pin":"p","peer_group":"default"}`,
		`{"slots":0,"backends":null,"images":null,"os":"","arch":"","agent_version":""}`,
	},
	{
		"Welcome",
		protocol.Welcome{Site: "s", Epoch: 2, Host: "h", Name: "n", PollSeconds: 20, LeaseSeconds: 600, PeerKey: "k"},
		`{"site":"s","epoch":2,"host":"h","name":"n","poll_seconds":20,"lease_seconds":600,"peer_key":"k"}`,
		`{"site":"","epoch":0,"host":"","name":"","poll_seconds":0,"lease_seconds":0}`,
	},
	{
		"Desired",
		protocol.Desired{
			Site: "s", Epoch: 2, Revision: 1 << 53, Runners: []protocol.Desire{}, Images: []protocol.Prefetch{{Image: "i"}},
			Peers: []protocol.Peer{{Address: "a", Pin: "p"}}, PeerToken: "t", PeerKey: "k",
		},
		`{"site":"s","epoch":2,"revision":9007199254740992,"runners":[],"images":[{"image":"i"}],"peers":[{"address":"a","pin":"p"}],"peer_token":"t","peer_key":"k"}`,
		`{"site":"","epoch":0,"revision":0,"runners":null}`,
	},
	{
		"Prefetch",
		protocol.Prefetch{Image: "i", BytesPerSecond: 1 << 40, Hold: true},
		`{"image":"i","bytes_per_second":1099511627776,"hold":true}`, `{"image":""}`,
	},
	{"Peer", protocol.Peer{Address: "a", Pin: "p"}, `{"address":"a","pin":"p"}`, `{"address":"","pin":""}`},
	{
		"ImageReport",
		protocol.ImageReport{Image: "i", Digest: "d", State: protocol.ImageFetching, DoneBytes: 1, TotalBytes: 2, FetchedBytes: 3, Failure: "f"},
		`{"image":"i","digest":"d","state":"fetching","done_bytes":1,"total_bytes":2,"fetched_bytes":3,"failure":"f"}`, `{"image":"","digest":"","state":""}`,
	},
	{
		"Desire",
		protocol.Desire{
			ID: "r-1", Wanted: protocol.WantGone, UnlessBusy: true, Scope: "acme/app", Pool: "mac", Image: "sonoma", Backend: "vz",
			CPUs: 4, MemoryMiB: 8192, EndGraceSeconds: 30, Guest: "ssh", Network: "nat",
			Runner: protocol.RunnerArchive{URL: "u", SHA256: "d"},
		},
		`{"id":"r-1","wanted":"gone","unless_busy":true,"scope":"acme/app","pool":"mac","image":"sonoma","backend":"vz","cpus":4,"memory_mib":8192,"guest":"ssh","network":"nat","runner":{"url":"u","sha256":"d"},"end_grace_seconds":30}`,
		`{"id":"","wanted":"","pool":"","image":""}`,
	},
	{"RunnerArchive", protocol.RunnerArchive{URL: "u", SHA256: "d"}, `{"url":"u","sha256":"d"}`, `{"url":"","sha256":""}`},
	{
		"Report",
		protocol.Report{Instance: "i", Sequence: 3, Revision: 4, Facts: protocol.Facts{}, Runners: []protocol.RunnerReport{}},
		`{"instance":"i","sequence":3,"revision":4,"facts":{"slots":0,"backends":null,"images":null,"os":"","arch":"","agent_version":""},"runners":[]}`,
		`{"instance":"","sequence":0,"revision":0,"facts":{"slots":0,"backends":null,"images":null,"os":"","arch":"","agent_version":""},"runners":null}`,
	},
	{
		"RunnerReport",
		protocol.RunnerReport{
			ID: "r-1", Observed: "busy", HoldsSlot: true, HasConfig: true, Failure: "f", Result: "succeeded", Progress: "10 %", Pool: "mac", Scope: "acme", RunnerName: "n",
			JobRepository: "acme/app", JobRun: 7, JobRefused: "a fork",
			Took: protocol.StepTimes{Boot: 2000000}, RunnerVersion: "2.337.0", RunnerRefused: true,
		},
		`{"id":"r-1","observed":"busy","holds_slot":true,"has_config":true,"failure":"f","result":"succeeded","progress":"10 %","pool":"mac","scope":"acme","runner_name":"n","job_repository":"acme/app","job_run":7,"job_refused":"a fork","took":{"boot":2000000},"runner_version":"2.337.0","runner_refused":true}`,
		`{"id":"","observed":"","holds_slot":false,"has_config":false,"pool":""}`,
	},
	{
		"StepTimes",
		protocol.StepTimes{Runner: 1, Image: 2, Clone: 3, Restore: 4, Boot: 5, Install: 6, Session: 7, Listener: 8, Job: 9, Stop: 10, Delete: 11},
		`{"runner":1,"image":2,"clone":3,"restore":4,"boot":5,"install":6,"session":7,"listener":8,"job":9,"stop":10,"delete":11}`,
		`{}`,
	},
	{"MintRequest", protocol.MintRequest{Instance: "i"}, `{"instance":"i"}`, `{"instance":""}`},
	{"Minted", protocol.Minted{Name: "n", JITConfig: "c", Trust: &trust.Policy{Public: true}}, `{"name":"n","jit_config":"c","trust":{"public":true}}`, `{"name":"","jit_config":""}`},
}

func TestGoldenJSON(t *testing.T) {
	t.Parallel()
	for _, g := range golden {
		t.Run(g.name, func(t *testing.T) {
			t.Parallel()
			kind := reflect.TypeOf(g.v)
			if kind.Name() != g.name {
				t.Fatalf("the value is a %s", kind.Name())
			}
			for want, v := range map[string]any{g.full: g.v, g.zero: reflect.Zero(kind).Interface()} {
				got, err := json.Marshal(v)
				if err != nil {
					t.Fatal(err)
				}
				if string(got) != want {
					t.Errorf("got  %s\nwant %s", got, want)
				}
				back := reflect.New(kind)
				if err := json.Unmarshal(got, back.Interface()); err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(v, back.Elem().Interface()); diff != "" {
					t.Errorf("it does not come back the same:\n%s", diff)
				}
			}
			// Every field is filled in the golden value, or it proves nothing of it.
			if g.name != "Hello" && g.name != "Report" && g.name != "Desired" {
				for i := range kind.NumField() {
					if reflect.ValueOf(g.v).Field(i).IsZero() {
						t.Errorf("field %s is empty in the golden value", kind.Field(i).Name)
					}
				}
			}
		})
	}
}

// Whoever adds a wire type adds it to the golden ones.
func TestGoldenIsComplete(t *testing.T) {
	t.Parallel()
	file, err := parser.ParseFile(token.NewFileSet(), "protocol.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	known := map[string]bool{}
	for _, g := range golden {
		known[g.name] = true
	}
	ast.Inspect(file, func(n ast.Node) bool {
		if spec, ok := n.(*ast.TypeSpec); ok {
			if _, isStruct := spec.Type.(*ast.StructType); isStruct && !known[spec.Name.Name] {
				t.Errorf("type %s has no golden JSON", spec.Name.Name)
			}
		}
		return true
	})
}

// A full report fits into what either side reads.
func TestALargeReportFits(t *testing.T) {
	t.Parallel()
	r := protocol.Report{}
	for range 500 {
		r.Runners = append(r.Runners, protocol.RunnerReport{
			ID: "r-abcdefghij", Observed: "registering", HoldsSlot: true, HasConfig: true, Pool: "a-pool", Scope: "acme/app",
			Failure: string(bytes.Repeat([]byte("f"), protocol.MaxText)), Progress: string(bytes.Repeat([]byte("p"), protocol.MaxText)),
		})
	}
	raw, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	if len(raw) > protocol.MaxBody {
		t.Errorf("%d bytes, the limit is %d", len(raw), protocol.MaxBody)
	}
}
