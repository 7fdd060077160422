package toc

import (
	"encoding/binary"
	"errors"
	"fmt"
	"testing"

	"github.com/containerd/stargz-snapshotter/estargz"
)

// footer writes an empty gzip member with an extra field.
func footer(extra []byte) []byte {
	p := []byte{gzipID1, gzipID2, gzipDeflate, gzipFlagExtra, 0, 0, 0, 0, 0, 255}
	p = binary.LittleEndian.AppendUint16(p, uint16(len(extra)))
	p = append(p, extra...)
	p = append(p, 1, 0, 0, 0xff, 0xff) // the last block, stored, of 0 bytes
	return append(p, make([]byte, 8)...)
}

func estargzFooter(text string) []byte {
	return footer(append([]byte{'S', 'G', byte(len(text)), 0}, text...))
}

func TestParseFooter(t *testing.T) {
	at := func(n int64) string { return fmt.Sprintf("%016xSTARGZ", n) }
	for _, c := range []struct {
		name        string
		tail        []byte
		size        int64
		offset, end int64
		kind        error
	}{
		{"estargz", estargzFooter(at(1000)), 5000, 1000, 5000 - 51, nil},
		{"legacy", footer([]byte(at(1000))), 5000, 1000, 5000 - 47, nil},
		{"external", estargzFooter("STARGZEXTERNALTOC"), 5000, 0, 0, ErrExternalTOC},
		{"upper case", estargzFooter("00000000000003E8STARGZ"), 5000, 1000, 5000 - 51, nil},
		{"empty", nil, 0, 0, 0, ErrNotEStargz},
		{"short", []byte("x"), 1, 0, 0, ErrNotEStargz},
		{"empty extra", footer(nil), 5000, 0, 0, ErrNotEStargz},
		{"no gzip", make([]byte, 51), 5000, 0, 0, ErrNotEStargz},
		{"wrong subfield", footer(append([]byte{'S', 'H', 22, 0}, at(1000)...)), 5000, 0, 0, ErrNotEStargz},
		{"wrong subfield length", footer(append([]byte{'S', 'G', 21, 0}, at(1000)...)), 5000, 0, 0, ErrNotEStargz},
		{"wrong magic", estargzFooter("00000000000003e8STARGS"), 5000, 0, 0, ErrNotEStargz},
		{"no number", estargzFooter("00000000000003g8STARGZ"), 5000, 0, 0, ErrHostile},
		{"sign", estargzFooter("-0000000000003e8STARGZ"), 5000, 0, 0, ErrHostile},
		{"negative", estargzFooter("ffffffffffffffffSTARGZ"), 5000, 0, 0, ErrHostile},
		{"beyond", estargzFooter(at(5000 - 51)), 5000, 0, 0, ErrHostile},
		{"too large", estargzFooter(at(0)), 1 << 40, 0, 0, ErrLimit},
	} {
		offset, end, err := parseFooter(c.tail, c.size)
		if offset != c.offset || end != c.end || !errors.Is(err, c.kind) || (err == nil) != (c.kind == nil) {
			t.Errorf("%s: %d, %d, %v", c.name, offset, end, err)
		}
	}
}

// FuzzFooter must not panic, and must agree with the reference reader where
// that accepts a footer.
func FuzzFooter(f *testing.F) {
	f.Add(estargzFooter("00000000000003e8STARGZ"))
	f.Add(footer([]byte("00000000000003e8STARGZ")))
	f.Add(estargzFooter("STARGZEXTERNALTOC"))
	f.Add(footer(nil))
	// An extra field of 12 bytes, on which the reference reader panics.
	f.Add([]byte("\x1f\x8b\b$000000\f\x00SG\x16\x0000000000000000000000000000000000000"))
	f.Add(zstdTail("GnUlInUx", 1000, 200, 900, 1))
	f.Add(zstdTail("GNUlInUx", 1000, 200, 900, 1, 1300, 9, 99))
	f.Add([]byte("padding" + string(estargzFooter("00000000000003e8STARGZ"))))
	f.Fuzz(func(t *testing.T, tail []byte) {
		const size = 1 << 20
		offset, end, err := parseFooter(tail, size)
		if err == nil && (offset < 0 || end > size || offset >= end) {
			t.Fatalf("accepted the range [%d, %d)", offset, end)
		}
		if len(tail) < footerSize {
			return
		}
		want, refErr := referenceFooter(tail[len(tail)-footerSize:])
		if refErr == nil && want >= 0 && want < size-footerSize && err == nil && zstdFooter(tail) == nil && offset != want {
			t.Fatalf("offset %d, the reference reader says %d", offset, want)
		}
	})
}

// referenceFooter asks the reference reader, which panics on some fields that are too short.
func referenceFooter(p []byte) (offset int64, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%v", r)
		}
	}()
	_, offset, _, err = new(estargz.GzipDecompressor).ParseFooter(p)
	return offset, err
}
