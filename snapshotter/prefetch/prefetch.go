// Package prefetch fetches what is still missing of lazy layers in the
// background, and gives way to programs that wait for their own reads.
//
// A layer is left alone for Options.Delay after Add, while its container starts
// and its reads say best what is needed; all of a small one comes at once. Then its missing members are fetched in the
// order of the blob, a window at a time, layers in turn. Before each window the Runner
// waits until no demand read has waited for a moment (Gate); within a window package
// layer gives way by itself. A layer that is eager does not wait, nor for its delay: its
// readers wait one after the other for answers, while the line is idle.
//
// It ends when nothing is missing. It stops for a while when the cache is full
// (Options.Full): more would push out what is in use. An error doubles the pause before the
// next try, up to a minute, so a registry that is down is not hammered and a log
// not flooded.
package prefetch

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"
)

// Layer is what can be fetched; *layer.Layer is one.
type Layer interface {
	// Missing returns the next run of missing members [lo, hi) at or after from,
	// of at most bytes compressed bytes but at least one member, or false.
	Missing(from int, bytes int64) (lo, hi int, ok bool)
	// Fetch fetches the members [from, to). It may return nil early, having given
	// way to a reader.
	Fetch(ctx context.Context, from, to int) error
	// Eager says that the layer had better come now, beside what readers wait for. It is
	// asked often.
	Eager() bool
}

// Options are the choices of a Runner; the zero value is usable.
type Options struct {
	// Delay is how long after Add a layer is left alone.
	Delay time.Duration
	// Small is up to how many compressed bytes a layer is not left alone: the first
	// read that waits would bring nearly all of it. 0: no layer is that small.
	Small int64
	// Concurrency is how many windows are fetched at the same time; 0 means 1.
	Concurrency int
	// Window is the compressed bytes of one request; 0 means 4 MiB.
	Window int64
	// Gate is the one that the layers have; nil means that nothing is waited for.
	Gate *Gate
	// Quiet is how long no demand read must have waited; 0 means 50 ms.
	Quiet time.Duration
	// Full says that the cache has no room for what nobody asked for; the layer is
	// tried again after FullPause. nil means never.
	Full func(key string) bool
	// FullPause is how long a layer rests when the cache is full, or when members
	// are missing after all were fetched once; 0 means 30 s.
	FullPause time.Duration
	// Backoff is the pause after a first error; 0 means 1 s. It doubles to a minute.
	Backoff time.Duration
	// Done is called, on a goroutine of the Runner, when nothing was missing any
	// more of a layer; nil means that nobody wants to know.
	Done func(key string)
	// Logger gets errors; nil means slog.Default.
	Logger *slog.Logger
}

const (
	defaultWindow    = 4 << 20
	defaultQuiet     = 50 * time.Millisecond
	defaultFullPause = 30 * time.Second
	defaultBackoff   = time.Second
	maxBackoff       = time.Minute
	// eagerPoll is how often it is asked whether a layer has become eager.
	eagerPoll = 250 * time.Millisecond
	// eagerWindows is how many windows one request has then: a registry that is slow to
	// answer is asked seldom.
	eagerWindows = 4
)

func (o Options) withDefaults() Options {
	if o.Concurrency <= 0 {
		o.Concurrency = 1
	}
	if o.Window <= 0 {
		o.Window = defaultWindow
	}
	if o.Gate == nil {
		o.Gate = new(Gate)
	}
	if o.Quiet <= 0 {
		o.Quiet = defaultQuiet
	}
	if o.Full == nil {
		o.Full = func(string) bool { return false }
	}
	if o.FullPause <= 0 {
		o.FullPause = defaultFullPause
	}
	if o.Backoff <= 0 {
		o.Backoff = defaultBackoff
	}
	if o.Done == nil {
		o.Done = func(string) {}
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	return o
}

// Runner fetches the layers it was given. All methods may be called in parallel.
type Runner struct {
	o Options
	// ctx ends with Close; the jobs' contexts are its children.
	ctx    context.Context
	cancel context.CancelFunc
	// wake has room for one: something may be ready earlier than thought.
	wake chan struct{}
	runs sync.WaitGroup

	mu     sync.Mutex
	closed bool
	jobs   []*job // in turn; those being worked on are not in it
	byKey  map[string]*job
}

// job is one layer; its fields below layer belong to whoever took it off jobs.
type job struct {
	key    string
	layer  Layer
	ctx    context.Context
	cancel context.CancelFunc

	begun   bool // a window was asked for, so that its delay is over
	next    int  // member to go on from
	again   int  // windows in a row that began there
	ready   time.Time
	backoff time.Duration
}

// maxAgain is how often a window may be fetched without getting further.
const maxAgain = 4

// advance notes that the window from lo was fetched. Not its end: the layer may
// have given way before it got there.
func (j *job) advance(lo int) {
	if j.again++; j.next != lo {
		j.next, j.again = lo, 1
	}
	j.backoff = 0
	if j.again > maxAgain {
		// Nothing stays in the cache: leave it to the next round.
		j.next, j.again = lo+1, 0
	}
}

// New returns a Runner. It does nothing until Run.
func New(o Options) *Runner {
	r := &Runner{o: o.withDefaults(), wake: make(chan struct{}, 1), byKey: map[string]*job{}}
	r.ctx, r.cancel = context.WithCancel(context.Background())
	return r
}

// Add has the rest of a layer fetched, Delay from now. A key that is there
// already is replaced. After Close nothing happens.
func (r *Runner) Add(key string, l Layer) {
	delay := r.o.Delay
	if r.small(l) {
		delay = 0
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return
	}
	r.dropLocked(key)
	j := &job{key: key, layer: l, ready: time.Now().Add(delay)}
	j.ctx, j.cancel = context.WithCancel(r.ctx)
	r.byKey[key] = j
	r.jobs = append(r.jobs, j)
	r.poke()
}

// small says whether all that is missing of a layer comes in one request of
// Options.Small bytes.
func (r *Runner) small(l Layer) bool {
	if r.o.Small <= 0 {
		return false
	}
	_, hi, ok := l.Missing(0, r.o.Small)
	if ok {
		_, _, ok = l.Missing(hi, 1)
	}
	return !ok
}

// Remove stops the fetching of a layer. A request under way is no longer waited
// for; closing the layer ends it.
func (r *Runner) Remove(key string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.dropLocked(key)
}

// dropLocked forgets a job, wherever it is.
func (r *Runner) dropLocked(key string) {
	j := r.byKey[key]
	if j == nil {
		return
	}
	j.cancel()
	delete(r.byKey, key)
	for i, x := range r.jobs {
		if x == j {
			r.jobs = append(r.jobs[:i], r.jobs[i+1:]...)
			return
		}
	}
}

// Len is how many layers are not complete yet.
func (r *Runner) Len() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.byKey)
}

