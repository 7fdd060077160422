package layer_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/apparate/apparate/snapshotter/layer"
	"github.com/apparate/apparate/snapshotter/prefetch"
	"github.com/apparate/apparate/snapshotter/toc"
)

// plans are layouts of all kinds.
func plans() map[string]plan {
	return map[string]plan{
		"one byte":          {files: []int64{1}, chunk: 100},
		"ours":              {files: sizes(1, 20, 100<<10), chunk: 256 << 10, group: 256 << 10},
		"many small":        {files: sizes(2, 600, 900), chunk: 4096, group: 20_000, gap: 3},
		"foreign":           {files: []int64{5 << 20, 5, 4 << 20}, chunk: 4 << 20, stored: true},
		"headers behind":    {files: sizes(3, 30, 30_000), chunk: 8000, trailing: 5000},
		"long tails":        {files: []int64{100_000, 70_000}, chunk: 64 << 10, trailing: 9 << 20},
		"unaligned chunks":  {files: sizes(4, 10, 60_000), chunk: 1001, group: 5000, gap: 30_000},
		"nothing but zeros": {},
		"zstd":              {files: sizes(5, 20, 100<<10), chunk: 256 << 10, group: 256 << 10, zstd: true},
		"zstd, small":       {files: sizes(6, 600, 900), chunk: 4096, group: 20_000, gap: 3, trailing: 700, zstd: true},
		"zstd, foreign":     {files: []int64{5 << 20, 5, 4 << 20}, chunk: 4 << 20, zstd: true},
		"zstd, long tails":  {files: []int64{100_000, 70_000}, chunk: 64 << 10, trailing: 9 << 20, zstd: true},
	}
}

func TestReadsLikeTheModel(t *testing.T) {
	for name, p := range plans() {
		t.Run(name, func(t *testing.T) {
			w := build(t, p)
			for _, piece := range []int64{4096, 128 << 10, 1_000_003} {
				if piece == 4096 && len(w.plain) > 3<<20 {
					continue // slow, and nothing new
				}
				l, _ := open(t, w, new(blob), layer.Options{})
				w.readAll(t, l, piece)
				w.readAll(t, l, piece)
				// Close waits until what was fetched is in the cache.
				if err := l.Close(); err != nil {
					t.Fatal(err)
				}
				s := l.Stats()
				if s.CachedBytes != s.ContentBytes || s.DigestFailures != 0 || s.ServedBytes != 2*l.Size() || !l.Complete() {
					t.Errorf("piece %d: %+v", piece, s)
				}
			}
		})
	}
}

func TestEdges(t *testing.T) {
	w := build(t, plan{files: []int64{5000, 1}, chunk: 4096})
	l, _ := open(t, w, new(blob), layer.Options{})
	size := l.Size()
	if size != 3*4096 {
		t.Fatalf("Size %d", size)
	}
	for _, c := range []struct{ off, n int64 }{{0, 0}, {size - 1, 1}, {size - 1, 2}, {size, 1}, {size + 5000, 10}, {5000, 3192}, {0, 2 * size}} {
		if err := w.read(t, l, c.off, c.n); err != nil {
			t.Errorf("%v: %v", c, err)
		}
	}
	if _, err := l.ReadAt(t.Context(), make([]byte, 1), -1); err == nil {
		t.Error("read before the beginning")
	}
}

