// Package node puts the data path of a machine together: cache, layers, the
// FUSE file system and the EROFS mounts. The daemon uses it below containerd's
// Snapshotter, `apparate mount` and tests without.
package node

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/apparate/apparate/snapshotter/blobfs"
	"github.com/apparate/apparate/snapshotter/cache"
	"github.com/apparate/apparate/snapshotter/fetch"
	"github.com/apparate/apparate/snapshotter/images"
	"github.com/apparate/apparate/snapshotter/layer"
	"github.com/apparate/apparate/snapshotter/mount"
	"github.com/apparate/apparate/snapshotter/prefetch"
	"github.com/apparate/apparate/snapshotter/source"
	"github.com/apparate/apparate/snapshotter/startup"
)

// requests are in flight to one registry at most. As many connections are kept.
const requests = 32

// small is a layer, in compressed bytes, that is fetched whole as soon as it is mounted: as
// much as a miss or two would bring, and all of an image that is started without a profile.
const small = 2 << 20

// Config is how a Node is set up.
type Config struct {
	// Root is the directory of everything; see package images for what is in it.
	Root string
	// CacheBytes bounds what fetched layers may take on disk; 0 is no bound.
	CacheBytes int64
	// BackgroundDelay is how long after its mount the rest of an image is
	// fetched; negative: never.
	BackgroundDelay time.Duration
	// Profiles says what is done with start-up profiles; ProfileBytes bounds what one
	// start may fetch by its own. Zero values are startup.On and its default.
	Profiles     startup.Mode
	ProfileBytes int64
	// Source says where registries and credentials are described.
	Source source.Options
	Logger *slog.Logger
}

// Node serves lazy images. Images, Sources and Starts are ready for use once Start returned.
type Node struct {
	Images  *images.Manager
	Sources *source.Resolver
	Starts  *startup.Engine

	root   string
	server *blobfs.Server
	store  *cache.Store
	stop   context.CancelFunc
	work   sync.WaitGroup
}

// Connect mounts the FUSE file system below root and returns its connection,
// which Start serves. Whoever keeps it open keeps the mount alive.
func Connect(root string) (*os.File, error) {
	dir := images.BlobsDir(root)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	return blobfs.Connect(dir)
}

// Disconnect unmounts what Connect mounted.
func Disconnect(root string) error { return mount.Detach(images.BlobsDir(root)) }

// Start serves the FUSE connection dev, which belongs to the Node when there is
// no error, and everything above it. What an earlier Node on the same
// connection had mounted goes on being served.
func (c Config) Start(dev *os.File) (*Node, error) {
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	if c.Source.Fetch.Meter == nil {
		c.Source.Fetch.Meter = &fetch.Meter{}
	}
	if c.Source.Fetch.Limit == nil {
		c.Source.Fetch.Limit = fetch.NewLimiter(requests)
	}
	n := &Node{Sources: source.New(c.Source), root: c.Root}
	used, err := images.InUse(c.Root)
	if err != nil {
		return nil, err
	}
	n.store, err = cache.Open(images.LayersDir(c.Root), cache.Options{Budget: c.CacheBytes, InUse: used, Logger: c.Logger})
	if err != nil {
		return nil, err
	}
	gate, limits := &prefetch.Gate{}, layer.NewLimits(0, 0)
	n.Starts, err = startup.New(startup.Options{
		Root: c.Root, Mode: c.Profiles, Budget: c.ProfileBytes, Registry: n.Sources, Gate: gate, Limits: limits, Logger: c.Logger,
	})
	if err != nil {
		return nil, errors.Join(err, n.store.Close())
	}
	cfg := images.Config{
		Root: c.Root, Cache: n.store, Open: n.Sources.Open, Watch: n.Starts, Logger: c.Logger,
		Layer: layer.Options{Gate: gate, Limits: limits, Logger: c.Logger},
		Mount: &mount.EROFS{OnStuck: c.abort},
	}
	ctx, stop := context.WithCancel(context.Background())
	n.stop = stop
	if c.BackgroundDelay >= 0 {
		r := prefetch.New(prefetch.Options{
			Delay: c.BackgroundDelay, Small: small, Gate: gate, Logger: c.Logger,
			Full: func(string) bool { return n.store.Full() },
			Done: func(key string) { n.Images.Arrived(key) },
		})
		cfg.Prefetch = r
		n.work.Go(func() { r.Run(ctx) })
	}
	n.work.Go(func() { n.relieve(ctx, c.Logger) })
	if n.Images, err = images.New(cfg); err != nil {
		return nil, errors.Join(err, n.closeLayers())
	}
	n.server, err = blobfs.Serve(dev, n.Images, blobfs.Options{
		Dir: images.BlobsDir(c.Root), StateFile: filepath.Join(c.Root, "fuse.json"), Logger: c.Logger,
	})
	if err != nil {
		return nil, errors.Join(err, n.closeLayers())
	}
	return n, nil
}

// abort frees a mount that hangs on a FUSE connection which does not answer.
// Better no image than a machine on which sync(2) hangs.
func (c Config) abort() {
	c.Logger.Error("the FUSE connection does not answer: aborting it")
	if err := blobfs.Abort(images.BlobsDir(c.Root)); err != nil {
		c.Logger.Error("abort the FUSE connection", "error", err)
	}
}

// relieve sees to it that layers of images that are gone do not fill the disk: kubelet
// begins to remove images at 15 % free, and to evict pods.
func (n *Node) relieve(ctx context.Context, log *slog.Logger) {
	const poll, part = 20 * time.Second, 5 // a fifth stays free
	for {
		if gone := n.store.Relieve(func(total uint64) uint64 { return total / part }); gone > 0 {
			log.Info("the disk is filling up: layers that no image needs are removed", "layers", gone)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(poll):
		}
	}
}

// closeLayers ends background work and closes the cache.
func (n *Node) closeLayers() error {
	n.stop()
	n.Starts.Close()
	n.work.Wait()
	var err error
	if n.Images != nil {
		err = n.Images.Close()
	}
	return errors.Join(err, n.store.Close())
}

// Probe says why images cannot be mounted here; nil when they can.
func (n *Node) Probe() error { return mount.Probe(filepath.Join(n.root, "probe")) }

// Close stops serving. Mounts stay, for the Node that comes after.
func (n *Node) Close(ctx context.Context) error {
	defer n.Sources.Close()
	return errors.Join(n.server.Close(ctx), n.closeLayers())
}
