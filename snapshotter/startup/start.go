package startup

import (
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/apparate/apparate/snapshotter/images"
	"github.com/apparate/apparate/snapshotter/layer"
	"github.com/apparate/apparate/snapshotter/source"
)

// Names of a timeline's events, besides the steps of package images.
const (
	eventManifest      = "manifest"      // the manifest was read
	eventLooked        = "looked"        // it is known whether there is a profile
	eventCreated       = "created"       // the first container was asked for
	eventPackFirstByte = "packFirstByte" // of the pack
	eventPackDone      = "packDone"      // the stream has ended
)

// start is one start of an image: from its first Prepare to the end of its recording.
type start struct {
	e         *Engine
	ref, repo string
	manifest  digest.Digest
	began     time.Time

	mu       sync.Mutex
	events   map[string]time.Duration
	bytes    int64 // of the image, compressed; 0 until the manifest was read
	order    map[digest.Digest]int
	parts    []*part
	looking  bool // a profile is looked for, or was found, or there is none
	stream   *stream
	found    *found
	waits    *found // a profile that is used unless the manifest tells of a tiny image
	outcome  string // why the stream ended early
	complete bool
	mounted  time.Time     // zero until the image was mounted anew
	readable chan struct{} // closed once it is mounted
	created  time.Time
	over     bool
	final    Counters // once over
}

// part is one layer of a start.
type part struct {
	src  source.Layer
	l    *layer.Layer
	base layer.Stats
	rec  *layer.Recording
	// Of rec: how many reads were looked at, and how many of them the table has.
	read, hit int
}

func newStart(e *Engine, ref, repo string, manifest digest.Digest) *start {
	return &start{e: e, ref: ref, repo: repo, manifest: manifest, began: time.Now(), events: map[string]time.Duration{}, readable: make(chan struct{})}
}

// event notes when something happened for the first time.
func (st *start) event(name string) {
	st.mu.Lock()
	defer st.mu.Unlock()
	st.eventLocked(name)
}

func (st *start) eventLocked(name string) {
	if _, ok := st.events[name]; !ok && !st.over {
		st.events[name] = time.Since(st.began)
	}
}

// lookOnce says that the caller shall look for a profile.
func (st *start) lookOnce() bool {
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.looking || st.over {
		return false
	}
	st.looking = true
	return true
}

// lookAgain lets the next Begin look for a profile, as the registry did not answer.
func (st *start) lookAgain() {
	st.mu.Lock()
	defer st.mu.Unlock()
	st.looking = false
}

func (st *start) hasContainer() bool {
	st.mu.Lock()
	defer st.mu.Unlock()
	return !st.created.IsZero()
}

// setLayers notes what the manifest says.
func (st *start) setLayers(layers []source.Layer) {
	st.mu.Lock()
	defer st.mu.Unlock()
	st.eventLocked(eventManifest)
	st.order, st.bytes = map[digest.Digest]int{}, 0
	for i, l := range layers {
		st.order[l.Digest] = i
		st.bytes += l.BlobSize
	}
	if f := st.waits; f != nil {
		st.waits = nil
		st.useLocked(f)
	}
}

// attach notes a layer of the image that can be read.
func (st *start) attach(src source.Layer, l *layer.Layer) {
	st.mu.Lock()
	defer st.mu.Unlock()
	st.attachLocked(src, l)
}

func (st *start) attachLocked(src source.Layer, l *layer.Layer) *part {
	for _, p := range st.parts {
		if p.l == l {
			return p
		}
	}
	p := &part{src: src, l: l, base: l.Stats()}
	if st.over {
		return p
	}
	st.parts = append(st.parts, p)
	if st.stream != nil {
		st.stream.attach(l)
	}
	return p
}

// completed says that no more layers come.
func (st *start) completed() {
	st.mu.Lock()
	defer st.mu.Unlock()
	st.eventLocked(string(images.StepLoaded))
	st.complete = true
	if st.stream != nil {
		st.stream.allAttached()
	}
}

