package layer_test

import (
	"runtime"
	"testing"

	"github.com/apparate/apparate/snapshotter/cache"
	"github.com/apparate/apparate/snapshotter/layer"
)

// onDisk is a layer over the real cache.
func onDisk(b *testing.B, w *world) (*layer.Layer, *cache.Blob) {
	b.Helper()
	s, err := cache.Open(b.TempDir(), cache.Options{})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := s.Close(); err != nil {
			b.Error(err)
		}
	})
	c, err := s.Blob("k", w.idx)
	if err != nil {
		b.Fatal(err)
	}
	return openOn(b, w, new(blob), c, layer.Options{}), c
}

const benchSize = 32 << 20

func BenchmarkHit(b *testing.B) {
	w := build(b, plan{files: []int64{benchSize}, chunk: 256 << 10})
	l, _ := onDisk(b, w)
	w.readAll(b, l, 1<<20)
	p := make([]byte, 128<<10)
	b.SetBytes(int64(len(p)))
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		if _, err := l.ReadAt(b.Context(), p, int64(i)*int64(len(p))%benchSize); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkHitParallel(b *testing.B) {
	w := build(b, plan{files: []int64{benchSize}, chunk: 256 << 10})
	l, _ := onDisk(b, w)
	w.readAll(b, l, 1<<20)
	b.SetBytes(128 << 10)
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		p := make([]byte, 128<<10)
		for i := 0; pb.Next(); i++ {
			if _, err := l.ReadAt(b.Context(), p, int64(i)*int64(len(p))%benchSize); err != nil {
				b.Error(err)
			}
		}
	})
}

// BenchmarkMiss reads a cold file in order; MB/s are of content.
func BenchmarkMiss(b *testing.B) {
	w := build(b, plan{files: []int64{benchSize}, chunk: 256 << 10})
	l, c := onDisk(b, w)
	p := make([]byte, 128<<10)
	b.SetBytes(benchSize)
	b.ReportAllocs()
	for b.Loop() {
		for off := int64(0); off < benchSize; off += int64(len(p)) {
			if _, err := l.ReadAt(b.Context(), p, off); err != nil {
				b.Fatal(err)
			}
		}
		forget(b, l, c, w)
	}
}

// BenchmarkFetch is background work; MB/s are of content.
func BenchmarkFetch(b *testing.B) {
	b.Run("gzip", func(b *testing.B) { benchmarkFetch(b, false) })
	b.Run("zstd", func(b *testing.B) { benchmarkFetch(b, true) })
}

func benchmarkFetch(b *testing.B, zstd bool) {
	w := build(b, plan{files: []int64{benchSize}, chunk: 256 << 10, zstd: zstd})
	l, c := onDisk(b, w)
	b.SetBytes(benchSize)
	b.ReportAllocs()
	for b.Loop() {
		for at := 0; ; {
			lo, hi, ok := l.Missing(at, 4<<20)
			if !ok {
				break
			}
			if err := l.Fetch(b.Context(), lo, hi); err != nil {
				b.Fatal(err)
			}
			at = hi
		}
		forget(b, l, c, w)
	}
}

// BenchmarkRandomMiss reads 4 KiB of a cold chunk; a request and 256 KiB of
// decompression each.
func BenchmarkRandomMiss(b *testing.B) {
	w := build(b, plan{files: []int64{benchSize}, chunk: 256 << 10})
	_, c := onDisk(b, w)
	l := openOn(b, w, new(blob), c, layer.Options{Coalesce: -1})
	p := make([]byte, 4096)
	for i := 0; b.Loop(); i++ {
		k := i * 37 % len(w.idx.Chunks)
		if _, err := l.ReadAt(b.Context(), p, w.idx.Chunks[k].Addr); err != nil {
			b.Fatal(err)
		}
		for !c.Have(k) {
			runtime.Gosched()
		}
		c.Drop(k)
	}
}

// forget empties the cache, untimed.
func forget(b *testing.B, l *layer.Layer, c *cache.Blob, w *world) {
	b.StopTimer()
	for m := range w.idx.Members { // until all that is in flight has landed
		if err := l.Fetch(b.Context(), m, m+1); err != nil {
			b.Fatal(err)
		}
	}
	for i := range w.idx.Chunks {
		c.Drop(i)
	}
	b.StartTimer()
}
