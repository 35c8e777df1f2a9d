// SPDX-License-Identifier: MIT

package main

import (
	"bufio"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"time"
)

// listenerWord makes this program the listener inside a VM: `bench listener SOCKET run`.
// It says when it started and who it is, plays a job when it is told to, says when it
// ends, and ends.
const listenerWord = "listener"

// call is what a listener says over its socket.
type call struct {
	Started time.Time `json:"started"`
	Name    string    `json:"name"`
	Ending  time.Time `json:"ending"`
}

func listener(args []string) int {
	c := call{Started: time.Now()} // before all else: this is what is measured
	if len(args) < 1 {
		fmt.Fprintln(os.Stderr, "want a socket")
		return 2
	}
	conn, err := net.Dial("unix", args[0]) //nolint:noctx // nothing ends it but the other side
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	out := json.NewEncoder(conn)
	c.Name = registeredName(os.Getenv("ACTIONS_RUNNER_INPUT_JITCONFIG"))
	fmt.Println(time.Now().UTC().Format("2006-01-02 15:04:05Z") + ": Listening for Jobs")
	_ = out.Encode(c)
	orders := bufio.NewReader(conn)
	if _, err := orders.ReadString('\n'); err != nil {
		return 1 // the measurement is over
	}
	fmt.Println(time.Now().UTC().Format("2006-01-02 15:04:05Z") + ": Running job: bench")
	_, _ = orders.ReadString('\n')
	fmt.Println(time.Now().UTC().Format("2006-01-02 15:04:05Z") + ": Job bench completed with result: Succeeded")
	c.Ending = time.Now()
	_ = out.Encode(c)
	return 0
}

func registeredName(config string) string {
	var files map[string][]byte
	var runner struct{ AgentName string }
	raw, err := base64.StdEncoding.DecodeString(config)
	if err != nil || json.Unmarshal(raw, &files) != nil || json.Unmarshal(files[".runner"], &runner) != nil {
		return ""
	}
	return runner.AgentName
}

// measureListener sends one job after the other to a host with the process backend: the
// times are those of a single job, without any queue.
func measureListener(ctx context.Context, b *bencher) error {
	s, err := newSite(ctx, b, siteOf{name: "listener"})
	if err != nil {
		return err
	}
	defer s.close()
	door, err := net.Listen("unix", filepath.Join(s.dir, "l.sock")) //nolint:noctx // closed below
	if err != nil {
		return err
	}
	defer door.Close()
	self, err := os.Executable()
	if err != nil {
		return err
	}
	if err := s.realHost(ctx, fmt.Sprintf("'%s' %s '%s'", self, listenerWord, door.Addr())); err != nil {
		return err
	}
	if err := s.settled(ctx); err != nil {
		return err
	}
	var began, freed times
	for i := range b.of(30) {
		start, free, err := s.oneJob(ctx, door, int64(i+1))
		if err != nil {
			return s.failed(err)
		}
		began, freed = append(began, start), append(freed, free)
	}
	b.limit("webhook to listener started, process backend", "p50 < 150 ms", began.String(), began.at(0.5) < 150*time.Millisecond)
	b.limit("listener's exit to slot free at the controller", "p50 < 50 ms", freed.String(), freed.at(0.5) < 50*time.Millisecond)
	return nil
}

// realHost starts an agent with the process backend, whose image holds a command as its
// listener.
func (s *site) realHost(ctx context.Context, command string) error {
	token, err := s.enrolment(ctx, 1)
	if err != nil {
		return err
	}
	bin := filepath.Join(s.dir, "images", "bench", "root", "runner", "bin")
	if err := os.MkdirAll(bin, 0o755); err != nil {
		return err
	}
	for path, text := range map[string]string{
		filepath.Join(bin, "Runner.Listener"):                 fmt.Sprintf("#!/bin/sh\nexec %s \"$@\"\n", command),
		filepath.Join(s.dir, "images", "bench", "image.json"): fmt.Sprintf(`{"schema": 1, "name": "bench", "guest_os": %q, "description": "a listener and nothing else"}`, runtime.GOOS),
		filepath.Join(s.dir, "agent.yaml"): fmt.Sprintf("controller: %s\nname: bench\nstate_dir: %s\nenrolment_token_file: %s\nslots: 2\nallow_copy: true\nimages_dir: %s\nbackend: process\n",
			s.controller.said["agents"], filepath.Join(s.dir, "a"), token, filepath.Join(s.dir, "images")),
	} {
		if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
			return err
		}
	}
	if s.hosts, err = launch(ctx, s.dir, "agent", nil, nil, filepath.Join(s.programs, "minifleet-agent"), "run", "--config", filepath.Join(s.dir, "agent.yaml")); err != nil {
		return err
	}
	return s.failed(s.online(ctx, 1))
}

// oneJob leads a job from its first delivery to the end of its VM.
func (s *site) oneJob(ctx context.Context, door net.Listener, job int64) (start, free time.Duration, err error) {
	sent, err := s.tell(news{job: job, action: "queued", labels: poolLabels()})
	if err != nil {
		return 0, 0, err
	}
	conn, err := accept(ctx, door)
	if err != nil {
		return 0, 0, err
	}
	defer conn.Close()
	said := json.NewDecoder(conn)
	var c call
	if err := said.Decode(&c); err != nil {
		return 0, 0, err
	}
	start = c.Started.Sub(sent.wrote)
	if _, err := io.WriteString(conn, "run\n"); err != nil {
		return 0, 0, err
	}
	for _, action := range []string{"in_progress", "completed"} {
		if action == "completed" {
			// The listener ends first, as it does: GitHub's word is on its way meanwhile.
			if _, err := io.WriteString(conn, "end\n"); err != nil {
				return 0, 0, err
			}
			if err := said.Decode(&c); err != nil {
				return 0, 0, err
			}
		}
		if _, err := s.tell(news{job: job, action: action, labels: poolLabels(), runner: c.Name}); err != nil {
			return 0, 0, err
		}
	}
	freeAt, err := s.allFree(ctx)
	return start, freeAt.Sub(c.Ending), err
}

// allFree waits until the controller knows every slot to be free, and returns when it
// was first seen to; it is asked every 2 ms.
func (s *site) allFree(ctx context.Context) (at time.Time, err error) {
	err = until(ctx, patience, 2*time.Millisecond, "the slot is free", func() (bool, error) {
		all, err := s.allHosts(ctx)
		at = time.Now()
		return len(all) == 1 && all[0].Free == all[0].Slots, err
	})
	return at, err
}

func accept(ctx context.Context, door net.Listener) (net.Conn, error) {
	if d, ok := door.(*net.UnixListener); ok {
		if err := d.SetDeadline(time.Now().Add(patience)); err != nil {
			return nil, err
		}
	}
	defer context.AfterFunc(ctx, func() { door.Close() })()
	return door.Accept()
}