// mounting begins to record.
func (st *start) mounting(layers []source.Layer, readers []*layer.Layer) {
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.over {
		return
	}
	st.mounted = time.Now()
	for i, l := range readers {
		if l == nil {
			continue
		}
		if p := st.attachLocked(layers[i], l); p.rec == nil {
			p.rec = l.Record()
		}
	}
}

// step notes a step of the mount.
func (st *start) step(s images.Step) {
	st.mu.Lock()
	defer st.mu.Unlock()
	st.eventLocked(string(s))
	if s == images.StepMounted {
		select {
		case <-st.readable:
		default:
			close(st.readable)
		}
	}
}

// containerCreated notes the first container.
func (st *start) containerCreated() {
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.over || !st.created.IsZero() {
		return
	}
	st.eventLocked(eventCreated)
	st.created = time.Now()
	if !st.mounted.IsZero() {
		st.e.spawn(st.watch)
	}
}

// use begins to stream the pack of a profile. One that fits a tiny image waits for the
// manifest, which is on its way and says whether this is one; a larger one cannot be of a
// tiny image.
func (st *start) use(f *found) {
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.bytes == 0 && f.table.Size <= tinyImage {
		st.waits = f
		return
	}
	st.useLocked(f)
}

// useLocked begins the stream; what is known of the image's size is known.
func (st *start) useLocked(f *found) {
	if st.over || st.stream != nil || st.bytes > 0 && st.bytes <= tinyImage {
		return
	}
	st.found = f
	s := newStream(streamOptions{
		table: f.table, own: f.own, open: st.opener(f), budget: st.budget, judge: st.judge,
		gate: st.e.o.Gate, limits: st.e.o.Limits, mounted: st.readable, event: st.event, spawn: st.e.spawn, log: st.e.log.With("image", st.ref),
	})
	st.stream = s
	for _, p := range st.parts {
		s.attach(p.l)
	}
	if st.complete {
		s.allAttached()
	}
	st.e.metrics.used.Inc()
	st.e.spawn(func() {
		// A pull that has failed must not keep what has come already.
		late := time.AfterFunc(maxUnready, s.allAttached)
		defer late.Stop()
		reason := s.run(st.e.ctx)
		st.mu.Lock()
		st.outcome = reason
		st.mu.Unlock()
		st.e.metrics.ended(s, reason)
	})
}

// budget is how many bytes of its pack the start may fetch.
func (st *start) budget() int64 {
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.bytes == 0 {
		return st.e.o.Budget
	}
	return min(st.e.o.Budget, st.bytes*budgetShare/100)
}

// judge counts the chunks that were read first, and those of them in the table.
func (st *start) judge() (read, hit int) {
	st.mu.Lock()
	defer st.mu.Unlock()
	return st.judgeLocked()
}

func (st *start) judgeLocked() (read, hit int) {
	for _, p := range st.parts {
		if p.rec == nil || st.stream == nil {
			continue
		}
		for _, r := range p.rec.Reads(p.read) {
			p.read++
			if sum, _ := p.l.Chunk(r.Chunk); st.stream.has(sum) {
				p.hit++
			}
		}
		read, hit = read+p.read, hit+p.hit
	}
	return read, hit
}

// drop ends a start without a sample.
func (st *start) drop() {
	st.mu.Lock()
	defer st.mu.Unlock()
	st.endLocked()
}

// endLocked lets the layers go; what was counted stays.
func (st *start) endLocked() {
	if st.over {
		return
	}
	st.final = st.countLocked()
	st.over = true
	if st.stream != nil {
		st.stream.allAttached() // if it still waits for layers, in vain
		st.stream.forget()
	}
	for _, p := range st.parts {
		if p.rec != nil {
			p.l.Forget(p.rec)
		}
	}
	st.parts = nil
}
