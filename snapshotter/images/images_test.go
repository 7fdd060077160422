package images

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/opencontainers/go-digest"

	"github.com/apparate/apparate/snapshotter/cache"
	"github.com/apparate/apparate/snapshotter/fetch"
	"github.com/apparate/apparate/snapshotter/fetch/fetchtest"
	"github.com/apparate/apparate/snapshotter/prefetch"
	"github.com/apparate/apparate/snapshotter/source"
	"github.com/apparate/apparate/snapshotter/toc"
)

// fakeMounts is a FileSystem that only remembers. The real one is exercised by
// test/tree and test/e2e.
type fakeMounts struct {
	mu      sync.Mutex
	mounted map[string]bool
	lower   map[string]bool
	mounts  int
}

func (f *fakeMounts) Mount(_ context.Context, image string, _ []string, dir string) error {
	if _, err := os.Stat(image); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.mounted[dir] = true
	f.mounts++
	return nil
}

func (f *fakeMounts) MountLocal(ctx context.Context, image string, devices []string, dir string) error {
	for _, d := range devices {
		if st, err := os.Stat(d); err != nil || !st.Mode().IsRegular() || st.Size() == 0 {
			return fmt.Errorf("device %s: %w", d, err)
		}
	}
	return f.Mount(ctx, image, devices, dir)
}

func (f *fakeMounts) Lower(dir string) (bool, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.lower[dir], nil
}

func (f *fakeMounts) Check(dir string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.mounted[dir] {
		return errors.New("not mounted")
	}
	return nil
}

func (f *fakeMounts) Unmount(dir string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.mounted, dir)
	return nil
}

// world is a registry of layers and the disk of a node.
type world struct {
	root   string
	mounts *fakeMounts

	mu    sync.Mutex
	blobs map[digest.Digest]*fetchtest.Bytes
}

func newWorld(t *testing.T) *world {
	return &world{root: t.TempDir(), mounts: &fakeMounts{mounted: map[string]bool{}}, blobs: map[digest.Digest]*fetchtest.Bytes{}}
}

func (w *world) open(_ context.Context, _ string, d digest.Digest, _ int64) (fetch.Blob, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	b := w.blobs[d]
	if b == nil {
		return nil, fs.ErrNotExist
	}
	return shared{b}, nil
}

// shared keeps one blob of a registry open, however often it is closed.
type shared struct{ *fetchtest.Bytes }

func (shared) Close() error { return nil }

func (w *world) requests() (n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, b := range w.blobs {
		n += len(b.Opens())
	}
	return n
}

