// SPDX-License-Identifier: MIT

package main

import (
	"archive/tar"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

func TestParseShow(t *testing.T) {
	got, err := parseShow(strings.NewReader(`Package: openssh-server
Version: 1:9.2p1-2+deb12u10
Depends: adduser, debconf (>= 0.5) | debconf-2.0, libc6:any (>= 2.36)
Pre-Depends: init-system-helpers (>= 1.54~)
Description-en: secure shell (SSH) server
 Depends: this is text
Section: net
SHA256: 933c

Package: zlib1g
Version: 1:1.2.13
Section: libs
`))
	if err != nil {
		t.Fatal(err)
	}
	want := []shown{
		{
			section: "net", depends: []string{"adduser", "debconf", "libc6", "init-system-helpers"},
			deb: deb{Name: "openssh-server", Version: "1:9.2p1-2+deb12u10", SHA256: "933c"},
		},
		{section: "libs", deb: deb{Name: "zlib1g", Version: "1:1.2.13"}},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v\nwant %+v", got, want)
	}
}

func TestDamagedPackageIsRefused(t *testing.T) {
	set := packageSet{dir: t.TempDir()}
	d := deb{Name: "x", File: "x.deb", SHA256: strings.Repeat("0", 64)}
	if err := os.WriteFile(set.path(d), []byte("half"), 0o644); err != nil {
		t.Fatal(err)
	}
	err := set.read(t.Context(), d, func(string, *tar.Header, io.Reader) error { return nil })
	if err == nil || !strings.Contains(err.Error(), "is damaged: delete "+set.dir) {
		t.Errorf("error %v", err)
	}
}

func TestUnreadableSetIsNamed(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, fileSet), []byte(`{"packages": [`), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, _, err := ensurePackages(t.Context(), dir); err == nil || !strings.Contains(err.Error(), "delete the folder") {
		t.Errorf("error %v", err)
	}
}

func TestMergedUsr(t *testing.T) {
	for name, want := range map[string]string{
		"./bin/busybox": "usr/bin/busybox", "lib64/ld.so": "usr/lib64/ld.so", "./usr/sbin/sshd": "usr/sbin/sshd",
		"etc/ssh": "etc/ssh", "library/x": "library/x",
	} {
		if got := mergedUsr(name); got != want {
			t.Errorf("%s is %s, want %s", name, got, want)
		}
	}
}
