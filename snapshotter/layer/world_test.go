package layer_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"github.com/apparate/apparate/snapshotter/cache/cachetest"
	"github.com/apparate/apparate/snapshotter/layer"
	"github.com/apparate/apparate/snapshotter/toc"
)

// world is a layer made by hand: its content list, the compressed blob, and the
// address space as it must read.
type world struct {
	idx   *toc.Index
	raw   []byte
	plain []byte
}

// plan says what build makes.
type plan struct {
	seed     uint64
	files    []int64 // sizes in bytes
	chunk    int64   // longest chunk
	group    int64   // files share a member up to so much content
	trailing int     // bytes behind each member that belong to it and hold no content
	gap      int     // bytes of no member between members
	stored   bool    // gzip without compression, which is quick to make
	zstd     bool    // members are zstd frames
}

// build makes the layer of a plan. Members begin with a header of some bytes,
// as tar headers do, and have some between their chunks.
func build(t testing.TB, p plan) *world {
	t.Helper()
	w := &world{idx: &toc.Index{}}
	if p.zstd {
		w.idx.Compression = toc.Zstd
	}
	rnd := rand.New(rand.NewPCG(p.seed, 1))
	var inner bytes.Buffer
	first := 0
	flush := func() {
		if n := len(w.idx.Chunks); n > first {
			off := len(w.raw)
			w.raw = append(w.raw, compress(t, inner.Bytes(), p)...)
			if p.trailing > 0 {
				w.raw = append(w.raw, noise(rnd, p.trailing)...)
			}
			w.idx.Members = append(w.idx.Members, toc.Member{Offset: int64(off), Size: int64(len(w.raw) - off), First: first, Count: n - first})
			w.raw = append(w.raw, noise(rnd, p.gap)...)
			first = n
		}
		inner.Reset()
	}
	for _, size := range p.files {
		addr := int64(len(w.plain))
		w.plain = append(w.plain, text(rnd, int(size))...)
		for at := int64(0); at < size; at += p.chunk {
			n := min(p.chunk, size-at)
			inner.Write(noise(rnd, rnd.IntN(600)))
			body := w.plain[addr+at : addr+at+n]
			w.idx.Chunks = append(w.idx.Chunks, toc.Chunk{Addr: addr + at, Size: n, Member: len(w.idx.Members),
				Inner: int64(inner.Len()), Digest: sha256.Sum256(body), Begin: at == 0})
			inner.Write(body)
			if int64(inner.Len()) >= p.group {
				flush()
			}
		}
		w.plain = append(w.plain, make([]byte, -len(w.plain)&(toc.BlockSize-1))...)
	}
	flush()
	w.idx.DataSize = int64(len(w.plain))
	if err := layer.Check(w.idx); err != nil {
		t.Fatal(err)
	}
	return w
}

func compress(t testing.TB, p []byte, how plan) []byte {
	t.Helper()
	var b bytes.Buffer
	if how.zstd {
		z, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1))
		if err != nil {
			t.Fatal(err)
		}
		return z.EncodeAll(p, nil)
	}
	level := gzip.BestSpeed
	if how.stored {
		level = gzip.NoCompression
	}
	z, err := gzip.NewWriterLevel(&b, level)
	if err == nil {
		_, err = z.Write(p)
	}
	if err = errors.Join(err, z.Close()); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// noise is random bytes.
func noise(rnd *rand.Rand, n int) []byte {
	p := make([]byte, n+8)
	for i := 0; i < n; i += 8 {
		binary.LittleEndian.PutUint64(p[i:], rnd.Uint64())
	}
	return p[:n]
}

// text is bytes that compress to about a third.
func text(rnd *rand.Rand, n int) []byte {
	p := make([]byte, 0, n+32)
	for len(p) < n {
		p = hex.AppendEncode(p, noise(rnd, 8))
		p = append(p, " of the layer "...)
	}
	return p[:n]
}

// sizes are random file sizes around a mean.
func sizes(seed uint64, n int, mean int64) []int64 {
	rnd := rand.New(rand.NewPCG(seed, 2))
	s := make([]int64, n)
	for i := range s {
		s[i] = 1 + rnd.Int64N(2*mean)
	}
	return s
}

// blob is a fetch.Blob in memory.
type blob struct {
	raw []byte
	// answer, when set, may replace the reader of a call; calls count from 0.
	answer func(call int, off, n int64) (io.Reader, error)

	mu     sync.Mutex
	calls  []span
	closed bool
}

type span struct{ off, n int64 }

func (b *blob) Open(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	b.mu.Lock()
	call := len(b.calls)
	b.calls = append(b.calls, span{off, n})
	closed := b.closed
	b.mu.Unlock()
	if closed {
		return nil, errors.New("blob is closed")
	}
	var r io.Reader
	var err error
	if b.answer != nil {
		r, err = b.answer(call, off, n)
	}
	if err != nil {
		return nil, err
	}
	if r == nil {
		r = bytes.NewReader(b.raw[off : off+n])
	}
	return &response{ctx, r}, nil
}

func (b *blob) Size() int64 { return int64(len(b.raw)) }

func (b *blob) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
	return nil
}

// asked returns the ranges that were asked for.
func (b *blob) asked() []span {
	b.mu.Lock()
	defer b.mu.Unlock()
	return append([]span(nil), b.calls...)
}

// response ends with its context, as those of the network do.
type response struct {
	ctx context.Context
	r   io.Reader
}

func (r *response) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.r.Read(p)
}

func (r *response) Close() error { return nil }

// stall is a response that does not come before release is closed.
type stall struct {
	release <-chan struct{}
	r       io.Reader
}

func (s stall) Read(p []byte) (int, error) {
	<-s.release
	return s.r.Read(p)
}

// quiet is a logger for tests that make things fail.
func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// open makes the layer of a world over a cache in memory, closed at the end.
func open(t testing.TB, w *world, b *blob, o layer.Options) (*layer.Layer, *cachetest.Mem) {
	t.Helper()
	c := cachetest.NewMem(w.idx)
	return openOn(t, w, b, c, o), c
}

func openOn(t testing.TB, w *world, b *blob, c layer.Cache, o layer.Options) *layer.Layer {
	t.Helper()
	b.raw = w.raw
	if o.Logger == nil {
		o.Logger = quiet()
	}
	l := layer.New("test", w.idx, b, c, o)
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

// read reads and compares with the model; it returns the error of ReadAt.
func (w *world) read(t testing.TB, l *layer.Layer, off, n int64) error {
	t.Helper()
	p := bytes.Repeat([]byte{0xaa}, int(n))
	got, err := l.ReadAt(t.Context(), p, off)
	if err != nil {
		return err
	}
	want := w.plain[min(off, int64(len(w.plain))):min(off+n, int64(len(w.plain)))]
	if got != len(want) || !bytes.Equal(p[:got], want) {
		t.Fatalf("ReadAt(%d bytes at %d): %d bytes, want %d, or not the right ones", n, off, got, len(want))
	}
	return nil
}

// readAll reads the whole layer in pieces.
func (w *world) readAll(t testing.TB, l *layer.Layer, piece int64) {
	t.Helper()
	for off := int64(0); off < int64(len(w.plain)); off += piece {
		if err := w.read(t, l, off, piece); err != nil {
			t.Fatalf("read at %d: %v", off, err)
		}
	}
}
