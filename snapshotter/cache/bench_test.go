package cache_test

import (
	"testing"

	"github.com/apparate/apparate/snapshotter/cache"
	"github.com/apparate/apparate/snapshotter/cache/cachetest"
)

func BenchmarkReadAt(b *testing.B) {
	const chunk, read = 256 << 10, 128 << 10
	s := open(b, b.TempDir(), cache.Options{})
	idx, data := cachetest.Index(1, same(64, chunk)...)
	x := blob(b, s, "k", idx)
	fill(b, x, data)
	p := make([]byte, read)
	b.SetBytes(read)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		if ok, err := x.ReadAt(i%64, p, int64(i%2)*read); !ok || err != nil {
			b.Fatal(ok, err)
		}
	}
	check(b, x.Close())
}

func BenchmarkFirstReadAfterRestart(b *testing.B) {
	const chunk = 256 << 10
	s := open(b, b.TempDir(), cache.Options{})
	idx, data := cachetest.Index(1, same(64, chunk)...)
	x := blob(b, s, "k", idx)
	fill(b, x, data)
	p := make([]byte, chunk)
	b.SetBytes(chunk)
	for i := 0; b.Loop(); i++ {
		if i%64 == 0 {
			check(b, x.Close())
			x = blob(b, s, "k", idx)
		}
		if ok, err := x.ReadAt(i%64, p, 0); !ok || err != nil {
			b.Fatal(ok, err)
		}
	}
	check(b, x.Close())
}

func BenchmarkPut(b *testing.B) {
	const chunk = 256 << 10
	s := open(b, b.TempDir(), cache.Options{Budget: 64 << 20})
	idx, data := cachetest.Index(1, same(512, chunk)...)
	x := blob(b, s, "k", idx)
	b.SetBytes(chunk)
	for i := 0; b.Loop(); i++ {
		check(b, x.Put(i%512, data[i%512]))
	}
	check(b, x.Close())
}
