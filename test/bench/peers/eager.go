package peers

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/apparate/apparate/test/tools"
)

// strong is the configuration of containerd's transfer service for fast eager pulls:
// more downloads at once than the three of its default, each layer in ranges, and
// layers unpacked in parallel.
const strong = `
[plugins."io.containerd.transfer.v1.local"]
  max_concurrent_downloads = 10
  concurrent_layer_fetch_buffer = 8388608
  max_concurrent_unpacks = 4
`

// Overlayfs is containerd's default snapshotter in its strong form: parallel downloads
// and unpacks, and igzip, which containerd uses where it finds it and which its
// documentation says is the fastest.
type Overlayfs struct{ paths map[string]string }

// Name is "overlayfs-strong".
func (*Overlayfs) Name() string { return "overlayfs-strong" }

// Ensure takes igzip out of its package.
func (p *Overlayfs) Ensure(ctx context.Context, progress io.Writer) (err error) {
	p.paths, err = tools.Ensure(ctx, progress, tools.Containerd, tools.Igzip)
	return err
}

// Version is containerd's.
func (p *Overlayfs) Version() string { return versionOf(p.paths[tools.Containerd]) }

// Convert returns plainTag.
func (*Overlayfs) Convert(_ context.Context, _ Registry, _, plainTag string) (string, error) {
	return plainTag, nil
}

// Setup configures containerd's transfer service.
func (p *Overlayfs) Setup(Options) (Setup, error) {
	return Setup{Snapshotter: "overlayfs", Config: strong, Path: []string{filepath.Dir(p.paths[tools.Igzip])}}, nil
}

// Start has nothing to start: the snapshotter is in containerd.
func (*Overlayfs) Start(_ context.Context, o Options) (Running, error) {
	return &inside{root: o.root()}, o.check()
}

// Erofs is containerd's EROFS snapshotter, which turns each layer that was pulled into
// an EROFS image, with the options that its documentation prefers for mkfs.erofs of
// 1.8.2 or newer, and pulls as fast as Overlayfs.
type Erofs struct{ paths map[string]string }

// Name is "erofs-eager".
func (*Erofs) Name() string { return "erofs-eager" }

// Ensure takes mkfs.erofs and igzip out of their packages.
func (p *Erofs) Ensure(ctx context.Context, progress io.Writer) (err error) {
	p.paths, err = tools.Ensure(ctx, progress, tools.Containerd, tools.MkfsErofs, tools.Igzip)
	return err
}

// Version is containerd's.
func (p *Erofs) Version() string { return versionOf(p.paths[tools.Containerd]) }

// Convert returns plainTag.
func (*Erofs) Convert(_ context.Context, _ Registry, _, plainTag string) (string, error) {
	return plainTag, nil
}

// Setup configures snapshotter, differ and transfer service.
func (p *Erofs) Setup(o Options) (Setup, error) {
	return Setup{
		Snapshotter: "erofs",
		Config: strong + fmt.Sprintf(`
[[plugins."io.containerd.transfer.v1.local".unpack_config]]
  platform = "linux"
  snapshotter = "erofs"
  differ = "erofs"

[plugins."io.containerd.differ.v1.erofs"]
  mkfs_options = ["-T0", "--mkfs-time", "--sort=none"]

[plugins."io.containerd.service.v1.diff-service"]
  default = ["erofs", "walking"]

[plugins."io.containerd.snapshotter.v1.erofs"]
  root_path = %q
`, o.root()),
		Path:         []string{filepath.Dir(p.paths[tools.MkfsErofs]), filepath.Dir(p.paths[tools.Igzip])},
		SnapshotDirs: []string{filepath.Join(o.root(), "snapshots")},
	}, nil
}

// Start has nothing to start: the snapshotter is in containerd.
func (*Erofs) Start(_ context.Context, o Options) (Running, error) {
	return &inside{root: o.root(), count: notErofs}, o.check()
}

// notErofs counts the snapshots that have content and no EROFS image of it. Those of
// containers have a writable directory that is filled when the container writes, and
// are told apart by not being lower layers: their work directory is in use.
func notErofs(root string) (count int, err error) {
	dirs, err := os.ReadDir(filepath.Join(root, "snapshots"))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	for _, d := range dirs {
		dir := filepath.Join(root, "snapshots", d.Name())
		if _, err := os.Stat(filepath.Join(dir, "layer.erofs")); err == nil {
			continue
		}
		if _, err := os.Stat(filepath.Join(dir, "work", "work")); err == nil {
			continue // mounted as the upper directory of a container
		}
		count++
	}
	return count, nil
}
