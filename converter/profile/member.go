package profile

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// maxWindow is the largest window of a zstd frame that is read, in bytes: what nodes read.
const maxWindow = 64 << 20

// zstdMagic begins a zstd frame (RFC 8878, section 3.1.1).
var zstdMagic = []byte{0x28, 0xb5, 0x2f, 0xfd}

// decompress returns what the gzip member or the zstd frame holds that r begins with.
// Behind a zstd frame it goes on with the next one.
func decompress(r *bufio.Reader) (io.ReadCloser, error) {
	if head, err := r.Peek(len(zstdMagic)); err == nil && bytes.Equal(head, zstdMagic) {
		zr, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxWindow))
		if err != nil {
			return nil, err
		}
		return zr.IOReadCloser(), nil
	}
	zr, err := gzip.NewReader(r)
	if err != nil {
		return nil, err
	}
	zr.Multistream(false)
	return zr, nil
}

// unpack takes the pieces out of the member's bytes and checks their digests.
// raw may have more behind the member.
func (m *member) unpack(raw []byte) error {
	zr, err := decompress(bufio.NewReader(bytes.NewReader(raw)))
	if err != nil {
		return err
	}
	defer func() { _ = zr.Close() }() // only frees memory
	// All of it at once: chunks may overlap, in a table that nobody sane writes.
	first, last := m.pieces[0].place.inner, int64(0)
	for _, p := range m.pieces {
		first, last = min(first, p.place.inner), max(last, p.place.inner+p.Size)
	}
	if _, err := io.CopyN(io.Discard, zr, first); err != nil {
		return fmt.Errorf("the member at %d ends too early: %w", m.begin, err)
	}
	content := make([]byte, last-first)
	if _, err := io.ReadFull(zr, content); err != nil {
		return fmt.Errorf("the member at %d ends too early: %w", m.begin, err)
	}
	for _, p := range m.pieces {
		p.content = content[p.place.inner-first:][:p.Size:p.Size]
		if sha256.Sum256(p.content) != p.Sum {
			return fmt.Errorf("the chunk at %d of the member at %d has another digest than %x", p.place.inner, m.begin, p.Sum)
		}
	}
	return nil
}
