// SPDX-License-Identifier: MIT

package keepport_test

import (
	"errors"
	"net"
	"syscall"
	"testing"

	"github.com/minifleet/minifleet/internal/keepport"
	"github.com/minifleet/minifleet/internal/leakcheck"
)

func TestMain(m *testing.M) { leakcheck.Main(m) }

// Nobody listens there until somebody does who names the address, as often as it likes, with
// connections left over from before.
func TestAddress(t *testing.T) {
	address := keepport.Address(t)
	dial := func() (net.Conn, error) { return (&net.Dialer{}).DialContext(t.Context(), "tcp", address) }
	listen := func(address string) (net.Listener, error) {
		return (&net.ListenConfig{}).Listen(t.Context(), "tcp", address)
	}
	if _, err := dial(); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("before anybody listens: %v", err)
	}
	for range 3 {
		l, err := listen(address)
		if err != nil {
			t.Fatal(err)
		}
		ours, err := dial()
		if err != nil {
			t.Fatal(err)
		}
		defer ours.Close()
		theirs, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		if second, err := listen(address); err == nil {
			t.Error("two listen there")
			second.Close()
		}
		theirs.Close()
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if other := keepport.Address(t); other == address {
		t.Errorf("%s is kept twice", other)
	}
}
