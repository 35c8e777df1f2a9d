// SPDX-License-Identifier: MIT

package githubsim

import (
	"encoding/json"
	"fmt"
	"io"

	"github.com/minifleet/minifleet/secret"
)

// What follows is how values travel between a Sim and the process that drives
// it, with their secrets in the clear: over loopback and over a pipe, nowhere else.

type plainWorkflow Workflow

type workflowWire struct {
	plainWorkflow
	Jobs []jobWire `json:"jobs"` // in place of the workflow's own
}

type plainJobSpec JobSpec

type jobWire struct {
	plainJobSpec
	Secrets map[string]string `json:"secrets,omitempty"`
}

func toWire(w Workflow) workflowWire {
	out := workflowWire{plainWorkflow: plainWorkflow(w)}
	for _, spec := range w.Jobs {
		job := jobWire{plainJobSpec: plainJobSpec(spec), Secrets: map[string]string{}}
		for name, s := range spec.Secrets {
			job.Secrets[name] = s.Reveal()
		}
		out.Jobs = append(out.Jobs, job)
	}
	return out
}

func (w workflowWire) workflow() Workflow {
	out := Workflow(w.plainWorkflow)
	out.Jobs = nil
	for _, job := range w.Jobs {
		spec := JobSpec(job.plainJobSpec)
		spec.Secrets = map[string]secret.Text{}
		for name, s := range job.Secrets {
			spec.Secrets[name] = secret.New(s)
		}
		out.Jobs = append(out.Jobs, spec)
	}
	return out
}

// Encode writes the settings for ReadSettings, with their secrets in the clear.
func (s Settings) Encode(w io.Writer) error {
	type plain Settings
	err := json.NewEncoder(w).Encode(struct {
		plain
		PrivateKey    string `json:"private_key,omitempty"`
		WebhookSecret string `json:"webhook_secret,omitempty"`
	}{plain(s), s.PrivateKey.Reveal(), s.WebhookSecret.Reveal()})
	if err != nil {
		return fmt.Errorf("settings of the simulated github: %w", err)
	}
	return nil
}

// ReadSettings reads what Encode writes. An unknown field is an error.
func ReadSettings(r io.Reader) (Settings, error) {
	var s Settings
	dec := json.NewDecoder(r)
	dec.DisallowUnknownFields()
	if err := dec.Decode(&s); err != nil {
		return Settings{}, fmt.Errorf("settings of the simulated github: %w", err)
	}
	return s, nil
}
