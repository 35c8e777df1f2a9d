// SPDX-License-Identifier: MIT

package oci_test

import "encoding/binary"

// lz4Block is how much content the encoder puts into a block. It is odd, so that copies
// reach over several blocks' borders, and no border of anything falls together.
const lz4Block = 40<<10 + 7

// encodeLZ4 packs content as Apple's framework does, with copies from earlier blocks. What
// does not get smaller is stored.
func encodeLZ4(content []byte) []byte {
	var out []byte
	var last [1 << 15]int // where four bytes were seen last, by their hash, and one more
	for begin := 0; begin < len(content); begin += lz4Block {
		end := min(begin+lz4Block, len(content))
		block := encodeBlock(content, begin, end, &last)
		if len(block) >= end-begin {
			out = append(out, "bv4-"...)
			out = binary.LittleEndian.AppendUint32(out, uint32(end-begin))
			out = append(out, content[begin:end]...)
			continue
		}
		out = append(out, "bv41"...)
		out = binary.LittleEndian.AppendUint32(out, uint32(end-begin))
		out = binary.LittleEndian.AppendUint32(out, uint32(len(block)))
		out = append(out, block...)
	}
	return append(out, "bv4$"...)
}

func encodeBlock(content []byte, begin, end int, last *[1 << 15]int) []byte {
	var out []byte
	literals := begin
	at := begin
	// The format has a block's last 5 bytes literals, and no copy begin in its last 12.
	for at < end-12 {
		four := binary.LittleEndian.Uint32(content[at:])
		slot := &last[four*2654435761>>17]
		from := *slot - 1
		*slot = at + 1
		if from < 0 || at-from > 0xffff || binary.LittleEndian.Uint32(content[from:]) != four {
			at++
			continue
		}
		n := 4
		for at+n < end-5 && content[from+n] == content[at+n] {
			n++
		}
		out = appendSequence(out, content[literals:at], at-from, n)
		at += n
		literals = at
	}
	return appendSequence(out, content[literals:end], 0, 0)
}

// appendSequence appends literals and a copy of n bytes from so far back; the last one of a
// block has none.
func appendSequence(out, literals []byte, back, n int) []byte {
	token := byte(min(len(literals), 15)) << 4
	if back > 0 {
		token |= byte(min(n-4, 15))
	}
	out = append(out, token)
	out = appendLength(out, len(literals))
	out = append(out, literals...)
	if back > 0 {
		out = binary.LittleEndian.AppendUint16(out, uint16(back))
		out = appendLength(out, n-4)
	}
	return out
}

func appendLength(out []byte, n int) []byte {
	if n < 15 {
		return out
	}
	for n -= 15; n >= 255; n -= 255 {
		out = append(out, 255)
	}
	return append(out, byte(n))
}
