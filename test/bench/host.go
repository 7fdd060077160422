package main

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/apparate/apparate/test/bench/peers"
	"github.com/apparate/apparate/test/node"
)

// host is a node with what an arm needs beside it.
type host struct {
	node        *node.Node
	peer        peers.Running // nil where there is none
	snapshotter string
	dir         string
	path        []string // where the arm has its own programs
}

// end closes a node; err is how its use ended, of which its logs tell more.
func (b *bench) end(ctx context.Context, h *host, err error) error {
	if err != nil && ctx.Err() == nil {
		h.node.WriteLogs(b.progress)
	}
	return errors.Join(err, h.close())
}

// newHost starts an empty node for an arm, with one registry. args are further ones
// of our own snapshotter.
func (b *bench) newHost(ctx context.Context, a arm, registry string, args ...string) (h *host, err error) {
	h = &host{dir: b.newDir(), snapshotter: node.Overlayfs}
	defer func() {
		if err != nil {
			err = errors.Join(err, h.close())
		}
	}()
	o := node.Options{Dir: filepath.Join(h.dir, "node"), Tools: b.tools, Registries: []string{registry}}
	beside := peers.Options{Dir: filepath.Join(h.dir, "peer"), Registry: registry}
	switch {
	case a.peer != nil:
		setup, err := a.peer.Setup(beside)
		if err != nil {
			return h, err
		}
		h.path = setup.Path
		h.snapshotter, o.Config, o.Path, o.SnapshotDirs = setup.Snapshotter, setup.Config, setup.Path, setup.SnapshotDirs
	case a.kind == ours:
		h.snapshotter, o.Snapshotter, o.SnapshotterArgs = node.Apparate, b.apparate, args
		if a.before {
			o.Snapshotter = b.against
		}
	}
	if h.node, err = node.Start(ctx, o); err != nil {
		return h, err
	}
	if a.peer != nil {
		beside.Containerd = h.node.ContainerdSocket()
		if h.peer, err = a.peer.Start(ctx, beside); err != nil {
			return h, err
		}
	}
	return h, nil
}

// dropCaches empties the page cache but for the programs that every start runs, and the
// images that the registry is about to be asked for.
func (b *bench) dropCaches(ctx context.Context, h *host, images ...string) error {
	files := b.files()
	for _, dir := range h.path {
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.Type().IsRegular() {
				files = append(files, path)
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	if err := node.DropCaches(ctx, b.dir, files...); err != nil {
		return err
	}
	for _, image := range images {
		if err := b.registry.Warm(image); err != nil {
			return err
		}
	}
	return nil
}

// close ends everything and removes the directory.
func (h *host) close() error {
	var errs []error
	if h.node != nil {
		errs = append(errs, h.node.Close())
	}
	if h.peer != nil { // containers stand on its mounts
		errs = append(errs, h.peer.Close())
	}
	return errors.Join(append(errs, os.RemoveAll(h.dir))...)
}

// spent is what had been used at one moment.
type spent struct {
	daemon, containerd float64
	processors
	peak, now int64 // bytes of memory
}

func (h *host) usage() (spent, error) {
	var s spent
	var err error
	if s.processors, err = processorTime(); err != nil {
		return s, err
	}
	c, err := h.node.ContainerdUsage()
	if err != nil {
		return s, err
	}
	s.containerd = c.Seconds
	var d node.Usage
	switch {
	case h.peer != nil && h.peer.PID() > 0:
		children, err := node.Children(h.peer.PID())
		if err != nil {
			return s, err
		}
		if d, err = node.UsageOf(append(children, h.peer.PID())...); err != nil {
			return s, err
		}
	case h.snapshotter == node.Apparate:
		if d, err = h.node.SnapshotterUsage(); err != nil {
			return s, err
		}
	}
	s.daemon, s.peak, s.now = d.Seconds, d.PeakRSS, d.RSS
	return s, nil
}
