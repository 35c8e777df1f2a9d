// SPDX-License-Identifier: MIT

package githubsim

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/minifleet/minifleet/secret"
)

// Settings are what a process of its own needs to be a simulated GitHub. Encode
// and ReadSettings take them there over its standard input, because some are secret.
type Settings struct {
	Listen        string         `json:"listen,omitempty"` // default 127.0.0.1:0
	AppID         int64          `json:"app_id,omitempty"`
	PrivateKey    secret.Text    `json:"private_key,omitempty"`    // PEM; default: generated, and told by the control API
	WebhookSecret secret.Text    `json:"webhook_secret,omitempty"` // default: generated, and told by the control API
	WebhookURL    string         `json:"webhook_url,omitempty"`
	RunnerURL     string         `json:"runner_url,omitempty"` // how runners reach it, where that differs
	Flow          Flow           `json:"flow,omitempty"`
	Kind          bool           `json:"kind,omitempty"`
	Prompt        bool           `json:"prompt,omitempty"`
	Acquire       bool           `json:"acquire,omitempty"`
	OneKey        bool           `json:"one_key,omitempty"`
	Enterprise    string         `json:"enterprise,omitempty"` // version of an Enterprise Server; default: github.com
	Seed          uint64         `json:"seed,omitempty"`
	Latency       time.Duration  `json:"latency,omitempty"`
	Ahead         time.Duration  `json:"ahead,omitempty"` // of GitHub's clock before this machine's
	FaultRate     float64        `json:"fault_rate,omitempty"`
	KeyPool       int            `json:"key_pool,omitempty"`
	Timing        Timing         `json:"timing,omitzero"`
	Installations []Installation `json:"installations,omitempty"` // there from the start
}

// Options returns the settings as options of a Sim.
func (s Settings) Options(log *slog.Logger) Options {
	return Options{
		Listen: s.Listen, AppID: s.AppID, PrivateKey: s.PrivateKey, WebhookSecret: s.WebhookSecret, WebhookURL: s.WebhookURL, RunnerURL: s.RunnerURL,
		Flow: s.Flow, Kind: s.Kind, Prompt: s.Prompt, OneKey: s.OneKey, Acquire: s.Acquire, Enterprise: s.Enterprise, Seed: s.Seed, Latency: s.Latency, Ahead: s.Ahead, FaultRate: s.FaultRate, KeyPool: s.KeyPool, Timing: s.Timing, Log: log,
	}
}

// Serve is a whole simulated GitHub: it listens, installs the App, tells its
// URL to ready, and serves until ctx ends.
func Serve(ctx context.Context, s Settings, log *slog.Logger, ready func(url string) error) (err error) {
	sim, err := New(s.Options(log))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, sim.Close()) }()
	if err := sim.Start(); err != nil {
		return err
	}
	for _, in := range s.Installations {
		if _, err := sim.AddInstallation(in); err != nil {
			return fmt.Errorf("simulated github: %w", err)
		}
	}
	if err := ready(sim.URL()); err != nil {
		return fmt.Errorf("simulated github is ready, but nobody takes note: %w", err)
	}
	<-ctx.Done()
	return nil
}
