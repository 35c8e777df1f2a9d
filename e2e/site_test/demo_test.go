// SPDX-License-Identifier: MIT

package site_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
)

// summaryLine matches the demo's account of its jobs.
func summaryLine(slots string) *regexp.Regexp {
	return regexp.MustCompile(`(?m)^24 jobs on ` + slots + ` slots in \d+\.\d s: 20 succeeded, 1 failed, 3 cancelled$`)
}

func TestDemo(t *testing.T) {
	turn(t)
	dir := folder(t)
	p := launch(t, dir, "minifleet", []string{"CI=true"}, "dev", "--demo", "--seed", "23", "--runner", os.Getenv(runnerEnv))
	code, out := p.exit()
	if code != 0 {
		t.Fatalf("exit status %d", code)
	}
	for _, want := range []*regexp.Regexp{
		summaryLine("4"),
		regexp.MustCompile(`(?m)^runner client: +github-act-runner v\d`),
		regexp.MustCompile(`(?m)^webhook -> listener started +p50 [\dm.]+s, p99 [\dm.]+s \(2\d jobs`),
		regexp.MustCompile(`(?m)^webhook -> job running +p50 [\dm.]+s, p99 [\dm.]+s \(2\d jobs`),
		regexp.MustCompile(`(?m)^leftovers +0 `),
		regexp.MustCompile(`agent of mini-[12] killed \(SIGKILL\) while survives-agent-restart runs there`),
		regexp.MustCompile(`agent of mini-[12] started again`),
		regexp.MustCompile(`cancelled-while-queued +cancelled before any runner had it`),
		regexp.MustCompile(`cancelled-while-booting +cancelled before any runner had it`),
		regexp.MustCompile(`cancelled-while-running +cancelled on \w+-demo-\w+ after`),
		regexp.MustCompile(`survives-agent-restart +success on`),
		regexp.MustCompile(`survives-too +success on`),
		regexp.MustCompile(`fails +failure on`),
	} {
		if !want.MatchString(out) {
			t.Errorf("the output lacks %s", want)
		}
	}
	if strings.Contains(out, "\x1b[") {
		t.Error("the output is no terminal and has escape sequences in it")
	}
	empty(t, dir)
}

// Without a runner client the demo uses its own, says so, and proves nothing in CI.
func TestDemoWithoutRunner(t *testing.T) {
	turn(t)
	t.Run("in CI", func(t *testing.T) {
		dir := folder(t)
		code, out := launch(t, dir, "minifleet", []string{"CI=true"}, "dev", "--demo").exit()
		if code == 0 || !strings.Contains(out, "no runner client was given (--runner)") {
			t.Errorf("exit status %d:\n%s", code, out)
		}
		empty(t, dir)
	})
	t.Run("elsewhere", func(t *testing.T) {
		dir := folder(t)
		code, out := launch(t, dir, "minifleet", nil, "dev", "--demo", "--agents", "2", "--slots", "4", "--kind").exit()
		if code != 0 || !summaryLine("8").MatchString(out) || strings.Count(out, "stand-in, NOT a real runner") != 2 {
			t.Errorf("exit status %d", code)
		}
		empty(t, dir)
	})
}

func TestDemoWithBadRunner(t *testing.T) {
	turn(t)
	dir := folder(t)
	files := t.TempDir()
	text, silent, failing := filepath.Join(files, "text"), filepath.Join(files, "silent"), filepath.Join(files, "failing")
	for path, content := range map[string]string{text: "just text\n", silent: "#!/bin/sh\nexit 0\n", failing: "#!/bin/sh\nexit 3\n"} {
		mode := os.FileMode(0o755)
		if path == text {
			mode = 0o644
		}
		if err := os.WriteFile(path, []byte(content), mode); err != nil {
			t.Fatal(err)
		}
	}
	for name, test := range map[string]struct{ runner, want string }{
		"missing":        {filepath.Join(files, "none"), "no such file"},
		"not executable": {text, "runner client " + text},
		"a folder":       {files, "directory"},
		"failing":        {failing, "does not tell its version"},
	} {
		t.Run(name, func(t *testing.T) {
			code, out := launch(t, dir, "minifleet", []string{"CI=true"}, "dev", "--demo", "--runner", test.runner).exit()
			if code == 0 || !strings.Contains(out, "minifleet: runner client") || !strings.Contains(out, test.want) {
				t.Errorf("exit status %d, want the words %q in:\n%s", code, test.want, out)
			}
			empty(t, dir)
		})
	}
}

func TestInterrupt(t *testing.T) {
	t.Parallel()
	for name, signal := range map[string]syscall.Signal{"SIGINT": syscall.SIGINT, "SIGTERM": syscall.SIGTERM} {
		t.Run(name, func(t *testing.T) {
			turn(t)
			dir := folder(t)
			p := launch(t, dir, "minifleet", nil, "dev", "--demo", "--runner", os.Getenv(runnerEnv))
			p.await("jobs run and their agent has been killed", func(out string) bool {
				return strings.Contains(out, "survives-too             running") && strings.Contains(out, "killed (SIGKILL)")
			})
			p.signal(signal)
			if code, out := p.exit(); code != 1 || !strings.Contains(out, "minifleet: interrupted") || strings.Contains(out, "the demo went wrong") {
				t.Errorf("exit status %d:\n%s", code, out)
			}
			empty(t, dir)
		})
	}
}
