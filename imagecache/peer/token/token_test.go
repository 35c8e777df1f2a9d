// SPDX-License-Identifier: MIT

package token_test

import (
	"crypto/ed25519"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/minifleet/minifleet/imagecache/peer/token"
	"github.com/minifleet/minifleet/secret"
)

var (
	key   = ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))
	other = ed25519.NewKeyFromSeed([]byte(strings.Repeat("x", ed25519.SeedSize)))
	now   = time.Unix(1_700_000_000, 0)
)

func public(k ed25519.PrivateKey) ed25519.PublicKey { return k.Public().(ed25519.PublicKey) }

func claims() token.Claims {
	return token.Claims{
		Site: "abcdefgh", Group: "default", Host: "h-1", Pin: strings.Repeat("a0", 32),
		NotBefore: now.Unix(), Expires: now.Add(10 * time.Minute).Unix(),
	}
}

func sign(t testing.TB, k ed25519.PrivateKey, c token.Claims) secret.Text {
	t.Helper()
	text, err := token.Sign(k, c)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func TestWhatWasSignedIsRead(t *testing.T) {
	want := claims()
	got, err := token.Verify(sign(t, key, want), []ed25519.PublicKey{public(other), public(key)}, now)
	if err != nil || got != want {
		t.Errorf("got %+v, %v; want %+v", got, err, want)
	}
}

func TestTokensThatCountForNothing(t *testing.T) {
	good := sign(t, key, claims()).Reveal()
	raw := func(payload string) string {
		enc := base64.RawURLEncoding
		return "mfp1." + enc.EncodeToString([]byte(payload)) + "." + enc.EncodeToString(ed25519.Sign(key, []byte("minifleet peer token 1\n"+payload)))
	}
	payload := func(extra string) string {
		return fmt.Sprintf(`{"s":"a","g":"b","h":"c","k":%q,"n":%d,"e":%d%s}`, strings.Repeat("a0", 32), now.Unix(), now.Unix()+60, extra)
	}
	if _, err := token.Verify(secret.New(raw(payload(""))), []ed25519.PublicKey{public(key)}, now); err != nil {
		t.Fatalf("the test's own form is not that of a token: %v", err)
	}
	for name, text := range map[string]string{
		"nothing": "", "a word": "x", "another kind": "mfe1." + good[5:], "no signature": good[:strings.LastIndex(good, ".")],
		"cut": good[:len(good)-1], "longer": good + "A", "another key's": sign(t, other, claims()).Reveal(),
		"endless": good + strings.Repeat("A", 2000), "changed": "mfp1.A" + good[6:], "a break in it": good[:20] + "\n" + good[20:], "another alphabet": good[:20] + "+" + good[21:],
		"an unknown field": raw(payload(`,"only":"x"`)), "two values": raw(payload("") + payload("")), "no JSON": raw("x"),
		"no words": raw(`{"n":1700000000,"e":1700000060}`), "for ever": raw(strings.Replace(payload(""), fmt.Sprint(now.Unix()+60), "9000000000", 1)),
		"backwards":                 raw(strings.Replace(payload(""), fmt.Sprint(now.Unix()+60), "1699999999", 1)),
		"signed for something else": "mfp1." + base64.RawURLEncoding.EncodeToString([]byte(payload(""))) + "." + base64.RawURLEncoding.EncodeToString(ed25519.Sign(key, []byte(payload("")))),
	} {
		_, err := token.Verify(secret.New(text), []ed25519.PublicKey{public(key)}, now)
		if !errors.Is(err, token.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		} else if len(text) > 20 && strings.Contains(err.Error(), text[len(text)-20:]) {
			t.Errorf("%s: the error quotes it: %v", name, err)
		}
	}
	for _, keys := range [][]ed25519.PublicKey{nil, {nil}, {{1, 2}}} {
		if _, err := token.Verify(secret.New(good), keys, now); !errors.Is(err, token.ErrInvalid) {
			t.Errorf("with the keys %v it counts: %v", keys, err)
		}
	}
}

func TestClocksMayDifferALittle(t *testing.T) {
	c := claims()
	begins, ends := time.Unix(c.NotBefore, 0), time.Unix(c.Expires, 0)
	for _, tc := range []struct {
		at   time.Time
		good bool
	}{
		{begins.Add(-token.Leeway), true},
		{begins.Add(-token.Leeway - time.Second), false},
		{ends.Add(token.Leeway - time.Second), true},
		{ends.Add(token.Leeway), false},
	} {
		if _, err := token.Verify(sign(t, key, c), []ed25519.PublicKey{public(key)}, tc.at); (err == nil) != tc.good {
			t.Errorf("%s of %s to %s: %v", tc.at, begins, ends, err)
		}
	}
}

func TestWhatIsNoClaimIsNotSigned(t *testing.T) {
	for name, spoil := range map[string]func(*token.Claims){
		"site": func(c *token.Claims) { c.Site = "" }, "host": func(c *token.Claims) { c.Host = "a b" },
		"group": func(c *token.Claims) { c.Group = strings.Repeat("g", 65) }, "pin": func(c *token.Claims) { c.Pin = "A0" },
		"life": func(c *token.Claims) { c.Expires = c.NotBefore },
	} {
		c := claims()
		spoil(&c)
		if text, err := token.Sign(key, c); err == nil || !text.Empty() {
			t.Errorf("a token without a good %s was signed", name)
		}
	}
}

func FuzzVerify(f *testing.F) {
	f.Fuzz(func(t *testing.T, text string) {
		c, err := token.Verify(secret.New(text), []ed25519.PublicKey{public(key)}, now)
		if err != nil {
			if !errors.Is(err, token.ErrInvalid) || c != (token.Claims{}) {
				t.Errorf("%+v, %v", c, err)
			}
			return
		}
		// Only what the key's holder signs gets here, and there is one form of it.
		if again := sign(t, key, c); again.Reveal() != text {
			t.Errorf("%q counts and is not what was signed", text)
		}
	})
}

// FuzzParse looks at what lies behind the signature.
func FuzzParse(f *testing.F) {
	f.Fuzz(func(t *testing.T, payload string) {
		enc := base64.RawURLEncoding
		text := "mfp1." + enc.EncodeToString([]byte(payload)) + "." + enc.EncodeToString(ed25519.Sign(key, []byte("minifleet peer token 1\n"+payload)))
		c, err := token.Verify(secret.New(text), []ed25519.PublicKey{public(key)}, now)
		if err == nil && c.Expires-c.NotBefore > 24*3600 {
			t.Errorf("%+v", c)
		}
		if err == nil {
			sign(t, key, c) // whatever is read could be written
		}
	})
}
