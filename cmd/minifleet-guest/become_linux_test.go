// SPDX-License-Identifier: MIT

package main

import (
	"os"
	"os/exec"
	"os/user"
	"strings"
	"testing"
)

// TestBecome: the program turns into another with the environment that comes on its
// standard input, and nothing of its own.
func TestBecome(t *testing.T) {
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	become := func(name, environ string) (string, error) {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestMainAsProgram$")
		cmd.Env = []string{asProgram + "=become " + name, "OURS=x"}
		cmd.Stdin = strings.NewReader(environ)
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	name, id := me.Username, me.Uid
	if os.Geteuid() == 0 {
		name, id = "nobody", "65534"
	}
	out, err := become(name, "SECRET=a b\nc\x00PATH="+os.Getenv("PATH")+"\x00")
	if want := id + " a b\nc  done\n"; err != nil || out != want {
		t.Errorf("%q, %v; want %q", out, err, want)
	}
	for environ, want := range map[string]string{"SECRET=cut": "not whole", "=x\x00": "without a name"} {
		if out, err := become(name, environ); err == nil || !strings.Contains(out, want) || strings.Contains(out, "cut") {
			t.Errorf("%q: %q, %v", environ, out, err)
		}
	}
	if out, err := become("nobody-of-that-name", ""); err == nil || !strings.Contains(out, "nobody-of-that-name") {
		t.Errorf("%q, %v", out, err)
	}
}
