package fetchtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/apparate/apparate/snapshotter/fetch"
)

// Suite checks what the documentation of fetch.Blob promises. open returns a new
// blob with the content data; the suite closes it.
func Suite(t *testing.T, open func(data []byte) fetch.Blob) {
	t.Helper()
	data := Random(100_000)
	with := func(name string, f func(*testing.T, fetch.Blob)) {
		t.Run(name, func(t *testing.T) {
			b := open(data)
			t.Cleanup(func() {
				if err := b.Close(); err != nil {
					t.Errorf("close the blob: %v", err)
				}
			})
			f(t, b)
		})
	}
	with("size", func(t *testing.T, b fetch.Blob) {
		if b.Size() != int64(len(data)) {
			t.Errorf("Size() = %d, want %d", b.Size(), len(data))
		}
	})
	with("ranges", func(t *testing.T, b fetch.Blob) { ranges(t, b, data) })
	with("small reads", func(t *testing.T, b fetch.Blob) { smallReads(t, b, data) })
	with("cancelled before", cancelledBefore)
	with("cancelled while open", cancelledWhileOpen)
	with("early close", func(t *testing.T, b fetch.Blob) { earlyClose(t, b, data) })
	with("parallel", func(t *testing.T, b fetch.Blob) { parallel(t, b, data) })
	with("closed blob", closedBlob)
	t.Run("empty", func(t *testing.T) {
		b := open(nil)
		if err := fetch.ReadAt(t.Context(), b, nil, 0); err != nil {
			t.Errorf("read nothing of an empty blob: %v", err)
		}
		if err := fetch.ReadAt(t.Context(), b, make([]byte, 1), 0); !errors.Is(err, fetch.ErrRange) {
			t.Errorf("read a byte of an empty blob: %v, want ErrRange", err)
		}
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
}

// Random returns n bytes that look random and are the same at every run.
func Random(n int) []byte {
	r := rand.New(rand.NewPCG(1, uint64(n)))
	data := make([]byte, n)
	for i := range data {
		data[i] = byte(r.Uint32())
	}
	return data
}

func ranges(t *testing.T, b fetch.Blob, data []byte) {
	size := int64(len(data))
	for _, c := range []struct {
		off, n int64
		ok     bool
	}{
		{0, 0, true}, {0, 1, true}, {0, size, true}, {1, size - 1, true}, {size - 1, 1, true},
		{size, 0, true}, {4095, 2, true}, {4096, 4096, true}, {50_000, 12_345, true},
		{-1, 1, false}, {-1, 0, false}, {-size, size, false}, {0, -1, false}, {5, -5, false},
		{0, size + 1, false}, {1, size, false}, {size, 1, false}, {size + 1, 0, false},
		{1, math.MaxInt64, false}, {math.MaxInt64, 1, false}, {math.MinInt64, math.MinInt64, false},
	} {
		t.Run(fmt.Sprintf("%d+%d", c.off, c.n), func(t *testing.T) {
			r, err := b.Open(t.Context(), c.off, c.n)
			if !c.ok {
				if !errors.Is(err, fetch.ErrRange) {
					t.Fatalf("Open = %v, want ErrRange", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(r)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, data[c.off:c.off+c.n]) {
				t.Errorf("%d bytes, not those asked for", len(got))
			}
			if n, err := r.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
				t.Errorf("after the end: %d, %v; want 0, EOF", n, err)
			}
			if err := r.Close(); err != nil {
				t.Error(err)
			}
			if c.n > 0 {
				p := make([]byte, c.n)
				if err := fetch.ReadAt(t.Context(), b, p, c.off); err != nil || !bytes.Equal(p, got) {
					t.Errorf("ReadAt differs: %v", err)
				}
			}
		})
	}
}

func smallReads(t *testing.T, b fetch.Blob, data []byte) {
	r := mustOpen(t, b, 10, 5000)
	var got []byte
	for p := make([]byte, 7); ; {
		n, err := r.Read(p)
		got = append(got, p[:n]...)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(got, data[10:5010]) {
		t.Error("wrong bytes")
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
}

func cancelledBefore(t *testing.T, b fetch.Blob) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, n := range []int64{0, 10} {
		r, err := b.Open(ctx, 0, n)
		if !errors.Is(err, context.Canceled) {
			t.Errorf("Open of %d bytes = %v, want context.Canceled", n, err)
		}
		if err == nil {
			_ = r.Close()
		}
	}
}

func cancelledWhileOpen(t *testing.T, b fetch.Blob) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	r, err := b.Open(ctx, 0, b.Size())
	if err != nil {
		t.Fatal(err)
	}
	p := make([]byte, 100)
	if _, err := io.ReadFull(r, p); err != nil {
		t.Fatal(err)
	}
	cancel()
	if _, err := io.ReadAll(r); !errors.Is(err, context.Canceled) {
		t.Errorf("read = %v, want context.Canceled", err)
	}
	_ = r.Close() // may report the cancellation or not
	if err := fetch.ReadAt(t.Context(), b, p, 0); err != nil {
		t.Errorf("the blob does not work after one reader was cancelled: %v", err)
	}
}

func earlyClose(t *testing.T, b fetch.Blob, data []byte) {
	for range 20 {
		r := mustOpen(t, b, 0, b.Size())
		p := make([]byte, 10)
		if _, err := io.ReadFull(r, p); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(p, data[:10]) {
			t.Fatal("wrong bytes")
		}
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
		if n, err := r.Read(p); n != 0 || err == nil || errors.Is(err, io.EOF) {
			t.Fatalf("read after close: %d, %v; want an error", n, err)
		}
	}
	// Closed unread, and by another goroutine than the one that reads.
	if err := mustOpen(t, b, 0, b.Size()).Close(); err != nil {
		t.Fatal(err)
	}
	r := mustOpen(t, b, 0, b.Size())
	var wg sync.WaitGroup
	wg.Go(func() { _, _ = io.Copy(io.Discard, r) })
	_ = r.Close()
	wg.Wait()
}

func parallel(t *testing.T, b fetch.Blob, data []byte) {
	var wg sync.WaitGroup
	for g := range 16 {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(2, uint64(g)))
			for range 20 {
				off := rnd.Int64N(b.Size())
				p := make([]byte, 1+rnd.Int64N(b.Size()-off))
				if err := fetch.ReadAt(t.Context(), b, p, off); err != nil {
					t.Error(err)
					return
				}
				if !bytes.Equal(p, data[off:off+int64(len(p))]) {
					t.Errorf("wrong bytes at %d+%d", off, len(p))
					return
				}
			}
		})
	}
	wg.Wait()
}

func closedBlob(t *testing.T, b fetch.Blob) {
	r := mustOpen(t, b, 0, b.Size())
	p := make([]byte, 10)
	if _, err := io.ReadFull(r, p); err != nil {
		t.Fatal(err)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(r); !errors.Is(err, fetch.ErrClosed) {
		t.Errorf("read under way = %v, want ErrClosed", err)
	}
	_ = r.Close() // the stream has failed already
	if err := fetch.ReadAt(t.Context(), b, p, 0); !errors.Is(err, fetch.ErrClosed) {
		t.Errorf("new read = %v, want ErrClosed", err)
	}
}

func mustOpen(t *testing.T, b fetch.Blob, off, n int64) io.ReadCloser {
	t.Helper()
	r, err := b.Open(t.Context(), off, n)
	if err != nil {
		t.Fatal(err)
	}
	return r
}
