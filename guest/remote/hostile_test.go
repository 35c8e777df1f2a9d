// SPDX-License-Identifier: MIT

package remote_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/minifleet/minifleet/guest/remote"
	"github.com/minifleet/minifleet/secret"
)

// fake is a guest whose sshd is ours, to misbehave. All of its time is simulated.
type fake struct {
	t      *testing.T
	config *ssh.ServerConfig
	// raw, if set, is all that a connection gets.
	raw func(net.Conn)
	// run answers a command; nil is a guest in which minifleet-guest is there and runs.
	run func(script string, ch ssh.Channel) (code uint32)
	// stream takes a stream to the socket, by default an echo.
	stream func(ssh.NewChannel)
	// deaf leaves the host's requests, such as signs of life, without an answer.
	deaf atomic.Bool
	// mute loses all that the guest sends.
	mute atomic.Bool

	connections int
	work        sync.WaitGroup
	hostKey     ssh.Signer
}

func newFake(t *testing.T) *fake {
	t.Helper()
	key, _ := newKey(t)
	signer, err := ssh.ParsePrivateKey([]byte(key.Reveal()))
	if err != nil {
		t.Fatal(err)
	}
	f := &fake{t: t, hostKey: signer}
	f.config = &ssh.ServerConfig{PasswordCallback: func(_ ssh.ConnMetadata, password []byte) (*ssh.Permissions, error) {
		if string(password) != "swordfish" {
			return nil, errors.New("wrong")
		}
		return nil, nil
	}}
	f.config.AddHostKey(signer)
	return f
}

const fakeSurvey = "minifleet:system Linux x86_64\nminifleet:boot 01234567-89ab-cdef-0123-456789abcdef\nminifleet:home /home/runner\n"

// eager is a connection on which nobody waits for the reader, as on a real one.
type eager struct {
	net.Conn
	queue chan []byte
	mute  *atomic.Bool
}

func (e *eager) Write(p []byte) (int, error) {
	if !e.mute.Load() {
		e.queue <- bytes.Clone(p)
	}
	return len(p), nil
}

func (e *eager) pump() {
	for p := range e.queue {
		if _, err := e.Conn.Write(p); err != nil {
			e.Conn.Close()
		}
	}
}

func (f *fake) network(context.Context, string, string) (net.Conn, error) {
	host, in := net.Pipe()
	f.connections++
	f.work.Go(func() {
		defer in.Close()
		if f.raw != nil {
			f.raw(in)
			return
		}
		e := &eager{Conn: in, queue: make(chan []byte, 1000), mute: &f.mute}
		var pump sync.WaitGroup
		pump.Go(e.pump)
		f.serve(e)
		in.Close()
		close(e.queue)
		pump.Wait()
	})
	return host, nil
}

func (f *fake) serve(conn net.Conn) {
	sc, channels, requests, err := ssh.NewServerConn(conn, f.config)
	if err != nil {
		return
	}
	var work sync.WaitGroup
	work.Go(func() {
		for r := range requests {
			if !f.deaf.Load() {
				r.Reply(false, nil) //nolint:errcheck // the host may be gone
			}
		}
	})
	work.Go(func() {
		for n := range channels {
			switch {
			case n.ChannelType() == "session":
				ch, in, err := n.Accept()
				if err == nil {
					work.Go(func() { f.session(ch, in) })
				}
			case f.stream != nil:
				work.Go(func() { f.stream(n) })
			default:
				ch, in, err := n.Accept()
				if err == nil {
					work.Go(func() { ssh.DiscardRequests(in) })
					work.Go(func() { io.Copy(ch, ch); ch.Close() }) //nolint:errcheck // the host may be gone
				}
			}
		}
	})
	sc.Wait() //nolint:errcheck // however it ended
	work.Wait()
}

func (f *fake) session(ch ssh.Channel, in <-chan *ssh.Request) {
	for r := range in {
		if r.Type != "exec" {
			continue
		}
		r.Reply(true, nil) //nolint:errcheck // the host may be gone
		var code uint32
		switch script := string(r.Payload); {
		case f.run != nil:
			code = f.run(script, ch)
		case strings.Contains(script, "minifleet:system"):
			io.WriteString(ch, fakeSurvey) //nolint:errcheck // the host may be gone
		}
		ch.SendRequest("exit-status", false, ssh.Marshal(struct{ Code uint32 }{code})) //nolint:errcheck // the host may be gone
		ch.Close()
	}
}