// FuzzReadAt reads here and there in random layers, while chunks come and go.
func FuzzReadAt(f *testing.F) {
	f.Add(uint64(1), uint16(3), uint16(5000), uint16(1000), []byte{0, 1, 2, 3, 200, 100})
	f.Add(uint64(2), uint16(80), uint16(300), uint16(4096), []byte{9, 9, 9, 9})
	f.Add(uint64(3), uint16(1), uint16(60000), uint16(30000), []byte{255, 0, 255, 0, 1, 1, 1})
	f.Fuzz(func(t *testing.T, seed uint64, files, mean, chunk uint16, ops []byte) {
		p := plan{seed: seed, files: sizes(seed, int(files%100)+1, int64(mean)+1), chunk: int64(chunk)%20_000 + 50,
			group: int64(seed % 30_000), trailing: int(seed % 700), gap: int(seed % 90), zstd: seed%4 == 3}
		w := build(t, p)
		l, c := open(t, w, new(blob), layer.Options{Gap: int64(seed%3) * 100, Coalesce: int64(mean), ReadAhead: 1 << 16})
		rnd := rand.New(rand.NewPCG(seed, 3))
		for _, op := range ops[:min(len(ops), 100)] {
			off := rnd.Int64N(int64(len(w.plain)) + 10)
			switch {
			case op < 20:
				c.Drop(rnd.IntN(len(w.idx.Chunks)))
			case op < 40:
				lo, hi, ok := l.Missing(rnd.IntN(len(w.idx.Members)), int64(mean))
				if !ok {
					continue
				}
				if err := l.Fetch(t.Context(), lo, hi); err != nil {
					t.Fatal(err)
				}
			default:
				if err := w.read(t, l, off, rnd.Int64N(int64(op)*300+1)); err != nil {
					t.Fatal(err)
				}
			}
		}
		w.readAll(t, l, int64(chunk)+1)
	})
}

// TestOneFetchOfEachMember has many readers of overlapping ranges at once.
func TestOneFetchOfEachMember(t *testing.T) {
	for _, kept := range []bool{true, false} {
		w := build(t, plan{files: sizes(5, 60, 40_000), chunk: 16 << 10, group: 10_000})
		b := new(blob)
		l, c := open(t, w, b, layer.Options{Gap: -1})
		c.PutError = func(int) error {
			if kept {
				return nil
			}
			return errors.New("disk full")
		}
		var wg sync.WaitGroup
		for g := range 12 {
			wg.Go(func() {
				rnd := rand.New(rand.NewPCG(9, uint64(g)))
				for range 15 {
					if err := w.read(t, l, rnd.Int64N(l.Size()), rnd.Int64N(200_000)); err != nil {
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
		w.readAll(t, l, 128<<10)
		fetched := make([]int, len(w.idx.Members))
		for _, s := range b.asked() {
			for m := range w.idx.Members {
				if x := &w.idx.Members[m]; x.Offset < s.off+s.n && x.Offset+x.Size > s.off {
					fetched[m]++
				}
			}
		}
		if i := slices.IndexFunc(fetched, func(n int) bool { return n != 1 }); i >= 0 {
			t.Errorf("kept %v: member %d was fetched %d times", kept, i, fetched[i])
		}
	}
}

// start runs a read on a goroutine; its result is sent.
func (w *world) start(ctx context.Context, l *layer.Layer, off, n int64) <-chan error {
	done := make(chan error, 1)
	go func() {
		p := make([]byte, n)
		_, err := l.ReadAt(ctx, p, off)
		if err == nil && !bytes.Equal(p, w.plain[off:off+n]) {
			err = errors.New("wrong bytes")
		}
		done <- err
	}()
	return done
}

// gated is a blob whose first answers wait for release.
func (w *world) gated(release <-chan struct{}, answers int) *blob {
	return &blob{answer: func(call int, off, n int64) (io.Reader, error) {
		if call >= answers {
			return nil, nil
		}
		return stall{release, bytes.NewReader(w.raw[off : off+n])}, nil
	}}
}

func TestCancelledReaderLeavesItsRequestToOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := build(t, plan{files: []int64{100_000}, chunk: 50_000})
		release := make(chan struct{})
		b := w.gated(release, 1)
		l, _ := open(t, w, b, layer.Options{})
		ctx, cancel := context.WithCancel(t.Context())
		first := w.start(ctx, l, 0, 10)
		synctest.Wait()
		second := w.start(t.Context(), l, 5, 60_000)
		synctest.Wait()
		cancel()
		if err := <-first; !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled reader: %v", err)
		}
		close(release)
		if err := <-second; err != nil || len(b.asked()) != 1 {
			t.Errorf("other reader: %v, requests %v", err, b.asked())
		}
	})
}

func TestCloseEndsReads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := build(t, plan{files: sizes(1, 20, 50_000), chunk: 50_000})
		b := &blob{answer: func(int, int64, int64) (io.Reader, error) { return endless{t.Context()}, nil }}
		l, _ := open(t, w, b, layer.Options{})
		b.answer = nil
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		blocked := make(chan struct{})
		b.answer = func(int, int64, int64) (io.Reader, error) { <-blocked; return nil, io.ErrClosedPipe }
		var reads []<-chan error
		for off := int64(0); off < 500_000; off += 50_000 {
			reads = append(reads, w.start(ctx, l, off, 1000))
		}
		synctest.Wait()
		closed := make(chan error, 1)
		go func() { closed <- l.Close() }()
		synctest.Wait()
		close(blocked) // as a blob whose context ended would
		for _, r := range reads {
			if err := <-r; !errors.Is(err, layer.ErrClosed) {
				t.Errorf("read under Close: %v", err)
			}
		}
		if err := <-closed; err != nil {
			t.Error(err)
		}
		if _, err := l.ReadAt(ctx, make([]byte, 1), 0); !errors.Is(err, layer.ErrClosed) {
			t.Errorf("read after Close: %v", err)
		}
		if err := l.Fetch(ctx, 0, 1); !errors.Is(err, layer.ErrClosed) {
			t.Errorf("Fetch after Close: %v", err)
		}
		// synctest fails when a goroutine is left.
	})
}

