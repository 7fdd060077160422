package snapshotter

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/testsuite"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/apparate/apparate/api/image"
	"github.com/apparate/apparate/snapshotter/images"
	"github.com/apparate/apparate/snapshotter/source"
	"github.com/apparate/apparate/snapshotter/toc"
)

// fakeImages stands in for the data path: a chain is a directory with one file
// for each layer. The real one is exercised by test/tree and test/e2e.
type fakeImages struct {
	root string

	mu      sync.Mutex
	refuse  error
	added   []digest.Digest
	mounted map[string]images.Chain
	mounts  int // calls of Mount
}

func (f *fakeImages) Add(_ context.Context, src source.Layer) (images.Key, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.refuse != nil {
		return "", f.refuse
	}
	f.added = append(f.added, src.Digest)
	return images.KeyOf(src)
}

func (f *fakeImages) Mount(_ context.Context, layers []source.Layer, keep bool) (string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	name := digest.FromString(chainText(images.Chain{Layers: layers, KeepWhiteouts: keep})).Encoded()
	dir := filepath.Join(f.root, name)
	for _, l := range layers {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return "", err
		}
		if err := os.WriteFile(filepath.Join(dir, l.Digest.Encoded()[:8]), []byte("lazy"), 0o644); err != nil {
			return "", err
		}
	}
	f.mounts++
	f.mounted[dir] = images.Chain{Layers: layers, KeepWhiteouts: keep}
	return dir, nil
}

func (f *fakeImages) Keep(ctx context.Context, wanted func(context.Context) ([]images.Chain, error)) error {
	chains, err := wanted(ctx)
	if err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	keep := map[string]bool{}
	for _, c := range chains {
		keep[chainText(c)] = true
	}
	for dir, c := range f.mounted {
		if !keep[chainText(c)] {
			delete(f.mounted, dir)
		}
	}
	return nil
}

func (f *fakeImages) CachedBytes(images.Key) int64 { return 42 }

func (f *fakeImages) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.mounted)
}

func chainText(c images.Chain) string {
	var b strings.Builder
	for _, l := range c.Layers {
		b.WriteString(l.Digest.String() + " ")
	}
	if c.KeepWhiteouts {
		b.WriteString("keep")
	}
	return b.String()
}

func testContext(t *testing.T) context.Context {
	return namespaces.WithNamespace(t.Context(), "test")
}

