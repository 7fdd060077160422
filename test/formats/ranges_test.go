package formats

import (
	"archive/tar"
	"bytes"
	"cmp"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/apparate/apparate/api/image"
	"github.com/apparate/apparate/converter"
	"github.com/apparate/apparate/snapshotter/cache"
	"github.com/apparate/apparate/snapshotter/images"
	"github.com/apparate/apparate/snapshotter/layer"
	"github.com/apparate/apparate/snapshotter/prefetch"
	nodesource "github.com/apparate/apparate/snapshotter/source"
	"github.com/apparate/apparate/snapshotter/toc"
	testimages "github.com/apparate/apparate/test/images"
	"github.com/apparate/apparate/test/registry"
)

// kernelRead is how much the kernel asks for when it reads ahead in a file.
const kernelRead = 128 << 10

// TestRanges compares the range requests of some uses of an image with the lists
// in testdata/ranges, so that whoever changes the format, the coalescing or the
// reading ahead sees in a diff what becomes of them; -update writes the lists
// anew. In a list, each read that led to requests is followed by these.
//
// The kernel is left out, as its read-ahead is not the same each time. Reads
// are as large as its own, and each begins when all that the one before asked
// for has come.
func TestRanges(t *testing.T) {
	w := newWorld(t)
	for scenario, use := range map[string]func(*user){
		"prepare":            func(u *user) { u.prepare(w.layers) },
		"prepare-unknown":    func(u *user) { u.prepare(w.unknown()) },
		"one-small-file":     func(u *user) { u.readFile("etc/conf-20") },
		"middle-of-large":    func(u *user) { u.read("lib/random", 600*toc.BlockSize, toc.BlockSize) },
		"sequential-random":  func(u *user) { u.readFile("lib/random") },
		"sequential-text":    func(u *user) { u.readFile("share/text") },
		"directory-of-small": func(u *user) { u.readAll("app/modules/") },
		"whole-tree":         func(u *user) { u.readAll("") },
	} {
		t.Run(scenario, func(t *testing.T) {
			u := w.user(t)
			if !strings.HasPrefix(scenario, "prepare") {
				u.prepare(w.layers)
				u.forget()
			}
			use(u)
			u.sum()
			file := filepath.Join("testdata", "ranges", scenario+".txt")
			if *update {
				if err := os.WriteFile(file, u.list.Bytes(), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if want := read(t, file); !bytes.Equal(u.list.Bytes(), want) {
				t.Errorf("%s: the requests are\n%s\nwant\n%s", file, u.list.Bytes(), want)
			}
		})
	}
}

// world is an image in a registry, and where its files are.
type world struct {
	reg    *registry.Registry
	src    *nodesource.Resolver
	layers []nodesource.Layer
	files  map[string]place
}

// place is where a node finds a file.
type place struct {
	node    uint64
	addr    int64
	content string
}

// rangeLayers are the entries of two layers with files of all kinds.
func rangeLayers() [2][]entry {
	src := rand.NewChaCha8([32]byte{1})
	random := make([]byte, 5<<20)
	_, _ = src.Read(random) // it never fails
	rnd := rand.New(src)
	var base, app []entry
	for i := range 40 {
		base = append(base, reg(fmt.Sprintf("etc/conf-%02d", i), text(100+rnd.IntN(3000))))
	}
	base = append(base, reg("lib/random", string(random)), reg("lib/small", text(20_000)), reg("share/text", text(5<<20)))
	for i := range 300 {
		code := fmt.Sprintf("%x", random[i*4000:i*4000+rnd.IntN(4000)]) // compresses to half
		app = append(app, reg(fmt.Sprintf("app/modules/module-%03d", i), code))
	}
	app = append(app, reg("app/main", text(20_000)), reg("data/random", string(random[:2<<20])))
	return [2][]entry{base, app}
}

// newWorld pushes and converts the image.
func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{reg: registry.New(t), src: nodesource.New(nodesource.Options{DockerConfig: t.TempDir()}), files: map[string]place{}}
	var blobs []testimages.Blob
	for _, entries := range rangeLayers() {
		var b bytes.Buffer
		tw := tar.NewWriter(&b)
		for _, e := range entries {
			e.h.Size = int64(len(e.body))
			if err := tw.WriteHeader(&e.h); err != nil {
				t.Fatal(err)
			}
			if _, err := tw.Write([]byte(e.body)); err != nil {
				t.Fatal(err)
			}
			w.files[e.h.Name] = place{content: e.body}
		}
		if err := tw.Close(); err != nil {
			t.Fatal(err)
		}
		blobs = append(blobs, testimages.Blob{Bytes: b.Bytes()})
	}
	img, err := testimages.Compose(blobs...)
	if err != nil {
		t.Fatal(err)
	}
	ref, err := name.ParseReference(w.reg.Host() + "/ranges:v1")
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(ref, img); err != nil {
		t.Fatal(err)
	}
	if _, err := converter.New(converter.Options{}).Convert(t.Context(), converter.Request{Source: ref.String()}); err != nil {
		t.Fatal(err)
	}
	if _, w.layers, err = w.src.Resolve(t.Context(), ref.String()+image.Suffix, ""); err != nil {
		t.Fatal(err)
	}
	for _, l := range w.layers {
		w.locate(t, l)
	}
	return w
}

// locate notes where the files of a layer are.
func (w *world) locate(t *testing.T, l nodesource.Layer) {
	t.Helper()
	blob, err := w.src.Open(t.Context(), l.Ref, l.Digest, l.BlobSize)
	if err != nil {
		t.Fatal(err)
	}
	_, _, idx, err := toc.Load(t.Context(), blob, l.TOCDigest, toc.Hint{Offset: l.TOCOffset, Size: l.TOCSize})
	if err != nil {
		t.Fatal(err)
	}
	if err := blob.Close(); err != nil {
		t.Fatal(err)
	}
	key, err := images.KeyOf(l)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range idx.Entries {
		p := w.files[e.Path]
		p.node, p.addr = key.Node(), e.Addr
		w.files[e.Path] = p
	}
}

// unknown are the layers with nothing but their digests, as other converters
// leave them.
func (w *world) unknown() []nodesource.Layer {
	layers := slices.Clone(w.layers)
	for i := range layers {
		layers[i].TOCOffset, layers[i].TOCSize, layers[i].BlobSize = 0, 0, 0
		layers[i].IndexDigest, layers[i].IndexOffset, layers[i].IndexSize = "", 0, 0
	}
	return layers
}

// user reads the image on a node of its own that has nothing yet.
type user struct {
	*world
	t      *testing.T
	images *images.Manager
	gate   *prefetch.Gate
	list   bytes.Buffer
	// content is how many bytes were read, the next two what that took.
	content, fetched int64
	requests         int
}

func (w *world) user(t *testing.T) *user {
	t.Helper()
	u := &user{world: w, t: t, gate: &prefetch.Gate{}}
	root, log := t.TempDir(), slog.New(slog.NewTextHandler(t.Output(), nil))
	store, err := cache.Open(images.LayersDir(root), cache.Options{Logger: log})
	if err != nil {
		t.Fatal(err)
	}
	u.images, err = images.New(images.Config{
		Root: root, Cache: store, Open: w.src.Open, Logger: log, Layer: layer.Options{Gate: u.gate, Logger: log},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := u.images.Close(); err != nil {
			t.Error(err)
		}
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	})
	return u
}

// step does something and lists the requests that it led to, if any. Requests of
// one read may be under way together: they are listed by where they begin.
func (u *user) step(what string, do func() error) {
	u.t.Helper()
	u.reg.Forget()
	if err := do(); err != nil {
		u.t.Fatalf("%s: %v", what, err)
	}
	<-u.gate.Idle() // what was asked for is in the cache
	var ranges []blobRange
	for _, line := range u.reg.BlobLines() {
		var r blobRange
		if _, err := fmt.Sscanf(line, "GET blob %s bytes=%d-%d %d", &r.blob, &r.from, &r.to, &r.status); err != nil {
			u.t.Fatalf("%s: request %q: %v", what, line, err)
		}
		ranges = append(ranges, r)
	}
	if len(ranges) == 0 {
		return
	}
	slices.SortFunc(ranges, func(a, b blobRange) int { return cmp.Or(cmp.Compare(a.from, b.from), cmp.Compare(a.to, b.to)) })
	_, _ = fmt.Fprintf(&u.list, "%s\n", what)
	for _, r := range ranges {
		_, _ = fmt.Fprintf(&u.list, "  GET %s bytes=%d-%d %d\n", r.blob, r.from, r.to, r.status)
		u.fetched += r.to - r.from + 1
	}
	u.requests += len(ranges)
}

// blobRange is one request: the bytes [from, to] of a blob.
type blobRange struct {
	blob     string
	from, to int64
	status   int
}

// prepare makes the layers readable, as a pull does.
func (u *user) prepare(layers []nodesource.Layer) {
	u.t.Helper()
	for i, l := range layers {
		u.step(fmt.Sprintf("prepare layer %d", i), func() error {
			_, err := u.images.Add(u.t.Context(), l)
			return err
		})
	}
}

// read reads n bytes of a file, to the end of its last block as the kernel does.
func (u *user) read(path string, off, n int64) {
	u.t.Helper()
	f, ok := u.files[path]
	if !ok {
		u.t.Fatalf("there is no %s", path)
	}
	u.step(fmt.Sprintf("read %s at %d", path, off), func() error {
		p := make([]byte, (n+toc.BlockSize-1)/toc.BlockSize*toc.BlockSize)
		if _, err := u.images.ReadAt(u.t.Context(), f.node, p, f.addr+off); err != nil {
			return err
		}
		if string(p[:n]) != f.content[off:off+n] {
			return fmt.Errorf("the bytes are wrong")
		}
		u.content += n
		return nil
	})
}

// readFile reads a file from its beginning to its end.
func (u *user) readFile(path string) {
	u.t.Helper()
	size := int64(len(u.files[path].content))
	for off := int64(0); off < size; off += kernelRead {
		u.read(path, off, min(kernelRead, size-off))
	}
}

// readAll reads all files below a directory, "dir/", in the order of their names.
func (u *user) readAll(dir string) {
	u.t.Helper()
	for _, path := range slices.Sorted(maps.Keys(u.files)) {
		if strings.HasPrefix(path, dir) {
			u.readFile(path)
		}
	}
}

// forget begins a new list.
func (u *user) forget() {
	u.list.Reset()
	u.content, u.fetched, u.requests = 0, 0, 0
}

// sum ends the list.
func (u *user) sum() {
	_, _ = fmt.Fprintf(&u.list, "%d requests, %d bytes, for %d bytes of content\n", u.requests, u.fetched, u.content)
}
