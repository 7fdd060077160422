package cache_test

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/apparate/apparate/snapshotter/cache"
	"github.com/apparate/apparate/snapshotter/cache/cachetest"
	"github.com/apparate/apparate/snapshotter/layer"
	"github.com/apparate/apparate/snapshotter/toc"
)

var _ layer.Cache = (*cache.Blob)(nil)

func open(t testing.TB, dir string, o cache.Options) *cache.Store {
	t.Helper()
	s, err := cache.Open(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { check(t, s.Close()) })
	return s
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func blob(t testing.TB, s *cache.Store, key string, idx *toc.Index) *cache.Blob {
	t.Helper()
	b, err := s.Blob(key, idx)
	check(t, err)
	return b
}

func fill(t testing.TB, b *cache.Blob, data [][]byte) {
	t.Helper()
	for i := range data {
		check(t, b.Put(i, data[i]))
	}
}

// intact says how many chunks are readable, and fails when one is wrong.
func intact(t testing.TB, b *cache.Blob, data [][]byte) (n int) {
	t.Helper()
	for i, want := range data {
		p := make([]byte, len(want))
		ok, err := b.ReadAt(i, p, 0)
		check(t, err)
		if ok {
			n++
		}
		if ok && !bytes.Equal(p, want) {
			t.Errorf("chunk %d: wrong bytes", i)
		}
	}
	return n
}

func same(n int, size int64) []int64 { return slices.Repeat([]int64{size}, n) }

func TestConformance(t *testing.T) {
	t.Run("Store", func(t *testing.T) {
		cachetest.Run(t, func(t *testing.T, idx *toc.Index) layer.Cache {
			return blob(t, open(t, t.TempDir(), cache.Options{}), "k", idx)
		})
	})
	t.Run("Mem", func(t *testing.T) {
		cachetest.Run(t, func(_ *testing.T, idx *toc.Index) layer.Cache { return cachetest.NewMem(idx) })
	})
}

// restart writes a layer, closes the cache, lets damage change the directory of
// the layer, and opens it again.
func restart(t *testing.T, idx *toc.Index, data [][]byte, damage func(dir string)) (*cache.Store, *cache.Blob) {
	dir := t.TempDir()
	s := open(t, dir, cache.Options{})
	b := blob(t, s, "sha256:k", idx)
	fill(t, b, data)
	check(t, errors.Join(b.Close(), s.Close()))
	damage(filepath.Join(dir, "sha256:k"))
	s = open(t, dir, cache.Options{})
	b = blob(t, s, "sha256:k", idx)
	t.Cleanup(func() { check(t, b.Close()) })
	return s, b
}

func TestSurvivesRestart(t *testing.T) {
	idx, data := cachetest.Index(1, 10, 5000, 70_000, 4096)
	_, b := restart(t, idx, data, func(string) {})
	if b.Complete() {
		t.Error("complete before anything was verified")
	}
	if b.Present() != 10+5000+70_000+4096 {
		t.Errorf("Present %d", b.Present())
	}
	if n := intact(t, b, data); n != 4 || !b.Complete() {
		t.Errorf("%d of 4 chunks readable, Complete %v", n, b.Complete())
	}
}

func TestEmptyReadVerifies(t *testing.T) {
	idx, data := cachetest.Index(1, 10, 5000)
	_, b := restart(t, idx, data, func(string) {})
	for i := range data {
		if ok, err := b.ReadAt(i, nil, 0); !ok || err != nil {
			t.Errorf("chunk %d: %v, %v", i, ok, err)
		}
	}
	if !b.Complete() {
		t.Error("not complete")
	}
}

// TestDamageIsNotBelieved flips a bit of each chunk in turn while nobody looks.
func TestDamageIsNotBelieved(t *testing.T) {
	idx, data := cachetest.Index(2, 10, 5000, 70_000, 4096)
	for i := range data {
		_, b := restart(t, idx, data, func(dir string) {
			f, err := os.OpenFile(filepath.Join(dir, "data"), os.O_RDWR, 0)
			check(t, err)
			_, err = f.WriteAt([]byte{data[i][0] ^ 1}, idx.Chunks[i].Addr)
			check(t, errors.Join(err, f.Close()))
		})
		if n := intact(t, b, data); n != 3 || b.Have(i) || b.Complete() {
			t.Errorf("chunk %d damaged: %d readable, Have %v", i, n, b.Have(i))
		}
		check(t, b.Put(i, data[i]))
		if n := intact(t, b, data); n != 4 || !b.Complete() {
			t.Errorf("chunk %d put again: %d readable", i, n)
		}
	}
}

func TestOddFilesAreNotBelieved(t *testing.T) {
	idx, data := cachetest.Index(3, 10, 5000, 70_000)
	tests := map[string]struct {
		damage func(dir string) error
		want   int
	}{
		"no state":      {func(d string) error { return os.Remove(d + "/state") }, 0},
		"state of ones": {func(d string) error { return os.WriteFile(d+"/state", bytes.Repeat([]byte{255}, 9), 0o600) }, 3},
		"short data":    {func(d string) error { return os.Truncate(d+"/data", 5000) }, 1},
		"no data":       {func(d string) error { return os.Remove(d + "/data") }, 0},
		"empty dir":     {os.RemoveAll, 0},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			_, b := restart(t, idx, data, func(d string) { check(t, test.damage(d)) })
			if n := intact(t, b, data); n != test.want {
				t.Errorf("%d chunks readable, want %d", n, test.want)
			}
			fill(t, b, data)
			if n := intact(t, b, data); n != 3 {
				t.Errorf("%d chunks readable after Put", n)
			}
		})
	}
}

