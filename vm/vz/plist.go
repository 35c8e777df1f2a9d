// SPDX-License-Identifier: MIT

package vz

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// Limits of a binary property list that is read. What the framework makes is far below.
const (
	maxPlistBytes = 64 << 10
	maxPlistDepth = 8
	maxPlistItems = 1024 // visited, so that objects that name each other do not multiply
)

const plistTrailer = 32

// parsePlist reads a binary property list of dictionaries, arrays, whole numbers, ASCII
// texts, data and truth values, which become map[string]any, []any, uint64, string,
// []byte and bool. It has nothing else.
func parsePlist(b []byte) (any, error) {
	if len(b) > maxPlistBytes || len(b) < 8+plistTrailer || string(b[:8]) != "bplist00" {
		return nil, errors.New("no binary property list")
	}
	t := b[len(b)-plistTrailer:]
	r := plistReader{
		body: b[:len(b)-plistTrailer], offsetSize: int(t[6]), refSize: int(t[7]),
		count: binary.BigEndian.Uint64(t[8:]), table: binary.BigEndian.Uint64(t[24:]),
	}
	size := uint64(len(r.body))
	if r.offsetSize < 1 || r.offsetSize > 8 || r.refSize < 1 || r.refSize > 8 ||
		r.table > size || r.count > (size-r.table)/uint64(r.offsetSize) {
		return nil, errors.New("property list with a broken table of objects")
	}
	return r.object(binary.BigEndian.Uint64(t[16:]), 0)
}

type plistReader struct {
	body                []byte
	offsetSize, refSize int
	count, table        uint64
	visited             int
}

func (r *plistReader) object(ref uint64, depth int) (any, error) {
	r.visited++
	if ref >= r.count || depth > maxPlistDepth || r.visited > maxPlistItems {
		return nil, errors.New("property list with a broken or excessive reference")
	}
	at := number(r.body[r.table+ref*uint64(r.offsetSize):][:r.offsetSize])
	if at >= r.table {
		return nil, errors.New("property list with an object outside of it")
	}
	marker, rest := r.body[at], r.body[at+1:r.table]
	kind := marker >> 4
	if kind == 0 {
		if marker != 8 && marker != 9 {
			return nil, fmt.Errorf("property list with an object of kind %#x", marker)
		}
		return marker == 9, nil
	}
	if kind == 1 {
		n, _, err := integer(marker, rest)
		return n, err
	}
	size, rest, err := r.size(marker, rest)
	if err != nil {
		return nil, err
	}
	switch kind {
	case 4, 5:
		if size > uint64(len(rest)) {
			return nil, errors.New("property list with a text beyond its end")
		}
		if kind == 5 {
			return string(rest[:size]), nil
		}
		return append([]byte{}, rest[:size]...), nil
	case 0xa:
		return r.list(rest, size, depth)
	case 0xd:
		return r.dictionary(rest, size, depth)
	}
	return nil, fmt.Errorf("property list with an object of kind %#x", marker)
}

// size returns how long an object is, and what follows that number.
func (r *plistReader) size(marker byte, rest []byte) (uint64, []byte, error) {
	if marker&0xf != 0xf {
		return uint64(marker & 0xf), rest, nil
	}
	if len(rest) == 0 || rest[0]>>4 != 1 {
		return 0, nil, errors.New("property list with an object without a size")
	}
	return integer(rest[0], rest[1:])
}

// list reads as many references as it is told, and what they refer to.
func (r *plistReader) list(rest []byte, size uint64, depth int) ([]any, error) {
	if size > uint64(len(rest)/r.refSize) {
		return nil, errors.New("property list with a list beyond its end")
	}
	var all []any
	for i := range int(size) {
		v, err := r.object(number(rest[i*r.refSize:][:r.refSize]), depth+1)
		if err != nil {
			return nil, err
		}
		all = append(all, v)
	}
	return all, nil
}

func (r *plistReader) dictionary(rest []byte, size uint64, depth int) (map[string]any, error) {
	if size > uint64(len(rest)/(2*r.refSize)) {
		return nil, errors.New("property list with a dictionary beyond its end")
	}
	both, err := r.list(rest, 2*size, depth)
	if err != nil {
		return nil, err
	}
	all := make(map[string]any, size)
	for i := range int(size) {
		key, ok := both[i].(string)
		if _, twice := all[key]; !ok || twice {
			return nil, errors.New("property list with a dictionary whose keys are not all different texts")
		}
		all[key] = both[int(size)+i]
	}
	return all, nil
}

// integer reads a whole number. Those of 8 bytes are signed, so a large one has 16.
func integer(marker byte, rest []byte) (uint64, []byte, error) {
	size := 1 << (marker & 0xf)
	if marker&0xf > 4 || size > len(rest) {
		return 0, nil, errors.New("property list with a broken number")
	}
	if size == 16 {
		if number(rest[:8]) != 0 {
			return 0, nil, errors.New("property list with a number of more than 64 bits")
		}
		return number(rest[8:16]), rest[16:], nil
	}
	n := number(rest[:size])
	if size == 8 && n>>63 != 0 {
		return 0, nil, errors.New("property list with a negative number")
	}
	return n, rest[size:], nil
}

func number(b []byte) (n uint64) {
	for _, c := range b {
		n = n<<8 | uint64(c)
	}
	return n
}