// way is a way into the guest; it must be closed within the bubble.
func (f *fake) way(change ...func(*remote.Config)) *remote.Guest {
	f.t.Helper()
	cfg := remote.Config{
		Address:     func(context.Context) (string, error) { return "192.0.2.1:22", nil },
		Credentials: remote.Credentials{User: "runner", Password: secret.New("swordfish")},
		HostKeys:    remote.HostKeys{Dir: f.t.TempDir()}, Image: image,
		Programs: remote.Programs{Dir: "/nowhere"}, RunnerDir: "runner", Network: f.network,
	}
	for _, c := range change {
		c(&cfg)
	}
	g, err := remote.New(cfg)
	if err != nil {
		f.t.Fatal(err)
	}
	return g
}

// end closes everything and waits for the fake.
func (f *fake) end(g *remote.Guest) {
	g.Close()
	f.work.Wait()
}

// echo sends a word over a stream and wants it back.
func echo(t *testing.T, conn net.Conn) {
	t.Helper()
	if _, err := conn.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 5)
	if _, err := io.ReadFull(conn, b); err != nil || string(b) != "hello" {
		t.Fatalf("%q, %v", b, err)
	}
}

func TestPassword(t *testing.T) {
	for name, config := range map[string]func(*ssh.ServerConfig){
		"as such": func(*ssh.ServerConfig) {},
		"asked for": func(c *ssh.ServerConfig) {
			c.PasswordCallback = nil
			c.KeyboardInteractiveCallback = func(_ ssh.ConnMetadata, ask ssh.KeyboardInteractiveChallenge) (*ssh.Permissions, error) {
				answers, err := ask("", "", []string{"Password:"}, []bool{false})
				if err != nil || len(answers) != 1 || answers[0] != "swordfish" {
					return nil, errors.New("wrong")
				}
				_, err = ask("", "", nil, nil)
				return nil, err
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFake(t)
				config(f.config)
				g := f.way()
				defer f.end(g)
				conn, err := g.Dial(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				echo(t, conn)
				conn.Close()
			})
		})
	}
}

func TestWrongPassword(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		keys := t.TempDir()
		g := f.way(func(c *remote.Config) { c.Credentials.Password, c.HostKeys.Dir = secret.New("sesame"), keys })
		defer f.end(g)
		for range 5 { // in no time: its sshd is not asked each time
			_, err := g.Dial(t.Context())
			wantStep(t, err, remote.StepLogin, "unable to authenticate")
			if strings.Contains(err.Error(), "sesame") {
				t.Error("the error has the password in it")
			}
		}
		if f.connections != 1 {
			t.Errorf("%d connections", f.connections)
		}
		time.Sleep(3 * time.Second)
		_, err := g.Dial(t.Context())
		wantStep(t, err, remote.StepLogin, "unable to authenticate")
		if f.connections != 2 {
			t.Errorf("%d connections", f.connections)
		}
		if entries, err := os.ReadDir(keys); err != nil || len(entries) != 0 {
			t.Errorf("a host key was pinned without a login: %v, %v", entries, err)
		}
	})
}

