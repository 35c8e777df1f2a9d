// SPDX-License-Identifier: MIT

package githubsim

import (
	"crypto/rsa"
	"encoding/base64"
	"fmt"
	"math/big"
	"net/http"
	"slices"
	"strings"
	"time"
)

const (
	maxRunnerName  = 64
	maxLabels      = 100
	maxLabelLength = 256
	hostedGroup    = 2 // GitHub's own machines: nobody else registers there
)

type jitRequest struct {
	Name       string   `json:"name"`
	GroupID    *int64   `json:"runner_group_id"`
	Labels     []string `json:"labels"`
	WorkFolder string   `json:"work_folder"`
}

func (in jitRequest) validate() *answer {
	missing := func(field string) *answer {
		return unprocessable("Invalid request.\n\nInvalid input: object is missing required key: " + field + ".")
	}
	switch {
	case in.Name == "":
		return missing("name")
	case in.GroupID == nil:
		return missing("runner_group_id")
	case len(in.Labels) == 0:
		return missing("labels")
	case len(in.Name) > maxRunnerName:
		return unprocessable(fmt.Sprintf("Runner name is too long (maximum is %d characters).", maxRunnerName))
	case len(in.Labels) > maxLabels:
		return unprocessable(fmt.Sprintf("No more than %d labels are allowed.", maxLabels))
	case slices.ContainsFunc(in.Labels, func(l string) bool { return l == "" || len(l) > maxLabelLength }):
		return unprocessable(fmt.Sprintf("A label has 1 to %d characters.", maxLabelLength))
	}
	return nil
}

// generateJIT registers a runner. It takes a key before it takes the lock,
// because a key can take long.
func (s *Sim) generateJIT(c *call) *answer {
	var in jitRequest
	if bad := c.decode(&in); bad != nil {
		return bad
	}
	key, err := s.keys.take()
	if err != nil {
		return fail(http.StatusInternalServerError, err.Error())
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	r, bad := s.register(c, in, key)
	if bad != nil {
		s.keys.giveBack(key)
		return bad
	}
	s.change()
	return &answer{status: http.StatusCreated, body: object{
		"runner": r.view(c.now, s.timing.OfflineAfter), "encoded_jit_config": s.encodedJIT(s.runnerBase(c.Request), r),
	}}
}

func (s *Sim) register(c *call, in jitRequest, key *rsa.PrivateKey) (*runner, *answer) {
	at, bad := s.scope(c, "write")
	if bad != nil {
		return nil, bad
	}
	if bad := in.validate(); bad != nil {
		return nil, bad
	}
	group := &runnerGroup{id: 1, name: "Default"} // a repository has this one only
	switch {
	case *in.GroupID == hostedGroup:
		return nil, fail(http.StatusForbidden, "Forbidden")
	case at.repo == nil:
		group = s.group(at.owner, *in.GroupID)
	case *in.GroupID != 1:
		group = nil
	}
	if group == nil {
		return nil, notFound()
	}
	return s.addRunner(in, at, group, key)
}

// addRunner makes a registration, unless its name or the limit is in the way. The caller
// holds mu.
func (s *Sim) addRunner(in jitRequest, at scope, group *runnerGroup, key *rsa.PrivateKey) (*runner, *answer) {
	if slices.ContainsFunc(s.runners, func(r *runner) bool { return r.scope == at && r.name == in.Name && !r.removed() }) {
		return nil, fail(http.StatusConflict, "Already exists - A runner with the name "+in.Name+" already exists.")
	}
	if limited := s.limits.register(at.String()); limited != nil {
		return nil, limited
	}
	return s.newRunner(in, at, group, key, time.Now()), nil
}

// newRunner makes a registration.
func (s *Sim) newRunner(in jitRequest, at scope, group *runnerGroup, key *rsa.PrivateKey, now time.Time) *runner {
	r := &runner{
		id: s.newID(), name: in.Name, labels: slices.Clone(in.Labels), scope: at, groupID: group.id, groupName: group.name,
		workFolder: orString(in.WorkFolder, "_work"), clientID: newGUID(), key: key, wake: make(chan struct{}, 1),
		createdAt: now, listedAt: s.listLag(now),
	}
	s.runners = append(s.runners, r)
	s.expireUnused(r)
	s.log.Info("runner registered", "runner", r.name, "scope", at.String())
	return r
}

// encodedJIT is the runner's configuration as GitHub hands it out: a map of
// files. All scalars are strings; big numbers have the lengths that .NET demands.
func (s *Sim) encodedJIT(base string, r *runner) string {
	settings := object{
		"AgentId": fmt.Sprint(r.id), "AgentName": r.name, "DisableUpdate": "True", "Ephemeral": "True", "PoolId": fmt.Sprint(r.groupID),
		"PoolName": nil, "ServerUrl": base + pipelinesPath + "/", "WorkFolder": r.workFolder, "GitHubUrl": base + "/" + r.scope.String(),
	}
	if s.opt.Flow == FlowMigrate {
		settings["UseV2Flow"], settings["ServerUrlV2"] = "true", base+brokerPath+"/"
	}
	credentials := object{"Scheme": "OAuth", "Data": object{
		"ClientId": r.clientID, "AuthorizationUrl": base + tokenPath, "RequireFipsCryptography": "True",
	}}
	n := (r.key.N.BitLen() + 7) / 8
	number := func(x *big.Int, size int) string {
		return base64.StdEncoding.EncodeToString(x.FillBytes(make([]byte, size)))
	}
	p := r.key.Precomputed
	params := map[string]string{
		"modulus": number(r.key.N, n), "exponent": base64.StdEncoding.EncodeToString(big.NewInt(int64(r.key.E)).Bytes()), "d": number(r.key.D, n),
		"p": number(r.key.Primes[0], n/2), "q": number(r.key.Primes[1], n/2),
		"dp": number(p.Dp, n/2), "dq": number(p.Dq, n/2), "inverseQ": number(p.Qinv, n/2),
	}
	files := map[string][]byte{".runner": marshal(settings), ".credentials": marshal(credentials), ".credentials_rsaparams": marshal(params)}
	return base64.StdEncoding.EncodeToString(marshal(files))
}

// byClientID finds a registration, removed ones included, by the client id of its config.
func (s *Sim) byClientID(id string) *runner {
	i := slices.IndexFunc(s.runners, func(r *runner) bool { return strings.EqualFold(r.clientID, id) })
	if i < 0 {
		return nil
	}
	return s.runners[i]
}
