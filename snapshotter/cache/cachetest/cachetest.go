// Package cachetest has what tests of caches and of their users need: a small
// content list, a cache in memory, and the suite that every layer.Cache passes.
package cachetest

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/apparate/apparate/snapshotter/layer"
	"github.com/apparate/apparate/snapshotter/toc"
)

// Index returns the content list of files of the given sizes in bytes, one
// chunk and one member each, and their random content.
func Index(seed uint64, sizes ...int64) (*toc.Index, [][]byte) {
	rnd := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)})
	idx := &toc.Index{}
	var data [][]byte
	for i, n := range sizes {
		p := make([]byte, n)
		_, _ = rnd.Read(p) // never fails
		data = append(data, p)
		idx.Chunks = append(idx.Chunks, toc.Chunk{Addr: idx.DataSize, Size: n, Member: i, Digest: sha256.Sum256(p)})
		idx.Members = append(idx.Members, toc.Member{Offset: int64(i), Size: 1, First: i, Count: 1})
		idx.DataSize += (n + toc.BlockSize - 1) / toc.BlockSize * toc.BlockSize
	}
	return idx, data
}

// Mem is a layer.Cache in memory.
type Mem struct {
	// PutError, when set before use, is asked before a chunk is kept.
	PutError func(i int) error

	mu     sync.RWMutex
	idx    *toc.Index
	chunks map[int][]byte
	closed bool
}

var _ layer.Cache = (*Mem)(nil)

var errClosed = errors.New("memory cache is closed")

// NewMem returns an empty cache of the chunks of idx.
func NewMem(idx *toc.Index) *Mem { return &Mem{idx: idx, chunks: map[int][]byte{}} }

// Have says whether chunk i is there.
func (c *Mem) Have(i int) bool {
	c.mu.RLock()
	defer c.mu.RUnlock()
	_, ok := c.chunks[i]
	return ok
}

// ReadAt fills p from off within chunk i.
func (c *Mem) ReadAt(i int, p []byte, off int64) (bool, error) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	if c.closed {
		return false, errClosed
	}
	if off < 0 || off+int64(len(p)) > c.idx.Chunks[i].Size {
		return false, errors.New("read outside the chunk")
	}
	b, ok := c.chunks[i]
	if ok {
		copy(p, b[off:])
	}
	return ok, nil
}

// Put keeps chunk i.
func (c *Mem) Put(i int, p []byte) error {
	if c.PutError != nil {
		if err := c.PutError(i); err != nil {
			return err
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.closed:
		return errClosed
	case int64(len(p)) != c.idx.Chunks[i].Size:
		return errors.New("not the size of the chunk")
	}
	c.chunks[i] = bytes.Clone(p)
	return nil
}

// Drop forgets chunk i.
func (c *Mem) Drop(i int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.chunks, i)
}

// Present is how many bytes are there.
func (c *Mem) Present() int64 {
	c.mu.RLock()
	defer c.mu.RUnlock()
	n := int64(0)
	for _, b := range c.chunks {
		n += int64(len(b))
	}
	return n
}

// Complete says that all chunks are there.
func (c *Mem) Complete() bool {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return len(c.chunks) == len(c.idx.Chunks)
}

// Close makes reads fail.
func (c *Mem) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	return nil
}