// endless never has a byte.
type endless struct{ ctx context.Context }

func (e endless) Read([]byte) (int, error) { <-e.ctx.Done(); return 0, e.ctx.Err() }

// TestRequests pins down which ranges are asked for.
func TestRequests(t *testing.T) {
	w := build(t, plan{files: slices.Repeat([]int64{64 << 10}, 40), chunk: 64 << 10, stored: true})
	size := func(from, to int) int64 {
		return w.idx.Members[to-1].Offset + w.idx.Members[to-1].Size - w.idx.Members[from].Offset
	}
	per := 8 // members of 64 KiB and a little in 528 KiB
	tests := map[string]struct {
		o      layer.Options
		cached []int
		off, n int64
		want   [][2]int
	}{
		"one":             {layer.Options{Coalesce: -1}, nil, 0, 10, [][2]int{{0, 1}}},
		"two":             {layer.Options{Coalesce: -1}, nil, 65_000, 1000, [][2]int{{0, 2}}},
		"coalesced":       {layer.Options{}, nil, 0, 10, [][2]int{{0, per}}},
		"up to cached":    {layer.Options{}, []int{2}, 0, 10, [][2]int{{0, 2}}},
		"across cached":   {layer.Options{Coalesce: -1, Gap: 1 << 20}, []int{1}, 0, 140_000, [][2]int{{0, 3}}},
		"around cached":   {layer.Options{Coalesce: -1}, []int{1}, 0, 140_000, [][2]int{{0, 1}, {2, 3}}},
		"the end":         {layer.Options{}, nil, 39 * 64 << 10, 10, [][2]int{{39, 40}}},
		"longer than max": {layer.Options{Coalesce: 1}, nil, 0, 140_000, [][2]int{{0, 3}}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			b := new(blob)
			l, c := open(t, w, b, test.o)
			for _, i := range test.cached {
				if err := c.Put(i, w.plain[w.idx.Chunks[i].Addr:][:w.idx.Chunks[i].Size]); err != nil {
					t.Fatal(err)
				}
			}
			if err := w.read(t, l, test.off, test.n); err != nil {
				t.Fatal(err)
			}
			var want []span
			for _, m := range test.want {
				want = append(want, span{w.idx.Members[m[0]].Offset, size(m[0], m[1])})
			}
			got := b.asked()
			slices.SortFunc(got, func(a, b span) int { return int(a.off - b.off) })
			if !slices.Equal(got, want) {
				t.Errorf("asked for %v, want %v", got, want)
			}
		})
	}
}

