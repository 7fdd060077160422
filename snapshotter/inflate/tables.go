package inflate

import "math/bits"

// An entry of a table says what the bits that it is looked up by stand for.
//
//	literals   31 set; 0–7 bits used; 24 set if they are two; 8–15 and 16–23 the bytes
//	a length   30 set; 0–7 bits of the code; 8–12 extra bits; 16–24 the base
//	a distance 30 set; 0–7 bits of the code; 8–12 extra bits; 13–27 the base
//	subtable   29 set; 0–7 bits to skip; 8–11 its bits; 12–28 where it begins
//	the end    28 set; 0–7 bits of the code
//
// 0 stands for nothing.
type entry uint32

const (
	isLiteral  entry = 1 << 31
	isPair     entry = 1 << 24
	isMatch    entry = 1 << 30
	isSubtable entry = 1 << 29
	isEnd      entry = 1 << 28

	maxBits      = 15 // of a code
	maxLiterals  = 288
	maxDistances = 32

	literalBits  = 12
	distanceBits = 8
	codeBits     = 7

	// A subtable has a place for each end of the codes with one beginning. A code with s
	// symbols takes at most this much for the given bits of the main table: a subtable of
	// 2^k entries holds at least k+1 codes.
	literalEntries  = 1<<literalBits + maxLiterals<<(maxBits-literalBits)/2
	distanceEntries = 1<<distanceBits + maxDistances<<(maxBits-distanceBits)/2
	codeEntries     = 1 << codeBits
)

// lengthOf and distanceOf are bases and extra bits (RFC 1951, section 3.2.5). The last
// two symbols of each code stand for nothing.
var (
	lengthBases   = [...]uint16{3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 15, 17, 19, 23, 27, 31, 35, 43, 51, 59, 67, 83, 99, 115, 131, 163, 195, 227, 258}
	lengthExtra   = [...]uint8{0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 0}
	distanceBases = [...]uint16{1, 2, 3, 4, 5, 7, 9, 13, 17, 25, 33, 49, 65, 97, 129, 193, 257, 385, 513, 769, 1025, 1537, 2049, 3073, 4097, 6145, 8193, 12289, 16385, 24577}
	// codeOrder is the order in which the lengths of the code of lengths come.
	codeOrder = [...]uint8{16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15}

	literalSymbols, distanceSymbols, codeSymbols = symbols()
)

// symbols are the entries of all symbols of the three codes, without the bits used.
func symbols() (literals [maxLiterals]entry, distances [maxDistances]entry, codes [len(codeOrder)]entry) {
	const end = 256
	for i := range end {
		literals[i] = isLiteral | entry(i)<<8
	}
	literals[end] = isEnd
	for i, base := range lengthBases {
		literals[end+1+i] = isMatch | entry(base)<<16 | entry(lengthExtra[i])<<8
	}
	for i, base := range distanceBases {
		distances[i] = isMatch | entry(base)<<13 | entry(max(0, i/2-1))<<8
	}
	for i := range codes {
		codes[i] = isLiteral | entry(i)<<8
	}
	return literals, distances, codes
}

// build fills a table of 1<<width entries, with subtables behind them, from the lengths
// of the codes of symbols (RFC 1951, section 3.2.2). A code has to be complete, but that
// of one symbol or none may leave the rest to nothing.
func (d *Decoder) build(table []entry, width uint, lengths []uint8, symbols []entry) error {
	clear(table[:1<<width])
	d.counts = [maxBits + 1]uint16{}
	for _, n := range lengths {
		d.counts[n]++
	}
	used, longest, left := 0, uint(0), 1
	d.next[1] = 0
	for n := uint(1); n <= maxBits; n++ {
		count := int(d.counts[n])
		if left = left<<1 - count; left < 0 {
			return errCodes
		}
		if count > 0 {
			longest = n
		}
		used += count
		d.next[n+1] = d.next[n] + d.counts[n]
	}
	if left > 0 && used > 0 && (used > 1 || longest > 1) {
		return errCodes
	}
	for symbol, n := range lengths {
		if n > 0 {
			d.sorted[d.next[n]] = uint16(symbol)
			d.next[n]++
		}
	}
	return d.fill(table, width, lengths, symbols, used)
}

// fill enters the sorted symbols.
func (d *Decoder) fill(table []entry, width uint, lengths []uint8, symbols []entry, used int) error {
	code, last, free := uint(0), uint(0), 1<<width
	for i := 0; i < used; i++ {
		symbol := d.sorted[i]
		n := uint(lengths[symbol])
		code <<= n - last
		last = n
		e := symbols[symbol]
		place := uint(bits.Reverse16(uint16(code)) >> (16 - n))
		if n <= width {
			if e != 0 {
				e |= entry(n)
			}
			for ; place < 1<<width; place += 1 << n {
				table[place] = e
			}
			code++
			continue
		}
		main := place & (1<<width - 1)
		if table[main] == 0 {
			deep := d.depth(lengths, used, i, code, width)
			if free+1<<deep > len(table) {
				return errCodes
			}
			clear(table[free : free+1<<deep])
			table[main] = isSubtable | entry(width) | entry(deep)<<8 | entry(free)<<12
			free += 1 << deep
		}
		sub := table[main]
		deep, begin := uint(sub>>8&15), int(sub>>12&0xffff)
		if e != 0 {
			e |= entry(n - width)
		}
		for at := place >> width; at < 1<<deep; at += 1 << (n - width) {
			table[begin+int(at)] = e
		}
		code++
	}
	return nil
}

