package layer_test

import (
	"bytes"
	"errors"
	"io"
	"os"
	"slices"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"testing/synctest"

	"github.com/apparate/apparate/snapshotter/cache"
	"github.com/apparate/apparate/snapshotter/layer"
)

var errNet = errors.New("network is down")

// faults are wrong answers to one call.
func faults(w *world) map[string]func(off, n int64) (io.Reader, error) {
	part := func(off, n int64) io.Reader { return bytes.NewReader(w.raw[off : off+n]) }
	return map[string]func(off, n int64) (io.Reader, error){
		"refused": func(int64, int64) (io.Reader, error) { return nil, errNet },
		"empty":   func(off, _ int64) (io.Reader, error) { return part(off, 0), nil },
		"short":   func(off, n int64) (io.Reader, error) { return part(off, n-1), nil },
		"half":    func(off, n int64) (io.Reader, error) { return part(off, n/2), nil },
		"broken off": func(off, n int64) (io.Reader, error) {
			return io.MultiReader(part(off, n/2), iotest.ErrReader(errNet)), nil
		},
		"zeros":       func(_, n int64) (io.Reader, error) { return bytes.NewReader(make([]byte, n)), nil },
		"other range": func(_, n int64) (io.Reader, error) { return part(int64(len(w.raw))-n, n), nil },
		"flipped":     func(off, n int64) (io.Reader, error) { return flipped(w, off, n, off+n/3), nil },
		"in pieces": func(off, n int64) (io.Reader, error) {
			return iotest.DataErrReader(iotest.HalfReader(part(off, n))), nil
		},
	}
}

// flipped is a range with one wrong byte, at offset at of the blob.
func flipped(w *world, off, n, at int64) io.Reader {
	p := bytes.Clone(w.raw[off : off+n])
	if at >= off && at < off+n {
		p[at-off] ^= 0x10
	}
	return bytes.NewReader(p)
}

// TestFaultAtEveryCall lets call i go wrong, for all i until a run has fewer.
// Every read must give the right bytes or an error, and the right bytes when it is
// tried again.
func TestFaultAtEveryCall(t *testing.T) {
	for name, p := range map[string]plan{
		"chunks":     {files: sizes(6, 12, 20_000), chunk: 10_000, group: 7_000, trailing: 100},
		"long tails": {files: []int64{30_000, 30_000}, chunk: 64 << 10, trailing: 9 << 20},
		"zstd":       {files: sizes(6, 12, 20_000), chunk: 10_000, group: 7_000, trailing: 100, zstd: true},
	} {
		w := build(t, p)
		for fault, answer := range faults(w) {
			t.Run(name+"/"+fault, func(t *testing.T) {
				for i := 0; ; i++ {
					hit := false
					b := &blob{answer: func(call int, off, n int64) (io.Reader, error) {
						if call == i {
							hit = true
							return answer(off, n)
						}
						return nil, nil
					}}
					sweep(t, w, b)
					if !hit {
						return
					}
				}
			})
		}
	}
}

// sweep reads everything, each piece twice if need be.
func sweep(t *testing.T, w *world, b *blob) {
	t.Helper()
	l, c := open(t, w, b, layer.Options{Coalesce: 15_000, ReadAhead: -1})
	failed := 0
	for off := int64(0); off < l.Size(); off += 13_000 {
		if err := w.read(t, l, off, 13_000); err != nil {
			failed++
			if err := w.read(t, l, off, 13_000); err != nil {
				t.Fatalf("at %d, tried again: %v", off, err)
			}
		}
	}
	if failed > 1 {
		t.Errorf("one fault failed %d reads", failed)
	}
	// Close waits until what was fetched is in the cache.
	if err := l.Close(); err != nil || !c.Complete() {
		t.Errorf("not all was cached: %v", err)
	}
}

// TestSpoiltMember spoils each member for good: its chunks end in a DigestError,
// all others are right, and nothing wrong is kept.
func TestSpoiltMember(t *testing.T) {
	for _, stored := range []bool{false, true} {
		spoilEach(t, build(t, plan{files: sizes(7, 8, 60_000), chunk: 30_000, group: 20_000, stored: stored}))
	}
}

