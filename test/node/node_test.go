package node

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/apparate/apparate/test/images"
	"github.com/apparate/apparate/test/tools"
)

// TestNode runs the whole harness with an ordinary image: registry, pull, start,
// readiness, the mount table, removal, and that nothing is left.
func TestNode(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute) // builds what is missing
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
	r, err := StartRegistry(ctx, paths[tools.Registry], t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	ref, err := name.ParseReference(r.Addr + "/" + spec.Repository + ":1")
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(ref, img, remote.WithContext(ctx)); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	n, err := Start(ctx, Options{Dir: dir, Tools: paths, Registries: []string{r.Addr}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			n.WriteLogs(t.Output())
		}
		if err := n.Close(); err != nil {
			t.Error(err)
		}
		if left, err := Left(dir, n.run); err != nil || len(left) > 0 {
			t.Errorf("left behind: %v, %v", left, err)
		}
	})
	if err := n.Pull(ctx, ref.String(), Overlayfs); err != nil {
		t.Fatal(err)
	}
	port, err := FreePort()
	if err != nil {
		t.Fatal(err)
	}
	c, err := n.Run(ctx, ref.String(), Overlayfs, "web", []string{fmt.Sprintf("%s=%d", images.PortVariable, port)})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.WaitPage(ctx, fmt.Sprintf("http://127.0.0.1:%d%s", port, spec.Path), spec.Body); err != nil {
		t.Fatal(err)
	}
	m, err := c.RootMount(ctx)
	if err != nil || m.Type != "overlay" || len(m.Lowers) != 3 || strings.Contains(m.String(), "unknown") {
		t.Errorf("root mount: %v %v, %v", m, m.Lowers, err)
	}
	if out, err := c.Exec(ctx, "cat", "/srv/www/index.html"); err != nil || string(out) != spec.Body {
		t.Errorf("exec: %q, %v", out, err)
	}
	echo, err := n.Run(ctx, ref.String(), Overlayfs, "echo", nil, "/bin/echo", "an answer")
	if err != nil {
		t.Fatal(err)
	}
	if err := echo.WaitLine(ctx, "an answer"); err != nil {
		t.Error(err)
	}
	<-echo.Done() // its snapshot is gone
	if err := c.Stop(ctx); err != nil {
		t.Error(err)
	}
	if err := n.RemoveImage(ctx, ref.String()); err != nil {
		t.Error(err)
	}
	if out, err := n.Ctr(ctx, "snapshots", "ls"); err != nil || strings.Contains(string(out), "sha256:") {
		t.Errorf("snapshots after the image was removed: %s, %v", out, err)
	}
	pullWeird(ctx, t, n, r.Addr)
	// One more container is left running: Close ends it.
	if err := n.Pull(ctx, ref.String(), Overlayfs); err != nil {
		t.Fatal(err)
	}
	left, err := n.Run(ctx, ref.String(), Overlayfs, "left", nil, "/bin/sh", "-c", "echo up; sleep 1000")
	if err != nil {
		t.Fatal(err)
	}
	if err := left.WaitLine(ctx, "up"); err != nil {
		t.Error(err)
	}
}

// pullWeird proves that containerd unpacks the synthetic images.
func pullWeird(ctx context.Context, t *testing.T, n *Node, registry string) {
	t.Helper()
	for i := range images.WeirdCount {
		img, err := images.Weird(i)
		if err != nil {
			t.Fatal(err)
		}
		ref, err := name.ParseReference(fmt.Sprintf("%s/weird:%d", registry, i))
		if err != nil {
			t.Fatal(err)
		}
		if err := remote.Write(ref, img, remote.WithContext(ctx)); err != nil {
			t.Fatal(err)
		}
		if err := n.Pull(ctx, ref.String(), Overlayfs); err != nil {
			t.Errorf("weird image %d: %v", i, err)
		}
	}
}
