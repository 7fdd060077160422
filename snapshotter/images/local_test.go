package images

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/apparate/apparate/snapshotter/source"
)

// local waits until the images that can be are mounted from local files.
func local(t *testing.T, m *Manager, want int) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); m.Stats().Local != want; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d images are mounted from local files, want %d", m.Stats().Local, want)
		}
	}
}

// read brings all of a layer.
func read(t *testing.T, m *Manager, l source.Layer) string {
	t.Helper()
	key, err := KeyOf(l)
	if err != nil {
		t.Fatal(err)
	}
	size, ok := m.Size(key.Node())
	if !ok {
		t.Fatalf("layer %s is not known", key)
	}
	if _, err := m.ReadAt(t.Context(), key.Node(), make([]byte, size), 0); err != nil {
		t.Fatal(err)
	}
	// A read returns before what it brought is in the cache.
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if _, _, missing := m.readers([]Key{key})[0].Missing(0, 1); !missing {
			break
		}
	}
	return string(key)
}

func base(t *testing.T, m *Manager, layers ...source.Layer) string {
	t.Helper()
	dir, err := m.Mount(t.Context(), layers, false)
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Base(dir)
}

// TestLocal: an image is mounted from local files as soon as all of its layers are here, and
// no sooner; the next daemon knows, and its end is that of the image.
func TestLocal(t *testing.T) {
	w := newWorld(t)
	m, stop := w.start(t, 0)
	a, b, empty := w.layer(t, [2]string{"a", strings.Repeat("hello ", 1000)}), w.layer(t, [2]string{"b", "2"}), w.layer(t)
	if got := base(t, m, a, b, empty); got != "fs" {
		t.Fatalf("mounted at %s", got)
	}
	m.Arrived(read(t, m, a))
	time.Sleep(20 * time.Millisecond)
	if n := m.Stats().Local; n != 0 {
		t.Error("an image is local without one of its layers")
	}
	key := read(t, m, b)
	m.Arrived("of nobody")
	for range 3 {
		m.Arrived(key)
	}
	local(t, m, 1)
	used := map[string]bool{}
	for dir := range w.mounts.mounted {
		used[dir] = filepath.Base(dir) == "fs"
	}
	for _, lower := range []map[string]bool{used, {}} {
		w.mounts.mu.Lock()
		w.mounts.lower = lower
		w.mounts.mu.Unlock()
		want := "local"
		if len(lower) > 0 {
			want = "fs" // with which the container that runs shares its pages
		}
		if got := base(t, m, a, b, empty); got != want || w.mounts.mounts != 2 {
			t.Errorf("mounted at %s, want %s, by %d mounts", got, want, w.mounts.mounts)
		}
	}
	stop()
	m.Arrived(key) // too late, and no panic

	m, stop = w.start(t, 0)
	if got := base(t, m, a, b, empty); got != "local" || w.mounts.mounts != 2 {
		t.Errorf("the next daemon mounted at %s, by %d mounts", got, w.mounts.mounts)
	}
	chain := Chain{Layers: []source.Layer{a, b, empty}}
	for _, wanted := range [][]Chain{{chain}, {}} {
		if err := m.Keep(t.Context(), wants(wanted...)); err != nil {
			t.Fatal(err)
		}
		local(t, m, len(wanted))
		if len(w.mounts.mounted) != 2*len(wanted) {
			t.Errorf("mounted: %v", w.mounts.mounted)
		}
	}
	// Nothing is missing when the image comes back.
	if got := base(t, m, a, b, empty); got != "fs" {
		t.Errorf("mounted at %s before anything was looked at", got)
	}
	m.Arrived(key)
	local(t, m, 1)
	if err := m.UnmountAll(); err != nil {
		t.Fatal(err)
	}
	if len(w.mounts.mounted) > 0 {
		t.Errorf("mounted: %v", w.mounts.mounted)
	}
	stop()
}

// TestLocalIsGone: a mount that somebody has taken away is not given out.
func TestLocalIsGone(t *testing.T) {
	w := newWorld(t)
	m, _ := w.start(t, 0)
	a := w.layer(t, [2]string{"a", "1"})
	base(t, m, a)
	m.Arrived(read(t, m, a))
	local(t, m, 1)
	dir, err := m.Mount(t.Context(), []source.Layer{a}, false)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.mounts.Unmount(dir); err != nil {
		t.Fatal(err)
	}
	if got := base(t, m, a); got != "fs" || m.Stats().Local != 0 {
		t.Errorf("mounted at %s", got)
	}
}

// brokenMounts has no mounts of local files.
type brokenMounts struct{ *fakeMounts }

func (brokenMounts) MountLocal(context.Context, string, []string, string) error {
	return errors.New("not here")
}

// TestLocalFails: where the kernel refuses, the image stays as it is.
func TestLocalFails(t *testing.T) {
	w := newWorld(t)
	m, _ := w.start(t, 0)
	m.cfg.Mount = brokenMounts{w.mounts}
	a := w.layer(t, [2]string{"a", "1"})
	base(t, m, a)
	m.Arrived(read(t, m, a))
	m.work.Wait()
	if got := base(t, m, a); got != "fs" || m.Stats().Local != 0 {
		t.Errorf("mounted at %s", got)
	}
}

// TestLocalNotOfOtherFiles: names of sealed files that meanwhile are those of others are
// not mounted.
func TestLocalNotOfOtherFiles(t *testing.T) {
	w := newWorld(t)
	m, _ := w.start(t, 0)
	a := w.layer(t, [2]string{"a", "1"})
	base(t, m, a)
	key := read(t, m, a)
	m.mu.Lock()
	var im *img
	for _, im = range m.images {
	}
	m.mu.Unlock()
	// The image goes, with its layers, while its mount waits for its turn.
	im.turn <- struct{}{}
	done := make(chan error, 1)
	go func() { done <- m.mountLocal(t.Context(), im) }()
	sealed := filepath.Join(LayersDir(w.root), key, "sealed")
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		if _, err := os.Stat(sealed); err == nil {
			break
		}
		if time.Now().After(end) {
			t.Fatal("the layer is not sealed")
		}
	}
	m.mu.Lock()
	delete(m.images, im.id)
	m.mu.Unlock()
	im.turn.give()
	if err := <-done; !errors.Is(err, errNotNow) {
		t.Errorf("%v, want %v", err, errNotNow)
	}
	if len(w.mounts.mounted) != 1 {
		t.Errorf("mounted: %v", w.mounts.mounted)
	}
}
