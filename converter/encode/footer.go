package encode

import (
	"encoding/binary"
	"fmt"
	"strconv"
)

// FooterSize is the length of an eStargz footer in bytes.
const FooterSize = 51

const footerMagic = "STARGZ"

// Footer returns the gzip member that ends a layer and says where the TOC is
// (eStargz specification, "Footer"). It is put together by hand because the
// empty deflate stream of a compression library is not the same in all versions.
func Footer(tocOffset int64) []byte {
	text := fmt.Sprintf("%016x", tocOffset) + footerMagic
	b := make([]byte, 0, FooterSize)
	b = append(b, 0x1f, 0x8b, 8, 4 /* FEXTRA */, 0, 0, 0, 0, 0, 255 /* unknown OS */)
	b = binary.LittleEndian.AppendUint16(b, uint16(4+len(text)))
	b = append(b, 'S', 'G')
	b = binary.LittleEndian.AppendUint16(b, uint16(len(text)))
	b = append(b, text...)
	b = append(b, 1, 0, 0, 0xff, 0xff)       // the last block, stored, empty
	return append(b, 0, 0, 0, 0, 0, 0, 0, 0) // CRC-32 and length of nothing
}

// ParseFooter returns the TOC offset of a footer that [Footer] made.
func ParseFooter(b []byte) (int64, error) {
	if len(b) != FooterSize {
		return 0, fmt.Errorf("footer of %d bytes, want %d", len(b), FooterSize)
	}
	off, err := strconv.ParseUint(string(b[16:32]), 16, 63)
	if err != nil {
		return 0, fmt.Errorf("footer: TOC offset %q is no number", b[16:32])
	}
	// Everything else in a footer is fixed.
	if string(b) != string(Footer(int64(off))) {
		return 0, fmt.Errorf("the last %d bytes are no eStargz footer", FooterSize)
	}
	return int64(off), nil
}
