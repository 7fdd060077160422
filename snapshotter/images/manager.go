// Package images keeps the lazily mounted images of a node: it makes layers
// readable by their table of contents, merges chains of layers into one EROFS
// metadata image each, mounts that once however many containers use it, and
// takes it down when nobody does. It knows nothing of containerd.
//
// A layer is named by its Key, an image by the keys of its layers. Both names
// follow from digests, and so do the node ids under which the kernel reads the
// layers' data: a daemon that is started anew serves what the one before it
// mounted, from what is on disk, without a table of its own to lose.
//
// Below Config.Root:
//
//	blobs/               where the FUSE file system of blob files is mounted (0700)
//	layers/<key>/        one layer: toc, layer.json, data, state (package cache);
//	                     index instead of toc where the layer has one
//	images/<id>/         one chain: meta.erofs, image.json, fs (the mount point), local
//	                     (that of local files, where the image is complete)
package images

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/apparate/apparate/snapshotter/cache"
	"github.com/apparate/apparate/snapshotter/fetch"
	"github.com/apparate/apparate/snapshotter/layer"
	"github.com/apparate/apparate/snapshotter/prefetch"
	"github.com/apparate/apparate/snapshotter/source"
)

// Opener opens the blob of a layer; with size > 0 it does no I/O.
type Opener func(ctx context.Context, ref string, d digest.Digest, size int64) (fetch.Blob, error)

// FileSystem mounts metadata images whose data lies in device files. Mount
// reports success only once dir shows the tree, and so does MountLocal, whose devices are
// complete files; Unmount of what is not mounted is no error. Lower says whether an overlay
// stands on dir.
type FileSystem interface {
	Mount(ctx context.Context, image string, devices []string, dir string) error
	MountLocal(ctx context.Context, image string, devices []string, dir string) error
	Check(dir string) error
	Lower(dir string) (bool, error)
	Unmount(dir string) error
}

// Prefetcher fetches the rest of layers that are in use, after demand.
type Prefetcher interface {
	Add(key string, l prefetch.Layer)
	Remove(key string)
}

// Step is a part of the mount of an image.
type Step string

// The steps of a mount, in their order; each is told of when it is done.
const (
	StepLoaded  Step = "layers"  // all indexes are there
	StepMerged  Step = "merged"  // they are one tree
	StepBuilt   Step = "built"   // the metadata image is on disk
	StepMounted Step = "mounted" // the kernel has it
)

// Watcher is told what happens to images. Its methods must be quick. A layer's Manifest
// says of which image it is; that of the topmost layer counts where they differ.
type Watcher interface {
	// Loaded says that the layer src can be read through l. It comes again whenever the
	// layer is asked for.
	Loaded(src source.Layer, l *layer.Layer)
	// Mounting says that a chain, bottom first, is about to be mounted, and was not
	// mounted before: no page of it is in the kernel's cache. readers are its layers;
	// one that is let go just now is nil.
	Mounting(layers []source.Layer, readers []*layer.Layer)
	// Mounted says that a step of its mount was done.
	Mounted(layers []source.Layer, s Step)
}

// noWatcher is nobody.
type noWatcher struct{}

func (noWatcher) Loaded(source.Layer, *layer.Layer)       {}
func (noWatcher) Mounting([]source.Layer, []*layer.Layer) {}
func (noWatcher) Mounted([]source.Layer, Step)            {}

// Config is what a Manager needs.
type Config struct {
	// Root is the directory for everything that survives a restart.
	Root string
	// Cache holds the layers; its directory is Root/layers.
	Cache *cache.Store
	Open  Opener
	Mount FileSystem
	// Prefetch is optional.
	Prefetch Prefetcher
	// Watch is optional.
	Watch Watcher
	// Layer are the options of every layer.
	Layer layer.Options
	// Grace is how long an image that nobody uses yet stays mounted: a pull
	// mounts before it is finished. Default 10 minutes.
	Grace time.Duration
	// LocalSettle is how long after its mount an image is at least left alone until it is
	// mounted from local files. Default 10 seconds.
	LocalSettle time.Duration
	Logger      *slog.Logger
}

// Manager is the table of layers and mounted images. All methods may be called
// in parallel.
type Manager struct {
	cfg Config
	log *slog.Logger

	// ctx bounds work that outlives the call that started it.
	ctx  context.Context
	stop context.CancelFunc

	// What mounts images from local files: its end, what runs, and that one does at a time.
	localizing   context.Context
	stopLocalize context.CancelFunc
	work         sync.WaitGroup
	sealing      turn

	mu     sync.Mutex
	layers map[Key]*entry
	byNode map[uint64]Key
	images map[string]*img
	gen    uint64
	// gone sums the counters of layers that were let go, for Stats.
	gone layer.Stats
}