func TestForeignDataFileIsRefused(t *testing.T) {
	idx, data := cachetest.Index(3, 10)
	for name, plant := range map[string]func(path string) error{
		"link": func(p string) error { return os.Symlink("/etc/hostname", p) },
		"pipe": func(p string) error { return unix.Mkfifo(p, 0o600) },
	} {
		dir := t.TempDir()
		s := open(t, dir, cache.Options{})
		check(t, os.Mkdir(dir+"/k", 0o700))
		check(t, plant(dir+"/k/data"))
		if _, err := s.Blob("k", idx); err == nil {
			t.Errorf("%s: opened", name)
		}
		// Removing the layer is the way out.
		check(t, s.Remove("k"))
		b := blob(t, s, "k", idx)
		fill(t, b, data)
		check(t, b.Close())
	}
}

func TestOpenTwiceIsTheSame(t *testing.T) {
	idx, data := cachetest.Index(4, 100)
	other, _ := cachetest.Index(4, 100, 200)
	s := open(t, t.TempDir(), cache.Options{})
	a, b := blob(t, s, "k", idx), blob(t, s, "k", idx)
	if a != b {
		t.Error("not the same Blob")
	}
	if _, err := s.Blob("k", other); err == nil {
		t.Error("opened with another content list")
	}
	check(t, a.Close())
	fill(t, b, data)
	if err := s.Remove("k"); !errors.Is(err, cache.ErrInUse) {
		t.Errorf("Remove of an open layer: %v", err)
	}
	check(t, b.Close())
	check(t, s.Remove("k"))
	check(t, s.Remove("k"))
	if keys, err := s.Keys(); err != nil || len(keys) != 0 || s.Usage() != 0 {
		t.Errorf("after Remove: %v, %v, %d bytes", keys, err, s.Usage())
	}
}

func TestOneProcessOnly(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, cache.Options{})
	if _, err := cache.Open(dir, cache.Options{}); !errors.Is(err, cache.ErrLocked) {
		t.Errorf("second Open: %v", err)
	}
	check(t, s.Close())
	open(t, dir, cache.Options{})
}

func TestNamesStayInside(t *testing.T) {
	idx, _ := cachetest.Index(4, 100)
	dir := t.TempDir()
	s := open(t, dir, cache.Options{})
	for _, name := range []string{"", ".", "..", "a/b", "../x", ".lock", "x\x00", strings.Repeat("a", 256)} {
		if _, err := s.Blob(name, idx); err == nil {
			t.Errorf("key %q was taken", name)
		}
		if s.WriteFile(name, "f", nil) == nil || s.WriteFile("k", name, nil) == nil || s.Remove(name) == nil {
			t.Errorf("name %q was taken", name)
		}
		if _, err := s.ReadFile("k", name); err == nil {
			t.Errorf("file %q was read", name)
		}
	}
	if s.WriteFile("k", "data", nil) == nil || s.WriteFile("k", "state", nil) == nil {
		t.Error("a file of the cache was overwritten")
	}
}