// start starts a daemon; it ends with the test or by its stop.
func (w *world) start(t *testing.T, grace time.Duration) (m *Manager, stop func()) {
	t.Helper()
	store, err := cache.Open(LayersDir(w.root), cache.Options{})
	if err != nil {
		t.Fatal(err)
	}
	m, err = New(Config{Root: w.root, Cache: store, Open: w.open, Mount: w.mounts, Grace: grace, LocalSettle: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	var once sync.Once
	stop = func() {
		once.Do(func() {
			if err := errors.Join(m.Close(), store.Close()); err != nil {
				t.Error(err)
			}
		})
	}
	t.Cleanup(stop)
	return m, stop
}

// layer puts a layer of files into the registry.
func (w *world) layer(t *testing.T, files ...[2]string) source.Layer {
	t.Helper()
	var b bytes.Buffer
	tw := tar.NewWriter(&b)
	for _, f := range files {
		name, body := f[0], f[1]
		h := &tar.Header{Name: name, Mode: 0o644, Size: int64(len(body)), Typeflag: tar.TypeReg}
		if to, ok := strings.CutPrefix(body, "-> "); ok {
			h.Typeflag, h.Linkname, h.Size, body = tar.TypeSymlink, to, 0, ""
		}
		if err := tw.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(tw, body); err != nil {
			t.Fatal(err)
		}
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	blob, err := estargz.Build(io.NewSectionReader(bytes.NewReader(b.Bytes()), 0, int64(b.Len())))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = blob.Close() }()
	z, err := io.ReadAll(blob)
	if err != nil {
		t.Fatal(err)
	}
	d := digest.FromBytes(z)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.blobs[d] = fetchtest.NewBytes(z)
	return source.Layer{Ref: "r.example/app:v1", Digest: d, TOCDigest: blob.TOCDigest(), BlobSize: int64(len(z))}
}

func wants(chains ...Chain) func(context.Context) ([]Chain, error) {
	return func(context.Context) ([]Chain, error) { return chains, nil }
}

func TestAddAsksOnce(t *testing.T) {
	w := newWorld(t)
	l := w.layer(t, [2]string{"a", "hello"})
	m, stop := w.start(t, 0)
	var wg sync.WaitGroup
	for range 16 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			if _, err := m.Add(t.Context(), l); err != nil {
				t.Error(err)
			}
		}()
	}
	wg.Wait()
	if n := w.requests(); n != 1 {
		t.Errorf("%d requests for one table of contents", n)
	}
	stop()
	m, _ = w.start(t, 0)
	if _, err := m.Add(t.Context(), l); err != nil {
		t.Fatal(err)
	}
	if n := w.requests(); n != 1 {
		t.Errorf("the registry was asked again after a restart: %d requests", n)
	}
}

// What is on disk is not believed.
func TestDamagedDisk(t *testing.T) {
	for _, file := range []string{tocFile, recordFile} {
		for _, damage := range []string{"", "garbage", `{"digest":"sha256:0000000000000000000000000000000000000000000000000000000000000000"}`} {
			w := newWorld(t)
			l := w.layer(t, [2]string{"a", "hello"})
			m, stop := w.start(t, 0)
			key, err := m.Add(t.Context(), l)
			if err != nil {
				t.Fatal(err)
			}
			stop()
			if err := os.WriteFile(filepath.Join(LayersDir(w.root), string(key), file), []byte(damage), 0o600); err != nil {
				t.Fatal(err)
			}
			m, stop = w.start(t, 0)
			if _, err := m.Add(t.Context(), l); err != nil {
				t.Errorf("%s is %q: %v", file, damage, err)
			}
			if n := w.requests(); n != 2 {
				t.Errorf("%s is %q: %d requests, want the table to be read again", file, damage, n)
			}
			stop()
		}
	}
}

func TestRefusals(t *testing.T) {
	w := newWorld(t)
	m, _ := w.start(t, 0)
	good := w.layer(t, [2]string{"a", "hello"})
	for what, c := range map[string]struct {
		change func(*source.Layer)
		want   error
	}{
		"no TOC digest":    {func(l *source.Layer) { l.TOCDigest = "" }, toc.ErrNoDigest},
		"wrong TOC digest": {func(l *source.Layer) { l.TOCDigest = digest.FromString("x") }, toc.ErrDigest},
		"unknown blob":     {func(l *source.Layer) { l.Digest = digest.FromString("y") }, fs.ErrNotExist},
		"hint outside":     {func(l *source.Layer) { l.TOCOffset, l.TOCSize = 1<<40, 10 }, toc.ErrHostile},
	} {
		l := good
		c.change(&l)
		if _, err := m.Add(t.Context(), l); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", what, err, c.want)
		}
	}
	for _, d := range []digest.Digest{"sha512:" + digest.Digest(strings.Repeat("0", 128)), "nonsense", "sha256:abc"} {
		if _, err := KeyOf(source.Layer{Digest: d, TOCDigest: good.TOCDigest}); err == nil {
			t.Errorf("%q names a layer", d)
		}
	}
	// What could not be merged later is refused now.
	through := w.layer(t, [2]string{"a", "-> b"}, [2]string{"a/x", "1"})
	if _, err := m.Add(t.Context(), through); !errors.Is(err, toc.ErrUnsupported) {
		t.Errorf("a path through a symlink: %v, want %v", err, toc.ErrUnsupported)
	}
	if _, err := m.Mount(t.Context(), []source.Layer{{Digest: good.Digest}}, false); !errors.Is(err, toc.ErrNoDigest) {
		t.Errorf("Mount of an ordinary layer: %v", err)
	}
}

