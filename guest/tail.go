// SPDX-License-Identifier: MIT

package guest

import "sync"

// tail keeps the end of the listener's output, whole lines only.
type tail struct {
	mu   sync.Mutex // guards text
	text []byte
}

func (t *tail) add(line []byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	// Twice the size before cutting, so that not every line moves the rest.
	if len(t.text)+len(line)+1 > 2*maxTailBytes {
		t.text = append(t.text[:0], t.last(maxTailBytes-len(line)-1)...)
	}
	t.text = append(append(t.text, line...), '\n')
}

// bytes returns a copy of the last maxTailBytes.
func (t *tail) bytes() []byte {
	t.mu.Lock()
	defer t.mu.Unlock()
	return append([]byte(nil), t.last(maxTailBytes)...)
}

// last returns the whole lines within the last n bytes.
func (t *tail) last(n int) []byte {
	if len(t.text) <= n {
		return t.text
	}
	rest := t.text[len(t.text)-n:]
	if t.text[len(t.text)-n-1] == '\n' {
		return rest
	}
	for i, b := range rest {
		if b == '\n' {
			return rest[i+1:]
		}
	}
	return nil
}