func spoilEach(t *testing.T, w *world) {
	for m := range w.idx.Members {
		x := &w.idx.Members[m]
		b := &blob{answer: func(_ int, off, n int64) (io.Reader, error) { return flipped(w, off, n, x.Offset+x.Size/2), nil }}
		l, c := open(t, w, b, layer.Options{})
		for i := range w.idx.Chunks {
			k := &w.idx.Chunks[i]
			err := w.read(t, l, k.Addr, k.Size)
			var bad *layer.DigestError
			switch {
			case k.Member != m && err != nil:
				t.Errorf("member %d spoilt, chunk %d: %v", m, i, err)
			case k.Member != m || c.Have(i) && err == nil:
			case !errors.As(err, &bad):
				t.Errorf("member %d spoilt, chunk %d: %v", m, i, err)
			case bad.Layer != "test" || w.idx.Chunks[bad.Chunk].Member != m || bad.Want != w.idx.Chunks[bad.Chunk].Digest || bad.Got == bad.Want:
				t.Errorf("member %d spoilt, chunk %d: error says %+v", m, i, bad)
			case c.Have(i):
				t.Errorf("chunk %d was kept", i)
			}
		}
		// Two tries for each read, and two when a neighbour's request took it along.
		if s := l.Stats(); s.DigestFailures == 0 || s.DigestFailures > int64(2*(x.Count+1)) {
			t.Errorf("%d digest failures for %d reads", s.DigestFailures, x.Count)
		}
	}
}

// TestOneSpoiltAnswerIsHealed is a proxy that spoils one answer.
func TestOneSpoiltAnswerIsHealed(t *testing.T) {
	w := build(t, plan{files: []int64{100_000}, chunk: 50_000})
	b := &blob{answer: func(call int, off, n int64) (io.Reader, error) {
		if call == 0 {
			return flipped(w, off, n, off+n/4), nil
		}
		return nil, nil
	}}
	l, _ := open(t, w, b, layer.Options{})
	w.readAll(t, l, 1<<20)
	first := w.idx.Members[0]
	if got := b.asked(); len(got) != 2 || got[1] != (span{first.Offset, first.Size}) || l.Stats().DigestFailures != 1 {
		t.Errorf("asked for %v, stats %+v", got, l.Stats())
	}
}

// TestSecondAnswerMissing says both what was wrong and why there was no second try.
func TestSecondAnswerMissing(t *testing.T) {
	w := build(t, plan{files: []int64{50_000}, chunk: 50_000})
	for name, second := range map[string]func() (io.Reader, error){
		"refused":    func() (io.Reader, error) { return nil, errNet },
		"broken off": func() (io.Reader, error) { return iotest.ErrReader(errNet), nil },
	} {
		l, _ := open(t, w, &blob{answer: func(call int, off, n int64) (io.Reader, error) {
			if call == 0 {
				return flipped(w, off, n, off+n/2), nil
			}
			return second()
		}}, layer.Options{})
		var bad *layer.DigestError
		if err := w.read(t, l, 0, 10); !errors.As(err, &bad) || !errors.Is(err, errNet) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestJoinedReaderTriesOnceItself fails a request that two readers wait for: who
// started it gets the error, the other one asks again.
func TestJoinedReaderTriesOnceItself(t *testing.T) {
	for _, again := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			w := build(t, plan{files: []int64{50_000}, chunk: 50_000})
			release := make(chan struct{})
			b := &blob{answer: func(call int, _, _ int64) (io.Reader, error) {
				if call == 0 {
					return stall{release, iotest.ErrReader(errNet)}, nil
				}
				if again {
					return nil, errNet
				}
				return nil, nil
			}}
			l, _ := open(t, w, b, layer.Options{})
			first := w.start(t.Context(), l, 0, 10)
			synctest.Wait()
			second := w.start(t.Context(), l, 10, 10)
			third := w.start(t.Context(), l, 20, 10)
			synctest.Wait()
			close(release)
			if err := <-first; !errors.Is(err, errNet) {
				t.Errorf("first: %v", err)
			}
			for _, r := range []<-chan error{second, third} {
				if err := <-r; errors.Is(err, errNet) != again {
					t.Errorf("joined, fails again %v: %v", again, err)
				}
			}
			if n := len(b.asked()); n < 2 || n > 3 || !again && n > 2 {
				t.Errorf("%d requests", n)
			}
		})
	}
}

