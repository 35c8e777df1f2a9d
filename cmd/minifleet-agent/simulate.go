// SPDX-License-Identifier: MIT

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/minifleet/minifleet/hosts/agent"
	"github.com/minifleet/minifleet/program"
	"github.com/minifleet/minifleet/secret"
)

type simulateCommand struct {
	Controller     string        `required:"" placeholder:"URL" help:"Address of the controller."`
	Hosts          int           `default:"1" help:"How many hosts."`
	Slots          int           `default:"2" help:"Slots of each host."`
	Name           string        `default:"sim" help:"The hosts are called NAME-0001 and so on."`
	TokenFile      string        `name:"enrolment-token-file" placeholder:"FILE" help:"File with the token that all hosts enrol with; or set MINIFLEET_AGENT_ENROLMENT_TOKEN. Make it with: minifleet host token --uses N."`
	CredentialsDir string        `placeholder:"DIR" help:"Keep the hosts' identities here, to be the same hosts next time."`
	CAFile         string        `placeholder:"FILE" help:"PEM certificates to trust."`
	Backend        string        `default:"process" help:"Kind of VM that the hosts claim to have."`
	Images         []string      `help:"Images that the hosts claim to have."`
	Fetch          time.Duration `default:"0s" help:"Time to fetch an image that is published somewhere."`
	Prepare        time.Duration `default:"0s" help:"Time to prepare a VM."`
	Boot           time.Duration `default:"50ms" help:"Time from a VM's start to its guest's answer."`
	Register       time.Duration `default:"50ms" help:"Time from the JIT config to a listening runner."`
	Idle           time.Duration `default:"0s" help:"Time until the runner takes its job."`
	Job            time.Duration `default:"1s" help:"Time of a job."`
	Stop           time.Duration `default:"50ms" help:"Time to stop a VM."`
	Jitter         float64       `default:"0" help:"Part of each time by which it varies, 0 to 1."`
	FailRate       float64       `default:"0" help:"Part of the VMs that fail on their way, 0 to 1."`
	Seed           uint64        `default:"1" help:"Makes the chances repeatable."`
	Receipts       string        `placeholder:"FILE" help:"Write a line of JSON there for each step of each VM, with its time: for measurements."`
	Summary        time.Duration `default:"5s" help:"How often a line is printed."`
	LogLevel       string        `default:"error" help:"debug, info, warn or error."`
}

// Run is all the hosts until the context ends.
func (c simulateCommand) Run(s *surroundings) error {
	if c.Hosts < 1 || c.Hosts > 10000 || c.Summary <= 0 {
		return errors.New("want 1 to 10000 hosts and a summary interval above zero")
	}
	log, err := program.NewLog(s.stderr, c.LogLevel, "text")
	if err != nil {
		return err
	}
	token, err := c.token(s.getenv)
	if err != nil {
		return err
	}
	counts := &agent.SimulatedCounts{}
	receipt, closeReceipts, err := c.receipts(log)
	if err != nil {
		return err
	}
	defer closeReceipts()
	agents := make([]*agent.Agent, 0, c.Hosts)
	for n := range c.Hosts {
		a, err := c.host(n+1, token, counts, receipt, log)
		if err != nil {
			return err
		}
		agents = append(agents, a)
	}
	stop := program.Stop{
		Finishing: "calls under way are ended; the hosts and what runs on them vanish",
		Within:    stopWithin, Log: log,
	}
	return stop.Run(s.ctx, func(ctx context.Context, parts *program.Parts) error {
		return c.serve(ctx, parts, agents, s.stdout, counts, log)
	})
}

// serve runs the agents until ctx ends, or all of them have ended by themselves.
func (c simulateCommand) serve(parent context.Context, parts *program.Parts, agents []*agent.Agent, out io.Writer, counts *agent.SimulatedCounts, log *slog.Logger) error {
	ctx, cancel := context.WithCancelCause(parent)
	defer cancel(nil)
	var hosts sync.WaitGroup
	var ended atomic.Int64
	for n, a := range agents {
		hosts.Go(func() {
			err := parts.Do("simulated hosts", func() error { return a.Run(ctx) })
			if err == nil {
				return
			}
			log.Error("a simulated host ended", slog.Int("host", n+1), slog.Any("error", err))
			if ended.Add(1) == int64(c.Hosts) {
				cancel(fmt.Errorf("every simulated host has ended, the last one with: %w", err))
			}
		})
	}
	c.summarize(ctx, out, counts, &ended)
	hosts.Wait()
	if parent.Err() != nil {
		return nil
	}
	return context.Cause(ctx)
}

