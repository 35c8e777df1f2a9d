// SPDX-License-Identifier: MIT

package remote

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/crypto/ssh"
)

// HostKeys is the folder of the host keys by which guests are known: one file for each
// image, written at the first login to a clone of it. Every clone of an image has its host
// key, unless the image makes a new one at each boot.
type HostKeys struct {
	// Dir is made with the first key.
	Dir string
}

const maxHostKeyFile = 16 << 10

// known returns the key of an image, nil if none is known yet.
func (h HostKeys) known(image string) (ssh.PublicKey, error) {
	f, err := os.Open(h.path(image))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxHostKeyFile))
	if err != nil {
		return nil, err
	}
	key, _, _, _, err := ssh.ParseAuthorizedKey(b) //nolint:dogsled // the rest is not used in this file
	if err != nil {
		return nil, fmt.Errorf("%s is damaged: delete it, and the next guest's host key is taken as the image's", f.Name())
	}
	return key, nil
}

// pin makes key the image's. If another was pinned meanwhile, that one decides.
func (h HostKeys) pin(image string, key ssh.PublicKey) error {
	if err := os.MkdirAll(h.Dir, 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(h.Dir, ".new*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(ssh.MarshalAuthorizedKey(key))
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	err = os.Link(f.Name(), h.path(image))
	if errors.Is(err, fs.ErrExist) {
		return h.check(image, key)
	}
	return err
}

// check returns an error if the image is known by another key.
func (h HostKeys) check(image string, key ssh.PublicKey) error {
	known, err := h.known(image)
	switch {
	case err != nil || known == nil:
		return err
	case bytes.Equal(known.Marshal(), key.Marshal()):
		return nil
	}
	return fmt.Errorf("the guest shows the host key %s %s, and clones of this image are known by %s %s: "+
		"something else answers at the guest's address, or the image makes a new host key at each boot; "+
		"have it keep its host key, then delete %s", key.Type(), ssh.FingerprintSHA256(key), known.Type(), ssh.FingerprintSHA256(known), h.path(image))
}

// algorithms are those in which a guest can prove the key: asked for others, an sshd with
// keys of several types would show another one.
func algorithms(key ssh.PublicKey) []string {
	switch {
	case key == nil:
		return nil
	case key.Type() == ssh.KeyAlgoRSA:
		return []string{ssh.KeyAlgoRSASHA512, ssh.KeyAlgoRSASHA256}
	}
	return []string{key.Type()}
}

func (h HostKeys) path(image string) string {
	return filepath.Join(h.Dir, strings.ReplaceAll(image, ":", "-"))
}

// checkImage refuses what is no file's name.
func checkImage(digest string) error {
	if digest == "" || strings.Trim(digest, "abcdefghijklmnopqrstuvwxyz0123456789:-") != "" || strings.HasPrefix(digest, "-") {
		return fmt.Errorf("image digest %.100q: want one such as sha256:0123…, by which the host key is kept", digest)
	}
	return nil
}
