// SPDX-License-Identifier: MIT

package oci

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// A stream of Apple's LZ4 framing is a row of blocks, each behind a magic number: bv41 has
// the sizes of its content and of its encoding, as little-endian numbers of 32 bits, and an
// LZ4 block; bv4- has one size and the content as it is; bv4$ ends the stream. What an LZ4
// block copies from may lie in blocks before it, up to 64 KiB back.
const (
	magicBlock = "bv41"
	magicRaw   = "bv4-"
	magicEnd   = "bv4$"
)

const (
	lz4Window = 64 << 10 // how far back a copy reaches, with its offset of 16 bits
	lz4Out    = 1 << 20
	lz4In     = 256 << 10
)

// errSize says that a stream holds more or less than it was said to.
var errSize = errors.New("it does not unpack to the size that it is said to have")

var errLZ4 = errors.New("it is no LZ4 as Apple frames it")

// decodeLZ4 unpacks a stream of exactly size bytes and gives it to emit piece by piece, of
// up to 1 MiB, which are good until emit returns. It takes the same memory whatever the
// stream says, and gives no byte beyond size.
func decodeLZ4(r io.Reader, size int64, emit func([]byte) error) error {
	d := &lz4Decoder{
		src: r, in: make([]byte, lz4In), left: size,
		buf: make([]byte, lz4Window+lz4Out), emit: emit,
	}
	return d.stream()
}

type lz4Decoder struct {
	src   io.Reader
	in    []byte
	r, w  int // what is read and not yet used is in[r:w]
	left  int64
	buf   []byte // what was unpacked last: the window, and behind it what is not given out
	at    int    // its end
	given int    // up to here it is given out
	emit  func([]byte) error
}

func (d *lz4Decoder) stream() error {
	for {
		var magic [4]byte
		if err := d.read(magic[:]); err != nil {
			return err
		}
		switch string(magic[:]) {
		case magicEnd:
			if d.left != 0 {
				return fmt.Errorf("%w: %d bytes are missing", errSize, d.left)
			}
			return d.flush()
		case magicRaw:
			size, err := d.number()
			if err != nil {
				return err
			}
			if err := d.take(size); err != nil {
				return err
			}
			if err := d.literals(size); err != nil {
				return err
			}
		case magicBlock:
			if err := d.block(); err != nil {
				return err
			}
		default:
			return fmt.Errorf("%w: a block begins with %q", errLZ4, magic)
		}
	}
}

// take accounts for what a block says that it unpacks to.
func (d *lz4Decoder) take(n int64) error {
	if n > d.left {
		return fmt.Errorf("%w: it has more", errSize)
	}
	d.left -= n
	return nil
}

// block unpacks one LZ4 block: sequences of literals and a copy of what was unpacked
// before, the last of which has no copy.
func (d *lz4Decoder) block() error {
	content, err := d.number()
	if err != nil {
		return err
	}
	encoded, err := d.number()
	if err != nil {
		return err
	}
	if err := d.take(content); err != nil {
		return err
	}
	for encoded > 0 {
		token, err := d.byte()
		if err != nil {
			return err
		}
		encoded--
		literals, err := d.length(int64(token>>4), &encoded)
		if err != nil {
			return err
		}
		if literals > encoded || literals > content {
			return fmt.Errorf("%w: a block has more literals than room", errLZ4)
		}
		if err := d.literals(literals); err != nil {
			return err
		}
		content, encoded = content-literals, encoded-literals
		if encoded == 0 {
			break
		}
		if encoded < 2 {
			return fmt.Errorf("%w: a block ends within a copy", errLZ4)
		}
		low, err := d.byte()
		if err != nil {
			return err
		}
		high, err := d.byte()
		if err != nil {
			return err
		}
		encoded -= 2
		length, err := d.length(int64(token&15), &encoded)
		if err != nil {
			return err
		}
		if length += 4; length > content {
			return fmt.Errorf("%w: a block copies more than it has", errLZ4)
		}
		if err := d.copy(int(low)|int(high)<<8, length); err != nil {
			return err
		}
		content -= length
	}
	if content != 0 {
		return fmt.Errorf("%w: a block ends %d bytes too early", errLZ4, content)
	}
	return nil
}

// length reads what follows a length of 15: bytes to add, the last of which is not 255.
func (d *lz4Decoder) length(n int64, encoded *int64) (int64, error) {
	if n != 15 {
		return n, nil
	}
	for {
		if *encoded == 0 {
			return 0, fmt.Errorf("%w: a block ends within a length", errLZ4)
		}
		b, err := d.byte()
		if err != nil {
			return 0, err
		}
		*encoded--
		n += int64(b)
		if b != 255 {
			return n, nil
		}
	}
}

func (d *lz4Decoder) literals(n int64) error {
	for n > 0 {
		room, err := d.room()
		if err != nil {
			return err
		}
		part := room[:min(n, int64(len(room)))]
		if err := d.read(part); err != nil {
			return err
		}
		d.at += len(part)
		n -= int64(len(part))
	}
	return nil
}

func (d *lz4Decoder) copy(back int, n int64) error {
	if back == 0 || back > d.at {
		return fmt.Errorf("%w: a block copies from before the beginning", errLZ4)
	}
	for n > 0 {
		room, err := d.room()
		if err != nil {
			return err
		}
		// What is copied may overlap with what is written, and repeats itself then.
		part := int(min(n, int64(len(room)), int64(back)))
		copy(room[:part], d.buf[d.at-back:])
		d.at += part
		n -= int64(part)
	}
	return nil
}

// room returns where the next bytes go. Where there is none it gives out what there is and
// keeps the window.
func (d *lz4Decoder) room() ([]byte, error) {
	if d.at == len(d.buf) {
		if err := d.flush(); err != nil {
			return nil, err
		}
		copy(d.buf, d.buf[d.at-lz4Window:])
		d.at, d.given = lz4Window, lz4Window
	}
	return d.buf[d.at:], nil
}

func (d *lz4Decoder) flush() error {
	if d.given == d.at {
		return nil
	}
	err := d.emit(d.buf[d.given:d.at])
	d.given = d.at
	return err
}

func (d *lz4Decoder) number() (int64, error) {
	var b [4]byte
	err := d.read(b[:])
	return int64(binary.LittleEndian.Uint32(b[:])), err
}

func (d *lz4Decoder) byte() (byte, error) {
	if d.r == d.w {
		if err := d.fill(); err != nil {
			return 0, err
		}
	}
	b := d.in[d.r]
	d.r++
	return b, nil
}

func (d *lz4Decoder) read(b []byte) error {
	for len(b) > 0 {
		if d.r == d.w {
			if err := d.fill(); err != nil {
				return err
			}
		}
		n := copy(b, d.in[d.r:d.w])
		d.r += n
		b = b[n:]
	}
	return nil
}

// fill reads on. The end of the input is an error here: a stream says where it ends.
func (d *lz4Decoder) fill() error {
	n, err := io.ReadAtLeast(d.src, d.in, 1)
	d.r, d.w = 0, n
	if errors.Is(err, io.EOF) {
		return fmt.Errorf("%w: it is cut off", errLZ4)
	}
	return err
}