// TestSequentialReadsAreFetchedAheadOf reads a large file like the kernel does.
func TestSequentialReadsAreFetchedAheadOf(t *testing.T) {
	w := build(t, plan{files: []int64{16 << 20, 4096}, chunk: 256 << 10, stored: true})
	requests := func(o layer.Options) int {
		b := new(blob)
		l, c := open(t, w, b, o)
		w.readAll(t, l, 128<<10)
		if err := l.Close(); err != nil || !c.Complete() {
			t.Errorf("not all was read: %v", err)
		}
		return len(b.asked())
	}
	with, without := requests(layer.Options{}), requests(layer.Options{ReadAhead: -1})
	t.Logf("16 MiB: %d requests, without read-ahead %d", with, without)
	if with > 12 || without != 32 {
		t.Errorf("%d requests, without read-ahead %d", with, without)
	}
}

func TestReadAheadDoesNotBlock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := build(t, plan{files: []int64{4 << 20}, chunk: 256 << 10, stored: true})
		release := make(chan struct{})
		b := &blob{}
		b.answer = func(call int, off, n int64) (io.Reader, error) {
			if call < 2 {
				return nil, nil // the first read, and the one that begins a sequence
			}
			return stall{release, bytes.NewReader(w.raw[off : off+n])}, nil
		}
		gate := new(prefetch.Gate)
		l, c := open(t, w, b, layer.Options{Gate: gate})
		for off := int64(0); off < 1280<<10; off += 128 << 10 {
			if err := w.read(t, l, off, 128<<10); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		if len(b.asked()) < 3 || gate.Waiting() == 0 {
			t.Errorf("nothing is fetched ahead: %v", b.asked())
		}
		close(release)
		synctest.Wait()
		if gate.Waiting() != 0 || !c.Have(7) {
			t.Errorf("%d still wait", gate.Waiting())
		}
	})
}

