package startup

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/apparate/apparate/snapshotter/fetch"
	"github.com/apparate/apparate/snapshotter/images"
	"github.com/apparate/apparate/snapshotter/layer"
	"github.com/apparate/apparate/snapshotter/prefetch"
	"github.com/apparate/apparate/snapshotter/source"
)

// Mode says what is done with start-up profiles.
type Mode string

// The modes.
const (
	// On records starts and uses profiles.
	On Mode = "on"
	// Record records starts and asks for no profile.
	Record Mode = "record"
	// Off does neither.
	Off Mode = "off"
)

// Set parses a mode, for a command line.
func (m *Mode) Set(s string) error {
	switch v := Mode(s); v {
	case On, Record, Off:
		*m = v
		return nil
	}
	return fmt.Errorf("%q is no mode of start-up profiles: use on, record or off", s)
}

// String returns the mode's name.
func (m *Mode) String() string { return string(*m) }

// Type names the value in help texts.
func (m *Mode) Type() string { return "mode" }

// Registry is what an Engine asks of registries; *source.Resolver.
type Registry interface {
	// Referrers lists what is attached to the manifest d; nothing of it is verified.
	Referrers(ctx context.Context, ref string, d digest.Digest, artifactType string) ([]ocispec.Descriptor, error)
	// Attachment returns the layers of the artifact d, verified.
	Attachment(ctx context.Context, ref string, d digest.Digest) ([]ocispec.Descriptor, error)
	// Bytes returns a blob of at most so many bytes, verified.
	Bytes(ctx context.Context, ref string, desc ocispec.Descriptor, most int64) ([]byte, error)
	// Open opens a blob of a known size without I/O.
	Open(ctx context.Context, ref string, d digest.Digest, size int64) (fetch.Blob, error)
}

const (
	// defaultBudget bounds the bytes of one pack.
	defaultBudget = 256 << 20
	// tinyImage is the compressed size in bytes of images that are started without a
	// profile: their layers come whole at once (small in package node), and a second copy
	// of them is in the way.
	tinyImage = 2 << 20
	// budgetShare of an image, in percent, bounds them as well.
	budgetShare = 60
	// maxStarts is how many starts are remembered.
	maxStarts = 64
	// maxActive is how many of them may be recorded: a mounted image that no container
	// was made of takes one.
	maxActive = 32
	// maxUnstarted is how long an image waits for its first container.
	maxUnstarted = time.Hour
	// maxUnready is how long a stream waits for the image's indexes.
	maxUnready = time.Minute
	// pullAgain is how long a pull that did not get to a mount is one with the next.
	pullAgain = time.Minute
)

// Options are the choices of an Engine.
type Options struct {
	// Root is the directory below which samples/ and profiles/ are.
	Root string
	// Mode is On by default.
	Mode     Mode
	Registry Registry
	// Gate tells of readers' requests, to which streams give way; nil: they do not.
	Gate layer.Gate
	// Limits are those of the layers.
	Limits *layer.Limits
	// Budget bounds the bytes that one pack may take; 0 means 256 MiB. It may never
	// be more than 60 % of the image.
	Budget int64
	Logger *slog.Logger
}

// Engine records the starts of images and streams their profiles. It is told of them by
// the snapshotter (Begin, Manifest, Complete, Created) and by package images (the
// methods of images.Watcher). All methods may be called in parallel; none blocks.
type Engine struct {
	o       Options
	log     *slog.Logger
	samples *samples
	tables  *tables
	metrics *metrics

	ctx  context.Context
	stop context.CancelFunc

	life   sync.Mutex // guards closed, and wg against it
	closed bool
	wg     sync.WaitGroup

	mu     sync.Mutex
	active map[digest.Digest]*start
	recent []*start // the newest last
}

var _ images.Watcher = (*Engine)(nil)

