// SPDX-License-Identifier: MIT

package githubsim

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"fmt"
	"sync"
)

const keyBits = 2048

// keyPool keeps RSA keys ready, because making one takes longer than GitHub
// takes to answer. Keys of removed runners are used again: what tells two
// runners apart is the client id, which never returns.
type keyPool struct {
	ready chan *rsa.PrivateKey
	one   func() (*rsa.PrivateKey, error) // the key that all runners share; nil: each has its own
}

func newKeyPool(size int, share bool) *keyPool {
	p := &keyPool{ready: make(chan *rsa.PrivateKey, size)}
	if share {
		p.one = sharedKey
	}
	return p
}

// sharedKey is made once in a process, whatever Sims there are.
var sharedKey = sync.OnceValues(newKey)

func newKey() (*rsa.PrivateKey, error) {
	key, err := rsa.GenerateKey(rand.Reader, keyBits)
	if err != nil {
		return nil, fmt.Errorf("generate a runner key: %w", err)
	}
	return key, nil
}

// fill keeps the pool full until ctx ends.
func (p *keyPool) fill(ctx context.Context) {
	for p.one == nil && ctx.Err() == nil {
		key, err := newKey()
		if err != nil {
			return // take makes its own and reports the error
		}
		select {
		case p.ready <- key:
		case <-ctx.Done():
		}
	}
}

func (p *keyPool) take() (*rsa.PrivateKey, error) {
	if p.one != nil {
		return p.one()
	}
	select {
	case key := <-p.ready:
		return key, nil
	default:
		return newKey()
	}
}

func (p *keyPool) giveBack(key *rsa.PrivateKey) {
	select {
	case p.ready <- key:
	default:
	}
}
