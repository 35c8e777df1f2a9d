// SPDX-License-Identifier: MIT

package manifest

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strconv"
)

// Sum is a SHA-256.
type Sum [sha256.Size]byte

const hexLength = 2 * sha256.Size

// SumOf returns the sum of content.
func SumOf(content []byte) Sum { return sha256.Sum256(content) }

// ParseSum reads what String writes: 64 of 0-9 and a-f.
func ParseSum(text string) (Sum, error) {
	var s Sum
	err := s.read([]byte(text))
	return s, err
}

func (s *Sum) read(text []byte) error {
	if len(text) != hexLength || bytes.ContainsAny(text, "ABCDEF") {
		return fmt.Errorf("%.80q is not 64 of 0-9 and a-f", text)
	}
	if _, err := hex.Decode(s[:], text); err != nil {
		return fmt.Errorf("%.80q is not 64 of 0-9 and a-f", text)
	}
	return nil
}

// String returns it in hex.
func (s Sum) String() string { return hex.EncodeToString(s[:]) }

// MarshalText returns it in hex.
func (s Sum) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, s[:]), nil }

// UnmarshalText reads what MarshalText writes.
func (s *Sum) UnmarshalText(text []byte) error { return s.read(text) }

// MarshalText returns the chunk as a manifest has it: "" if it is all zeros, its sum in
// hex, and behind a colon how many bytes it took if that is known.
func (c Chunk) MarshalText() ([]byte, error) { return c.append(nil), nil }

func (c Chunk) append(b []byte) []byte {
	if c.Zero() {
		return b
	}
	b = hex.AppendEncode(b, c.Sum[:])
	if c.Stored != 0 {
		b = append(b, ':')
		b = strconv.AppendInt(b, c.Stored, 10)
	}
	return b
}

// UnmarshalText reads what MarshalText writes.
func (c *Chunk) UnmarshalText(text []byte) error {
	*c = Chunk{}
	if len(text) == 0 {
		return nil
	}
	sum, stored, known := bytes.Cut(text, []byte{':'})
	if err := c.Sum.read(sum); err != nil {
		return err
	}
	if c.Zero() {
		return fmt.Errorf("the sum of a chunk of zeros is left out, not %s", sum)
	}
	if !known {
		return nil
	}
	n, err := strconv.ParseInt(string(stored), 10, 64)
	if err != nil || n <= 0 {
		return fmt.Errorf("%.80q is not the number of bytes of a chunk", stored)
	}
	c.Stored = n
	return nil
}

// Digest returns the name of a manifest with these bytes: "sha256:" and 64 of 0-9 and a-f.
func Digest(b []byte) string { return digestPrefix + SumOf(b).String() }

// ValidDigest reports whether d has the form that Digest gives.
func ValidDigest(d string) bool {
	if len(d) != len(digestPrefix)+hexLength || d[:len(digestPrefix)] != digestPrefix {
		return false
	}
	_, err := ParseSum(d[len(digestPrefix):])
	return err == nil
}
