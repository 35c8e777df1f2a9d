// SPDX-License-Identifier: MIT

package githubsim

import (
	crand "crypto/rand"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"
)

// random is the one seeded source of every choice that the Sim makes. Keys and
// tokens do not come from it: they must not be guessable.
type random struct {
	mu  sync.Mutex // guards rng
	rng *rand.Rand
}

func newRandom(seed uint64) *random {
	return &random{rng: rand.New(rand.NewPCG(seed, seed^0x9e3779b97f4a7c15))}
}

func (r *random) intn(n int) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.rng.IntN(n)
}

func (r *random) chance(p float64) bool {
	if p <= 0 {
		return false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.rng.Float64() < p
}

// upTo returns a random duration in [0, limit], and 0 for a limit that is not positive.
func (r *random) upTo(limit time.Duration) time.Duration {
	if limit <= 0 {
		return 0
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return time.Duration(r.rng.Int64N(int64(limit) + 1))
}

func (r *random) hex(n int) string {
	const digits = "0123456789abcdef"
	r.mu.Lock()
	defer r.mu.Unlock()
	b := make([]byte, n)
	for i := range b {
		b[i] = digits[r.rng.IntN(len(digits))]
	}
	return string(b)
}

func newGUID() string {
	var b [16]byte
	crand.Read(b[:]) // never fails: it aborts the program instead
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[0:4], b[4:6], b[6:8], b[8:10], b[10:])
}

func newToken(prefix string) string {
	var b [18]byte
	crand.Read(b[:])
	return prefix + hex.EncodeToString(b[:])
}
