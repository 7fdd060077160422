package layer_test

import (
	"context"
	"slices"
	"sync"
	"testing"

	"github.com/apparate/apparate/snapshotter/layer"
)

// Each chunk is recorded once, in the order of first reads, for each recording since
// it began.
func TestRecord(t *testing.T) {
	w := build(t, plan{seed: 3, files: sizes(3, 40, 20_000), chunk: 8 << 10, stored: true})
	l, _ := open(t, w, &blob{raw: w.raw}, layer.Options{})
	at := func(i int) int64 { return w.idx.Chunks[i].Addr }
	read := func(chunks ...int) {
		for _, i := range chunks {
			if err := w.read(t, l, at(i), 1); err != nil {
				t.Fatal(err)
			}
		}
	}
	got := func(r *layer.Recording, from int) (list []int) {
		for _, x := range r.Reads(from) {
			list = append(list, x.Chunk)
		}
		return list
	}
	read(1)
	a := l.Record()
	read(5, 3, 5, 9)
	b := l.Record()
	read(3, 7)
	if g := got(a, 0); !slices.Equal(g, []int{5, 3, 9, 7}) || a.Len() != 4 {
		t.Errorf("the first has %v", g)
	}
	if g := got(b, 0); !slices.Equal(g, []int{3, 7}) {
		t.Errorf("the second has %v", g)
	}
	if g := got(a, 3); !slices.Equal(g, []int{7}) {
		t.Errorf("from the third on: %v", g)
	}
	l.Forget(a)
	read(11)
	if a.Len() != 4 || b.Len() != 3 {
		t.Errorf("after the end of one: %d, %d", a.Len(), b.Len())
	}
	l.Forget(b)
	l.Forget(b)
	var wg sync.WaitGroup
	c := l.Record()
	for range 4 {
		wg.Go(func() { w.readAll(t, l, 8<<10) })
	}
	wg.Wait()
	all := got(c, 0)
	slices.Sort(all)
	if len(all) != len(w.idx.Chunks) || len(slices.Compact(all)) != len(all) {
		t.Errorf("%d of %d chunks", len(all), len(w.idx.Chunks))
	}
}

// supplier brings what the test says.
type supplier struct {
	coming map[int]bool
	await  func(i int)
}

func (s *supplier) Coming(i int) bool              { return s.coming[i] }
func (s *supplier) Knows(i int) bool               { return s.coming[i] }
func (s *supplier) Await(_ context.Context, i int) { s.await(i) }

// What is on its way is not asked for, neither by itself nor along with others; what
// does not come after all is.
func TestExpect(t *testing.T) {
	w := build(t, plan{seed: 4, files: sizes(4, 30, 9_000), chunk: 64 << 10, stored: true})
	b := &blob{raw: w.raw}
	l, _ := open(t, w, b, layer.Options{Coalesce: 1 << 20})
	body := func(i int) []byte { c := w.idx.Chunks[i]; return w.plain[c.Addr : c.Addr+c.Size] }
	coming := map[int]bool{2: true, 3: true, 5: true, 6: true}
	forget := l.Expect(&supplier{coming, func(i int) {
		if i != 3 {
			if err := l.Put(i, body(i), w.idx.Chunks[i].Digest); err != nil {
				t.Error(err)
			}
		}
	}})
	if err := w.read(t, l, w.idx.Chunks[2].Addr, w.idx.Chunks[2].Size); err != nil || len(b.asked()) != 0 {
		t.Fatalf("%v, %d requests", err, len(b.asked()))
	}
	// The request for 4 does not take 5 along.
	if err := w.read(t, l, w.idx.Chunks[4].Addr, 1); err != nil {
		t.Fatal(err)
	}
	m := w.idx.Members[w.idx.Chunks[4].Member]
	if got := b.asked(); len(got) != 1 || got[0].off != m.Offset || got[0].n != m.Size {
		t.Errorf("asked for %v", got)
	}
	if err := w.read(t, l, w.idx.Chunks[3].Addr, 1); err != nil || len(b.asked()) != 2 {
		t.Errorf("%v, %d requests", err, len(b.asked()))
	}
	if s := l.Stats(); s.WaitedReads != 3 || s.WaitTime <= 0 || s.WaitTime < s.SupplyWait {
		t.Errorf("%+v", s)
	}
	forget()
	forget()
	if err := w.read(t, l, w.idx.Chunks[6].Addr, 1); err != nil || len(b.asked()) != 3 {
		t.Errorf("%v, %d requests", err, len(b.asked()))
	}
	if err := l.Put(0, body(1), w.idx.Chunks[1].Digest); err == nil {
		t.Error("a chunk was taken for another")
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if err := l.Put(8, body(8), w.idx.Chunks[8].Digest); err == nil {
		t.Error("a closed layer took a chunk")
	}
}

// TestExpectKnowsNothing: beside somebody who brings other chunks, a large file that is
// read in order is fetched ahead of as it is without; what he brings is not.
func TestExpectKnowsNothing(t *testing.T) {
	w := build(t, plan{files: []int64{16 << 20}, chunk: 256 << 10, stored: true})
	requests := func(coming map[int]bool, missing int) int {
		b := new(blob)
		l, _ := open(t, w, b, layer.Options{})
		for i := range coming {
			c := w.idx.Chunks[i]
			if err := l.Put(i, w.plain[c.Addr:c.Addr+c.Size], c.Digest); err != nil {
				t.Fatal(err)
			}
		}
		defer l.Expect(&supplier{coming, func(int) { t.Error("waited for what is here") }})()
		end := w.idx.Chunks[missing-1]
		for off := int64(0); off < end.Addr+end.Size; off += 128 << 10 {
			if err := w.read(t, l, off, 128<<10); err != nil {
				t.Fatal(err)
			}
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		return len(b.asked())
	}
	if n := requests(nil, len(w.idx.Chunks)); n > 12 {
		t.Errorf("%d requests for a file of 16 MiB", n)
	}
	known := map[int]bool{}
	for i := range 32 {
		known[i] = true
	}
	if n := requests(known, 32); n != 0 {
		t.Errorf("%d requests beyond what is known", n)
	}
}
