// Package inflate decompresses gzip members that are in memory whole into memory that is
// as long as what is wanted of them. It is for the path on which a container waits: a
// decoder of streams has to ask for each byte whether there is another one and keeps a
// window of its own; with both ends known in advance neither is needed, which makes this
// one several times faster.
//
// The format is that of RFC 1951 in the wrapping of RFC 1952. The checksum at the end of
// a member is not looked at: the chunks of an eStargz layer have digests, and what is
// decoded ends with the last chunk that is wanted.
package inflate

import (
	"encoding/binary"
	"errors"
)

// Errors of Gunzip. What they say is for people: a member for which there is one has no
// use.
var (
	errHeader = errors.New("no gzip header")
	errShort  = errors.New("the compressed data end too soon")
	errBlock  = errors.New("a block of an unknown type, or a stored one of contradictory length")
	errCodes  = errors.New("the code lengths of a block form no code")
	errSymbol = errors.New("a code that stands for nothing")
	errFar    = errors.New("a match begins before the beginning")
	errLittle = errors.New("the member has less than is wanted")
)

// Decoder has the tables of the block that is decoded. The zero value is ready; it is
// for one caller at a time and may be used again after an error.
type Decoder struct {
	literals  [literalEntries]entry // and lengths
	distances [distanceEntries]entry
	lengths   [maxLiterals + maxDistances]uint8 // of the codes of a block
	codes     [codeEntries]entry
	counts    [maxBits + 1]uint16
	next      [maxBits + 2]uint16
	sorted    [maxLiterals]uint16

	src, dst []byte
	in, out  int    // what was read and written
	bits     uint64 // read and not yet used, the lowest first
	have     uint   // how many bits at least are valid
}

// Gunzip decompresses the gzip member at the beginning of src until dst is full. What
// follows in src is ignored. An error says that the member is damaged or has less; dst
// has any content then.
func (d *Decoder) Gunzip(dst, src []byte) error {
	n, ok := header(src)
	if !ok {
		return errHeader
	}
	d.src, d.dst, d.in, d.out, d.bits, d.have = src, dst, n, 0, 0, 0
	err := d.blocks()
	d.src, d.dst = nil, nil
	return err
}

// header returns the length of a gzip header.
func header(src []byte) (n int, ok bool) {
	const (
		fixed                     = 10
		crc, extra, name, comment = 1 << 1, 1 << 2, 1 << 3, 1 << 4
		reserved                  = 0xe0
	)
	if len(src) < fixed || src[0] != 0x1f || src[1] != 0x8b || src[2] != 8 || src[3]&reserved != 0 {
		return 0, false
	}
	n = fixed
	flags := src[3]
	if flags&extra != 0 {
		if len(src) < n+2 {
			return 0, false
		}
		n += 2 + int(binary.LittleEndian.Uint16(src[n:]))
	}
	for _, flag := range []byte{name, comment} {
		if flags&flag == 0 {
			continue
		}
		for n < len(src) && src[n] != 0 {
			n++
		}
		n++
	}
	if flags&crc != 0 {
		n += 2
	}
	return n, n <= len(src)
}

// blocks decodes blocks until dst is full.
func (d *Decoder) blocks() error {
	for d.out < len(d.dst) {
		const final, stored, fixed, dynamic = 1, 0, 1, 2
		d.refill()
		if d.have < 3 {
			return errShort
		}
		last, kind := d.bits&final, d.bits>>1&3
		d.use(3)
		var err error
		switch kind {
		case stored:
			err = d.stored()
		case fixed:
			if err = d.fixedCodes(); err == nil {
				err = d.block()
			}
		case dynamic:
			if err = d.readCodes(); err == nil {
				err = d.block()
			}
		default:
			err = errBlock
		}
		if err != nil {
			return err
		}
		if last != 0 && d.out < len(d.dst) {
			return errLittle
		}
	}
	return nil
}

// refill reads until 56 bits are there, or src ends.
func (d *Decoder) refill() {
	if d.in+8 <= len(d.src) {
		d.bits |= binary.LittleEndian.Uint64(d.src[d.in:]) << d.have
		d.in += int((63 - d.have) >> 3)
		d.have |= 56
		return
	}
	for d.have <= 56 && d.in < len(d.src) {
		d.bits |= uint64(d.src[d.in]) << d.have
		d.in++
		d.have += 8
	}
}

func (d *Decoder) use(n uint) {
	d.bits >>= n
	d.have -= n
}

// stored copies a block that is not compressed.
func (d *Decoder) stored() error {
	// Back to the byte that comes next; whole bytes that were read are returned. The bits
	// above those that are counted are not valid.
	d.in -= int(d.have >> 3)
	d.bits, d.have = 0, 0
	const lengths = 4
	if d.in+lengths > len(d.src) {
		return errShort
	}
	n, not := binary.LittleEndian.Uint16(d.src[d.in:]), binary.LittleEndian.Uint16(d.src[d.in+2:])
	if n != ^not {
		return errBlock
	}
	d.in += lengths
	size := min(int(n), len(d.dst)-d.out)
	if d.in+size > len(d.src) {
		return errShort
	}
	copy(d.dst[d.out:], d.src[d.in:d.in+size])
	d.out += size
	d.in += size
	return nil
}
