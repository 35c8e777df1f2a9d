// SPDX-License-Identifier: MIT

package hosts_test

import (
	"crypto/ed25519"
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/minifleet/minifleet/hosts"
	"github.com/minifleet/minifleet/hosts/protocol"
	"github.com/minifleet/minifleet/imagecache/peer/token"
	"github.com/minifleet/minifleet/secret"
)

func loadKey(t *testing.T, path string) ed25519.PrivateKey {
	t.Helper()
	key, err := hosts.LoadPeerKey(path)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// TestAKeyThatCannotBeKept is used all the same: hosts learn another one with each answer.
func TestAKeyThatCannotBeKept(t *testing.T) {
	dir := t.TempDir()
	for name, path := range map[string]string{
		"folder is missing":   filepath.Join(dir, "none", "key"),
		"file is no file":     dir,
		"folder is no folder": filepath.Join(os.DevNull, "key"),
	} {
		key, err := hosts.LoadPeerKey(path)
		if err == nil || len(key) != ed25519.PrivateKeySize {
			t.Errorf("%s: a key of %d bytes, error %v", name, len(key), err)
		}
	}
}

func peerFacts(n int) protocol.Facts {
	return protocol.Facts{Slots: 2, PeerAddress: fmt.Sprintf("192.168.1.%d:7443", n), PeerPin: strings.Repeat(fmt.Sprintf("%02d", n), 32), PeerGroup: "default"}
}

// TestHostsLearnOfEachOther follows two hosts with listeners and one without, without a new
// revision or anybody being woken.
func TestHostsLearnOfEachOther(t *testing.T) {
	key := loadKey(t, filepath.Join(t.TempDir(), "key"))
	w := newWorld(t, func(c *hosts.Config) { c.PeerKey = key })
	public := base64.StdEncoding.EncodeToString(key.Public().(ed25519.PublicKey))
	var agents []*agent
	for n, name := range []string{"mini-1", "mini-2", "mini-3"} {
		a := w.agent(name, 2)
		facts := peerFacts(n + 1)
		if n == 2 {
			facts = protocol.Facts{Slots: 2}
		}
		var welcome protocol.Welcome
		w.do("POST", protocol.PathHello, a.credential, protocol.Hello{Instance: a.instance, Machine: a.machine, Facts: facts}, &welcome)
		if welcome.PeerKey != public {
			t.Errorf("welcome: key %q, want %q", welcome.PeerKey, public)
		}
		agents = append(agents, a)
	}
	ask := func(a *agent) (d protocol.Desired) {
		t.Helper()
		w.do("GET", protocol.PathDesired+"?instance="+a.instance+"&revision=-1&wait=0", a.credential, nil, &d)
		return d
	}
	first := ask(agents[0])
	if diff := cmp.Diff([]protocol.Peer{{Address: "192.168.1.2:7443", Pin: peerFacts(2).PeerPin}}, first.Peers); diff != "" {
		t.Errorf("peers of the first (-want +got):\n%s", diff)
	}
	claims, err := token.Verify(secret.New(first.PeerToken), []ed25519.PublicKey{key.Public().(ed25519.PublicKey)}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	left := time.Until(time.Unix(claims.Expires, 0))
	if claims.Host != string(agents[0].id) || claims.Site != w.s.Site() || claims.Group != "default" || claims.Pin != peerFacts(1).PeerPin || left < 4*time.Minute || left > 11*time.Minute {
		t.Errorf("the token says %+v, for %s more", claims, left)
	}
	if first.PeerKey != public {
		t.Errorf("desired: key %q", first.PeerKey)
	}
	if d := ask(agents[2]); d.Peers != nil || d.PeerToken != "" || d.PeerKey != "" {
		t.Errorf("a host without a listener is told %+v", d)
	}
	// The second closes its listener: the first learns it with its next answer.
	w.do("POST", protocol.PathReport, agents[1].credential, protocol.Report{Instance: agents[1].instance, Sequence: 1, Facts: protocol.Facts{Slots: 2}}, nil)
	second := ask(agents[0])
	if len(second.Peers) != 0 || second.PeerToken == "" || second.Revision != first.Revision {
		t.Errorf("then it is told of %v, in revision %d after %d", second.Peers, second.Revision, first.Revision)
	}
	if strings.Contains(w.log.String(), first.PeerToken) {
		t.Error("a token is in the log")
	}
	a, err := w.call(t.Context(), "POST", protocol.PathReport, agents[1].credential, protocol.Report{Instance: agents[1].instance, Sequence: 2, Facts: protocol.Facts{PeerAddress: "0.0.0.0:1"}})
	if err != nil || a.status != 400 {
		t.Errorf("a listener that is none: %d %s, %v", a.status, a.body, err)
	}
}

func TestWithoutAKeyNobodyIsAPeer(t *testing.T) {
	w := newWorld(t)
	a := w.agent("mini-1", 2)
	var welcome protocol.Welcome
	w.do("POST", protocol.PathHello, a.credential, protocol.Hello{Instance: a.instance, Machine: a.machine, Facts: peerFacts(1)}, &welcome)
	var d protocol.Desired
	w.do("GET", protocol.PathDesired+"?instance="+a.instance+"&revision=-1&wait=0", a.credential, nil, &d)
	if welcome.PeerKey != "" || d.PeerToken != "" || d.Peers != nil {
		t.Errorf("%+v, %+v", welcome, d)
	}
}

func TestThePeerKeyIsKept(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.db.peer-key")
	key := loadKey(t, path)
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	if !loadKey(t, path).Equal(key) {
		t.Error("another start has another key")
	}
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func() error{
		"cut":           func() error { return os.WriteFile(path, whole[:len(whole)/2], 0o600) },
		"empty":         func() error { return os.WriteFile(path, nil, 0o600) },
		"read by all":   func() error { return os.Chmod(path, 0o644) },
		"half replaced": func() error { return os.WriteFile(path+".new", []byte("x"), 0o600) },
		"a link":        func() error { return os.Symlink("/dev/null", path) },
	} {
		if name == "a link" {
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
		}
		if err := spoil(); err != nil {
			t.Fatal(err)
		}
		key := loadKey(t, path)
		if info, err := os.Lstat(path); err != nil || info.Mode() != 0o600 || !loadKey(t, path).Equal(key) {
			t.Errorf("%s: %v, %v", name, info, err)
		}
	}
	if _, err := hosts.LoadPeerKey(filepath.Join(t.TempDir(), "missing", "x")); err == nil || !strings.Contains(err.Error(), "writable") {
		t.Errorf("no folder: %v", err)
	}
}
