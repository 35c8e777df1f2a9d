// SPDX-License-Identifier: MIT

package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"html"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/minifleet/minifleet/githubapp/githubsim"
	"github.com/minifleet/minifleet/internal/keepport"
)

// person is whoever sits before the browser: reads what setup says, opens what it asks
// for, and presses each page's one button.
type person struct {
	t   *testing.T
	sim *githubsim.Sim
}

var (
	said     = regexp.MustCompile(`^ +(http://\S+)$`)
	action   = regexp.MustCompile(`<form method="post" action="([^"]*)"`)
	input    = regexp.MustCompile(`name="([^"]*)" value="([^"]*)"`)
	followed = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
)

// press opens a page, sends its form and returns the page that follows.
func (p person) press(at, page string) (string, string) {
	to, err := url.Parse(at)
	if err != nil {
		p.t.Error(err)
		return "", ""
	}
	if page == "" {
		res, err := followed.Get(at)
		if err != nil {
			p.t.Error(err)
			return "", ""
		}
		defer res.Body.Close()
		b, _ := io.ReadAll(res.Body)
		page = string(b)
	}
	found := action.FindStringSubmatch(page)
	if found == nil {
		p.t.Errorf("no form at %s: %s", at, page)
		return "", ""
	}
	if to, err = to.Parse(html.UnescapeString(found[1])); err != nil {
		p.t.Error(err)
		return "", ""
	}
	form := url.Values{}
	for _, in := range input.FindAllStringSubmatch(page, -1) {
		form.Set(html.UnescapeString(in[1]), html.UnescapeString(in[2]))
	}
	res, err := followed.PostForm(to.String(), form)
	if err != nil {
		p.t.Error(err)
		return "", ""
	}
	defer res.Body.Close()
	b, _ := io.ReadAll(res.Body)
	return res.Request.URL.String(), string(b)
}

// click goes all the way from the page that setup names to the installed App.
func (p person) click(page string) {
	at, next := p.press(page, "") // GitHub's form
	at, next = p.press(at, next)  // GitHub makes the App; the browser comes by the local page to the page for installing
	if !strings.HasSuffix(at, "/installations/new") {
		p.t.Errorf("led to %s: %s", at, next)
		return
	}
	p.press(at, next)
}

// From nothing to a controller that serves what setup wrote, and to a test delivery
// that it took.
func TestSetupWholeWay(t *testing.T) {
	sim, err := githubsim.New(githubsim.Options{Kind: true, KeyPool: 1})
	if err != nil {
		t.Fatal(err)
	}
	if err := sim.Start(); err != nil {
		t.Fatal(err)
	}
	defer sim.Close()
	dir, hook := t.TempDir(), keepport.Address(t)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	out, in := io.Pipe()
	failed := make(chan error, 1)
	go func() {
		err := run(ctx, []string{
			"setup", "--org", "acme", "--github", sim.URL(), "--dir", dir, "--no-browser", "--every", "10ms",
			"--webhook-url", "http://" + hook + "/webhook", "--webhook-address", hook,
		}, strings.NewReader(""), in, io.Discard, nothing)
		in.CloseWithError(io.EOF)
		failed <- err
	}()
	var all strings.Builder
	clicked := false
	for lines := bufio.NewScanner(out); lines.Scan(); {
		fmt.Fprintln(&all, lines.Text())
		if m := said.FindStringSubmatch(lines.Text()); m != nil && !clicked {
			clicked = true
			go person{t, sim}.click(m[1]) // ends with the App's installation, before setup does
		}
	}
	if err := <-failed; err != nil {
		t.Fatalf("setup: %v\n%s", err, &all)
	}
	for _, part := range []string{"GitHub made App 4242", "installed on acme", "test delivery arrived: 202", "minifleet serve --config"} {
		if !strings.Contains(all.String(), part) {
			t.Errorf("setup did not say %q:\n%s", part, &all)
		}
	}
	config := filepath.Join(dir, "minifleet.yaml")
	var good bytes.Buffer
	if err := run(ctx, []string{"config", "check", config}, strings.NewReader(""), &good, io.Discard, nothing); err != nil {
		t.Fatal(err)
	}

	ended := make(chan error, 1)
	serving, stop := context.WithCancel(ctx)
	ready, said := io.Pipe()
	go func() {
		ended <- run(serving, []string{"serve", "--config", config}, strings.NewReader(""), said, io.Discard,
			variables("MINIFLEET_AGENTS_ADDRESS", "127.0.0.1:0", "MINIFLEET_ADMIN_ADDRESS", "127.0.0.1:0"))
		said.CloseWithError(io.EOF)
	}()
	for lines := bufio.NewScanner(ready); lines.Scan() && !strings.HasPrefix(lines.Text(), "admin "); { // the last to be said
	}
	var report, note bytes.Buffer
	check := func(args ...string) error {
		report.Reset()
		return run(ctx, append([]string{"setup", "check", "--config", config, "--every", "10ms"}, args...), strings.NewReader(""), &report, &note, nothing)
	}
	if err := check("--test-delivery", "-o", "json"); err != nil {
		t.Errorf("%v\n%s%s", err, &report, &note)
	}
	var read struct {
		Findings []struct{ Check, Verdict string }
		Faults   int
	}
	if err := json.Unmarshal(report.Bytes(), &read); err != nil || read.Faults != 0 || len(read.Findings) < 8 {
		t.Errorf("%v: %s", err, &report)
	}
	if !strings.Contains(note.String(), "arrived: 202") {
		t.Errorf("said %s", &note)
	}
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}

	// A key that others can read is warned of, and only that.
	if err := os.Chmod(filepath.Join(dir, "app.pem"), 0o640); err != nil {
		t.Fatal(err)
	}
	if err := check(); err != nil || strings.Count(report.String(), "others on this machine") != 1 || !strings.Contains(report.String(), "chmod 600 "+filepath.Join(dir, "app.pem")) {
		t.Errorf("%v\n%s", err, &report)
	}

	// Without its receiver and without a right, the same App is at fault.
	sim.ChangeApp(map[string]string{"metadata": "read"}, nil)
	err = check("--test-delivery")
	for _, part := range []string{"no connection", "faults"} {
		if err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("error %v lacks %q", err, part)
		}
	}
	for _, part := range []string{"permission Actions: read", "Workflow job", "to do: "} {
		if !strings.Contains(report.String(), part) {
			t.Errorf("the report lacks %q:\n%s", part, &report)
		}
	}
	// And nothing is overwritten.
	if err := run(ctx, []string{"setup", "--dir", dir, "--no-browser"}, strings.NewReader(""), io.Discard, io.Discard, nothing); err == nil || !strings.Contains(err.Error(), "--force") {
		t.Errorf("a second setup: %v", err)
	}
}
