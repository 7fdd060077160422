package toc

import (
	"encoding/binary"
	"math"
)

// Footers: the last bytes of an eStargz blob are an empty gzip member whose extra field
// says where the TOC is (eStargz specification, "Footer"; the legacy form is
// that of CRFS; the external form that of stargz-snapshotter).
const (
	footerSize         = 51 // extra: 'S' 'G', length 22, 16 hex digits, "STARGZ"
	legacyFooterSize   = 47 // extra: 16 hex digits, "STARGZ"
	externalFooterSize = 46 // extra: 'S' 'G', length 17, "STARGZEXTERNALTOC"

	footerMagic   = "STARGZ"
	externalMagic = "STARGZEXTERNALTOC"
	offsetDigits  = 16
)

// The fixed part of a gzip member's header (RFC 1952, section 2.3).
const (
	gzipHeaderSize = 10
	gzipID1        = 0x1f
	gzipID2        = 0x8b
	gzipDeflate    = 8
	gzipFlagExtra  = 1 << 2
)

// parseFooter finds the footer at the end of tail, the last bytes of a blob of
// size bytes in either format, and returns the range [offset, end) of the compressed TOC.
func parseFooter(tail []byte, size int64) (offset, end int64, err error) {
	if footer := zstdFooter(tail); footer != nil {
		return parseZstdFooter(footer, size)
	}
	if sub, ok := subfield(gzipExtra(tail, externalFooterSize)); ok && string(sub) == externalMagic {
		return 0, 0, failf(ErrExternalTOC, "the footer says so")
	}
	text, ok := subfield(gzipExtra(tail, footerSize))
	length := int64(footerSize)
	if !ok {
		text, length = gzipExtra(tail, legacyFooterSize), legacyFooterSize
	}
	if len(text) != offsetDigits+len(footerMagic) || string(text[offsetDigits:]) != footerMagic {
		return 0, 0, failf(ErrNotEStargz, "the last %d bytes of the blob are no footer", min(len(tail), footerSize))
	}
	offset, ok = parseHex(text[:offsetDigits])
	if !ok {
		return 0, 0, failf(ErrHostile, "the footer's offset %q is no number", text[:offsetDigits])
	}
	end = size - length
	switch {
	case offset >= end:
		return 0, 0, failf(ErrHostile, "the footer puts the TOC at %d, the blob has %d bytes", offset, size)
	case end-offset > maxCompressedTOC:
		return 0, 0, failf(ErrLimit, "the TOC has %d bytes compressed, the limit is %d", end-offset, maxCompressedTOC)
	}
	return offset, end, nil
}

// gzipExtra returns the extra field of the gzip member that takes the last n
// bytes of tail; nil when there is none of just the length that a footer of n
// bytes has. What follows the field is an empty deflate stream: writers differ
// in how they spell it, and nothing depends on it.
func gzipExtra(tail []byte, n int) []byte {
	if len(tail) < n {
		return nil
	}
	p := tail[len(tail)-n:]
	if p[0] != gzipID1 || p[1] != gzipID2 || p[2] != gzipDeflate || p[3] != gzipFlagExtra {
		return nil
	}
	const emptyStream, trailer = 5, 8
	field := p[gzipHeaderSize+2:]
	want := n - gzipHeaderSize - 2 - emptyStream - trailer
	if int(binary.LittleEndian.Uint16(p[gzipHeaderSize:])) != want {
		return nil
	}
	return field[:want]
}

// subfield returns the content of an extra field that has one subfield "SG" only.
func subfield(extra []byte) ([]byte, bool) {
	const header = 4
	if len(extra) < header || extra[0] != 'S' || extra[1] != 'G' {
		return nil, false
	}
	sub := extra[header:]
	return sub, int(binary.LittleEndian.Uint16(extra[2:])) == len(sub)
}

// parseHex reads a number below 1<<63 of hexadecimal digits only.
func parseHex(digits []byte) (int64, bool) {
	var n uint64
	for _, c := range digits {
		d, ok := hexDigit(c)
		if !ok || n > math.MaxUint64>>4 {
			return 0, false
		}
		n = n<<4 | uint64(d)
	}
	return int64(n), n <= math.MaxInt64
}

// hexDigit returns the value of a hexadecimal digit.
func hexDigit(c byte) (byte, bool) {
	switch {
	case c >= '0' && c <= '9':
		return c - '0', true
	case c >= 'a' && c <= 'f':
		return c - 'a' + 10, true
	case c >= 'A' && c <= 'F':
		return c - 'A' + 10, true
	}
	return 0, false
}
