// SPDX-License-Identifier: MIT

package main

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/minifleet/minifleet/githubapp/githubsim"
	"github.com/minifleet/minifleet/secret"
)

// dayKey is the App's: making one takes longer than an hour of such a day, and signing by one
// of GitHub's length a tenth of it.
var dayKey = sync.OnceValue(func() secret.Text {
	key, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		panic(err)
	}
	return secret.New(string(pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)})))
})

func newDay(t *testing.T, plan dayPlan) *day {
	t.Helper()
	d := &day{
		dayPlan: plan, t: t, start: time.Now(), wires: &wires{}, installs: map[string]int64{},
		counts: map[string]int{}, lost: map[int64]string{}, ranBy: map[int64]string{}, jobOf: map[string]int64{}, foreign: map[string]bool{}, waits: map[int64]string{},
	}
	each := map[flaw]int{}
	for f := flawless + 1; f < flaws; f++ {
		each[f] = 1
	}
	d.ills = newDeck(d.random("ills"), each)
	d.folder()
	d.tail = &tailWriter{}
	to := io.Writer(d.tail)
	if *dayLog != "" {
		f, err := os.Create(*dayLog)
		d.must(err)
		t.Cleanup(func() { f.Close() })
		to = f
	}
	d.log = slog.New(&counted{slog.NewTextHandler(to, nil), d})
	d.operator = &http.Client{Transport: &http.Transport{DialContext: d.wires.plug().dial}}
	d.hooks = &http.Transport{DialContext: d.wires.plug().dial, MaxIdleConnsPerHost: 16}
	var err error
	d.sim, err = githubsim.New(githubsim.Options{
		Seed: d.seed, Kind: d.kind, OneKey: true, KeyPool: 1, PrivateKey: dayKey(), Latency: 60 * time.Millisecond, Ahead: d.ahead, BaseURL: "http://" + dayGitHub,
		WebhookClient: &http.Client{Transport: d.hooks},
		Timing:        d.timing,
		Log:           d.log.With("who", "github"),
	})
	d.must(err)
	door, err := d.wires.plug().listen(t.Context(), "tcp", dayGitHub)
	d.must(err)
	d.github = &http.Server{Handler: d.sim.Handler()}
	go d.github.Serve(door) //nolint:errcheck // it ends with Close
	for account, repos := range map[string][]string{"octo": {"web", "api", "ios"}, "acme": {"tool", "lib"}, "kim": {"app"}} {
		d.installs[account], err = d.sim.AddInstallation(githubsim.Installation{Account: account, User: account == "kim", Repositories: repos})
		d.must(err)
	}
	d.begin()
	d.must(d.sim.SetWebhook("http://"+dayHook+"/webhook", secret.Text{}))
	for n := range d.hosts {
		h := newDayHost(d, n+1, d.slots)
		h.token = d.hostToken(h.name)
		d.minis = append(d.minis, h)
		h.begin()
	}
	return d
}

// folder makes the day's folder, in memory where the system has a place for that: what is
// measured is no disk.
func (d *day) folder() {
	d.dir = quickDir(d.t)
	d.home = filepath.Join(d.dir, "life-0")
	d.must(os.Mkdir(d.home, 0o700))
	for n := range 9 {
		d.must(os.Mkdir(filepath.Join(d.dir, fmt.Sprintf("mini-%d", n+1)), 0o700))
	}
}

func (d *day) close() {
	for _, h := range d.minis {
		h.end(false)
		for _, v := range h.vms {
			v.end("the day is over")
		}
	}
	d.end()
	d.operator.CloseIdleConnections()
	d.hooks.CloseIdleConnections()
	d.must(d.github.Close())
	d.must(d.sim.Close())
}
