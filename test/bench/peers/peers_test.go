package peers

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/apparate/apparate/test/images"
	"github.com/apparate/apparate/test/link"
	"github.com/apparate/apparate/test/node"
	"github.com/apparate/apparate/test/tools"
)

// wholeLayers says, for each arm, how many of nginx's three layers are not what the
// arm is about: SOCI pulls what is below 10 MiB whole, by design.
var wholeLayers = map[string]int{"soci": 2, "soci-prefetch": 2}

// rootTypes says what the layers of a container's root directory are on.
var rootTypes = map[string]string{
	"stargz": "fuse", "stargz-opt": "fuse", "soci": "fuse", "soci-prefetch": "fuse", "soci-parallel": "ext4", "erofs-eager": "erofs", "overlayfs-strong": "ext4",
}

// TestPeers starts nginx on each peer, from the image that it made itself and
// through another address than that was made at, and proves what it runs on.
func TestPeers(t *testing.T) {
	const limit = 25 * time.Minute // builds what is missing
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	paths, err := tools.Ensure(ctx, t.Output(), tools.All()...)
	if err != nil {
		t.Fatal(err)
	}
	cache, err := tools.CacheDir()
	if err != nil {
		t.Fatal(err)
	}
	img, spec, err := images.Build(ctx, "nginx", cache, t.Output())
	if err != nil {
		t.Fatal(err)
	}
	registry, err := node.StartRegistry(ctx, paths[tools.Registry], t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := registry.Close(); err != nil {
			t.Error(err)
		}
	})
	plain, err := reference(Registry{registry.Addr}, spec.Repository, "1")
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(plain, img, remote.WithContext(ctx)); err != nil {
		t.Fatal(err)
	}
	port, err := node.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	started := func(string) (Workload, error) {
		return Workload{Name: "start", Env: []string{fmt.Sprintf("%s=%d", images.PortVariable, port)}, Ready: func(ctx context.Context, _ func() string) error {
			return node.WaitPage(ctx, fmt.Sprintf("http://127.0.0.1:%d%s", port, spec.Path), spec.Body)
		}}, nil
	}
	for _, p := range All(started) {
		t.Run(p.Name(), func(t *testing.T) {
			if err := p.Ensure(ctx, t.Output()); err != nil {
				t.Fatal(err)
			}
			if !strings.HasPrefix(p.Version(), "v") {
				t.Errorf("version %q", p.Version())
			}
			tag, err := p.Convert(ctx, Registry{registry.Addr}, spec.Repository, "1")
			if err != nil {
				t.Fatal(err)
			}
			began := time.Now()
			if again, err := p.Convert(ctx, Registry{registry.Addr}, spec.Repository, "1"); err != nil || again != tag || time.Since(began) > limit/100 {
				t.Errorf("converted again, in %v: %q, not %q, %v", time.Since(began), again, tag, err)
			}
			run(ctx, t, p, paths, registry.Addr, spec, tag)
		})
	}
}

// run pulls and starts the image on a node of its own.
func run(ctx context.Context, t *testing.T, p Peer, paths map[string]string, registry string, spec images.Spec, tag string) {
	t.Helper()
	relay, err := link.New(registry, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = relay.Close() })
	dir := t.TempDir()
	o := Options{Dir: filepath.Join(dir, "peer"), Registry: relay.Addr()}
	setup, err := p.Setup(o)
	if err != nil {
		t.Fatal(err)
	}
	n, err := node.Start(ctx, node.Options{
		Dir: filepath.Join(dir, "node"), Tools: paths, Registries: []string{o.Registry},
		Config: setup.Config, Path: setup.Path, SnapshotDirs: setup.SnapshotDirs,
	})
	if err != nil {
		t.Fatal(err)
	}
	o.Containerd = n.ContainerdSocket()
	running, err := p.Start(ctx, o)
	if err != nil {
		t.Fatal(err, n.Close())
	}
	t.Cleanup(func() {
		if t.Failed() {
			n.WriteLogs(t.Output())
		}
		if err := n.Close(); err != nil {
			t.Error(err)
		}
		if err := running.Close(); err != nil {
			t.Error(err)
		}
		if left, err := node.Left(dir); err != nil || len(left) > 0 {
			t.Errorf("left behind: %v, %v", left, err)
		}
	})
	port, err := node.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	ref := o.Registry + "/" + spec.Repository + ":" + tag
	began := time.Now()
	if err := n.Pull(ctx, ref, setup.Snapshotter); err != nil {
		t.Fatal(err)
	}
	pulled := time.Since(began)
	c, err := n.Run(ctx, ref, setup.Snapshotter, "web", []string{fmt.Sprintf("%s=%d", images.PortVariable, port)})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.WaitPage(ctx, fmt.Sprintf("http://127.0.0.1:%d%s", port, spec.Path), spec.Body); err != nil {
		t.Fatal(err)
	}
	ready := time.Since(began)
	m, err := c.RootMount(ctx)
	if err != nil {
		t.Fatal(err)
	}
	whole, err := running.NotLazy(ctx)
	if err != nil {
		t.Fatal(err)
	}
	down, _ := relay.Bytes()
	t.Logf("%s %s: pulled %.3f s, ready %.3f s, %.1f MB fetched by now, %s, %d layers not lazy",
		p.Name(), p.Version(), pulled.Seconds(), ready.Seconds(), float64(down)/1e6, m, whole)
	if whole != wholeLayers[p.Name()] {
		t.Errorf("%d layers are not lazy, expected %d", whole, wholeLayers[p.Name()])
	}
	if !strings.Contains(m.String(), rootTypes[p.Name()]) {
		t.Errorf("the root is %s, expected %s", m, rootTypes[p.Name()])
	}
}
