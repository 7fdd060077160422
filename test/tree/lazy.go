package tree

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/apparate/apparate/snapshotter/blobfs"
	"github.com/apparate/apparate/snapshotter/images"
	"github.com/apparate/apparate/snapshotter/node"
	"github.com/apparate/apparate/snapshotter/source"
)

// Lazy is the data path of a node in the test's process.
type Lazy struct {
	*node.Node
	Root string
}

// StartLazy starts a data path in a directory of its own; change may adjust its
// configuration. It ends with the test: nothing stays mounted, and a test that
// hangs on it is freed after timeout by ending the FUSE connection.
func StartLazy(t testing.TB, timeout time.Duration, change func(*node.Config)) *Lazy {
	t.Helper()
	if os.Getuid() != 0 {
		t.Fatal("this test mounts FUSE and EROFS: run it as root")
	}
	cfg := node.Config{
		Root: t.TempDir(), BackgroundDelay: -1,
		Logger: slog.New(slog.NewTextHandler(t.Output(), nil)),
		Source: source.Options{DockerConfig: t.TempDir()},
	}
	if change != nil {
		change(&cfg)
	}
	dev, err := node.Connect(cfg.Root)
	if err != nil {
		t.Fatal(err)
	}
	watchdog := time.AfterFunc(timeout, func() {
		t.Errorf("the data path is stuck: not done after %v", timeout)
		if err := blobfs.Abort(images.BlobsDir(cfg.Root)); err != nil {
			t.Errorf("abort: %v", err)
		}
	})
	n, err := cfg.Start(dev)
	if err != nil {
		t.Fatal(errors.Join(err, node.Disconnect(cfg.Root), dev.Close()))
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		err := errors.Join(n.Images.UnmountAll(), node.Disconnect(cfg.Root), n.Close(ctx))
		watchdog.Stop()
		if err != nil {
			t.Error(err)
		}
	})
	return &Lazy{Node: n, Root: cfg.Root}
}

// Mount mounts the accelerated image ref and returns where.
func (l *Lazy) Mount(t testing.TB, ref string) string {
	t.Helper()
	_, layers, err := l.Sources.Resolve(t.Context(), ref, "")
	if err != nil {
		t.Fatal(err)
	}
	dir, err := l.Images.Mount(t.Context(), layers, false)
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// Overlay mounts an overlay with an empty upper directory over lower, top
// first, as a container has it, and returns where; it ends with the test.
func Overlay(t testing.TB, lower string) string {
	t.Helper()
	upper, work, dir := t.TempDir(), t.TempDir(), t.TempDir()
	if err := unix.Mount("overlay", dir, "overlay", 0, "lowerdir="+lower+",upperdir="+upper+",workdir="+work); err != nil {
		t.Fatalf("mount overlay: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount overlay: %v", err)
		}
	})
	return dir
}

// Quick makes a data path give up sooner on a registry that does not answer.
func Quick(c *node.Config) {
	c.Source.Fetch.HeaderTimeout = 300 * time.Millisecond
	c.Source.Fetch.StallTimeout = 300 * time.Millisecond
	c.Source.Fetch.Backoff = 5 * time.Millisecond
	c.Source.Fetch.MaxRetryAfter = 20 * time.Millisecond
	c.Source.Fetch.TotalTimeout = 10 * time.Second
}