func newTest(t *testing.T, root string) (*Snapshotter, *fakeImages) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Fatal("this test mounts overlayfs: run it as root")
	}
	f := &fakeImages{root: t.TempDir(), mounted: map[string]images.Chain{}}
	s, err := New(Config{Root: root, Images: f, Logger: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s, f
}

// containerd's own suite of what a snapshotter must do, with lazy images
// possible and impossible.
func TestSnapshotterSuite(t *testing.T) {
	for name, lazy := range map[string]bool{"lazy": true, "ordinary": false} {
		t.Run(name, func(t *testing.T) {
			// The name tells the suite what renames overlayfs allows.
			testsuite.SnapshotterSuite(t, "overlayfs", func(_ context.Context, root string) (snapshots.Snapshotter, func() error, error) {
				cfg := Config{Root: root}
				if lazy {
					cfg.Images = &fakeImages{root: t.TempDir(), mounted: map[string]images.Chain{}}
				}
				s, err := New(cfg)
				if err != nil {
					return nil, nil, err
				}
				return s, s.Close, nil
			})
		})
	}
}

// labels are what containerd passes for layer i of an image.
func labels(i int, target string) map[string]string {
	d := digest.FromString("layer" + string(rune('0'+i)))
	return map[string]string{
		labelTarget:               target,
		source.LabelImageRef:      "registry.example/app:v1-apparate",
		source.LabelLayerDigest:   d.String(),
		image.AnnotationTOCDigest: digest.FromString("toc" + d.String()).String(),
		image.AnnotationTOCOffset: "1000", image.AnnotationTOCSize: "100", image.AnnotationBlobSize: "1151",
	}
}

func prepareLazy(t *testing.T, s *Snapshotter, i int, parent, target string) {
	t.Helper()
	_, err := s.Prepare(testContext(t), "extract-"+target, parent, snapshots.WithLabels(labels(i, target)))
	if !errdefs.IsAlreadyExists(err) {
		t.Fatalf("Prepare of a lazy layer: %v, want AlreadyExists", err)
	}
	info, err := s.Stat(testContext(t), target)
	if err != nil {
		t.Fatal(err)
	}
	if info.Kind != snapshots.KindCommitted || info.Parent != parent || info.Labels[labelTarget] != target {
		t.Fatalf("committed snapshot is %+v", info)
	}
	if _, err := s.Stat(testContext(t), "extract-"+target); !errdefs.IsNotFound(err) {
		t.Fatalf("the active snapshot is still there: %v", err)
	}
}

func prepareOrdinary(t *testing.T, s *Snapshotter, parent, name, file string) {
	t.Helper()
	m, err := s.Prepare(testContext(t), "extract-"+name, parent)
	if err != nil {
		t.Fatal(err)
	}
	if err := mount.WithTempMount(testContext(t), m, func(dir string) error {
		return os.WriteFile(filepath.Join(dir, file), []byte("ordinary"), 0o644)
	}); err != nil {
		t.Fatal(err)
	}
	if err := s.Commit(testContext(t), name, "extract-"+name); err != nil {
		t.Fatal(err)
	}
}

// files are the names in the root of a snapshot's mounts.
func files(t *testing.T, m []mount.Mount) []string {
	t.Helper()
	var names []string
	if err := mount.WithTempMount(testContext(t), m, func(dir string) error {
		list, err := os.ReadDir(dir)
		for _, e := range list {
			names = append(names, e.Name())
		}
		return err
	}); err != nil {
		t.Fatalf("%v: %v", m, err)
	}
	return names
}

func TestChains(t *testing.T) {
	ctx := testContext(t)
	name := func(i int) string { return digest.FromString("layer" + string(rune('0'+i))).Encoded()[:8] }
	for _, c := range []struct {
		layers string // bottom first: L lazy, O ordinary
		mounts int    // images mounted for a container
		bind   bool   // a view is a bind mount
	}{
		{"L", 1, true}, {"LL", 1, true}, {"LLO", 1, false}, {"OL", 1, false}, {"LOL", 2, false}, {"LLOLL", 2, false}, {"O", 0, true},
	} {
		t.Run(c.layers, func(t *testing.T) {
			s, f := newTest(t, t.TempDir())
			parent := ""
			want := map[string]bool{}
			for i, kind := range c.layers {
				target := c.layers[:i+1]
				if kind == 'L' {
					prepareLazy(t, s, i, parent, target)
					want[name(i)] = true
				} else {
					prepareOrdinary(t, s, parent, target, "plain"+target)
					want["plain"+target] = true
				}
				parent = target
			}
			if err := s.Cleanup(ctx); err != nil {
				t.Fatal(err)
			}
			m, err := s.Prepare(ctx, "container", parent)
			if err != nil {
				t.Fatal(err)
			}
			v, err := s.View(ctx, "view", parent)
			if err != nil {
				t.Fatal(err)
			}
			for _, got := range [][]string{files(t, m), files(t, v)} {
				have := map[string]bool{}
				for _, n := range got {
					have[n] = true
				}
				if !reflect.DeepEqual(have, want) {
					t.Errorf("files %v, want %v", have, want)
				}
			}
			if bind := v[0].Type == "bind"; bind != c.bind {
				t.Errorf("view is mounted as %v", v)
			}
			if f.count() != c.mounts {
				t.Errorf("%d images mounted, want %d", f.count(), c.mounts)
			}
			again, err := s.Mounts(ctx, "container")
			if err != nil || !reflect.DeepEqual(m, again) {
				t.Errorf("Mounts = %v, %v; Prepare gave %v", again, err, m)
			}
			for _, k := range []string{"container", "view"} {
				if err := s.Remove(ctx, k); err != nil {
					t.Fatal(err)
				}
			}
			for i := len(c.layers); i > 0; i-- {
				if err := s.Remove(ctx, c.layers[:i]); err != nil {
					t.Fatal(err)
				}
			}
			if err := s.Cleanup(ctx); err != nil {
				t.Fatal(err)
			}
			if f.count() != 0 {
				t.Errorf("%d images stay mounted", f.count())
			}
		})
	}
}

func TestKeepWhiteoutsOnlyAboveSomething(t *testing.T) {
	s, f := newTest(t, t.TempDir())
	prepareLazy(t, s, 0, "", "a")
	prepareOrdinary(t, s, "a", "b", "plain")
	prepareLazy(t, s, 1, "b", "c")
	if _, err := s.Prepare(testContext(t), "container", "c"); err != nil {
		t.Fatal(err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range f.mounted {
		lowest := c.Layers[0].Digest == digest.FromString("layer0")
		if c.KeepWhiteouts == lowest {
			t.Errorf("chain %s: whiteouts kept = %v", chainText(c), c.KeepWhiteouts)
		}
	}
}

func TestFallback(t *testing.T) {
	ctx := testContext(t)
	s, f := newTest(t, t.TempDir())
	f.refuse = toc.ErrNotEStargz
	m, err := s.Prepare(ctx, "extract-a", "", snapshots.WithLabels(labels(0, "a")))
	if err != nil || len(m) == 0 {
		t.Fatalf("Prepare = %v, %v; want the mounts of an ordinary snapshot", m, err)
	}
	if err := s.Commit(ctx, "a", "extract-a"); err != nil {
		t.Fatal(err)
	}
	info, err := s.Stat(ctx, "a")
	if err != nil || info.Labels[labelRemote] != "" {
		t.Fatalf("%+v, %v: an ordinary layer must not be marked lazy", info, err)
	}
}

func TestParallelPullsOfOneImage(t *testing.T) {
	ctx := testContext(t)
	root := t.TempDir()
	s, _ := newTest(t, root)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			_, err := s.Prepare(ctx, "extract-"+string(rune('a'+i)), "", snapshots.WithLabels(labels(0, "target")))
			if !errdefs.IsAlreadyExists(err) {
				t.Errorf("Prepare %d: %v", i, err)
			}
		}()
	}
	wg.Wait()
	n := 0
	if err := s.Walk(ctx, func(context.Context, snapshots.Info) error { n++; return nil }); err != nil || n != 1 {
		t.Fatalf("%d snapshots, %v; want the one that was asked for", n, err)
	}
	// Those that came too late took their directories back, and not that of the first.
	dirs, err := filepath.Glob(filepath.Join(root, "snapshots", "*"))
	if err != nil || len(dirs) != 1 {
		t.Fatalf("directories %v, %v; want one", dirs, err)
	}
	if st, err := os.Stat(filepath.Join(dirs[0], "fs")); err != nil || st.Mode() != os.ModeDir|0o755 {
		t.Errorf("the snapshot's content: %v, %v", st, err)
	}
}

func TestRestart(t *testing.T) {
	ctx := testContext(t)
	root := t.TempDir()
	s, _ := newTest(t, root)
	prepareLazy(t, s, 0, "", "a")
	if _, err := s.Prepare(ctx, "container", "a"); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s, f := newTest(t, root)
	if _, err := s.Mounts(ctx, "container"); err != nil {
		t.Fatal(err)
	}
	if f.count() != 1 {
		t.Errorf("%d images mounted after a restart, want 1", f.count())
	}
	u, err := s.Usage(ctx, "a")
	if err != nil || u.Size < 42 {
		t.Errorf("usage %+v, %v: want what is cached", u, err)
	}
}

// manifests is an image's manifest that answers at once.
type manifests []source.Layer

func (m manifests) Manifest(context.Context, string, digest.Digest) ([]source.Layer, error) {
	return m, nil
}

// The first Prepare of an image sets off all of its layers.
func TestAllLayersAtOnce(t *testing.T) {
	var all manifests
	for i := range 5 {
		l, err := source.FromLabels(labels(i, "x"))
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, l)
	}
	f := &fakeImages{root: t.TempDir(), mounted: map[string]images.Chain{}}
	s, err := New(Config{Root: t.TempDir(), Images: f, Manifests: all})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}()
	first := labels(0, "a")
	first[source.LabelManifestDigest] = digest.FromString("manifest").String()
	if _, err := s.Prepare(testContext(t), "extract-a", "", snapshots.WithLabels(first)); !errdefs.IsAlreadyExists(err) {
		t.Fatal(err)
	}
	called := func() bool { f.mu.Lock(); defer f.mu.Unlock(); return f.mounts > 0 }
	for end := time.Now().Add(10 * time.Second); !called(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the image was not mounted ahead")
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.added) != 6 {
		t.Errorf("%d layers were asked for, want all 5, and the first once more by its own Prepare", len(f.added))
	}
}

func TestReasons(t *testing.T) {
	for _, c := range []struct {
		err  error
		want string
	}{
		{source.ErrNoReference, "no_reference"}, {source.ErrNoTOCDigest, "no_toc_digest"},
		{context.DeadlineExceeded, "timeout"}, {errors.Join(toc.ErrNoDigest), "no_toc_digest"},
	} {
		if got := Reason(c.err); got != c.want {
			t.Errorf("Reason(%v) = %q, want %q", c.err, got, c.want)
		}
	}
}

func TestLabelsRoundTrip(t *testing.T) {
	src, err := source.FromLabels(labels(3, "x"))
	if err != nil {
		t.Fatal(err)
	}
	l, err := lazyLabels(src)
	if err != nil {
		t.Fatal(err)
	}
	got, err := sourceOf(snapshots.Info{Labels: l})
	if err != nil || got != src {
		t.Errorf("%+v, %v; want %+v", got, err, src)
	}
	for k, v := range l {
		if len(k)+len(v) > 4096 {
			t.Errorf("label %s is too long for containerd", k)
		}
	}
	if _, err := json.Marshal(src); err != nil {
		t.Error(err)
	}
}
