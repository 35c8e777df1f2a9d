// SPDX-License-Identifier: MIT

package githubsim

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
)

// messageBody is what a message says. A job's message is made when it is sent,
// because it holds URLs.
func (s *Sim) messageBody(ru *runner, m *message, base string) []byte {
	switch m.kind {
	case "RunnerJobRequest":
		return marshal(object{
			"id": newGUID(), "runner_request_id": ru.job.guid, "run_service_url": base + runPath + "/",
			"billing_owner_id": fmt.Sprintf("O_%d", ru.scope.owner.id), "should_acknowledge": true,
		})
	case "PipelineAgentJobRequest":
		return marshal(s.jobMessage(ru.job, base, false))
	default:
		return m.body
	}
}

// jobMessage is a whole job, as a runner gets it.
func (s *Sim) jobMessage(j *job, base string, runService bool) object {
	kind, url, data := "PipelineAgentJobRequest", base+pipelinesPath+"/", object{}
	variables := object{
		"system.github.job":   object{"value": j.spec.Name},
		"system.github.token": object{"value": newToken("ghs_"), "isSecret": true},
	}
	mask := []object{}
	for name, value := range j.spec.Secrets {
		variables[name] = object{"value": value.Reveal(), "isSecret": true}
		mask = append(mask, object{"type": "regex", "value": regexp.QuoteMeta(value.Reveal())})
	}
	if runService {
		kind, url = "RunnerJobRequest", base+runPath+"/"
		data = object{"FeedStreamUrl": base + feedPath, "ResultsServiceUrl": base + resultsPath + "/"}
		variables["system.github.results_endpoint"] = object{"value": base + resultsPath + "/"}
	}
	environment := []any{}
	if len(j.spec.Env) > 0 {
		environment = append(environment, mapping(j.spec.Env))
	}
	return object{
		"messageType": kind, "requestId": j.requestID, "jobId": j.guid, "jobName": j.spec.Name, "jobDisplayName": j.spec.Name,
		"plan":     object{"scopeIdentifier": j.scopeID, "planId": j.plan, "planType": "actions", "version": 12},
		"timeline": object{"id": j.timeline, "changeId": 1}, "lockedUntil": "0001-01-01T00:00:00", "workspace": object{},
		"fileTable": []string{j.run.workflowPath()}, "mask": mask, "variables": variables, "environmentVariables": environment,
		"billingOwnerId": fmt.Sprintf("O_%d", j.run.repo.owner.id),
		"resources": object{"endpoints": []object{{
			"name": "SystemVssConnection", "url": url, "isReady": true, "data": data,
			"authorization": object{"scheme": "OAuth", "parameters": object{"AccessToken": j.token}},
		}}},
		"contextData": j.contextData(base), "steps": j.stepMessages(),
	}
}

func (j *job) stepMessages() []object {
	steps := []object{}
	for i, st := range j.spec.Steps {
		name := "__run"
		if i > 0 {
			name = fmt.Sprintf("__run_%d", i+1)
		}
		m := object{
			"type": "action", "id": newGUID(), "name": name, "contextName": name, "condition": "success()", "displayNameToken": st.Name,
			"reference": object{"type": "script"}, "inputs": mapping(map[string]string{"script": st.Run}),
		}
		if len(st.Env) > 0 {
			m["environment"] = mapping(st.Env)
		}
		steps = append(steps, m)
	}
	return steps
}

func (j *job) contextData(base string) object {
	r := j.run
	github := object{
		"event_name": r.workflow.Event, "workflow": r.workflow.Name, "server_url": base, "api_url": base, "graphql_url": base + "/graphql",
		"repository": r.repo.fullName(), "repository_owner": r.repo.owner.login, "ref": "refs/heads/" + r.workflow.Branch,
		"ref_name": r.workflow.Branch, "ref_type": "branch", "sha": r.sha, "run_id": fmt.Sprint(r.id), "run_number": fmt.Sprint(r.number),
		"run_attempt": fmt.Sprint(j.attempt), "actor": r.actor.login, "triggering_actor": r.startedBy[j.attempt-1].login, "job": j.spec.Name,
		"event": r.eventView(base),
	}
	none := contextDict(object{})
	return object{
		"github": contextDict(github), "needs": none, "inputs": none, "vars": none, "matrix": nil,
		"strategy": contextDict(object{"fail-fast": true, "job-index": 0.0, "job-total": float64(len(r.workflow.Jobs)), "max-parallel": 1.0}),
	}
}

// eventView is the beginning of the payload of the event by which a run was begun.
func (r *run) eventView(base string) object {
	v := object{"ref": "refs/heads/" + r.workflow.Branch, "repository": r.repo.shortView(), "sender": object{"login": r.actor.login}}
	if strings.HasPrefix(r.workflow.Event, "pull_request") {
		v["pull_request"] = object{
			"html_url": base + "/" + r.repo.fullName() + "/pull/1", "user": object{"login": r.actor.login},
			"head": object{"sha": r.sha, "repo": object{"full_name": r.headRepo.fullName(), "fork": r.headRepo.fork, "private": r.headRepo.private}},
			"base": object{"ref": "main", "repo": object{"full_name": r.repo.fullName(), "fork": r.repo.fork, "private": r.repo.private}},
		}
	}
	return v
}

// contextDict encodes a map as the protocol's context data.
func contextDict(m object) object {
	pairs := []object{}
	for _, k := range slices.Sorted(maps.Keys(m)) {
		v := m[k]
		if inner, ok := v.(object); ok {
			v = contextDict(inner)
		}
		pairs = append(pairs, object{"k": k, "v": v})
	}
	return object{"t": 2, "d": pairs}
}

// mapping encodes a map as a template token.
func mapping(m map[string]string) object {
	pairs := []object{}
	for _, k := range slices.Sorted(maps.Keys(m)) {
		pairs = append(pairs, object{"key": k, "value": m[k]})
	}
	return object{"type": 2, "map": pairs}
}