// BlobsDir is where the FUSE file system of blob files belongs, below root.
func BlobsDir(root string) string { return filepath.Join(root, "blobs") }

// LayersDir is the directory of the cache, below root.
func LayersDir(root string) string { return filepath.Join(root, "layers") }

// New returns a Manager over what is on disk below cfg.Root. It reads names
// only: no layer is parsed and nothing is mounted before it is asked for.
func New(cfg Config) (*Manager, error) {
	if cfg.Grace == 0 {
		cfg.Grace = 10 * time.Minute
	}
	if cfg.LocalSettle == 0 {
		cfg.LocalSettle = localSettle
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	if cfg.Watch == nil {
		cfg.Watch = noWatcher{}
	}
	m := &Manager{
		cfg: cfg, log: cfg.Logger,
		sealing: newTurn(), layers: map[Key]*entry{}, byNode: map[uint64]Key{}, images: map[string]*img{},
	}
	m.ctx, m.stop = context.WithCancel(context.Background())
	m.localizing, m.stopLocalize = context.WithCancel(m.ctx)
	if err := os.MkdirAll(filepath.Join(cfg.Root, "images"), 0o700); err != nil {
		return nil, fmt.Errorf("images: %w", err)
	}
	keys, err := cfg.Cache.Keys()
	if err != nil {
		return nil, fmt.Errorf("images: list layers: %w", err)
	}
	for _, k := range keys {
		m.byNode[Key(k).Node()] = Key(k)
	}
	return m, m.adopt()
}

// Close stops background work and closes the layers. Mounts stay: they belong
// to the containers that use them, and the next daemon serves them.
func (m *Manager) Close() error {
	m.endLocalize()
	m.stop()
	m.mu.Lock()
	defer m.mu.Unlock()
	var first error
	for _, e := range m.layers {
		if err := m.closeLocked(e); err != nil && first == nil {
			first = err
		}
	}
	return first
}

// Add makes the layer src ready to be mounted and read: its index or its table of
// contents is on disk, verified against src.IndexDigest or src.TOCDigest. Only the first call for a layer
// asks the registry, and parallel calls share that one request.
func (m *Manager) Add(ctx context.Context, src source.Layer) (Key, error) {
	key, err := KeyOf(src)
	if err != nil {
		return "", err
	}
	e, err := m.entry(key)
	if err != nil {
		return "", err
	}
	if err := e.load(ctx, m, &src); err != nil {
		return key, err
	}
	m.mu.Lock()
	l := e.lay
	m.mu.Unlock()
	if l != nil {
		m.cfg.Watch.Loaded(src, l)
	}
	return key, nil
}

// readers returns the layers with these keys; nil for those that are not loaded.
func (m *Manager) readers(keys []Key) []*layer.Layer {
	m.mu.Lock()
	defer m.mu.Unlock()
	list := make([]*layer.Layer, len(keys))
	for i, k := range keys {
		if e := m.layers[k]; e != nil {
			list[i] = e.lay
		}
	}
	return list
}

// entry returns the table's row for key, made when it is not there yet.
func (m *Manager) entry(key Key) (*entry, error) {
	node := key.Node()
	m.mu.Lock()
	defer m.mu.Unlock()
	if e := m.layers[key]; e != nil {
		e.used = time.Now()
		return e, nil
	}
	if other, ok := m.byNode[node]; ok && other != key {
		return nil, fmt.Errorf("layers %s and %s have the same node id", key, other)
	}
	e := &entry{key: key, turn: newTurn(), used: time.Now()}
	m.layers[key] = e
	m.byNode[node] = key
	return e, nil
}

// byID finds the layer that the kernel knows as node, loading it from disk if
// the daemon was started anew since it was mounted.
func (m *Manager) byID(node uint64) (*entry, bool) {
	m.mu.Lock()
	key, ok := m.byNode[node]
	m.mu.Unlock()
	if !ok {
		return nil, false
	}
	e, err := m.entry(key)
	return e, err == nil
}

// turn is a lock that is waited for no longer than a context lasts.
type turn chan struct{}

func newTurn() turn { return make(turn, 1) }

func (t turn) take(ctx context.Context) error {
	select {
	case t <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (t turn) give() { <-t }