func TestMountOnceAndKeep(t *testing.T) {
	w := newWorld(t)
	m, _ := w.start(t, time.Hour)
	a, b := w.layer(t, [2]string{"a", "1"}), w.layer(t, [2]string{"b", "2"})
	chain := Chain{Layers: []source.Layer{a, b}}
	var wg sync.WaitGroup
	for range 12 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			if _, err := m.Mount(t.Context(), chain.Layers, false); err != nil {
				t.Error(err)
			}
		}()
	}
	wg.Wait()
	if w.mounts.mounts != 1 {
		t.Fatalf("%d mounts for twelve callers", w.mounts.mounts)
	}
	keep := func(chains ...Chain) int {
		t.Helper()
		if err := m.Keep(t.Context(), wants(chains...)); err != nil {
			t.Fatal(err)
		}
		return m.Stats().Images
	}
	if n := keep(); n != 1 {
		t.Error("an image was unmounted during its pull")
	}
	if n := keep(chain); n != 1 {
		t.Error("a wanted image was unmounted")
	}
	// Asked for while Keep was finding out who wants what.
	if err := m.Keep(t.Context(), func(ctx context.Context) ([]Chain, error) {
		_, err := m.Mount(ctx, chain.Layers, false)
		return nil, err
	}); err != nil || m.Stats().Images != 1 {
		t.Errorf("an image was unmounted under somebody who just asked for it (%v)", err)
	}
	if n := keep(); n != 0 {
		t.Errorf("%d images stay mounted that nobody wants", n)
	}
	if s := m.Stats(); s.Layers != 0 {
		t.Errorf("%d layers stay open", s.Layers)
	}
	if left, err := os.ReadDir(filepath.Join(w.root, "images")); err != nil || len(left) != 0 {
		t.Errorf("left: %v, %v", left, err)
	}
	if dir, err := m.Mount(t.Context(), chain.Layers, false); err != nil || w.mounts.Check(dir) != nil {
		t.Errorf("mounting again: %v", err)
	}
	if other, err := m.Mount(t.Context(), chain.Layers, true); err != nil || w.mounts.mounts != 3 {
		t.Errorf("the chain with whiteouts kept is not an image of its own: %s, %v", other, err)
	}
}

