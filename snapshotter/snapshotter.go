// Package snapshotter is containerd's Snapshotter for accelerated images. It
// embeds containerd's overlay snapshotter, which goes on serving ordinary
// layers, and adds what lazy layers need: a Prepare that answers "already
// there" once a layer's table of contents is verified, and mounts whose lower
// directories are one EROFS mount for each run of lazy layers.
//
// Nothing about a lazy layer is kept in a database of our own: the labels that
// containerd hands over with Prepare are stored with the snapshot, and a chain
// of snapshots says which layers make an image.
package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/containerd/v2/plugins/snapshots/overlay"
	"github.com/opencontainers/go-digest"

	"github.com/apparate/apparate/snapshotter/images"
	"github.com/apparate/apparate/snapshotter/source"
)

// Labels of snapshots.
const (
	// labelTarget is the chain id under which containerd wants the layer
	// committed (containerd, core/snapshots: "containerd.io/snapshot.ref").
	labelTarget = "containerd.io/snapshot.ref"
	// labelRemote marks a committed snapshot whose content is lazy. Other tools
	// know the key from stargz-snapshotter.
	labelRemote = "containerd.io/snapshot/remote"
	// labelSource holds what a lazy snapshot was made from, as JSON: labels of
	// containerd need not carry all of it (an image made by others).
	labelSource = "containerd.io/snapshot/apparate/source"
)

// Images makes layers readable and mounts chains of them; *images.Manager.
type Images interface {
	Add(ctx context.Context, src source.Layer) (images.Key, error)
	Mount(ctx context.Context, layers []source.Layer, keepWhiteouts bool) (string, error)
	Keep(ctx context.Context, wanted func(context.Context) ([]images.Chain, error)) error
	CachedBytes(images.Key) int64
}

// Manifests reads the layers of a platform manifest; *source.Resolver.
type Manifests interface {
	Manifest(ctx context.Context, ref string, d digest.Digest) ([]source.Layer, error)
}

// Starts is told of the starts of images; *startup.Engine. None of it may block.
type Starts interface {
	// Begin says that the first layer of a manifest was asked for.
	Begin(ref string, manifest digest.Digest)
	// Manifest says which layers it has.
	Manifest(manifest digest.Digest, layers []source.Layer)
	// Complete says that all of them that can be lazy are ready.
	Complete(manifest digest.Digest)
	// Created says that a container is made of a chain of lazy layers, bottom first.
	Created(layers []source.Layer)
}

// noStarts tells nobody.
type noStarts struct{}

func (noStarts) Begin(string, digest.Digest)            {}
func (noStarts) Manifest(digest.Digest, []source.Layer) {}
func (noStarts) Complete(digest.Digest)                 {}
func (noStarts) Created([]source.Layer)                 {}

// Config is what a snapshotter needs.
type Config struct {
	// Root is the directory of snapshots and their database.
	Root string
	// Images is nil where lazy mounting is impossible: then every layer takes
	// the ordinary way, for the reason in NotLazy.
	Images    Images
	Manifests Manifests
	NotLazy   string
	// Starts is optional.
	Starts Starts
	// PrepareTimeout bounds what one Prepare may wait for a registry before the
	// layer is pulled the ordinary way. Default 30 seconds.
	PrepareTimeout time.Duration
	// CredentialsWait is how long after its first layer was asked for the credentials
	// of an image may come, where the registry wants some; 0: they are there before.
	CredentialsWait time.Duration
	// ForeignWait is how long after its first layer was asked for the manifest of an
	// image is waited for whose labels name no table of contents: layers that podman and
	// skopeo wrote as zstd:chunked have theirs in annotations that containerd does not
	// pass on. 0: such images are pulled the ordinary way, and nobody is asked.
	ForeignWait time.Duration
	Metrics     *Metrics
	Logger      *slog.Logger
}

// Snapshotter implements containerd's snapshots.Snapshotter and
// snapshots.Cleaner. Close stops background work; mounts stay.
type Snapshotter struct {
	snapshots.Snapshotter
	cfg   Config
	log   *slog.Logger
	ms    *storage.MetaStore
	pulls *pulls

	ctx   context.Context
	stop  context.CancelFunc
	wg    sync.WaitGroup
	sweep chan struct{}
}

var _ interface {
	snapshots.Snapshotter
	snapshots.Cleaner
} = (*Snapshotter)(nil)