// TestStalls: a guest that stops on its way costs a bounded time, and the error names the step.
func TestStalls(t *testing.T) {
	for name, tt := range map[string]struct {
		raw    func(net.Conn)
		change func(*fake)
		step   remote.Step
		words  string
		within time.Duration // of simulated time
	}{
		"never speaks": {
			raw:  func(c net.Conn) { io.Copy(io.Discard, c) }, //nolint:errcheck // until the host gives up
			step: remote.StepConnect, words: "no sshd speaks", within: 20 * time.Second,
		},
		"hangs up at once": {raw: func(net.Conn) {}, step: remote.StepConnect, words: "no sshd speaks", within: 20 * time.Second},
		"one byte and no more": {
			raw:  func(c net.Conn) { c.Write([]byte("S")); io.Copy(io.Discard, c) }, //nolint:errcheck // until the host gives up
			step: remote.StepLogin, words: "not done within 30s", within: 35 * time.Second,
		},
		"a banner for ever": {
			raw: func(c net.Conn) {
				go io.Copy(io.Discard, c) //nolint:errcheck // until the host gives up
				for {
					if _, err := c.Write([]byte("Welcome!\r\n")); err != nil {
						return
					}
				}
			},
			step: remote.StepLogin, words: "overflow reading version", within: time.Second,
		},
		"garbage": {
			raw: func(c net.Conn) {
				go io.Copy(io.Discard, c)                                                                         //nolint:errcheck // until the host gives up
				c.Write(append([]byte("SSH-2.0-x\r\n"), bytes.Repeat([]byte("\x7f\xffgarbage\x1b[2J"), 4000)...)) //nolint:errcheck // until the host gives up
			},
			step: remote.StepLogin, words: "as runner", within: time.Second,
		},
		"no answer to the login": {
			change: func(f *fake) {
				f.config.PasswordCallback = func(ssh.ConnMetadata, []byte) (*ssh.Permissions, error) {
					time.Sleep(5 * time.Minute)
					return nil, errors.New("late")
				}
			},
			step: remote.StepLogin, words: "not done within 30s", within: 35 * time.Second,
		},
		"no answer to the survey": {
			change: func(f *fake) {
				f.run = func(string, ssh.Channel) uint32 { time.Sleep(5 * time.Minute); return 0 }
			},
			step: remote.StepSurvey, words: "longer than 30s", within: 35 * time.Second,
		},
		"endless answer to the survey": {
			change: func(f *fake) {
				f.run = func(_ string, ch ssh.Channel) uint32 {
					for {
						if _, err := ch.Write(bytes.Repeat([]byte("minifleet:home /x\n"), 1000)); err != nil {
							return 0
						}
						time.Sleep(100 * time.Millisecond)
					}
				}
			},
			step: remote.StepSurvey, words: "longer than 30s", within: 35 * time.Second,
		},
		"no answer to the stream": {
			change: func(f *fake) { f.stream = func(ssh.NewChannel) { time.Sleep(5 * time.Minute) } },
			step:   remote.StepCopy, words: "minifleet", within: 15 * time.Second,
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFake(t)
				f.raw = tt.raw
				if tt.change != nil {
					tt.change(f)
				}
				g := f.way()
				defer f.end(g)
				began := time.Now()
				_, err := g.Dial(t.Context())
				if e, _ := errors.AsType[*remote.Error](err); e != nil && strings.Contains(err.Error(), "under way") {
					_, err = g.Dial(t.Context()) // the first call ended before the step
				}
				wantStep(t, err, tt.step, tt.words)
				if took := time.Since(began); took > tt.within {
					t.Errorf("it took %s", took)
				}
				if strings.Contains(err.Error(), "\x1b") {
					t.Errorf("error %q", err)
				}
			})
		})
	}
}

func TestAddressIsAskedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		known := time.Now().Add(30 * time.Second)
		g := f.way(func(c *remote.Config) {
			c.Address = func(context.Context) (string, error) {
				if time.Now().Before(known) {
					return "", errors.New("no lease yet")
				}
				return "192.0.2.1:22", nil
			}
		})
		defer f.end(g)
		_, err := g.Dial(t.Context())
		wantStep(t, err, remote.StepAddress, "no lease yet")
		conn, err := g.Dial(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		conn.Close()
		if late := time.Since(known); late > time.Second {
			t.Errorf("reached %s after it had an address", late)
		}
	})
}

// TestTriesComeOneAtATime: what lies before a guest takes the connection and loses the
// first ones' bytes.
func TestTriesComeOneAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		var mu sync.Mutex // guards the next three
		open, most := 0, 0
		var limits []time.Duration
		up := time.Now().Add(3 * time.Second)
		lost := func(c net.Conn) {
			mu.Lock()
			defer mu.Unlock()
			open++
			most = max(most, open)
			mu.Unlock()
			began := time.Now()
			io.Copy(io.Discard, c) //nolint:errcheck // until the host gives up
			mu.Lock()
			limits = append(limits, time.Since(began))
			open--
		}
		g := f.way(func(c *remote.Config) {
			c.Network = func(ctx context.Context, network, address string) (net.Conn, error) {
				if time.Now().After(up) {
					return f.network(ctx, network, address)
				}
				host, in := net.Pipe()
				f.work.Go(func() { lost(in) })
				return host, nil
			}
		})
		defer f.end(g)
		conn, err := g.Dial(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		conn.Close()
		mu.Lock()
		defer mu.Unlock()
		if most != 1 || len(limits) < 5 || limits[0] != 400*time.Millisecond || limits[len(limits)-1] < 500*time.Millisecond {
			t.Errorf("at most %d tries at once, of %v", most, limits)
		}
	})
}

func TestConnectionThatSaysNothingIsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		f.deaf.Store(true)
		g := f.way()
		defer f.end(g)
		conn, err := g.Dial(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		if _, err := conn.Read(make([]byte, 1)); err == nil {
			t.Error("a byte came")
		}
		if took := time.Since(began); took > 31*time.Second {
			t.Errorf("it took %s", took)
		}
		f.deaf.Store(false)
		conn.Close()
		if conn, err = g.Dial(t.Context()); err != nil {
			t.Fatal(err)
		}
		echo(t, conn)
		conn.Close()
	})
}

// TestStreamsLeftOpen: a guest that does not confirm the end of streams does not fill the
// host with them.
func TestStreamsLeftOpen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		g := f.way()
		defer f.end(g)
		conn, err := g.Dial(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		f.mute.Store(true)
		var reader sync.WaitGroup
		began := time.Now()
		reader.Go(func() {
			if _, err := conn.Read(make([]byte, 1)); err == nil {
				t.Error("a byte came")
			}
		})
		conn.Close()
		reader.Wait()
		if took := time.Since(began); took > 11*time.Second {
			t.Errorf("the reader waited %s", took)
		}
	})
}

func TestCallThatIsCalledOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		f.raw = func(c net.Conn) { io.Copy(io.Discard, c) } //nolint:errcheck // until the host gives up
		g := f.way()
		defer f.end(g)
		began := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := g.Dial(ctx)
		wantStep(t, err, remote.StepConnect, "no sshd speaks")
		if took := time.Since(began); took != time.Second {
			t.Errorf("it took %s", took)
		}
	})
}

func TestHostKeyThatIsDamaged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		dir := t.TempDir()
		if err := os.WriteFile(dir+"/sha256-0123456789abcdef", []byte("ssh-ed25519 AAAA"), 0o600); err != nil {
			t.Fatal(err)
		}
		g := f.way(func(c *remote.Config) { c.HostKeys.Dir = dir })
		defer f.end(g)
		_, err := g.Dial(t.Context())
		wantStep(t, err, remote.StepHostKey, "is damaged: delete it")
	})
}

func TestConfigIsChecked(t *testing.T) {
	key, _ := newKey(t)
	good := remote.Credentials{User: "runner", Key: key}
	for name, tt := range map[string]struct {
		change func(*remote.Config)
		words  string
	}{
		"no user":       {func(c *remote.Config) { c.Credentials.User = "" }, "no user"},
		"nothing":       {func(c *remote.Config) { c.Credentials.Key = secret.Text{} }, "neither a key nor a password"},
		"no key":        {func(c *remote.Config) { c.Credentials.Key = secret.New("swordfish") }, "cannot be read"},
		"no image":      {func(c *remote.Config) { c.Image = "" }, "digest"},
		"image as path": {func(c *remote.Config) { c.Image = "../x" }, "digest"},
		"no address":    {func(c *remote.Config) { c.Address = nil }, "address"},
	} {
		t.Run(name, func(t *testing.T) {
			c := remote.Config{
				Address:     func(context.Context) (string, error) { return "", nil },
				Credentials: good, HostKeys: remote.HostKeys{Dir: "/x"}, Image: image, Programs: remote.Programs{Dir: "/x"}, RunnerDir: "runner",
			}
			if g, err := remote.New(c); err != nil {
				t.Fatal(err)
			} else {
				g.Close()
			}
			tt.change(&c)
			_, err := remote.New(c)
			if err == nil || !strings.Contains(err.Error(), tt.words) {
				t.Errorf("error %v, want %q", err, tt.words)
			}
			if err != nil && strings.Contains(err.Error(), "swordfish") {
				t.Error("the error has the secret in it")
			}
		})
	}
}