// A daemon that is started anew serves what the one before it mounted.
func TestAdopt(t *testing.T) {
	w := newWorld(t)
	m, stop := w.start(t, 0)
	l := w.layer(t, [2]string{"a", strings.Repeat("hello ", 1000)})
	empty := w.layer(t)
	if _, err := m.Mount(t.Context(), []source.Layer{l, empty}, false); err != nil {
		t.Fatal(err)
	}
	key, err := KeyOf(l)
	if err != nil {
		t.Fatal(err)
	}
	none, err := KeyOf(empty)
	if err != nil {
		t.Fatal(err)
	}
	stop()
	torn := filepath.Join(w.root, "images", "torn")
	if err := os.MkdirAll(torn, 0o700); err != nil {
		t.Fatal(err)
	}

	if used, err := InUse(w.root); err != nil || !slices.Equal(used, []string{string(key), string(none)}) {
		t.Errorf("in use are %v, %v", used, err)
	}
	m, _ = w.start(t, 0)
	before := w.requests()
	if _, err := os.Stat(torn); !errors.Is(err, fs.ErrNotExist) {
		t.Error("an unfinished image is still there")
	}
	if s := m.Stats(); s.Images != 1 {
		t.Errorf("%d images adopted, want 1", s.Images)
	}
	node, size, ok := m.Lookup(key.File())
	if !ok || node != key.Node() || size%toc.BlockSize != 0 {
		t.Errorf("Lookup = %d, %d, %v", node, size, ok)
	}
	p := make([]byte, 12)
	if n, err := m.ReadAt(t.Context(), node, p, 0); err != nil || n != len(p) || string(p) != "hello hello " {
		t.Errorf("ReadAt = %d, %q, %v", n, p, err)
	}
	if n := w.requests() - before; n != 1 {
		t.Errorf("%d requests for one chunk: the table of contents is on disk", n)
	}
	if n, err := m.ReadAt(t.Context(), none.Node(), p, 0); err != nil || n != len(p) || !bytes.Equal(p, make([]byte, 12)) {
		t.Errorf("an empty layer reads %d, %q, %v", n, p, err)
	}
	if _, err := m.ReadAt(t.Context(), 4711, p, 0); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("an unknown node reads %v", err)
	}
	for _, name := range []string{"", "x", "../..", key.File() + "0", strings.ToUpper(key.File()) + " "} {
		if _, _, ok := m.Lookup(name); ok {
			t.Errorf("Lookup finds %q", name)
		}
	}
	m.Resume(t.Context())
	if s := m.Stats(); s.Layers != 2 {
		t.Errorf("%d layers resumed, want 2", s.Layers)
	}
	if err := m.UnmountAll(); err != nil || len(w.mounts.mounted) != 0 {
		t.Errorf("UnmountAll: %v, still mounted %v", err, w.mounts.mounted)
	}
}

// fakePrefetch knows which layers it was given and not told to leave.
type fakePrefetch struct {
	mu     sync.Mutex
	layers map[string]bool
}

func (f *fakePrefetch) Add(key string, _ prefetch.Layer) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.layers[key] = true
}

func (f *fakePrefetch) Remove(key string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.layers, key)
}

// Images come and go at the same time; in the end nothing is mounted, open or
// fetched ahead.
func TestNothingIsLeft(t *testing.T) {
	w := newWorld(t)
	m, _ := w.start(t, time.Nanosecond)
	p := &fakePrefetch{layers: map[string]bool{}}
	m.cfg.Prefetch = p
	chain := []source.Layer{w.layer(t, [2]string{"a", "1"}), w.layer(t, [2]string{"b", "2"})}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 100 {
				if _, err := m.Mount(t.Context(), chain, false); err != nil {
					t.Error(err)
				}
			}
		})
		wg.Go(func() {
			for range 100 {
				if err := m.Keep(t.Context(), wants()); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if err := m.Keep(t.Context(), wants()); err != nil {
		t.Fatal(err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if n := m.Stats().Layers; n != 0 || len(p.layers) != 0 || len(w.mounts.mounted) != 0 {
		t.Errorf("%d layers stay open, %d are prefetched, mounted: %v", n, len(p.layers), w.mounts.mounted)
	}
}

// An image that was taken down while Mount waited for its turn is not mounted
// behind the table's back, where nobody would ever take it down.
func TestMountAfterDrop(t *testing.T) {
	w := newWorld(t)
	m, _ := w.start(t, 0)
	chain := []source.Layer{w.layer(t, [2]string{"a", "1"})}
	keys, err := keysOf(chain)
	if err != nil {
		t.Fatal(err)
	}
	dropped := m.touch(keys, false)
	if err := dropped.turn.take(t.Context()); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		_, err := m.Mount(t.Context(), chain, false)
		done <- err
	}()
	for waiting := false; !waiting; time.Sleep(time.Millisecond) {
		m.mu.Lock()
		waiting = m.gen == 2
		m.mu.Unlock()
	}
	m.mu.Lock()
	delete(m.images, dropped.id)
	m.mu.Unlock()
	dropped.turn.give()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if n := m.Stats().Images; n != 1 || len(w.mounts.mounted) != 1 {
		t.Errorf("%d images known, mounted: %v", n, w.mounts.mounted)
	}
}