// New opens or creates the snapshotter below cfg.Root.
func New(cfg Config) (*Snapshotter, error) {
	if cfg.PrepareTimeout == 0 {
		cfg.PrepareTimeout = 30 * time.Second
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	if cfg.Starts == nil {
		cfg.Starts = noStarts{}
	}
	if cfg.Metrics == nil {
		cfg.Metrics = NewMetrics(nil)
	}
	if err := os.MkdirAll(cfg.Root, 0o700); err != nil {
		return nil, fmt.Errorf("snapshotter: %w", err)
	}
	ms, err := storage.NewMetaStore(filepath.Join(cfg.Root, "metadata.db"))
	if err != nil {
		return nil, fmt.Errorf("snapshotter: open database: %w", err)
	}
	base, err := overlay.NewSnapshotter(cfg.Root, overlay.WithMetaStore(ms), overlay.AsynchronousRemove)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("snapshotter: %w", err), ms.Close())
	}
	s := &Snapshotter{Snapshotter: base, cfg: cfg, log: cfg.Logger, ms: ms, sweep: make(chan struct{}, 1)}
	s.ctx, s.stop = context.WithCancel(context.Background())
	s.pulls = newPulls(s)
	if cfg.Images != nil {
		s.wg.Add(1)
		go s.sweeper()
		s.requestSweep()
	}
	return s, nil
}

// Prepare creates an active snapshot. When containerd asks for a layer of an
// image (the target label is set) and the layer can be lazy, it commits the
// layer at once and returns ErrAlreadyExists, by which containerd knows that it
// need not download.
func (s *Snapshotter) Prepare(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	var want snapshots.Info
	for _, o := range opts {
		if err := o(&want); err != nil {
			return nil, err
		}
	}
	target := want.Labels[labelTarget]
	if target != "" && s.cfg.Images != nil {
		src, err := s.resolve(ctx, want.Labels)
		if err == nil {
			return nil, s.commitLazy(ctx, key, parent, target, src, opts)
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		s.fallback(want.Labels, err)
	} else if target != "" {
		s.cfg.Metrics.fallback("not_available")
		s.log.Debug("layer is pulled the ordinary way", "layer", want.Labels[source.LabelLayerDigest], "reason", s.cfg.NotLazy)
	}
	m, err := s.Snapshotter.Prepare(ctx, key, parent, opts...)
	if err != nil {
		return nil, err
	}
	return s.rewriteOrRemove(ctx, key, m)
}

// View creates a read-only snapshot.
func (s *Snapshotter) View(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	m, err := s.Snapshotter.View(ctx, key, parent, opts...)
	if err != nil {
		return nil, err
	}
	return s.rewriteOrRemove(ctx, key, m)
}

// rewriteOrRemove leaves no snapshot behind that its caller was never told of.
func (s *Snapshotter) rewriteOrRemove(ctx context.Context, key string, m []mount.Mount) ([]mount.Mount, error) {
	m, err := s.rewrite(ctx, key, m)
	if err != nil {
		return nil, errors.Join(err, s.Snapshotter.Remove(context.WithoutCancel(ctx), key))
	}
	return m, nil
}

// Mounts returns the mounts of an active snapshot or view. It is called again
// after a reboot, when the image's mount is gone: it mounts anew.
func (s *Snapshotter) Mounts(ctx context.Context, key string) ([]mount.Mount, error) {
	m, err := s.Snapshotter.Mounts(ctx, key)
	if err != nil {
		return nil, err
	}
	return s.rewrite(ctx, key, m)
}

// Usage returns what a snapshot takes on disk; for a lazy one, what is cached
// of it now.
func (s *Snapshotter) Usage(ctx context.Context, key string) (snapshots.Usage, error) {
	u, err := s.Snapshotter.Usage(ctx, key)
	if err != nil || s.cfg.Images == nil {
		return u, err
	}
	info, err := s.Stat(ctx, key)
	if err != nil || info.Labels[labelRemote] == "" {
		return u, err
	}
	src, err := sourceOf(info)
	if err != nil {
		return u, err
	}
	k, err := images.KeyOf(src)
	if err == nil {
		u.Size += s.cfg.Images.CachedBytes(k)
	}
	return u, err
}

// Remove deletes a snapshot; an image that nobody needs any more is unmounted
// soon after.
func (s *Snapshotter) Remove(ctx context.Context, key string) error {
	defer s.requestSweep()
	return s.Snapshotter.Remove(ctx, key)
}

// Cleanup frees what removed snapshots held: directories, and mounts.
func (s *Snapshotter) Cleanup(ctx context.Context) error {
	var err error
	if s.cfg.Images != nil {
		err = s.cfg.Images.Keep(ctx, s.wanted)
	}
	c, ok := s.Snapshotter.(snapshots.Cleaner)
	if !ok {
		return err
	}
	return errors.Join(err, c.Cleanup(ctx))
}

// Close stops background work and closes the database. Mounts stay.
func (s *Snapshotter) Close() error {
	s.stop()
	s.wg.Wait()
	return s.Snapshotter.Close()
}