// token reads the enrolment token, which is not needed by hosts that have joined.
func (c simulateCommand) token(getenv func(string) string) (secret.Text, error) {
	if c.TokenFile == "" {
		return secret.New(strings.TrimSpace(getenv(envPrefix + "_ENROLMENT_TOKEN"))), nil
	}
	f, err := os.Open(c.TokenFile)
	if err != nil {
		return secret.Text{}, fmt.Errorf("enrolment token: %w", err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, 64<<10))
	return secret.New(strings.TrimSpace(string(text))), err
}

// receipts opens the file of receipts, if one is wanted.
func (c simulateCommand) receipts(log *slog.Logger) (receipt func(agent.Receipt), done func(), err error) {
	if c.Receipts == "" {
		return func(agent.Receipt) {}, func() {}, nil
	}
	f, err := os.OpenFile(c.Receipts, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, nil, fmt.Errorf("receipts: %w", err)
	}
	var mu sync.Mutex // one line at a time
	lines := json.NewEncoder(f)
	return func(r agent.Receipt) {
			mu.Lock()
			defer mu.Unlock()
			if err := lines.Encode(r); err != nil {
				log.Error("receipt not written", slog.Any("error", err))
			}
		}, func() {
			if err := f.Close(); err != nil {
				log.Error("receipts not closed", slog.Any("error", err))
			}
		}, nil
}

func (c simulateCommand) host(n int, token secret.Text, counts *agent.SimulatedCounts, receipt func(agent.Receipt), log *slog.Logger) (*agent.Agent, error) {
	name := fmt.Sprintf("%s-%04d", c.Name, n)
	machines, err := agent.NewSimulated(agent.SimulatedConfig{
		Prepare: c.Prepare, Fetch: c.Fetch, Boot: c.Boot, Register: c.Register, Idle: c.Idle, Job: c.Job, Stop: c.Stop,
		Jitter: c.Jitter, FailRate: c.FailRate, Images: c.Images, Seed: c.Seed + uint64(n), Counts: counts,
		Receipt: func(r agent.Receipt) {
			r.Host = name
			receipt(r)
		},
	})
	if err != nil {
		return nil, err
	}
	cfg := agent.Config{
		Controller: c.Controller, Name: name, EnrolmentToken: token, CAFile: c.CAFile,
		Slots: c.Slots, Machines: machines, Backends: strings.Fields(c.Backend), Machine: "simulated-" + name, Version: program.Version(),
		Log: log.With(slog.String("host", name)),
	}
	if c.CredentialsDir != "" {
		if cfg.StateDir, err = filepath.Abs(filepath.Join(c.CredentialsDir, name)); err != nil {
			return nil, err
		}
	}
	return agent.New(cfg)
}

// summarize prints a line now and then, and the last one at the end.
func (c simulateCommand) summarize(ctx context.Context, w io.Writer, counts *agent.SimulatedCounts, ended *atomic.Int64) {
	began := time.Now()
	every := time.NewTicker(c.Summary)
	defer every.Stop()
	for before := int64(0); ; {
		over := false
		select {
		case <-ctx.Done():
			over = true
		case <-every.C:
		}
		jobs := counts.Jobs.Load()
		rate := float64(jobs-before) / c.Summary.Seconds()
		if over {
			rate = float64(jobs) / time.Since(began).Seconds()
		}
		before = jobs
		fmt.Fprintf(w, "%6.1fs hosts %d running %d created %d booted %d configs %d jobs %d failures %d jobs/s %.1f\n",
			time.Since(began).Seconds(), int64(c.Hosts)-ended.Load(), counts.Running.Load(), counts.Created.Load(),
			counts.Booted.Load(), counts.Configs.Load(), jobs, counts.Failures.Load(), rate)
		if over {
			return
		}
	}
}