func TestSmallFiles(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, cache.Options{})
	if _, err := s.ReadFile("k", "toc"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing file: %v", err)
	}
	check(t, s.WriteFile("k", "toc", []byte("one")))
	check(t, s.WriteFile("k", "toc", []byte("other")))
	check(t, os.WriteFile(dir+"/k/.tmp-1", []byte("cut off"), 0o600)) // a crash
	check(t, os.WriteFile(dir+"/junk", nil, 0o600))
	check(t, os.Mkdir(dir+"/.tmp-2", 0o700))
	check(t, s.Close())
	s = open(t, dir, cache.Options{})
	if b, err := s.ReadFile("k", "toc"); err != nil || string(b) != "other" {
		t.Errorf("%q, %v", b, err)
	}
	if keys, err := s.Keys(); err != nil || !slices.Equal(keys, []string{"k"}) {
		t.Errorf("keys %v, %v", keys, err)
	}
	left, err := filepath.Glob(dir + "/*/.tmp*")
	check(t, err)
	top, err := os.ReadDir(dir)
	check(t, err)
	if len(left) > 0 || len(top) != 2 {
		t.Errorf("left behind: %v, %v", left, top)
	}
	if s.BlobUsage("k") != s.Usage() || s.Usage() < 4096 {
		t.Errorf("usage %d of %d", s.BlobUsage("k"), s.Usage())
	}
}

// disk is what the files of a cache really take.
func disk(t testing.TB, dir string) (n int64) {
	t.Helper()
	check(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		var st unix.Stat_t
		if err != nil || d.IsDir() {
			return err
		}
		err = unix.Lstat(path, &st)
		n += st.Blocks * 512
		return err
	}))
	return n
}

func TestUnusedLayersGoFirst(t *testing.T) {
	const chunk = 64 << 10
	dir := t.TempDir()
	var evicted []string
	s := open(t, dir, cache.Options{Budget: 12 * chunk, OnEvict: func(k string) { evicted = append(evicted, k) }})
	idx, data := cachetest.Index(5, same(3, chunk)...)
	for _, key := range []string{"a", "b", "c"} {
		b := blob(t, s, key, idx)
		fill(t, b, data)
		check(t, b.Close())
	}
	check(t, blob(t, s, "a", idx).Close()) // used again: now b is the oldest
	b := blob(t, s, "d", idx)
	fill(t, b, data)
	if !slices.Equal(evicted, []string{"b"}) {
		t.Errorf("evicted %v", evicted)
	}
	if n := intact(t, b, data); n != 3 {
		t.Errorf("%d chunks of the layer in use", n)
	}
	check(t, b.Close())
	if _, err := os.Stat(dir + "/b"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("directory of an evicted layer: %v", err)
	}
}

func TestLayersInUseStayWithinBudget(t *testing.T) {
	const chunk, budget = 64 << 10, 20 * 64 << 10
	dir := t.TempDir()
	s := open(t, dir, cache.Options{Budget: budget})
	idx, data := cachetest.Index(6, same(30, chunk)...)
	a, b := blob(t, s, "a", idx), blob(t, s, "b", idx)
	for i := range data {
		for _, x := range []*cache.Blob{a, b} {
			check(t, x.Put(i, data[i]))
			if ok, err := x.ReadAt(i, make([]byte, 1), 0); !ok || err != nil {
				t.Fatalf("chunk %d is gone at once: %v", i, err)
			}
			if taken := disk(t, dir); taken > budget || s.Usage() > budget || taken > s.Usage() {
				t.Fatalf("chunk %d: %d bytes on disk, %d accounted, budget %d", i, taken, s.Usage(), budget)
			}
		}
	}
	if n := intact(t, a, data) + intact(t, b, data); n < 15 {
		t.Errorf("only %d chunks stayed", n)
	}
	if !s.Full() {
		t.Error("not full")
	}
	check(t, errors.Join(a.Close(), b.Close()))
	if s.Full() || s.Room() != budget {
		t.Errorf("room %d with nothing in use", s.Room())
	}
}