// depth is how many bits the longest of the codes takes that begin as that of the i-th
// symbol does, behind this beginning. They follow each other.
func (d *Decoder) depth(lengths []uint8, used, i int, code, width uint) uint {
	n := uint(lengths[d.sorted[i]])
	beginning, deepest := code>>(n-width), n
	for code++; i+1 < used; code++ {
		i++
		next := uint(lengths[d.sorted[i]])
		code <<= next - n
		if n = next; code>>(n-width) != beginning {
			break
		}
		deepest = n
	}
	return deepest - width
}

// pairs says whether literals are often found by two, which is worth a look at each entry.
// The lengths of codes say how frequent the symbols are: one of n bits is every 2^n-th.
func pairs(lengths []uint8) bool {
	const all, worth = 1 << (2 * maxBits), 5 // every fifth look
	var counts [maxBits + 1]uint
	for _, n := range lengths[:256] {
		counts[n]++
	}
	share := uint(0)
	for n := 1; n < literalBits; n++ {
		for k := 1; n+k <= literalBits; k++ {
			share += counts[n] * counts[k] << (2*maxBits - n - k)
		}
	}
	return share > all/worth
}

// pair lets two literals that fit into one look at the table be found by it together.
func (d *Decoder) pair() {
	// An entry is made of lower ones, which are not pairs yet.
	for i := 1<<literalBits - 1; i >= 0; i-- {
		first := d.literals[i]
		n := uint(first & 0xff)
		if first&isLiteral == 0 || n >= literalBits {
			continue
		}
		second := d.literals[i>>n]
		if second&isLiteral == 0 || second&isPair != 0 || n+uint(second&0xff) > literalBits {
			continue
		}
		d.literals[i] = isLiteral | isPair | (first & 0xff00) | (second&0xff00)<<8 | entry(n) + second&0xff
	}
}

// fixedCodes makes the tables of blocks that have none of their own.
func (d *Decoder) fixedCodes() error {
	for i := range maxLiterals {
		n := uint8(8)
		switch {
		case i >= 144 && i < 256:
			n = 9
		case i >= 256 && i < 280:
			n = 7
		}
		d.lengths[i] = n
	}
	for i := range maxDistances {
		d.lengths[maxLiterals+i] = 5
	}
	return d.makeTables(d.lengths[:maxLiterals], d.lengths[maxLiterals:])
}

func (d *Decoder) makeTables(literals, distances []uint8) error {
	if err := d.build(d.literals[:], literalBits, literals, literalSymbols[:]); err != nil {
		return err
	}
	if pairs(literals) {
		d.pair()
	}
	return d.build(d.distances[:], distanceBits, distances, distanceSymbols[:])
}

// readCodes reads the codes of a block, whose lengths are coded themselves (RFC 1951,
// section 3.2.7).
func (d *Decoder) readCodes() error {
	d.refill()
	if d.have < 14 {
		return errShort
	}
	literals, distances, codes := int(d.bits&31)+257, int(d.bits>>5&31)+1, int(d.bits>>10&15)+4
	d.use(14)
	if literals > maxLiterals-2 || distances > maxDistances-2 {
		return errCodes
	}
	var lengths [len(codeOrder)]uint8
	for i := range codes {
		if d.refill(); d.have < 3 {
			return errShort
		}
		lengths[codeOrder[i]] = uint8(d.bits & 7)
		d.use(3)
	}
	if err := d.build(d.codes[:], codeBits, lengths[:], codeSymbols[:]); err != nil {
		return err
	}
	if err := d.readLengths(d.lengths[:literals+distances]); err != nil {
		return err
	}
	const end = 256
	if d.lengths[end] == 0 {
		return errCodes // it could not end
	}
	return d.makeTables(d.lengths[:literals], d.lengths[literals:literals+distances])
}

// readLengths reads the lengths of codes, in which repetitions are shortened.
func (d *Decoder) readLengths(lengths []uint8) error {
	const repeat, zeros, moreZeros = 16, 17, 18
	for i := 0; i < len(lengths); {
		d.refill()
		e := d.codes[d.bits&(1<<codeBits-1)]
		if e == 0 {
			return errSymbol
		}
		symbol, n := int(e>>8&0xff), uint(e&0xff)
		if d.have < n {
			return errShort
		}
		d.use(n)
		if symbol < repeat {
			lengths[i] = uint8(symbol)
			i++
			continue
		}
		value, base, extra := uint8(0), 3, uint(2)
		switch symbol {
		case repeat:
			if i == 0 {
				return errCodes
			}
			value = lengths[i-1]
		case zeros:
			extra = 3
		case moreZeros:
			base, extra = 11, 7
		}
		if d.have < extra {
			return errShort
		}
		count := base + int(d.bits&(1<<extra-1))
		d.use(extra)
		if i+count > len(lengths) {
			return errCodes
		}
		for ; count > 0; count-- {
			lengths[i] = value
			i++
		}
	}
	return nil
}
