package encode

import (
	"bytes"
	"fmt"
	"io"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
)

func unzstd(t testing.TB, b []byte) []byte {
	t.Helper()
	zr, err := zstd.NewReader(bytes.NewReader(b), zstd.WithDecoderConcurrency(1))
	if err != nil {
		t.Fatal(err)
	}
	defer zr.Close()
	plain, err := io.ReadAll(zr)
	if err != nil {
		t.Fatalf("zstd: %v", err)
	}
	return plain
}

// checkZstdLayer is checkLayer for zstd:chunked.
func checkZstdLayer(t testing.TB, blob []byte, l Layer) {
	t.Helper()
	plain := unzstd(t, blob)
	packed := blob[l.TOCOffset : l.TOCOffset+l.TOCSize]
	toc := unzstd(t, packed)
	footer := blob[len(blob)-ZstdFooterSize:]
	off, size, length, err := ParseZstdFooter(footer)
	for _, c := range []struct {
		what      string
		got, want any
	}{
		{"Size", l.Size, int64(len(blob))},
		{"Digest", l.Digest, digest.FromBytes(blob)},
		{"UncompressedSize", l.UncompressedSize, int64(len(plain))},
		{"DiffID", l.DiffID, digest.FromBytes(plain)},
		{"TOCDigest", l.TOCDigest, digest.FromBytes(toc)},
		{"TOCChecksum", l.TOCChecksum, digest.FromBytes(packed)},
		{"TOCJSONSize", l.TOCJSONSize, int64(len(toc))},
		{"footer", fmt.Sprint(off, size, length, err), fmt.Sprint(l.TOCOffset, l.TOCSize, l.TOCJSONSize, nil)},
		{"end", l.TOCOffset + l.TOCSize + l.IndexSize + ZstdFooterSize, l.Size},
	} {
		if c.got != c.want {
			t.Errorf("%s = %v, want %v", c.what, c.got, c.want)
		}
	}
	checkIndex(t, blob, l, l.TOCOffset+l.TOCSize)
}

// TestZstdKeepsTheTar: the TOC is no part of the tar, so that an ordinary archive keeps
// its diff ID.
func TestZstdKeepsTheTar(t *testing.T) {
	src := makeTar(t, everything()...)
	blob, l := encoded(t, src, Options{Format: ZstdChunked})
	if !bytes.Equal(unzstd(t, blob), src) || l.DiffID != digest.FromBytes(src) {
		t.Error("the tar changed")
	}
	if empty, l := encoded(t, makeTar(t), Options{Format: ZstdChunked}); l.Entries != 0 || len(unzstd(t, empty)) != 1024 {
		t.Errorf("an empty layer: %+v", l)
	}
}
