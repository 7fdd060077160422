package interop

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/containerd/stargz-snapshotter/fs"
	"github.com/containerd/stargz-snapshotter/fs/config"
	"github.com/containerd/stargz-snapshotter/snapshot"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"golang.org/x/sys/unix"
)

// Labels by which a client tells stargz-snapshotter about a layer
// (stargz-snapshotter, fs/source/source.go).
const (
	labelRef    = "containerd.io/snapshot/remote/stargz.reference"
	labelDigest = "containerd.io/snapshot/remote/stargz.digest"
	labelLayers = "containerd.io/snapshot/remote/stargz.layers"
)

// timeout is when a test counts as stuck.
const timeout = 4 * time.Minute

// peer is stargz-snapshotter's file system in the test's process.
type peer struct {
	fs snapshot.FileSystem

	mu      sync.Mutex
	mounted map[string]bool // by directory
}

// startPeer makes a peer that ends with the test. What it fetches is kept in
// memory: work that it does in the background may outlive its mounts, and must
// not write into a directory that is being removed.
func startPeer(t *testing.T) *peer {
	t.Helper()
	if os.Getuid() != 0 {
		t.Fatal("this test mounts FUSE and overlayfs: run it as root")
	}
	f, err := fs.NewFilesystem(t.TempDir(), config.Config{
		HTTPCacheType: "memory", FSCacheType: "memory", NoBackgroundFetch: true, NoPrometheus: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	p := &peer{fs: f, mounted: map[string]bool{}}
	watchdog := time.AfterFunc(timeout, func() {
		t.Errorf("stargz-snapshotter is stuck: not done after %v", timeout)
		if err := p.abort(); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { watchdog.Stop() })
	return p
}

// abort ends all FUSE connections: whoever waits for one gets an error. A forced
// unmount does that, also where the mount is in use (EBUSY) and stays, and unlike
// /sys/fs/fuse/connections it is there in every container. EINVAL: it was
// unmounted meanwhile.
func (p *peer) abort() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	var errs []error
	for dir := range p.mounted {
		if err := unix.Unmount(dir, unix.MNT_FORCE); err != nil && !errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.EINVAL) {
			errs = append(errs, fmt.Errorf("abort the mount at %s: %w", dir, err))
		}
	}
	return errors.Join(errs...)
}

// mount mounts every layer of the image ref and returns where, joined as
// overlayfs wants its lower directories: top first.
func (p *peer) mount(t *testing.T, ref string) (lower string) {
	t.Helper()
	layers := descriptors(t, ref)
	var digests []string
	for _, l := range layers {
		digests = append(digests, l.Digest.String())
	}
	dirs := make([]string, len(layers))
	for i, l := range layers {
		dirs[len(dirs)-1-i] = p.mountLayer(t, map[string]string{
			labelRef: ref, labelDigest: l.Digest.String(), labelLayers: strings.Join(digests, ","),
			estargz.TOCJSONDigestAnnotation: l.Annotations[estargz.TOCJSONDigestAnnotation],
		})
	}
	return strings.Join(dirs, ":")
}

// mountLayer mounts one layer until the test ends.
func (p *peer) mountLayer(t *testing.T, labels map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	if err := p.fs.Mount(t.Context(), dir, labels); err != nil {
		t.Fatalf("stargz-snapshotter mounts %s: %v", labels[labelDigest], err)
	}
	p.mu.Lock()
	p.mounted[dir] = true
	p.mu.Unlock()
	t.Cleanup(func() {
		// Without the lock: this, too, may need the watchdog.
		// EINVAL: that has unmounted it.
		err := p.fs.Unmount(context.WithoutCancel(t.Context()), dir)
		if err != nil && !errors.Is(err, unix.EINVAL) {
			t.Errorf("stargz-snapshotter unmounts: %v", err)
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.mounted, dir)
	})
	// A container starts only after this, which waits for the prefetch.
	if err := p.fs.Check(t.Context(), dir, labels); err != nil {
		t.Fatalf("stargz-snapshotter checks %s: %v", labels[labelDigest], err)
	}
	return dir
}

// descriptors are the layers of an image in a registry, bottom first.
func descriptors(t *testing.T, ref string) []v1.Descriptor {
	t.Helper()
	m, err := pull(t, ref).Manifest()
	if err != nil {
		t.Fatal(err)
	}
	return m.Layers
}

func pull(t *testing.T, ref string) v1.Image {
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
