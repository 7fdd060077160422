package images

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/apparate/apparate/converter/encode"
	"github.com/apparate/apparate/snapshotter/fetch/fetchtest"
	"github.com/apparate/apparate/snapshotter/source"
)

// indexed puts a layer with an index into the registry, with a file "a" that says hello.
// damage changes the blob, as a registry that lies may: its digest stays.
func (w *world) indexed(t *testing.T, damage func([]byte, *source.Layer)) source.Layer {
	t.Helper()
	var b bytes.Buffer
	tw := tar.NewWriter(&b)
	if err := tw.WriteHeader(&tar.Header{Name: "a", Mode: 0o644, Size: 5, Typeflag: tar.TypeReg}); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(tw, "hello"); err != nil {
		t.Fatal(err)
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	var blob bytes.Buffer
	e, err := encode.Encode(t.Context(), &blob, &b, encode.Options{})
	if err != nil {
		t.Fatal(err)
	}
	l := source.Layer{
		Ref: "r.example/app:v1", Digest: e.Digest, TOCDigest: e.TOCDigest, TOCOffset: e.TOCOffset, TOCSize: e.TOCSize,
		IndexDigest: e.IndexDigest, IndexOffset: e.IndexOffset, IndexSize: e.IndexSize, BlobSize: e.Size,
	}
	z := blob.Bytes()
	if damage != nil {
		damage(z, &l)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.blobs[l.Digest] = fetchtest.NewBytes(z)
	return l
}

// hello reads the layer's file.
func hello(t *testing.T, m *Manager, key Key) {
	t.Helper()
	p := make([]byte, 5)
	if _, err := m.ReadAt(t.Context(), key.Node(), p, 0); err != nil || string(p) != "hello" {
		t.Errorf("read %q, %v", p, err)
	}
}

// A layer with an index takes one request, of the index alone, and none after a restart.
func TestIndexIsRead(t *testing.T) {
	w := newWorld(t)
	l := w.indexed(t, nil)
	m, stop := w.start(t, 0)
	key, err := m.Add(t.Context(), l)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := w.blobs[l.Digest].Opens(), []fetchtest.Range{{Off: l.IndexOffset, N: l.IndexSize}}; !slices.Equal(got, want) {
		t.Errorf("requests %v, want %v", got, want)
	}
	dir := filepath.Join(LayersDir(w.root), string(key))
	if _, err := os.Stat(filepath.Join(dir, tocFile)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a table of contents was kept: %v", err)
	}
	stop()
	m, _ = w.start(t, 0)
	if _, err := m.Add(t.Context(), l); err != nil || w.requests() != 1 {
		t.Errorf("after a restart: %d requests, %v", w.requests(), err)
	}
	hello(t, m, key)
}

// A layer whose index cannot be used is read by its table of contents, also after a
// restart.
func TestIndexIsUnusable(t *testing.T) {
	for name, damage := range map[string]func([]byte, *source.Layer){
		"payload":     func(b []byte, l *source.Layer) { b[l.IndexOffset+30] ^= 1 },
		"member":      func(b []byte, l *source.Layer) { b[l.IndexOffset] ^= 1 },
		"cut":         func(_ []byte, l *source.Layer) { l.IndexSize-- },
		"outside":     func(_ []byte, l *source.Layer) { l.IndexOffset = l.BlobSize },
		"digest":      func(_ []byte, l *source.Layer) { l.IndexDigest = digest.FromString("another") },
		"no index":    func(_ []byte, l *source.Layer) { l.IndexOffset, l.IndexSize = l.TOCOffset, l.TOCSize },
		"huge":        func(_ []byte, l *source.Layer) { l.IndexSize = 1 << 40 },
		"not to know": func(_ []byte, l *source.Layer) { l.IndexDigest, l.IndexOffset, l.IndexSize = "", 0, 0 },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			l := w.indexed(t, damage)
			m, stop := w.start(t, 0)
			key, err := m.Add(t.Context(), l)
			if err != nil {
				t.Fatal(err)
			}
			hello(t, m, key)
			before := w.requests()
			stop()
			m, _ = w.start(t, 0)
			if _, err := m.Add(t.Context(), l); err != nil || w.requests() != before {
				t.Errorf("after a restart: %d requests, want %d, %v", w.requests(), before, err)
			}
			hello(t, m, key)
		})
	}
}

// The index on disk is not believed.
func TestIndexDamagedOnDisk(t *testing.T) {
	w := newWorld(t)
	l := w.indexed(t, nil)
	m, stop := w.start(t, 0)
	key, err := m.Add(t.Context(), l)
	if err != nil {
		t.Fatal(err)
	}
	stop()
	file := filepath.Join(LayersDir(w.root), string(key), indexFile)
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)-1] ^= 1 // a chunk's digest
	if err := os.WriteFile(file, b, 0o600); err != nil {
		t.Fatal(err)
	}
	m, _ = w.start(t, 0)
	if _, err := m.Add(t.Context(), l); err != nil || w.requests() != 2 {
		t.Errorf("%d requests, want the index to be read again; %v", w.requests(), err)
	}
	hello(t, m, key)
}

// An index decides the layout, so it is part of the key: what one manifest says of a
// layer is not believed for another.
func TestIndexIsPartOfTheKey(t *testing.T) {
	w := newWorld(t)
	l := w.indexed(t, nil)
	keys := map[Key]bool{}
	for _, d := range []digest.Digest{l.IndexDigest, digest.FromString("another"), ""} {
		l.IndexDigest = d
		key, err := KeyOf(l)
		if err != nil || keys[key] {
			t.Errorf("index %q: %s, %v", d, key, err)
		}
		keys[key] = true
	}
}
