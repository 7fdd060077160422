package e2e

import (
	"bytes"
	"io"
	"strings"
	"testing"

	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/opencontainers/go-digest"

	"github.com/apparate/apparate/test/registry"
)

// Ordinary layers above lazy ones work: their files are seen, what they delete
// is gone.
func TestMixedChain(t *testing.T) {
	h := start(t, "--background-fetch-delay", "-1s")
	img, files := shell(t, 4, 3_000_000)
	ref := h.accelerate(t, "app:v1", img)
	lazy := h.image(t, ref)
	plain := layer(t, file{name: "data/", mode: 0o755}, file{name: "data/.wh.f001", mode: 0, body: []byte{}},
		file{name: "data/new", mode: 0o600, body: []byte("new\n")})
	mixed, err := mutate.AppendLayers(lazy, plain)
	if err != nil {
		t.Fatal(err)
	}
	ref = h.push(t, "mixed:v1", mixed)
	h.reg.Forget()
	h.pull(t, ref)
	out := h.sh(t, ref, "mixed", "ls /data; cat /data/new; sha256sum /data/f002 >/dev/null && echo read")
	if want := "f000\nf002\nf003\nnew\nnew\nread\n"; out != want {
		t.Errorf("got %q, want %q", out, want)
	}
	if m := erofsMounts(t, h.SnapshotterRoot()); len(m) == 0 {
		t.Error("the layers below the ordinary one are not lazy")
	}
	if got, whole := h.reg.BlobBytes(), int64(len(files)*3_000_000); got > whole/2 {
		t.Errorf("%d bytes were fetched of lazy layers that have %d, of which a quarter was read", got, whole)
	}
}

// An image that stargz-snapshotter's own builder made is lazy as well: its
// layers have no annotation but the TOC digest.
func TestForeignImage(t *testing.T) {
	h := start(t, "--background-fetch-delay", "-1s")
	img, files := shell(t, 6, 900_000)
	ref := h.push(t, "foreign:v1", foreign(t, img))
	h.reg.Forget()
	h.pull(t, ref)
	if got := h.reg.BlobBytes(); got > 2<<20 {
		t.Errorf("the pull alone fetched %d bytes", got)
	}
	if out := h.sh(t, ref, "foreign", "cd /data && sha256sum *"); out != sums(files) {
		t.Errorf("wrong content: %s", out)
	}
	if m := erofsMounts(t, h.SnapshotterRoot()); len(m) != 1 {
		t.Errorf("mounts: %v, want one", m)
	}
}

// A layer that cannot be lazy is pulled the ordinary way: the container runs,
// and the log says why.
func TestFallback(t *testing.T) {
	h := start(t, "--background-fetch-delay", "-1s")
	img, files := shell(t, 2, 300_000)
	plain := h.push(t, "plain:v1", img)
	h.pull(t, plain)
	if out := h.sh(t, plain, "plain", "cd /data && sha256sum *"); out != sums(files) {
		t.Errorf("wrong content: %s", out)
	}
	if !strings.Contains(h.Logs(), "reason=no_toc_digest") {
		t.Error("the log does not say why the layers of an ordinary image are not lazy")
	}

	ref := h.accelerate(t, "app:v1", img)
	h.reg.FailEvery(1, registry.WholeBody200) // a registry that knows no ranges
	h.pull(t, ref)
	if out := h.sh(t, ref, "noranges", "cd /data && sha256sum *"); out != sums(files) {
		t.Errorf("wrong content: %s", out)
	}
	if !strings.Contains(h.Logs(), "reason=registry_without_ranges") {
		t.Error("the log does not say that the registry knows no ranges")
	}
	if m := erofsMounts(t, h.SnapshotterRoot()); len(m) != 0 {
		t.Errorf("mounted although nothing can be read in ranges: %v", m)
	}
}

// The cache keeps within its budget, also while an image larger than it is read.
func TestCacheBudget(t *testing.T) {
	const budget = 4 << 20
	h := start(t, "--background-fetch-delay", "-1s", "--cache-size", "4MiB")
	img, files := shell(t, 12, 1<<20)
	ref := h.accelerate(t, "app:v1", img)
	h.pull(t, ref)
	for range 2 {
		if out := h.sh(t, ref, "reader", "cd /data && sha256sum *"); out != sums(files) {
			t.Fatalf("wrong content: %s", out)
		}
	}
	if err := h.RemoveImage(t.Context(), ref); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the image is unmounted", func() bool { return len(erofsMounts(t, h.SnapshotterRoot())) == 0 })
	if got := diskUsage(t, h.SnapshotterRoot()+"/layers"); got > budget {
		t.Errorf("the cache takes %d bytes, its budget is %d", got, budget)
	}
}

// A daemon that was stopped for good and started again serves what it had
// cached, for containers that start then.
func TestRestartOfEverything(t *testing.T) {
	h := start(t, "--background-fetch-delay", "-1s")
	img, files := shell(t, 4, 300_000)
	ref := h.accelerate(t, "app:v1", img)
	h.pull(t, ref)
	if out := h.sh(t, ref, "before", "cd /data && sha256sum *"); out != sums(files) {
		t.Fatalf("wrong content: %s", out)
	}
	h.stopSnapshotter(t)
	if m := erofsMounts(t, h.SnapshotterRoot()); len(m) != 0 {
		t.Errorf("a stopped snapshotter leaves mounts: %v", m)
	}
	if err := h.StartSnapshotter(t.Context()); err != nil {
		t.Fatal(err)
	}
	h.reg.Forget()
	if out := h.sh(t, ref, "after", "cd /data && sha256sum *"); out != sums(files) {
		t.Fatalf("wrong content: %s", out)
	}
	if got := h.reg.BlobLines(); len(got) > 0 {
		t.Errorf("what was cached was fetched again: %v", got)
	}
}

// image reads an image back from the registry.
func (h *host) image(t *testing.T, ref string) v1.Image {
	t.Helper()
	r, err := name.ParseReference(ref)
	if err != nil {
		t.Fatal(err)
	}
	img, err := remote.Image(r)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// foreign converts img with the estargz package alone.
func foreign(t *testing.T, img v1.Image) v1.Image {
	t.Helper()
	return rebuilt(t, img, func(l v1.Layer) ([]byte, digest.Digest) {
		b := content(t, l.Uncompressed)
		blob, err := estargz.Build(io.NewSectionReader(bytes.NewReader(b), 0, int64(len(b))))
		if err != nil {
			t.Fatal(err)
		}
		z := content(t, func() (io.ReadCloser, error) { return blob, nil })
		return z, blob.TOCDigest()
	})
}

// The rest of an image arrives in the background; from then on the registry is
// not needed.
func TestBackgroundFetch(t *testing.T) {
	h := start(t, "--background-fetch-delay", "100ms")
	img, files := shell(t, 8, 700_000)
	ref := h.accelerate(t, "app:v1", img)
	h.pull(t, ref)
	eventually(t, "all of it is fetched", func() bool { return h.reg.BlobBytes() > int64(len(files)*700_000) })
	// The last window may still be on its way to the disk.
	before := -1
	eventually(t, "nothing more is asked for", func() bool {
		n := h.reg.Count()
		quiet := n == before
		before = n
		return quiet
	})
	h.reg.FailEvery(1, registry.NotFound)
	if out := h.sh(t, ref, "offline", "cd /data && sha256sum *"); out != sums(files) {
		t.Errorf("wrong content: %s", out)
	}
	if twice := fetchedTwice(h.reg.BlobLines()); len(twice) > 0 {
		t.Errorf("fetched more than once: %v", twice)
	}
}
