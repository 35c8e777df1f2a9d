// SPDX-License-Identifier: MIT

package vmtest

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
)

// Facts is what a Guest tells of itself.
type Facts struct {
	PID         int      `json:"pid"`
	Dir         string   `json:"dir"`
	Args        []string `json:"args"`
	Environment []string `json:"environment"`
}

// Arguments of a Guest that make it misbehave.
const (
	GuestDeaf      = "--deaf"      // never listens
	GuestUndead    = "--undead"    // lives on when its standard input ends
	GuestTalkative = "--talkative" // prints without end
)

// IsGuest reports whether this process was started as a guest agent by the process
// backend. A TestMain that makes its own test binary the guest program calls it first.
func IsGuest() bool { return len(os.Args) > 1 && os.Args[1] == "--listen" }

// Guest is a guest agent that does as its host tells it, and ends the process:
//
//	GET  /v1/health   answers
//	GET  /facts       tells its Facts
//	POST /exit        ends with the code ?code=
//	POST /spawn       starts a child that never ends and returns its pid; ?setsid=true
//	                  gives it its own session, ?aloof=true takes the bundle's lock from it
//	POST /echo        sends the body back
func Guest() {
	if err := serveGuest(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "test guest:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

func serveGuest(args []string) error {
	var listen string
	deaf, undead, talkative := false, false, false
	for i, a := range args {
		switch a {
		case "--listen":
			listen = strings.TrimPrefix(args[i+1], "unix:")
		case GuestDeaf:
			deaf = true
		case GuestUndead:
			undead = true
		case GuestTalkative:
			talkative = true
		}
	}
	ended := make(chan error, 1)
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		if !undead {
			ended <- nil
		}
	}()
	if talkative {
		go func() {
			for line := strings.Repeat("talk ", 2000) + "\n"; ; {
				os.Stdout.WriteString(line)
			}
		}()
	}
	fmt.Println("test guest starts")
	if !deaf {
		l, err := net.Listen("unix", listen) //nolint:noctx // opening a local socket does not wait
		if err != nil {
			return err
		}
		go func() { ended <- http.Serve(l, guestHandler()) }()
	}
	return <-ended
}

func guestHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/health", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "{}") })
	mux.HandleFunc("GET /facts", func(w http.ResponseWriter, _ *http.Request) {
		dir, _ := os.Getwd()
		_ = json.NewEncoder(w).Encode(Facts{PID: os.Getpid(), Dir: dir, Args: os.Args[1:], Environment: os.Environ()})
	})
	mux.HandleFunc("POST /exit", func(_ http.ResponseWriter, r *http.Request) {
		code, _ := strconv.Atoi(r.FormValue("code"))
		os.Exit(code)
	})
	mux.HandleFunc("POST /spawn", func(w http.ResponseWriter, r *http.Request) {
		// Through a shell that ends at once, so that the sleeper is an orphan. It ignores
		// what can be ignored.
		keep := ""
		if r.FormValue("aloof") == "true" {
			keep = "exec 3>&-; "
		}
		cmd := exec.CommandContext(r.Context(), "/bin/sh", "-c", keep+"trap '' HUP INT TERM; sleep 100000 >/dev/null 2>&1 & echo $!")
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: r.FormValue("setsid") == "true"}
		out, err := cmd.Output()
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		w.Write(out)
	})
	mux.HandleFunc("POST /echo", func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(w, r.Body) })
	return mux
}

// Call sends one request over a fresh stream to a guest, closes the stream, and returns
// the answer's body.
func Call(ctx context.Context, c net.Conn, method, path, body string) (string, error) {
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	return request(ctx, c, method, path, body)
}

func request(ctx context.Context, c net.Conn, method, path, body string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://guest"+path, strings.NewReader(body))
	if err != nil {
		return "", err
	}
	if err := req.Write(c); err != nil {
		return "", err
	}
	resp, err := http.ReadResponse(bufio.NewReader(c), req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return "", err
	}
	if resp.StatusCode != http.StatusOK {
		return "", fmt.Errorf("%s %s: %s: %s", method, path, resp.Status, b)
	}
	return string(b), nil
}
