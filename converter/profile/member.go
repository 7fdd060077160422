package profile

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"

	"github.com/klauspost/compress/gzip"
)

// unpack takes the pieces out of the member's bytes and checks their digests.
// raw may have more behind the member.
func (m *member) unpack(raw []byte) error {
	zr, err := gzip.NewReader(bytes.NewReader(raw))
	if err != nil {
		return err
	}
	zr.Multistream(false)
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
