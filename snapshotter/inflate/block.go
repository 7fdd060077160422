package inflate

import "encoding/binary"

const (
	maxMatch = 258
	// words is what copying in words may write behind the end of a match.
	words = 8
	// ahead is what of src has to be left for two refills without a look at its end.
	ahead = 16
	// room is what of dst has to be left for one turn of the fast loop: four pairs of
	// literals, and a match.
	room = 4*2 + maxMatch + words

	literalMask = 1<<literalBits - 1
)

// block decodes the rest of a block, or until dst is full.
func (d *Decoder) block() error {
	for {
		done, err := d.fast()
		if done || err != nil {
			return err
		}
		// Near an end of src or dst, or at a code that is better looked at with care.
		if done, err = d.careful(); done || err != nil {
			return err
		}
	}
}

// fast decodes as long as neither end is near, and until the end of the block.
func (d *Decoder) fast() (done bool, err error) {
	src, dst, in, out, bits, have := d.src, d.dst, d.in, d.out, d.bits, d.have
	literals, distances := &d.literals, &d.distances
	for in+ahead <= len(src) && out+room <= len(dst) {
		bits |= binary.LittleEndian.Uint64(src[in:]) << (have & 63)
		in += int((^have & 63) >> 3)
		have |= 56
		e := literals[bits&literalMask]
		if e&isLiteral != 0 {
			// Four looks take at most 48 of the 56 bits.
			for range 3 {
				binary.LittleEndian.PutUint16(dst[out:], uint16(e>>8))
				out += 1 + int(e>>24&1)
				bits >>= e & 63
				have -= uint(e)
				if e = literals[bits&literalMask]; e&isLiteral == 0 {
					break
				}
			}
			if e&isLiteral != 0 {
				binary.LittleEndian.PutUint16(dst[out:], uint16(e>>8))
				out += 1 + int(e>>24&1)
				bits >>= e & 63
				have -= uint(e)
				continue
			}
			bits |= binary.LittleEndian.Uint64(src[in:]) << (have & 63)
			in += int((^have & 63) >> 3)
			have |= 56
		}
		if e&isSubtable != 0 {
			bits >>= literalBits
			have -= literalBits
			if e = e.below(literals[:], bits); e&isLiteral != 0 {
				dst[out] = byte(e >> 8)
				out++
				bits >>= e & 63
				have -= uint(e)
				continue
			}
		}
		bits >>= e & 63
		have -= uint(e)
		if e&isMatch == 0 {
			if done = e&isEnd != 0; !done {
				err = errSymbol
			}
			break
		}
		// With the bits of the length 48 of the 56 are used at most.
		extra := e >> 8 & 31
		length := int(e>>16&0x1ff) + int(bits&(1<<extra-1))
		bits >>= extra & 63
		have -= uint(extra)
		f := distances[bits&(1<<distanceBits-1)]
		if f&isSubtable != 0 {
			bits >>= distanceBits
			have -= distanceBits
			f = f.below(distances[:], bits)
		}
		if f&isMatch == 0 {
			err = errSymbol
			break
		}
		bits >>= f & 63
		have -= uint(f)
		extra = f >> 8 & 31
		from := out - int(f>>13&0x7fff) - int(bits&(1<<extra-1))
		bits >>= extra & 63
		have -= uint(extra)
		if from < 0 {
			err = errFar
			break
		}
		copyMatch(dst, from, out, out+length)
		out += length
	}
	d.in, d.out, d.bits, d.have = in, out, bits, have&63
	return done, err
}

// below is the entry of the subtable of e that is next.
func (e entry) below(table []entry, bits uint64) entry {
	return table[int(e>>12&0xffff)+int(bits&(1<<(e>>8&15)-1))]
}

// copyMatch copies dst[from:] to dst[out:end], whose bytes may be those that are copied.
// It may write some bytes behind the end.
func copyMatch(dst []byte, from, out, end int) {
	if out-from < words {
		for ; out < end; out++ {
			dst[out] = dst[from]
			from++
		}
		return
	}
	// In words, which may overlap what comes next but not what they are made of.
	for out < end {
		binary.LittleEndian.PutUint64(dst[out:], binary.LittleEndian.Uint64(dst[from:]))
		out += words
		from += words
	}
}

// careful decodes one symbol near an end. It is done with the block at its end, or when
// dst is full.
func (d *Decoder) careful() (done bool, err error) {
	d.refill()
	e, err := d.lookUp(d.literals[:], literalBits)
	switch {
	case err != nil:
		return false, err
	case e&isEnd != 0:
		return true, nil
	case e&isLiteral != 0:
		d.dst[d.out] = byte(e >> 8)
		d.out++
		if e&isPair != 0 && d.out < len(d.dst) {
			d.dst[d.out] = byte(e >> 16)
			d.out++
		}
		return d.out == len(d.dst), nil
	}
	extra := uint(e >> 8 & 31)
	if d.have < extra {
		return false, errShort
	}
	length := int(e>>16&0x1ff) + int(d.bits&(1<<extra-1))
	d.use(extra)
	d.refill()
	f, err := d.lookUp(d.distances[:], distanceBits)
	if err != nil {
		return false, err
	}
	if extra = uint(f >> 8 & 31); d.have < extra {
		return false, errShort
	}
	distance := int(f>>13&0x7fff) + int(d.bits&(1<<extra-1))
	d.use(extra)
	if distance > d.out {
		return false, errFar
	}
	for end := min(d.out+length, len(d.dst)); d.out < end; d.out++ {
		d.dst[d.out] = d.dst[d.out-distance]
	}
	return d.out == len(d.dst), nil
}

// lookUp returns the entry that comes next, with its code used.
func (d *Decoder) lookUp(table []entry, width uint) (entry, error) {
	e := table[d.bits&(1<<width-1)]
	if e&isSubtable != 0 {
		if d.have < width {
			return 0, errShort
		}
		d.use(width)
		e = e.below(table, d.bits)
	}
	switch n := uint(e & 0xff); {
	case e == 0:
		return 0, errSymbol
	case n <= d.have:
		d.use(n)
		return e, nil
	}
	return 0, errShort
}
