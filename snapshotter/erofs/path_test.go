package erofs

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/apparate/apparate/api/layerindex"
	"github.com/apparate/apparate/snapshotter/toc"
	"github.com/apparate/apparate/snapshotter/tree"
)

// indexed is the index of a layer as a node gets it.
type indexed struct {
	payload []byte
	digest  digest.Digest
}

// pathImage are layers with about n entries in all, half of them in the largest, as
// interpreters and their packages have them.
func pathImage(tb testing.TB, n int) []indexed {
	tb.Helper()
	rnd := rand.New(rand.NewPCG(3, 4))
	var layers []indexed
	for i, share := range []int{8, 4, 16, 2, 1, 1} {
		var blocks []byte
		w, err := layerindex.NewWriter(256<<10, func(b []byte) error { blocks = append(blocks, b...); return nil })
		if err != nil {
			tb.Fatal(err)
		}
		add := func(e layerindex.Entry, chunks ...layerindex.Chunk) {
			if err := w.Add(&e, chunks); err != nil {
				tb.Fatal(err)
			}
		}
		for _, d := range []string{"usr", "usr/lib", "usr/share", "var", "var/lib"} {
			add(layerindex.Entry{Path: d, Type: layerindex.Dir, Mode: 0o755, Sec: 1700000000})
		}
		offset, inner := int64(512), int64(0)
		for k := range n * share / 32 {
			dir := fmt.Sprintf("usr/lib/set%d/package-%04d/module", i, k/12)
			if k%12 == 0 {
				add(layerindex.Entry{Path: dir[:len(dir)-7], Type: layerindex.Dir, Mode: 0o755, Sec: 1700000000})
				add(layerindex.Entry{Path: dir, Type: layerindex.Dir, Mode: 0o755, Sec: 1700000000})
				continue
			}
			c := layerindex.Chunk{Offset: offset, Inner: inner, Size: 100 + rnd.Int64N(9000)}
			for b := range 4 {
				binary.LittleEndian.PutUint64(c.Digest[8*b:], rnd.Uint64())
			}
			if inner = (inner+c.Size+511)/512*512 + 512; inner > 120_000 {
				offset, inner = offset+20000+rnd.Int64N(20000), 0
			}
			add(layerindex.Entry{Path: fmt.Sprintf("%s/part-%02d-%04d.cpython-313.pyc", dir, k%12, rnd.IntN(10000)), Type: layerindex.Reg, Mode: 0o644, Sec: 1700000000 + int64(k/100), Size: c.Size}, c)
		}
		header, err := w.Close(offset + 100_000)
		if err != nil {
			tb.Fatal(err)
		}
		payload := append(header, blocks...)
		layers = append(layers, indexed{payload, digest.FromBytes(payload)})
	}
	return layers
}

// cpu runs f b.N times and reports the processor time of one run, collecting garbage
// included: on a busy machine the time on the clock says little.
func cpu(b *testing.B, f func()) {
	b.ReportAllocs()
	used := func() int64 {
		var u unix.Rusage
		if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
			b.Fatal(err)
		}
		return u.Utime.Nano() + u.Stime.Nano()
	}
	began := used()
	for range b.N {
		f()
	}
	b.ReportMetric(float64(used()-began)/float64(b.N)/1e6, "cpu-ms/op")
}

// BenchmarkPath takes the indexes of an image of 60 000 entries to its metadata image.
func BenchmarkPath(b *testing.B) {
	layers := pathImage(b, 60_000)
	idx := make([]*toc.Index, len(layers))
	sizes := make([]int64, len(layers))
	parse := func(b *testing.B, i int) {
		var err error
		if idx[i], err = toc.ParseIndex(layers[i].payload, layers[i].digest); err != nil {
			b.Error(err)
			return
		}
		sizes[i] = idx[i].DataSize
	}
	for i := range layers {
		parse(b, i)
	}
	check := func(b *testing.B, i int) {
		if err := tree.Check(idx[i]); err != nil {
			b.Error(err)
		}
	}
	build := func(b *testing.B) {
		root, err := tree.Merge(idx, false)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := Build(root, sizes); err != nil {
			b.Fatal(err)
		}
	}
	each := func(f func(int)) {
		var wg sync.WaitGroup
		for i := range layers {
			wg.Go(func() { f(i) })
		}
		wg.Wait()
	}
	b.Run("parse", func(b *testing.B) {
		cpu(b, func() {
			for i := range layers {
				parse(b, i)
			}
		})
	})
	b.Run("check", func(b *testing.B) {
		cpu(b, func() {
			for i := range layers {
				check(b, i)
			}
		})
	})
	b.Run("merge", func(b *testing.B) {
		cpu(b, func() {
			if _, err := tree.Merge(idx, false); err != nil {
				b.Fatal(err)
			}
		})
	})
	b.Run("build", func(b *testing.B) {
		root, err := tree.Merge(idx, false)
		if err != nil {
			b.Fatal(err)
		}
		cpu(b, func() {
			if _, err := Build(root, sizes); err != nil {
				b.Fatal(err)
			}
		})
	})
	b.Run("all", func(b *testing.B) {
		cpu(b, func() {
			each(func(i int) { parse(b, i); check(b, i) })
			build(b)
		})
	})
}