// Run runs the suite on caches made by open, which are empty and closed by Run.
func Run(t *testing.T, open func(t *testing.T, idx *toc.Index) layer.Cache) {
	tests := []struct {
		name string
		run  func(t *testing.T, c layer.Cache, idx *toc.Index, data [][]byte)
	}{
		{"EmptyHasNothing", emptyHasNothing},
		{"KeepsWhatIsPut", keepsWhatIsPut},
		{"RefusesOtherSizes", refusesOtherSizes},
		{"DropForgets", dropForgets},
		{"ClosedFails", closedFails},
		{"Parallel", parallel},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			idx, data := Index(7, 1, 4096, 100_000, 4097, 262144, 3)
			c := open(t, idx)
			test.run(t, c, idx, data)
			if err := c.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

func emptyHasNothing(t *testing.T, c layer.Cache, idx *toc.Index, _ [][]byte) {
	for i := range idx.Chunks {
		if ok, err := c.ReadAt(i, make([]byte, 1), 0); c.Have(i) || ok || err != nil {
			t.Errorf("chunk %d: Have %v, ReadAt %v, %v", i, c.Have(i), ok, err)
		}
	}
	if c.Present() != 0 || c.Complete() {
		t.Errorf("Present %d, Complete %v", c.Present(), c.Complete())
	}
}

func keepsWhatIsPut(t *testing.T, c layer.Cache, idx *toc.Index, data [][]byte) {
	sum := int64(0)
	for i, want := range data {
		if c.Complete() {
			t.Errorf("complete with %d chunks", i)
		}
		p := bytes.Clone(want)
		if err := c.Put(i, p); err != nil {
			t.Fatal(err)
		}
		clear(p) // the cache must not look at it any more
		sum += int64(len(want))
		if !c.Have(i) || c.Present() != sum {
			t.Errorf("chunk %d: Have %v, Present %d, want %d", i, c.Have(i), c.Present(), sum)
		}
	}
	if !c.Complete() {
		t.Error("not complete with all chunks")
	}
	for i, want := range data {
		n := len(want)
		for _, r := range [][2]int{{0, n}, {0, 1}, {n - 1, n}, {n / 3, n/3 + n/2}, {n, n}} {
			got := make([]byte, r[1]-r[0])
			if ok, err := c.ReadAt(i, got, int64(r[0])); !ok || err != nil || !bytes.Equal(got, want[r[0]:r[1]]) {
				t.Errorf("chunk %d %v: %v, %v, or wrong bytes", i, r, ok, err)
			}
		}
		if _, err := c.ReadAt(i, make([]byte, 2), int64(n-1)); err == nil {
			t.Errorf("chunk %d: read past its end", i)
		}
	}
}

func refusesOtherSizes(t *testing.T, c layer.Cache, _ *toc.Index, data [][]byte) {
	if c.Put(1, data[1][1:]) == nil || c.Have(1) {
		t.Error("a chunk cut short was kept")
	}
}

func dropForgets(t *testing.T, c layer.Cache, idx *toc.Index, data [][]byte) {
	for round := range 2 {
		for i := range idx.Chunks {
			if err := c.Put(i, data[i]); err != nil {
				t.Fatal(err)
			}
		}
		c.Drop(2)
		c.Drop(2)
		if ok, err := c.ReadAt(2, make([]byte, 1), 0); ok || err != nil || c.Have(2) || c.Complete() {
			t.Errorf("round %d: dropped chunk: %v, %v, Have %v", round, ok, err, c.Have(2))
		}
	}
}

func closedFails(t *testing.T, c layer.Cache, _ *toc.Index, data [][]byte) {
	if err := errors.Join(c.Put(0, data[0]), c.Close()); err != nil {
		t.Fatal(err)
	}
	if ok, err := c.ReadAt(0, make([]byte, 1), 0); ok || err == nil {
		t.Errorf("read from a closed cache: %v, %v", ok, err)
	}
}

// parallel reads while chunks come and go: right bytes, or none.
func parallel(t *testing.T, c layer.Cache, _ *toc.Index, data [][]byte) {
	var wg sync.WaitGroup
	for g := range 4 {
		rnd := rand.New(rand.NewPCG(1, uint64(g)))
		wg.Go(func() {
			for range 400 {
				i := rnd.IntN(len(data))
				switch rnd.IntN(4) {
				case 0:
					c.Drop(i)
				case 1:
					if err := c.Put(i, data[i]); err != nil {
						t.Error(err)
					}
				default:
					p := make([]byte, len(data[i]))
					if ok, err := c.ReadAt(i, p, 0); err != nil || ok && !bytes.Equal(p, data[i]) {
						t.Errorf("chunk %d: wrong bytes, or %v", i, err)
					}
				}
			}
		})
	}
	wg.Wait()
}