// New returns an Engine over what is below o.Root. Its caller closes it.
func New(o Options) (*Engine, error) {
	if o.Mode == "" {
		o.Mode = On
	}
	if o.Budget == 0 {
		o.Budget = defaultBudget
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	if o.Limits == nil {
		o.Limits = layer.NewLimits(0, 0)
	}
	if o.Gate == nil {
		o.Gate = &prefetch.Gate{}
	}
	for _, dir := range []string{samplesDir, tablesDir} {
		if err := os.MkdirAll(filepath.Join(o.Root, dir), 0o700); err != nil {
			return nil, fmt.Errorf("startup: %w", err)
		}
	}
	e := &Engine{
		o: o, log: o.Logger, active: map[digest.Digest]*start{}, metrics: newMetrics(),
		samples: &samples{dir: filepath.Join(o.Root, samplesDir)}, tables: &tables{dir: filepath.Join(o.Root, tablesDir)},
	}
	e.ctx, e.stop = context.WithCancel(context.Background())
	return e, nil
}

// Close ends streams and recordings, and waits for them.
func (e *Engine) Close() {
	e.life.Lock()
	e.closed = true
	e.life.Unlock()
	e.stop()
	e.wg.Wait()
}

// spawn runs f, for which Close waits.
func (e *Engine) spawn(f func()) {
	e.life.Lock()
	defer e.life.Unlock()
	if !e.closed {
		e.wg.Go(f)
	}
}

// Begin says that the first layer of an image was asked for: a profile is looked for.
func (e *Engine) Begin(ref string, manifest digest.Digest) {
	if e.o.Mode == Off || manifest == "" {
		return
	}
	repo, err := source.Repository(ref)
	if err != nil {
		return
	}
	e.mu.Lock()
	st := e.active[manifest]
	if st == nil || time.Since(st.began) >= pullAgain && !st.hasContainer() {
		st = e.addLocked(ref, repo, manifest)
	}
	e.mu.Unlock()
	// A pull that is tried again, with credentials that have come, looks again.
	if e.o.Mode == On && st.lookOnce() {
		e.spawn(func() { e.look(st) })
	}
}

// addLocked makes a start and lets those go that nobody waits for any more.
func (e *Engine) addLocked(ref, repo string, manifest digest.Digest) *start {
	st := newStart(e, ref, repo, manifest)
	if old := e.active[manifest]; old != nil {
		old.drop()
	}
	e.active[manifest] = st
	e.recent = append(e.recent, st)
	if len(e.recent) > maxStarts {
		e.recent = e.recent[len(e.recent)-maxStarts:]
	}
	var oldest *start
	for d, s := range e.active {
		switch {
		case s == st || s.hasContainer():
		case time.Since(s.began) > maxUnstarted:
			s.drop()
			delete(e.active, d)
		case oldest == nil || s.began.Before(oldest.began):
			oldest = s
		}
	}
	if len(e.active) > maxActive && oldest != nil {
		oldest.drop()
		delete(e.active, oldest.manifest)
	}
	return st
}

// start returns the start of an image that is going on, nil when there is none.
func (e *Engine) start(manifest digest.Digest) *start {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.active[manifest]
}

// finished forgets a start that is over.
func (e *Engine) finished(st *start) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.active[st.manifest] == st {
		delete(e.active, st.manifest)
	}
}

// Manifest says which layers an image has.
func (e *Engine) Manifest(manifest digest.Digest, layers []source.Layer) {
	if st := e.start(manifest); st != nil {
		st.setLayers(layers)
	}
}

// Complete says that all layers of an image which can be read lazily are.
func (e *Engine) Complete(manifest digest.Digest) {
	if st := e.start(manifest); st != nil {
		st.completed()
	}
}

// Created says that a container is made of the chain layers, bottom first.
func (e *Engine) Created(layers []source.Layer) {
	if st := e.start(top(layers)); st != nil {
		st.containerCreated()
	}
}

// Loaded implements images.Watcher.
func (e *Engine) Loaded(src source.Layer, l *layer.Layer) {
	if st := e.start(src.Manifest); st != nil {
		st.attach(src, l)
	}
}

// Mounting implements images.Watcher. An image that nobody pulled just now, after a
// reboot, is recorded as well.
func (e *Engine) Mounting(layers []source.Layer, readers []*layer.Layer) {
	manifest := top(layers)
	if e.o.Mode == Off || manifest == "" {
		return
	}
	st := e.start(manifest)
	if st == nil {
		repo, err := source.Repository(layers[len(layers)-1].Ref)
		if err != nil {
			return
		}
		e.mu.Lock()
		st = e.addLocked(layers[len(layers)-1].Ref, repo, manifest)
		e.mu.Unlock()
	}
	st.mounting(layers, readers)
}

// Mounted implements images.Watcher.
func (e *Engine) Mounted(layers []source.Layer, s images.Step) {
	if st := e.start(top(layers)); st != nil {
		st.step(s)
	}
}

// top is the manifest that the topmost layer of a chain was pulled with: lower layers
// may have come with another image.
func top(layers []source.Layer) digest.Digest {
	if len(layers) == 0 {
		return ""
	}
	return layers[len(layers)-1].Manifest
}
