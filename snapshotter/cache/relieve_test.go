package cache_test

import (
	"slices"
	"testing"

	"github.com/apparate/apparate/snapshotter/cache"
	"github.com/apparate/apparate/snapshotter/cache/cachetest"
)

// TestRelieve: a disk that is full takes what nobody uses and nothing else; one that is
// not full takes nothing.
func TestRelieve(t *testing.T) {
	var evicted []string
	s := open(t, t.TempDir(), cache.Options{OnEvict: func(k string) { evicted = append(evicted, k) }})
	idx, data := cachetest.Index(7, same(3, 64<<10)...)
	for _, key := range []string{"a", "b"} {
		b := blob(t, s, key, idx)
		fill(t, b, data)
		check(t, b.Close())
	}
	used := blob(t, s, "used", idx)
	fill(t, used, data)
	if n := s.Relieve(func(uint64) uint64 { return 0 }); n != 0 || len(evicted) > 0 {
		t.Errorf("with room %d layers went: %v", n, evicted)
	}
	if n := s.Relieve(func(total uint64) uint64 { return total }); n != 2 || !slices.Equal(evicted, []string{"a", "b"}) {
		t.Errorf("without room %d layers went: %v", n, evicted)
	}
	if n := intact(t, used, data); n != 3 {
		t.Errorf("of the layer in use %d chunks are left", n)
	}
	check(t, used.Close())
}

// TestInUse: layers that an earlier process's images need stay, also where the budget
// has become smaller, until they have been opened or nobody did.
func TestInUse(t *testing.T) {
	dir := t.TempDir()
	idx, data := cachetest.Index(7, same(3, 64<<10)...)
	s, err := cache.Open(dir, cache.Options{})
	check(t, err)
	for _, key := range []string{"a", "b", "c"} {
		b := blob(t, s, key, idx)
		fill(t, b, data)
		check(t, b.Close())
	}
	check(t, s.Close())
	s = open(t, dir, cache.Options{Budget: 1, InUse: []string{"a", "b", "gone"}})
	all := func(uint64) uint64 { return 1 << 62 }
	if n := s.Relieve(all); n != 0 {
		t.Errorf("%d layers went", n)
	}
	if keys, err := s.Keys(); err != nil || !slices.Equal(keys, []string{"a", "b"}) {
		t.Errorf("left are %v, %v", keys, err)
	}
	a := blob(t, s, "a", idx)
	s.Settled()
	if n := s.Relieve(all); n != 1 {
		t.Errorf("%d layers went that nobody had opened, want 1", n)
	}
	if n := intact(t, a, data); n != 3 {
		t.Errorf("of the layer in use %d chunks are left", n)
	}
	check(t, a.Close())
}