// TestSmallLimits has memory for less than one member and one worker.
func TestSmallLimits(t *testing.T) {
	w := build(t, plan{files: sizes(3, 60, 50_000), chunk: 16 << 10, group: 30_000})
	lim := layer.NewLimits(1, 1000)
	l, _ := open(t, w, new(blob), layer.Options{Limits: lim})
	other, _ := open(t, w, new(blob), layer.Options{Limits: lim})
	var wg sync.WaitGroup
	for _, x := range []*layer.Layer{l, other} {
		wg.Go(func() { w.readAll(t, x, 100_000) })
		wg.Go(func() {
			if err := x.Fetch(t.Context(), 0, len(w.idx.Members)); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

func TestCheck(t *testing.T) {
	good := func() *toc.Index {
		return &toc.Index{DataSize: 8192, Members: []toc.Member{{Size: 9, Count: 2}},
			Chunks: []toc.Chunk{{Size: 4096, Inner: 512}, {Addr: 4096, Size: 5, Inner: 5000}}}
	}
	if err := layer.Check(good()); err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(x *toc.Index){
		"overlap":      func(x *toc.Index) { x.Chunks[1].Inner = 600 },
		"order":        func(x *toc.Index) { x.Chunks[0].Inner = 9000 },
		"large":        func(x *toc.Index) { x.Chunks[1].Size = 65 << 20 },
		"far":          func(x *toc.Index) { x.Chunks[1].Inner = 1 << 40 },
		"out of range": func(x *toc.Index) { x.Members[0].Count = 3 },
		"empty":        func(x *toc.Index) { x.Members[0].Count = 0 },
		"other member": func(x *toc.Index) { x.Chunks[1].Member = 1 },
	} {
		x := good()
		if spoil(x); layer.Check(x) == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// TestBackgroundGivesWay has a reader wait for one thing and background work for
// another.
func TestBackgroundGivesWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := build(t, plan{files: slices.Repeat([]int64{256 << 10}, 20), chunk: 256 << 10, stored: true})
		gate := new(prefetch.Gate)
		b := new(blob)
		l, c := open(t, w, b, layer.Options{Gate: gate, Coalesce: -1})
		gate.Enter()
		began := time.Now()
		fetched := make(chan error, 1)
		go func() { fetched <- l.Fetch(t.Context(), 0, 3) }()
		synctest.Wait()
		if c.Present() != 0 {
			t.Error("background work went on beside a waiting reader")
		}
		// A reader of what it is about to fetch sets it going at once.
		if err := <-w.start(t.Context(), l, 0, 10); err != nil || time.Since(began) > 0 {
			t.Errorf("reader waited %v for paused work: %v", time.Since(began), err)
		}
		gate.Leave()
		if err := <-fetched; err != nil || c.Present() != 3*256<<10 || len(b.asked()) != 1 {
			t.Errorf("Fetch: %v, %d bytes, %v", err, c.Present(), b.asked())
		}
	})
}

// TestReaderCutsBackgroundShort wants the end of a long background request.
func TestReaderCutsBackgroundShort(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := build(t, plan{files: slices.Repeat([]int64{256 << 10}, 20), chunk: 256 << 10, stored: true})
		release := make(chan struct{})
		b := w.gated(release, 1)
		l, c := open(t, w, b, layer.Options{Gate: new(prefetch.Gate), Coalesce: -1})
		fetched := make(chan error, 1)
		go func() { fetched <- l.Fetch(t.Context(), 0, 20) }()
		synctest.Wait()
		read := w.start(t.Context(), l, 19*256<<10, 10)
		synctest.Wait()
		close(release)
		if err := errors.Join(<-read, <-fetched); err != nil {
			t.Error(err)
		}
		synctest.Wait() // the cache gets it after the reader
		last := w.idx.Members[19]
		if got := b.asked(); len(got) != 2 || got[1] != (span{last.Offset, last.Size}) {
			t.Errorf("asked for %v", got)
		}
		if lo, hi, ok := l.Missing(0, 1<<30); lo != 1 || hi != 19 || !ok {
			t.Errorf("missing [%d, %d) %v", lo, hi, ok)
		}
		if !c.Have(0) || !c.Have(19) {
			t.Error("what was fetched is not there")
		}
	})
}

func TestMissing(t *testing.T) {
	w := build(t, plan{files: slices.Repeat([]int64{64 << 10}, 10), chunk: 64 << 10, stored: true})
	l, c := open(t, w, new(blob), layer.Options{})
	one := w.idx.Members[0].Size
	if lo, hi, ok := l.Missing(0, 1); lo != 0 || hi != 1 || !ok {
		t.Errorf("at least one member: [%d, %d) %v", lo, hi, ok)
	}
	if lo, hi, _ := l.Missing(2, 3*one+one/2); lo != 2 || hi != 5 {
		t.Errorf("bounded by bytes: [%d, %d)", lo, hi)
	}
	if err := l.Fetch(t.Context(), 4, 6); err != nil {
		t.Fatal(err)
	}
	if lo, hi, _ := l.Missing(2, 1<<30); lo != 2 || hi != 4 {
		t.Errorf("up to the next cached: [%d, %d)", lo, hi)
	}
	if lo, hi, _ := l.Missing(4, 1<<30); lo != 6 || hi != 10 {
		t.Errorf("behind cached: [%d, %d)", lo, hi)
	}
	if err := l.Fetch(t.Context(), 0, 10); err != nil {
		t.Fatal(err)
	}
	if _, _, ok := l.Missing(0, 1<<30); ok || !c.Complete() {
		t.Error("something is missing of all")
	}
	if l.Fetch(t.Context(), 5, 11) == nil || l.Fetch(t.Context(), -1, 1) == nil {
		t.Error("members that do not exist were fetched")
	}
}

// TestReadAheadEndsWithTheFile: what touches in the address space need not be
// one file.
func TestReadAheadEndsWithTheFile(t *testing.T) {
	w := build(t, plan{files: []int64{2 << 20, 2 << 20, 4 << 20}, chunk: 256 << 10, stored: true})
	b := new(blob)
	l, _ := open(t, w, b, layer.Options{})
	for off := int64(0); off < 2<<20; off += 128 << 10 {
		if err := w.read(t, l, off, 128<<10); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	for _, s := range b.asked() {
		if s.off+s.n > 5<<19 {
			t.Errorf("%d bytes from %d were fetched for a file of 2 MiB", s.n, s.off)
		}
	}
}
