package encode

import (
	"bytes"
	"io"
	"math/rand/v2"
	"testing"

	"github.com/containerd/stargz-snapshotter/estargz"
)

// TestDense: of a file some parts repeat themselves and some do not: these are in short
// chunks, each a member of its own, and stargz reads both. A small file behind may share
// the last.
func TestDense(t *testing.T) {
	noise := make([]byte, 3*DefaultChunkSize/2+100)
	_, _ = rand.NewChaCha8([32]byte{7}).Read(noise) // it never fails
	text := bytes.Repeat([]byte("what is said again and again "), DefaultChunkSize/29+1)[:DefaultChunkSize]
	body := append(bytes.Clone(text), noise...)
	src := makeTar(t, reg("mixed", body), reg("noise", noise[:DefaultChunkSize]), reg("after", []byte("small")))
	for _, format := range []Format{EStargz, ZstdChunked} {
		blob, l := encoded(t, src, Options{Format: format})
		checkEstargz(t, blob, l, src)
		if format == ZstdChunked {
			continue
		}
		r, err := estargz.Open(io.NewSectionReader(bytes.NewReader(blob), 0, l.Size))
		if err != nil {
			t.Fatal(err)
		}
		var sizes []int64
		offsets := map[int64]bool{}
		for off := int64(0); off < int64(len(body)); {
			c, ok := r.ChunkEntryForOffset("mixed", off)
			if !ok {
				t.Fatalf("no chunk at %d", off)
			}
			offsets[c.Offset] = true
			sizes = append(sizes, c.ChunkSize)
			off += c.ChunkSize
		}
		// One of the text, four of noise, and the last 128 KiB and a bit in three.
		if len(sizes) != 8 || sizes[0] != DefaultChunkSize || sizes[1] != minDenseChunk || len(offsets) != 8 {
			t.Errorf("chunks of %v in %d members", sizes, len(offsets))
		}
		// What is one chunk is not cut: a file of the size of a chunk is fetched whole.
		if c, ok := r.ChunkEntryForOffset("noise", 0); !ok || c.ChunkSize != DefaultChunkSize {
			t.Errorf("a chunk of %d bytes", c.ChunkSize)
		}
	}
}

// TestDenseChunk: no file has many thousands of chunks because it is dense.
func TestDenseChunk(t *testing.T) {
	for _, test := range []struct{ file, chunk, want int64 }{
		{1 << 20, 256 << 10, 64 << 10},
		{256 << 20, 256 << 10, 64 << 10},
		{256<<20 + 1, 256 << 10, 128 << 10},
		{1 << 30, 256 << 10, 256 << 10},
		{1 << 40, 256 << 10, 256 << 10},
		{1 << 40, 100 << 10, 100 << 10},
		{1 << 20, 4096, 4096},
	} {
		if got := denseChunk(test.file, test.chunk); got != test.want {
			t.Errorf("%d bytes in chunks of %d: %d, want %d", test.file, test.chunk, got, test.want)
		}
	}
}
