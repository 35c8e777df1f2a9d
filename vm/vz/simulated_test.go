// SPDX-License-Identifier: MIT

package vz

import (
	"bufio"
	"errors"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/minifleet/minifleet/mux"
)

// simulated is Virtualization.framework as this package fears it: calls that know no
// context, changes of state that queue and come late, a state that says Stopped before
// anything has started, a guest that refuses connections until it has booted, and a
// descriptor of each connection that is closed once more later.
type simulated struct {
	savesUpTo error // what savable says
	fail      map[string]error
	block     map[string]chan struct{} // the call waits for it
	meets     map[string]func()        // called when the call has begun

	mu      sync.Mutex // guards all below
	now     state
	changes chan state
	booted  time.Time
	guests  sync.WaitGroup
	streams []net.Conn // the guest's ends
	late    []int      // numbers that are still to be closed once more
	calls   []string
}

const simulatedBoot = 20 * time.Millisecond

func newSimulated() *simulated {
	return &simulated{changes: make(chan state, 1000), fail: map[string]error{}, block: map[string]chan struct{}{}, meets: map[string]func(){}}
}

func (s *simulated) called(what string) error {
	s.mu.Lock()
	s.calls = append(s.calls, what)
	s.mu.Unlock()
	if f := s.meets[what]; f != nil {
		f()
	}
	if b := s.block[what]; b != nil {
		<-b
	}
	return s.fail[what]
}

// become changes the state; the caller holds mu.
func (s *simulated) become(states ...state) {
	for _, n := range states {
		s.now = n
		s.changes <- n
	}
	if s.now.over() {
		for _, c := range s.streams {
			c.Close()
		}
		s.streams = nil
	}
}

// States in between, with the framework's numbers.
const (
	stateStarting  state = 4
	stateStopping  state = 7
	stateRestoring state = 9
)

var errTransition = &nsError{Domain: vzDomain, Code: 4, Text: "Invalid virtual machine state transition."}

// move makes one transition as the framework does.
func (s *simulated) move(what string, from func(state) bool, via, to state) error {
	err := s.called(what)
	s.mu.Lock()
	defer s.mu.Unlock()
	if !from(s.now) {
		return errTransition
	}
	old := s.now
	if err != nil {
		s.become(via, old)
		return err
	}
	s.become(via, to)
	if to == stateRunning {
		s.booted = time.Now().Add(simulatedBoot)
	}
	return nil
}

func is(want ...state) func(state) bool {
	return func(s state) bool {
		for _, w := range want {
			if s == w {
				return true
			}
		}
		return false
	}
}

func (s *simulated) state() state {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.now
}

func (s *simulated) next(quit <-chan struct{}) (state, bool) {
	select {
	case n := <-s.changes:
		return n, true
	case <-quit:
		return 0, false
	}
}

func (s *simulated) start() error {
	return s.move("start", is(stateStopped, stateError), stateStarting, stateRunning)
}
func (s *simulated) resume() error { return s.move("resume", is(statePaused), 6, stateRunning) }
func (s *simulated) pause() error  { return s.move("pause", is(stateRunning), 5, statePaused) }

func (s *simulated) stop() error {
	err := s.move("stop", is(stateRunning, statePaused), stateStopping, stateStopped)
	s.guests.Wait()
	s.closeLate()
	return err
}

func (s *simulated) savable() error { return s.savesUpTo }

func (s *simulated) save(path string) error {
	err := s.move("save", is(statePaused), 8, statePaused)
	return errors.Join(err, os.WriteFile(path, []byte("saved"), 0o600)) // some of it, if it failed
}

func (s *simulated) restore(path string) error {
	b, err := os.ReadFile(path)
	if err == nil && string(b) != "saved" {
		err = &nsError{Domain: vzDomain, Code: codeRestore, Text: "invalid argument"}
	}
	if err != nil {
		s.fail["restore"] = err
	}
	return s.move("restore", is(stateStopped), stateRestoring, statePaused)
}

func (*simulated) show(string) error { return nil }

// dial gives a connection whose descriptor is closed twice, as vz v3.7.1 does.
func (s *simulated) dial(uint32) (net.Conn, error) {
	if err := s.called("dial"); err != nil {
		return nil, err
	}
	s.closeLate()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.now != stateRunning || time.Now().Before(s.booted) {
		return nil, &nsError{Domain: "NSPOSIXErrorDomain", Code: int(unix.ECONNRESET), Text: "Connection reset by peer"}
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		return nil, err
	}
	ends := [2]net.Conn{}
	for i, fd := range pair {
		f := os.NewFile(uintptr(fd), "")
		if ends[i], err = net.FileConn(f); err != nil {
			return nil, err
		}
		if i == 1 {
			f.Close()
			continue
		}
		f.Close()
		s.late = append(s.late, fd)
	}
	s.streams = append(s.streams, ends[1])
	s.guests.Go(func() { s.serve(ends[1]) })
	return ends[0], nil
}

// closeLate closes the descriptors once more that objects of the framework own.
func (s *simulated) closeLate() {
	s.mu.Lock()
	late := s.late
	s.late = nil
	s.mu.Unlock()
	for _, fd := range late {
		_ = unix.Close(fd)
	}
}

// serve is the guest agent: it answers "ask" and ends the machine at "end".
func (s *simulated) serve(channel net.Conn) {
	l, err := mux.Serve(channel)
	if err != nil {
		return
	}
	defer l.Close()
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		s.guests.Go(func() {
			defer c.Close()
			for lines := bufio.NewScanner(c); lines.Scan(); {
				switch lines.Text() {
				case "ask":
					_, _ = c.Write([]byte("answer\n"))
				case "end":
					s.end(stateStopped)
					return
				default:
					return
				}
			}
		})
	}
}

// end ends the machine from inside.
func (s *simulated) end(with state) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.now == stateRunning {
		s.become(with)
	}
}

// simulatedMac is a platform of simulated machines.
type simulatedMac struct {
	is   host
	err  error
	made chan *simulated // every machine that was opened
	with func(*simulated)
}

func newSimulatedMac() *simulatedMac {
	return &simulatedMac{is: goodHost(), made: make(chan *simulated, 100)}
}

func goodHost() host {
	return host{
		version: Version{26, 1, 0}, hypervisor: true, entitlement: true,
		minCPUs: 1, maxCPUs: 10, minMemory: 128 << 20, maxMemory: 32 << 30,
	}
}

func (m *simulatedMac) host() (host, error) { return m.is, m.err }

func (m *simulatedMac) open(plan) (framework, error) {
	s := newSimulated()
	if m.with != nil {
		m.with(s)
	}
	if err := s.fail["open"]; err != nil {
		return nil, err
	}
	m.made <- s
	return s, nil
}

var errTest = errors.New("the test's error")
