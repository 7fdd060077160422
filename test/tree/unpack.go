package tree

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/archive"
	"github.com/containerd/containerd/v2/plugins/snapshots/overlay"
)

// Unpack unpacks layers, uncompressed tars from bottom to top, below root as
// containerd does: its overlay snapshotter, its archive code, and the options
// with which its applier calls that. It returns the mounts of a read-only view
// (writable false) or of a container, to be mounted with MountAll, and a
// function that closes the snapshotter.
func Unpack(ctx context.Context, root string, layers []io.Reader, writable bool) (m []mount.Mount, closer func() error, err error) {
	sn, err := overlay.NewSnapshotter(root)
	if err != nil {
		return nil, nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, sn.Close())
		}
	}()
	parent := ""
	for i, r := range layers {
		if err := UnpackLayer(ctx, sn, fmt.Sprintf("layer-%d", i), parent, r); err != nil {
			return nil, nil, err
		}
		parent = fmt.Sprintf("layer-%d", i)
	}
	if writable {
		m, err = sn.Prepare(ctx, "container", parent)
	} else {
		m, err = sn.View(ctx, "view", parent)
	}
	return m, sn.Close, err
}

// UnpackLayer unpacks one layer on top of parent ("" for none) and commits it as name.
func UnpackLayer(ctx context.Context, sn snapshots.Snapshotter, name, parent string, r io.Reader) error {
	m, err := sn.Prepare(ctx, "extract-"+name, parent)
	if err != nil {
		return err
	}
	if err := apply(ctx, m, r); err != nil {
		return fmt.Errorf("unpack %s: %w", name, err)
	}
	return sn.Commit(ctx, name, "extract-"+name)
}

// apply is what containerd's file system applier does with these mounts: it
// writes into an overlay's upper directory without mounting it.
func apply(ctx context.Context, m []mount.Mount, r io.Reader) error {
	if len(m) == 1 && m[0].Type == "overlay" {
		upper, lower := "", []string(nil)
		for _, o := range m[0].Options {
			if v, ok := strings.CutPrefix(o, "upperdir="); ok {
				upper = v
			} else if v, ok := strings.CutPrefix(o, "lowerdir="); ok {
				lower = strings.Split(v, ":")
			}
		}
		_, err := archive.Apply(ctx, upper, r,
			archive.WithConvertWhiteout(archive.OverlayConvertWhiteout), archive.WithParents(lower))
		return err
	}
	return mount.WithTempMount(ctx, m, func(dir string) error {
		_, err := archive.Apply(ctx, dir, r)
		return err
	})
}