func TestReadKeepsAChunk(t *testing.T) {
	const chunk = 64 << 10
	s := open(t, t.TempDir(), cache.Options{Budget: 10 * chunk})
	idx, data := cachetest.Index(6, same(40, chunk)...)
	b := blob(t, s, "a", idx)
	for i := range data {
		check(t, b.Put(i, data[i]))
		if ok, err := b.ReadAt(0, make([]byte, 10), 5); !ok || err != nil {
			t.Fatalf("the chunk that is always read went at %d: %v", i, err)
		}
	}
	check(t, b.Close())
}

func TestTooSmallBudget(t *testing.T) {
	s := open(t, t.TempDir(), cache.Options{Budget: 10_000})
	idx, data := cachetest.Index(6, 70_000, 100)
	b := blob(t, s, "a", idx)
	if err := b.Put(0, data[0]); !errors.Is(err, cache.ErrFull) || b.Have(0) {
		t.Errorf("chunk beyond the budget: %v", err)
	}
	check(t, b.Close())
	dir := t.TempDir()
	s = open(t, dir, cache.Options{})
	b = blob(t, s, "a", idx)
	fill(t, b, data)
	check(t, errors.Join(b.Close(), s.Close()))
	s = open(t, dir, cache.Options{Budget: 50_000})
	if s.Usage() != 0 {
		t.Errorf("usage %d over a budget that shrank", s.Usage())
	}
}

// TestFullDisk fills a real file system of 1 MiB.
func TestFullDisk(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatalf("this test mounts a tmpfs and must run as root: %v", err)
	}
	t.Cleanup(func() { check(t, unix.Unmount(dir, unix.MNT_DETACH)) })
	var logged atomic.Int64
	s := open(t, dir, cache.Options{Logger: slog.New(slog.NewTextHandler(counter{&logged}, nil))})
	idx, data := cachetest.Index(8, same(20, 64<<10)...)
	old := blob(t, s, "old", idx)
	for i := range 4 {
		check(t, old.Put(i, data[i]))
	}
	check(t, old.Close())
	b := blob(t, s, "a", idx)
	// Others take most of the disk.
	check(t, os.WriteFile(dir+"/a/other", make([]byte, 600<<10), 0o600))
	failed := 0
	for i := range data {
		if err := b.Put(i, data[i]); err != nil {
			failed++
			if !errors.Is(err, unix.ENOSPC) || b.Have(i) {
				t.Errorf("chunk %d: %v, Have %v", i, err, b.Have(i))
			}
		}
	}
	if failed == 0 || failed == len(data) {
		t.Errorf("%d of %d writes failed: we should free some of our own and go on", failed, len(data))
	}
	if keys, err := s.Keys(); err != nil || !slices.Equal(keys, []string{"a"}) {
		t.Errorf("the unused layer stayed: %v, %v", keys, err)
	}
	intact(t, b, data)
	if logged.Load() != 1 {
		t.Errorf("%d log lines for %d failures", logged.Load(), failed)
	}
	check(t, b.Close())
}

// counter counts writes.
type counter struct{ n *atomic.Int64 }

func (c counter) Write(p []byte) (int, error) { c.n.Add(1); return len(p), nil }

// TestParallelEviction reads, writes, opens and closes under a budget that is
// far too small.
func TestParallelEviction(t *testing.T) {
	const chunk, budget = 16 << 10, 12 * 16 << 10
	s := open(t, t.TempDir(), cache.Options{Budget: budget, OnEvict: func(string) {},
		Logger: slog.New(slog.NewTextHandler(io.Discard, nil))})
	idx, data := cachetest.Index(9, same(16, chunk)...)
	var wg sync.WaitGroup
	for g := range 4 {
		rnd := rand.New(rand.NewPCG(2, uint64(g)))
		wg.Go(func() {
			for range 60 {
				b, err := s.Blob(string(rune('a'+rnd.IntN(3))), idx)
				if err != nil {
					t.Error(err)
					return
				}
				for range 10 {
					i := rnd.IntN(len(data))
					p := make([]byte, chunk)
					if ok, err := b.ReadAt(i, p, 0); err != nil || ok && !bytes.Equal(p, data[i]) {
						t.Errorf("chunk %d: wrong bytes, or %v", i, err)
					}
					if err := b.Put(i, data[i]); err != nil && !errors.Is(err, cache.ErrFull) {
						t.Error(err)
					}
				}
				if s.Usage() > budget+4*chunk {
					t.Errorf("usage %d", s.Usage())
				}
				if err := b.Close(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}
