package snapshotter

import (
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/errdefs"

	"github.com/apparate/apparate/snapshotter/images"
	"github.com/apparate/apparate/snapshotter/source"
)

// parent is one committed snapshot of a chain: lazy, or a directory.
type parent struct {
	id   string
	lazy *source.Layer
}

// run is a maximal sequence of adjacent parents of the same kind, bottom first.
type run []parent

func (r run) lazy() bool { return r[0].lazy != nil }

func (r run) chain(below bool) images.Chain {
	c := images.Chain{KeepWhiteouts: below}
	for _, p := range r {
		c.Layers = append(c.Layers, *p.lazy)
	}
	return c
}

// runs cuts a chain, bottom first, into runs.
func runs(chain []parent) []run {
	var out []run
	for i, p := range chain {
		if i > 0 && (chain[i-1].lazy != nil) == (p.lazy != nil) {
			out[len(out)-1] = append(out[len(out)-1], p)
			continue
		}
		out = append(out, run{p})
	}
	return out
}

// lazyLabels are the labels by which a committed snapshot is known to be lazy.
func lazyLabels(src source.Layer) (map[string]string, error) {
	b, err := json.Marshal(src)
	if err != nil {
		return nil, err
	}
	return map[string]string{labelRemote: "remote snapshot", labelSource: string(b)}, nil
}

// sourceOf reads back what lazyLabels wrote.
func sourceOf(info snapshots.Info) (source.Layer, error) {
	var src source.Layer
	if err := json.Unmarshal([]byte(info.Labels[labelSource]), &src); err != nil {
		return src, fmt.Errorf("snapshot %s: label %s: %w", info.Name, labelSource, err)
	}
	return src, nil
}

// chainOf returns the committed snapshots from the lowest up to name, with name
// itself if it is committed. It must run in a transaction.
func chainOf(ctx context.Context, name string) ([]parent, error) {
	var chain []parent
	for name != "" {
		id, info, _, err := storage.GetInfo(ctx, name)
		if err != nil {
			return nil, err
		}
		name = info.Parent
		if info.Kind != snapshots.KindCommitted {
			continue
		}
		p := parent{id: id}
		if info.Labels[labelRemote] != "" && info.Labels[labelSource] != "" {
			src, err := sourceOf(info)
			if err != nil {
				return nil, err
			}
			p.lazy = &src
		}
		chain = append(chain, p)
	}
	slices.Reverse(chain)
	return chain, nil
}

// rewrite puts one EROFS mount in the place of each run of lazy layers among
// the lower directories that overlay computed.
func (s *Snapshotter) rewrite(ctx context.Context, key string, m []mount.Mount) ([]mount.Mount, error) {
	var chain []parent
	var info snapshots.Info
	err := s.ms.WithTransaction(ctx, false, func(ctx context.Context) (err error) {
		if chain, err = chainOf(ctx, key); err == nil {
			_, info, _, err = storage.GetInfo(ctx, key)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	if !slices.ContainsFunc(chain, func(p parent) bool { return p.lazy != nil }) {
		return m, nil
	}
	if s.cfg.Images == nil {
		return nil, fmt.Errorf("snapshot %s has lazy layers, which cannot be mounted here: %s: %w", key, s.cfg.NotLazy, errdefs.ErrUnavailable)
	}
	var lower []string // top first, as overlayfs wants it
	for i, r := range runs(chain) {
		if !r.lazy() {
			for _, p := range r {
				lower = append([]string{filepath.Join(s.snapshotDir(p.id), "fs")}, lower...)
			}
			continue
		}
		c := r.chain(i > 0)
		dir, err := s.cfg.Images.Mount(ctx, c.Layers, c.KeepWhiteouts)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", err, errdefs.ErrUnavailable)
		}
		lower = append([]string{dir}, lower...)
		if info.Kind == snapshots.KindActive {
			s.cfg.Starts.Created(c.Layers)
		}
	}
	return withLower(m, lower)
}

// withLower replaces the lower directories of overlay's mounts.
func withLower(m []mount.Mount, lower []string) ([]mount.Mount, error) {
	if len(m) != 1 {
		return nil, fmt.Errorf("overlay returned %d mounts, want 1", len(m))
	}
	out := m[0]
	out.Options = nil
	upper := false
	for _, o := range m[0].Options {
		if strings.HasPrefix(o, "lowerdir=") {
			continue
		}
		upper = upper || strings.HasPrefix(o, "upperdir=")
		out.Options = append(out.Options, o)
	}
	// Overlayfs refuses a single lower directory without an upper one.
	if !upper && len(lower) == 1 {
		return []mount.Mount{{Type: "bind", Source: lower[0], Options: []string{"ro", "rbind"}}}, nil
	}
	out.Type, out.Source = "overlay", "overlay"
	if m[0].Type == "bind" {
		out.Options = nil // "ro" and "rbind" mean nothing to overlayfs
	}
	out.Options = append(out.Options, "lowerdir="+strings.Join(lower, ":"))
	return []mount.Mount{out}, nil
}

// wanted lists the chains that must stay mounted: those of containers and
// views, and those of the images that are on the node, so that the next
// container does not wait for a mount.
func (s *Snapshotter) wanted(ctx context.Context) ([]images.Chain, error) {
	var out []images.Chain
	err := s.ms.WithTransaction(ctx, false, func(ctx context.Context) error {
		var tops []string
		lower := map[string]bool{}
		err := storage.WalkInfo(ctx, func(_ context.Context, info snapshots.Info) error {
			switch {
			case info.Kind != snapshots.KindCommitted:
				tops = append(tops, info.Name)
			case info.Labels[labelRemote] != "":
				tops = append(tops, info.Name)
				if info.Parent != "" {
					lower[info.Parent] = true
				}
			}
			return nil
		})
		if err != nil {
			if errdefs.IsNotFound(err) {
				return nil // a new database has no snapshots yet
			}
			return err
		}
		for _, name := range tops {
			if lower[name] {
				continue
			}
			chain, err := chainOf(ctx, name)
			if err != nil {
				return err
			}
			for i, r := range runs(chain) {
				if r.lazy() {
					out = append(out, r.chain(i > 0))
				}
			}
		}
		return nil
	})
	return out, err
}

// requestSweep asks the sweeper to look once more; it never blocks.
func (s *Snapshotter) requestSweep() {
	select {
	case s.sweep <- struct{}{}:
	default:
	}
}

// sweeper unmounts what nobody wants any more. One goroutine does it, so that
// Remove is quick and a burst of removals costs one look.
func (s *Snapshotter) sweeper() {
	defer s.wg.Done()
	for {
		select {
		case <-s.ctx.Done():
			return
		case <-s.sweep:
		}
		if err := s.cfg.Images.Keep(s.ctx, s.wanted); err != nil && s.ctx.Err() == nil {
			s.log.Error("unused images stay mounted", "error", err)
		}
	}
}
