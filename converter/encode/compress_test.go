package encode

import (
	"bytes"
	"io"
	"math/rand/v2"
	"testing"

	"github.com/klauspost/compress/gzip"
)

// Numbers of which one byte of two is noise, and the other one of few, do not get
// larger than with the tool that most layers come from.
func TestFrequentBytes(t *testing.T) {
	raw := make([]byte, 512<<10)
	src := rand.NewChaCha8([32]byte{})
	_, _ = src.Read(raw) // it never fails
	for i := 1; i < len(raw); i += 2 {
		raw[i] = 0x3c | raw[i]&0x83
	}
	c, err := newCompressor(DefaultLevel)
	if err != nil {
		t.Fatal(err)
	}
	var got, best bytes.Buffer
	if err := c.compress(&got, raw); err != nil {
		t.Fatal(err)
	}
	zw, err := gzip.NewWriterLevel(nil, gzip.BestCompression)
	if err != nil {
		t.Fatal(err)
	}
	if err := into(zw, &best, raw); err != nil {
		t.Fatal(err)
	}
	if got.Len() > best.Len()*102/100 {
		t.Errorf("%d bytes take %d, and %d at the best level", len(raw), got.Len(), best.Len())
	}
	frames, err := newMembers(Options{Format: ZstdChunked, Level: DefaultLevel})
	if err != nil {
		t.Fatal(err)
	}
	var frame bytes.Buffer
	if err := frames.compress(&frame, raw); err != nil || frame.Len() > best.Len()*102/100 {
		t.Errorf("%d bytes take %d in a zstd frame, %v", len(raw), frame.Len(), err)
	}
	zr, err := gzip.NewReader(&got)
	if err != nil {
		t.Fatal(err)
	}
	if back, err := io.ReadAll(zr); err != nil || !bytes.Equal(back, raw) {
		t.Errorf("%d bytes come back, error %v", len(back), err)
	}
}
