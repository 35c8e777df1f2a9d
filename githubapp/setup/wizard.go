// SPDX-License-Identifier: MIT

package setup

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"fmt"
	"html/template"
	"log/slog"
	"net"
	"net/http"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// wizard is the local web page from which a person's browser takes the manifest to
// GitHub, and to which GitHub sends it back with a code.
type wizard struct {
	wish  Wish
	at    string // http://127.0.0.1:PORT
	door  string // secret part of the page's path: other users of this machine do not know it
	state string // comes back with the code; nobody else knows it
	l     net.Listener
	// exchange turns the code into an App and returns the page to go on at. It is
	// called once.
	exchange func(ctx context.Context, code string) (next string, err error)

	used atomic.Bool
	once sync.Once
	done chan error // the outcome of exchange
}

func newWizard(ctx context.Context, wish Wish, listen string, exchange func(context.Context, string) (string, error)) (*wizard, error) {
	host, _, err := net.SplitHostPort(listen)
	if ip := net.ParseIP(host); err != nil || ip == nil || !ip.IsLoopback() {
		return nil, fmt.Errorf("page at %q: want a loopback address with a port, such as 127.0.0.1:8091; the page must not be seen by others", listen)
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", listen)
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, fmt.Errorf("page at %s: %w: give another --listen", listen, err)
	}
	if err != nil {
		return nil, err
	}
	return &wizard{
		wish: wish, at: "http://" + l.Addr().String(), door: rand.Text(), state: rand.Text(), l: l, exchange: exchange, done: make(chan error, 1),
	}, nil
}

// url is the page to open.
func (w *wizard) url() string { return w.at + "/" + w.door }

// run serves the page until the exchange is over or ctx ends.
func (w *wizard) run(ctx context.Context, log *slog.Logger) error {
	work := context.WithoutCancel(ctx)
	server := &http.Server{
		Handler: w.guard(w.pages(work)), ReadHeaderTimeout: 10 * time.Second, MaxHeaderBytes: 64 << 10,
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(w.l) }()
	var err error
	select {
	case err = <-w.done:
	case <-ctx.Done():
		err = context.Cause(ctx)
		if w.used.Load() { // what is exchanged has to be kept
			err = <-w.done
		}
	}
	// The browser is still to be told.
	grace, cancel := context.WithTimeout(work, 5*time.Second)
	defer cancel()
	if server.Shutdown(grace) != nil {
		err = errors.Join(err, server.Close())
	}
	if ended := <-served; !errors.Is(ended, http.ErrServerClosed) {
		err = errors.Join(err, ended)
	}
	return err
}

// guard refuses what did not come to this page under its own name: a name of
// somebody's that was made to point here would let their page read ours.
func (w *wizard) guard(next http.Handler) http.Handler {
	_, port, _ := net.SplitHostPort(w.l.Addr().String())
	return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		h := rw.Header()
		h.Set("Cache-Control", "no-store")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'; form-action "+w.wish.Server.Web)
		switch strings.ToLower(r.Host) {
		case "127.0.0.1:" + port, "localhost:" + port, "[::1]:" + port, strings.TrimPrefix(w.at, "http://"):
			next.ServeHTTP(rw, r)
		default:
			http.Error(rw, "this page answers at "+w.at+" only", http.StatusMisdirectedRequest)
		}
	})
}

var codePattern = regexp.MustCompile(`^[A-Za-z0-9_-]{1,256}$`)

func (w *wizard) pages(work context.Context) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /"+w.door, w.start)
	mux.HandleFunc("GET /created", func(rw http.ResponseWriter, r *http.Request) { w.created(work, rw, r) })
	return mux
}

// start shows the one button.
func (w *wizard) start(rw http.ResponseWriter, _ *http.Request) {
	manifest, err := w.wish.manifest(w.at + "/created")
	if err != nil {
		http.Error(rw, err.Error(), http.StatusInternalServerError)
		return
	}
	show(rw, http.StatusOK, "form", map[string]any{
		"Action": w.wish.page(w.state), "Manifest": manifest, "Name": w.wish.Name,
		"Owner": w.wish.Org, "Web": w.wish.Server.Web, "Needs": w.needs(),
	})
}

func (w *wizard) needs() []string {
	list, _ := missingRights(nil, Events(), w.wish.needs())
	return list
}

// created takes the code that GitHub sends with the browser.
func (w *wizard) created(work context.Context, rw http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	code, state := q.Get("code"), q.Get("state")
	switch {
	case subtle.ConstantTimeCompare([]byte(state), []byte(w.state)) != 1:
		show(rw, http.StatusForbidden, "said", "This did not come from the page that minifleet setup opened. Start there.")
	case !codePattern.MatchString(code):
		show(rw, http.StatusBadRequest, "said", "GitHub sent no code. Go back and try again.")
	case !w.used.CompareAndSwap(false, true):
		show(rw, http.StatusConflict, "said", "This App is made already. See the terminal.")
	default:
		next, err := w.exchange(work, code)
		if err != nil {
			show(rw, http.StatusBadGateway, "said", "The App's key could not be had or kept. The terminal says why and what to do.")
		} else {
			rw.Header().Set("Location", next)
			show(rw, http.StatusSeeOther, "said", "The App is made. Install it next.")
		}
		w.once.Do(func() { w.done <- err })
	}
}

func show(rw http.ResponseWriter, status int, name string, data any) {
	rw.Header().Set("Content-Type", "text/html; charset=utf-8")
	rw.WriteHeader(status)
	_ = pageTemplates.ExecuteTemplate(rw, name, data) // the browser may have gone; the terminal tells all
}

var pageTemplates = template.Must(template.New("").Parse(`
{{define "head"}}<!doctype html><html lang="en"><meta charset="utf-8"><title>Minifleet: GitHub App</title>
<style>body{font:16px/1.5 system-ui,sans-serif;max-width:38rem;margin:4rem auto;padding:0 1rem}button{font:inherit;padding:.5rem 1rem}</style>
<h1>Minifleet</h1>{{end}}
{{define "form"}}{{template "head"}}
<p>This makes a GitHub App named <b>{{.Name}}</b> for {{if .Owner}}the organization <b>{{.Owner}}</b>{{else}}your own account{{end}} at {{.Web}}, with:</p>
<ul>{{range .Needs}}<li>{{.}}</li>{{end}}</ul>
<p>GitHub shows it to you before it is made, and sends you back here. Its key goes into a file on the machine where minifleet setup runs.</p>
<form method="post" action="{{.Action}}"><input type="hidden" name="manifest" value="{{.Manifest}}"><button type="submit" autofocus>Go on at GitHub</button></form>{{end}}
{{define "said"}}{{template "head"}}<p>{{.}}</p>{{end}}
`))
