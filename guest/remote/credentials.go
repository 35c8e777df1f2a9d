// SPDX-License-Identifier: MIT

package remote

import (
	"errors"
	"fmt"

	"golang.org/x/crypto/ssh"

	"github.com/minifleet/minifleet/secret"
)

// Credentials are how one logs in to a guest: a user with a key, a password, or both.
type Credentials struct {
	User     string
	Key      secret.Text // a private key in PEM or OpenSSH's format, without a passphrase
	Password secret.Text
}

// Validate returns what is wrong with the credentials.
func (c Credentials) Validate() error {
	_, err := c.methods()
	return err
}

// methods are the ways to log in, the key first.
func (c Credentials) methods() ([]ssh.AuthMethod, error) {
	if c.User == "" {
		return nil, errors.New("no user to log in as: name one that the image has")
	}
	var out []ssh.AuthMethod
	if !c.Key.Empty() {
		signer, err := ssh.ParsePrivateKey([]byte(c.Key.Reveal()))
		if _, ok := errors.AsType[*ssh.PassphraseMissingError](err); ok {
			return nil, errors.New("the private key has a passphrase, which nobody is there to type: give a key without one (ssh-keygen -p)")
		}
		if err != nil {
			// The parser's words are about a secret.
			return nil, errors.New("the private key cannot be read: give one in PEM or in the format of ssh-keygen")
		}
		out = append(out, ssh.PublicKeys(signer))
	}
	if !c.Password.Empty() {
		password := c.Password.Reveal()
		out = append(out, ssh.Password(password), ssh.KeyboardInteractive(func(_, _ string, questions []string, echos []bool) ([]string, error) {
			// PAM asks for a password so. Nothing else gets an answer.
			if len(questions) == 0 {
				return nil, nil
			}
			if len(questions) != 1 || len(echos) != 1 || echos[0] {
				return nil, fmt.Errorf("it asks %d questions", len(questions))
			}
			return []string{password}, nil
		}))
	}
	if len(out) == 0 {
		return nil, errors.New("neither a key nor a password to log in with: give one")
	}
	return out, nil
}