// Run works until ctx ends or Close is called.
func (r *Runner) Run(ctx context.Context) {
	r.mu.Lock()
	if r.closed {
		r.mu.Unlock()
		return
	}
	r.runs.Add(1)
	r.mu.Unlock()
	defer r.runs.Done()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(r.ctx, cancel)()

	var workers sync.WaitGroup
	for range r.o.Concurrency {
		workers.Go(func() { r.work(ctx) })
	}
	workers.Wait()
}

// Close stops everything and waits for Run to return.
func (r *Runner) Close() {
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	r.cancel()
	r.runs.Wait()
}

// poke has one worker look again.
func (r *Runner) poke() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// work takes jobs in turn, one window each.
func (r *Runner) work(ctx context.Context) {
	for ctx.Err() == nil {
		j, wait := r.take(time.Now())
		if j == nil {
			r.pause(ctx, wait)
			continue
		}
		r.giveBack(j, r.await(ctx, j) && r.window(ctx, j))
	}
}

// await returns once a window of j may be fetched; or false, after a while in which
// readers did not leave the moment for it that it needs. Another one may be eager by then.
func (r *Runner) await(ctx context.Context, j *job) bool {
	if j.layer.Eager() {
		return true
	}
	ctx, cancel := context.WithTimeout(ctx, eagerPoll)
	defer cancel()
	return r.o.Gate.Wait(ctx, r.o.Quiet) == nil
}

// pause waits until something may be ready: for a time, or with wait 0 until
// a layer is added.
func (r *Runner) pause(ctx context.Context, wait time.Duration) {
	var after <-chan time.Time
	if wait > 0 {
		t := time.NewTimer(wait)
		defer t.Stop()
		after = t.C
	}
	select {
	case <-ctx.Done():
	case <-after:
	case <-r.wake:
	}
}

// take takes the first job that is ready, those whose layers are eager before others, or
// says how long until one may be; 0 when there is none.
func (r *Runner) take(now time.Time) (*job, time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	wait, first := time.Duration(0), -1
	for i, j := range r.jobs {
		d := j.ready.Sub(now)
		if d <= 0 || !j.begun {
			if j.layer.Eager() {
				first = i
				break
			}
			if d > 0 {
				d = min(d, eagerPoll)
			}
		}
		switch {
		case d > 0 && (wait == 0 || d < wait):
			wait = d
		case d <= 0 && first < 0:
			first = i
		}
	}
	if first < 0 {
		return nil, wait
	}
	j := r.jobs[first]
	r.jobs = slices.Delete(r.jobs, first, first+1)
	if len(r.jobs) > 0 {
		r.poke() // for another worker
	}
	return j, 0
}

// giveBack puts a job at the end of the queue, unless it is done or removed.
func (r *Runner) giveBack(j *job, done bool) {
	r.mu.Lock()
	if r.byKey[j.key] != j {
		r.mu.Unlock()
		return // removed, or replaced
	}
	if !done {
		r.jobs = append(r.jobs, j)
		r.poke()
		r.mu.Unlock()
		return
	}
	delete(r.byKey, j.key)
	r.mu.Unlock()
	j.cancel()
	r.o.Done(j.key)
}

// window fetches the next window of a layer; done says that none is missing.
func (r *Runner) window(ctx context.Context, j *job) (done bool) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(j.ctx, cancel)()

	j.begun, j.ready = true, time.Time{}
	bytes := r.o.Window
	if j.layer.Eager() {
		bytes *= eagerWindows
	}
	lo, hi, ok := j.layer.Missing(j.next, bytes)
	if !ok && j.next == 0 {
		return true
	}
	if !ok || r.o.Full(j.key) {
		// At the end, but what is behind us may have failed or been evicted: look
		// again, and not at once, or two layers would push each other out for ever.
		if !ok {
			j.next = 0
			if _, _, ok = j.layer.Missing(0, 1); !ok {
				return true
			}
		}
		j.ready = time.Now().Add(r.o.FullPause)
		return false
	}
	err := j.layer.Fetch(ctx, lo, hi)
	switch {
	case err == nil:
		j.advance(lo)
	case ctx.Err() != nil:
	default:
		// Go on behind it: one bad member must not keep the others away.
		j.next = hi
		j.backoff = min(max(2*j.backoff, r.o.Backoff), maxBackoff)
		j.ready = time.Now().Add(j.backoff)
		r.o.Logger.Warn("background fetch failed", "layer", j.key, "retry", j.backoff, "error", err)
	}
	return false
}
