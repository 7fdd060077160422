package cache_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/apparate/apparate/snapshotter/cache"
	"github.com/apparate/apparate/snapshotter/cache/cachetest"
	"github.com/apparate/apparate/snapshotter/toc"
)

// reader has a sealed file open, as the kernel does.
type reader struct {
	f    *os.File
	idx  *toc.Index
	data [][]byte
}

func sealed(t *testing.T, b *cache.Blob, idx *toc.Index, data [][]byte) *reader {
	t.Helper()
	file, err := b.Seal(t.Context())
	check(t, err)
	f, err := os.Open(file)
	check(t, err)
	t.Cleanup(func() { check(t, f.Close()) })
	r := &reader{f, idx, data}
	r.unchanged(t, "just sealed")
	return r
}

// unchanged compares every byte of the file with what was put.
func (r *reader) unchanged(t *testing.T, when string) {
	t.Helper()
	want := make([]byte, max(r.idx.DataSize, toc.BlockSize))
	for i, c := range r.idx.Chunks {
		copy(want[c.Addr:], r.data[i])
	}
	got := make([]byte, len(want)+1)
	if n, _ := r.f.ReadAt(got, 0); n != len(want) || !bytes.Equal(got[:n], want) {
		t.Errorf("%s: the file has changed, or its length %d, want %d", when, n, len(want))
	}
}

// TestSeal: whoever reads a sealed file finds the same bytes whatever happens.
func TestSeal(t *testing.T) {
	const size = 64 << 10
	idx, data := cachetest.Index(1, same(16, size)...)
	other, otherData := cachetest.Index(2, same(64, size)...)
	dir := t.TempDir()
	o := cache.Options{Budget: 40 * size, InUse: []string{"a"}}
	s := open(t, dir, o)
	b := blob(t, s, "a", idx)
	fill(t, b, data[:15])
	if _, err := b.Seal(t.Context()); !errors.Is(err, cache.ErrIncomplete) {
		t.Errorf("sealed without its last chunk: %v", err)
	}
	fill(t, b, data)
	r := sealed(t, b, idx, data)

	c := blob(t, s, "b", other)
	fill(t, c, otherData)
	r.unchanged(t, "the budget was exhausted by others")
	if n := intact(t, b, data); n != 16 {
		t.Errorf("%d chunks of 16 were kept", n)
	}
	b.Drop(3)
	r.unchanged(t, "a chunk was dropped")
	if b.Have(3) || b.Complete() {
		t.Error("what was dropped is still believed")
	}
	check(t, b.Put(3, data[3]))
	r.unchanged(t, "it was put again")
	check(t, errors.Join(b.Close(), c.Close(), s.Close()))

	// The next process has not verified anything, and does not know of the reader.
	s = open(t, dir, o)
	b, c = blob(t, s, "a", idx), blob(t, s, "b", other)
	fill(t, c, otherData)
	r.unchanged(t, "others came after a restart")
	if again := sealed(t, b, idx, data); again.f.Name() != r.f.Name() || !b.Complete() {
		t.Errorf("sealed again as %s, not %s", again.f.Name(), r.f.Name())
	}
	check(t, b.Close())
	check(t, s.Remove("a"))
	fill(t, c, otherData)
	r.unchanged(t, "the layer was removed")
	check(t, c.Close())
}

// TestSealBudget: what cannot give up chunks takes no more than half of the budget.
func TestSealBudget(t *testing.T) {
	const size = 64 << 10
	idx, data := cachetest.Index(1, same(12, size)...)
	s := open(t, t.TempDir(), cache.Options{Budget: 40 * size})
	for i, key := range []string{"a", "b"} {
		b := blob(t, s, key, idx)
		fill(t, b, data)
		_, err := b.Seal(t.Context())
		if full := errors.Is(err, cache.ErrFull); full != (i == 1) || err != nil && !full {
			t.Errorf("layer %s, 12 of 40: %v", key, err)
		}
		check(t, b.Close())
	}
	check(t, s.Remove("a"))
	b := blob(t, s, "b", idx)
	sealed(t, b, idx, data)
	check(t, b.Close())
}

// TestSealDamage: what an earlier process left is sealed only if it is right.
func TestSealDamage(t *testing.T) {
	idx, data := cachetest.Index(1, 5000, 70_000, 4096)
	_, b := restart(t, idx, data, func(dir string) {
		f, err := os.OpenFile(filepath.Join(dir, "data"), os.O_WRONLY, 0)
		check(t, err)
		_, err = f.WriteAt([]byte("x"), idx.Chunks[1].Addr+100)
		check(t, errors.Join(err, f.Close()))
	})
	if _, err := b.Seal(t.Context()); !errors.Is(err, cache.ErrIncomplete) {
		t.Errorf("a damaged layer: %v", err)
	}
	check(t, b.Put(1, data[1]))
	sealed(t, b, idx, data)
}

func TestSealEnds(t *testing.T) {
	idx, data := cachetest.Index(1, same(4, 6<<20)...)
	_, b := restart(t, idx, data, func(string) {})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := b.Seal(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("nobody wants it: %v", err)
	}
	empty, _ := cachetest.Index(3)
	s := open(t, t.TempDir(), cache.Options{})
	b = blob(t, s, "empty", empty)
	sealed(t, b, empty, nil)
	check(t, b.Close())
	if _, err := b.Seal(t.Context()); !errors.Is(err, cache.ErrClosed) {
		t.Errorf("closed: %v", err)
	}
}
