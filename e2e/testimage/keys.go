// SPDX-License-Identifier: MIT

package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
)

// The files in the folder of keys. They are made once per folder, are good for the test
// guest alone, and are never committed.
const (
	fileKey     = "id_ed25519"               // the tests' key, for root and runner
	fileHostKey = "ssh_host_ed25519_key"     // the guest's
	filePublic  = fileKey + ".pub"           //
	fileHostPub = "ssh_host_ed25519_key.pub" // what the tests know the guest by
)

// keys are those that the guest has in it.
type keys struct {
	public []byte // may log in
	host   []byte // private
}

// ensureKeys returns the keys in dir, and makes those that are not there.
func ensureKeys(ctx context.Context, dir string) (keys, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return keys{}, err
	}
	for file, comment := range map[string]string{fileKey: "minifleet tests", fileHostKey: "minifleet test guest"} {
		path := filepath.Join(dir, file)
		if _, err := os.Stat(path + ".pub"); err == nil {
			continue
		}
		if err := os.RemoveAll(path); err != nil { // a half-made one; ssh-keygen would ask
			return keys{}, err
		}
		if _, err := output(command(ctx, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", path)); err != nil {
			return keys{}, err
		}
	}
	public, err := os.ReadFile(filepath.Join(dir, filePublic))
	host, err2 := os.ReadFile(filepath.Join(dir, fileHostKey))
	return keys{public: public, host: host}, errors.Join(err, err2)
}