// TestFullDiskFailsNoRead has a cache that keeps nothing, and none at all.
func TestFullDiskFailsNoRead(t *testing.T) {
	w := build(t, plan{files: []int64{9 << 20, 3 << 20}, chunk: 4 << 20, stored: true})
	full := new(blob)
	l, c := open(t, w, full, layer.Options{ReadAhead: -1})
	var room atomic.Bool
	c.PutError = func(int) error {
		if room.Load() {
			return nil
		}
		return errors.New("no space left on device")
	}
	w.readAll(t, l, 128<<10)
	if n := len(full.asked()); n > len(w.idx.Members) {
		t.Errorf("%d requests for %d members", n, len(w.idx.Members))
	}
	last := len(w.idx.Members) - 1
	if err := l.Fetch(t.Context(), last, last+1); err == nil {
		t.Error("Fetch says it kept a member that it could not")
	}
	// With room again, what is still in memory is kept without a request.
	room.Store(true)
	before := len(full.asked())
	if err := l.Fetch(t.Context(), last, last+1); err != nil || !c.Have(last) || len(full.asked()) != before {
		t.Errorf("with room: %v, Have %v, %d requests more", err, c.Have(last), len(full.asked())-before)
	}
	w.readAll(t, l, 128<<10)

	none := new(blob)
	l = openOn(t, w, none, nil, layer.Options{})
	w.readAll(t, l, 128<<10)
	if s := l.Stats(); s.CachedBytes != 0 || l.Complete() {
		t.Errorf("without a cache: %+v", s)
	}
}

// TestDamagedCacheIsHealed changes a byte on disk while nothing runs.
func TestDamagedCacheIsHealed(t *testing.T) {
	w := build(t, plan{files: slices.Repeat([]int64{10_000}, 5), chunk: 10_000})
	dir := t.TempDir()
	for run, want := range []int{1, 1} {
		s, err := cache.Open(dir, cache.Options{})
		if err != nil {
			t.Fatal(err)
		}
		c, err := s.Blob("k", w.idx)
		if err != nil {
			t.Fatal(err)
		}
		b := new(blob)
		l := openOn(t, w, b, c, layer.Options{})
		w.readAll(t, l, 4096)
		if n := len(b.asked()); n != want {
			t.Errorf("run %d: %d requests, want %d", run, n, want)
		}
		if err := errors.Join(l.Close(), s.Close()); err != nil {
			t.Fatal(err)
		}
		data, err := os.OpenFile(dir+"/k/data", os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		_, err = data.WriteAt([]byte("!"), w.idx.Chunks[2].Addr+77)
		if err := errors.Join(err, data.Close()); err != nil {
			t.Fatal(err)
		}
	}
}

// badDisk is a cache whose reads fail once each.
type badDisk struct {
	layer.Cache
	failed map[int]bool
}

func (c *badDisk) ReadAt(i int, p []byte, off int64) (bool, error) {
	if c.Have(i) && !c.failed[i] {
		c.failed[i] = true
		return false, errors.New("input/output error")
	}
	return c.Cache.ReadAt(i, p, off)
}

func TestBadDiskIsFetchedAgain(t *testing.T) {
	w := build(t, plan{files: slices.Repeat([]int64{10_000}, 5), chunk: 10_000})
	b := new(blob)
	_, mem := open(t, w, new(blob), layer.Options{})
	l := openOn(t, w, b, &badDisk{mem, map[int]bool{}}, layer.Options{})
	w.readAll(t, l, 4096)
	w.readAll(t, l, 4096)
}
