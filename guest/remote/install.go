// SPDX-License-Identifier: MIT

package remote

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path"
	"strings"
	"time"
)

// How long the steps after login may take.
const (
	commandTime = 30 * time.Second
	copyTime    = 3 * time.Minute
	startTime   = 20 * time.Second // until the program listens
	startPause  = 50 * time.Millisecond
	hearTries   = 5 // tries until the guest is asked why nothing listens
)

// sumFunction prints the SHA-256 of its input, by what Linux and macOS have.
const sumFunction = `sum() { if command -v sha256sum >/dev/null 2>&1; then sha256sum; else shasum -a 256; fi | cut -c1-64; }; `

// The scripts stay without single quotes and newlines: not every login shell passes them on.
const (
	// $1: file, $2: its SHA-256.
	presentScript = sumFunction + `[ -f "$1" ] && [ "$(sum <"$1")" = "$2" ] || exit 10`

	// $1: folder, $2: file, $3: its SHA-256. The file is put in place whole or not at all.
	copyScript = sumFunction + `umask 077; mkdir -p "$1" && chmod 700 "$1" && cat >"$2.$$" || { rm -f "$2.$$"; exit 11; }; ` +
		`got=$(sum <"$2.$$"); if [ "$got" != "$3" ]; then rm -f "$2.$$"; echo "SHA-256 is $got" >&2; exit 12; fi; ` +
		`chmod 700 "$2.$$" && mv -f "$2.$$" "$2"`

	// $1: folder of this boot, $2: program, $3: folder of the runner. Who makes the folder
	// starts the program; nobody does a second time.
	startScript = `umask 077; mkdir "$1" 2>/dev/null || { [ -d "$1" ] && exit 0; echo "the folder $1 cannot be made" >&2; exit 13; }; ` +
		`cd "$1" || exit 13; s=setsid; command -v setsid >/dev/null 2>&1 || { s=; trap "" HUP; }; ` +
		`$s "$2" --listen "unix:$1/guest.sock" --runner-dir "$3" </dev/null >guest.log 2>&1 & echo $! >pid`

	// $1: folder of this boot.
	stateScript = `cd "$1" || exit 14; kill -0 "$(cat pid)" 2>/dev/null && echo minifleet:runs; [ -S guest.sock ] && echo minifleet:listens; ` +
		`echo minifleet:log; tail -c 1000 guest.log`
)

// settle makes sure that minifleet-guest runs in the guest, and that streams get to it.
func (g *Guest) settle(ctx context.Context, l *link) error {
	out, err := g.step(ctx, l, commandTime, command{script: surveyScript})
	if err != nil {
		return at(StepSurvey, err)
	}
	s, err := parseSurvey(out)
	if err != nil {
		return at(StepSurvey, err)
	}
	l.socket = s.socket()
	if conn, err := l.open(ctx); err == nil {
		conn.Close()
		return nil
	}
	program, err := g.install(ctx, l, s)
	if err != nil {
		return at(StepCopy, err)
	}
	start := command{script: startScript, args: []string{s.run(), program, s.within(g.cfg.RunnerDir)}}
	if _, err := g.step(ctx, l, commandTime, start); err != nil {
		return at(StepStart, err)
	}
	return g.hear(ctx, l, s)
}

// step runs a command with a limit of its own.
func (g *Guest) step(ctx context.Context, l *link, limit time.Duration, c command) ([]byte, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("the guest took longer than %s", limit))
	defer cancel()
	return l.run(ctx, c)
}

// install copies the fitting program in, if it is not there, and returns its path.
func (g *Guest) install(ctx context.Context, l *link, s survey) (string, error) {
	f, sum, err := g.cfg.Programs.open(s.goos, s.goarch)
	if err != nil {
		return "", err
	}
	defer f.Close()
	file := path.Join(s.folder(), "minifleet-guest-"+sum[:16])
	_, err = g.step(ctx, l, commandTime, command{script: presentScript, args: []string{file, sum}})
	if _, absent := errors.AsType[*exitError](err); !absent {
		return file, err
	}
	began := time.Now()
	if _, err := g.step(ctx, l, copyTime, command{script: copyScript, args: []string{s.folder(), file, sum}, input: f}); err != nil {
		return "", err
	}
	g.log.Info("minifleet-guest was copied into a guest over SSH", slog.String("system", s.goos+"/"+s.goarch), slog.Duration("took", time.Since(began)))
	return file, nil
}

// hear waits until the program that was started takes a stream.
func (g *Guest) hear(ctx context.Context, l *link, s survey) error {
	ctx, cancel := context.WithTimeoutCause(ctx, startTime, fmt.Errorf("minifleet-guest does not listen within %s of its start", startTime))
	defer cancel()
	deaf := false // it listened, and yet no stream got to it
	for try := 1; ; try++ {
		conn, err := l.open(ctx)
		if err == nil {
			conn.Close()
			return nil
		}
		if ctx.Err() == nil && !isRefusal(err) {
			return at(StepReach, err)
		}
		if try >= hearTries {
			out, stateErr := g.step(ctx, l, commandTime, command{script: stateScript, args: []string{s.run()}})
			state, log, _ := strings.Cut(string(out), surveyPrefix+"log")
			runs, listens := strings.Contains(state, surveyPrefix+"runs"), strings.Contains(state, surveyPrefix+"listens")
			switch {
			case stateErr != nil:
				return at(StepStart, stateErr)
			case !runs:
				return at(StepStart, fmt.Errorf("it has ended, and is not started a second time in one boot; its last words: %s", clean(log, 600)))
			case listens && deaf:
				return at(StepReach, fmt.Errorf("it listens, but %w: set AllowStreamLocalForwarding yes in the image's sshd_config, and no DisableForwarding", err))
			}
			deaf = listens
		}
		if !sleep(ctx, startPause) {
			return at(StepStart, context.Cause(ctx))
		}
	}
}

// sleep reports whether ctx went on for d.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
