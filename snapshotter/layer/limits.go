package layer

import (
	"context"
	"math/bits"
	"runtime"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"
)

// Limits bounds what all layers that share it do at the same time, and lends
// them buffers.
type Limits struct {
	memory *semaphore.Weighted
	most   int64

	workers int

	mu      sync.Mutex
	free    int                 // workers
	sparing int                 // those at work on what may never be read
	lines   [spare + 1][]*place // who waits for one
	last    time.Time           // when a reader last needed one
	pressed int                 // who waits for memory
	later   *time.Timer         // grants once all is quiet; nil when it is not set

	// readers holds *gzip.Reader, inflaters *inflate.Decoder, frames *zstd.Decoder;
	// buffers[k] holds *[]byte of 1<<k bytes.
	readers   sync.Pool
	inflaters sync.Pool
	frames    sync.Pool
	buffers   [maxPooledBits + 1]sync.Pool
}

// haste is how soon a member is to be decompressed.
type haste uint8

const (
	// now: a reader waits for it.
	now haste = iota
	// soon: a reader is on its way to it, or somebody fetches it in order to have it.
	soon
	// spare: it came along with others. Many of these are never read, and while a program
	// starts, the processors are better used for what is: they wait for a quiet moment.
	spare
)

// quiet is how long no reader has needed a worker when spare members get theirs.
const quiet = 50 * time.Millisecond

// place is one's place in the line for a worker.
type place struct {
	turn  chan struct{} // has an element when it is one's turn
	haste haste
}

const (
	// defaultInFlight is the memory for members that are being fetched.
	defaultInFlight = 64 << 20
	// minPooledBits and maxPooledBits are the logarithms of the smallest and the
	// largest buffer that is kept: most chunks are 256 KiB, foreign ones 4 MiB.
	minPooledBits, maxPooledBits = 12, 23
)

// NewLimits returns bounds: workers members are decompressed at the same time
// (0 means one for each CPU), and members in flight hold at most bytes of memory,
// compressed and not (0 means 64 MiB). A member larger than that goes alone.
func NewLimits(workers int, bytes int64) *Limits {
	if workers <= 0 {
		workers = runtime.GOMAXPROCS(0)
	}
	if bytes <= 0 {
		bytes = defaultInFlight
	}
	return &Limits{memory: semaphore.NewWeighted(bytes), most: bytes, workers: workers, free: workers}
}

// hold waits for n bytes of memory; release gives them back.
func (x *Limits) hold(ctx context.Context, n int64) (release func(), err error) {
	n = min(n, x.most)
	if !x.memory.TryAcquire(n) {
		// What waits for a quiet moment has it.
		x.press(1)
		err := x.memory.Acquire(ctx, n)
		x.press(-1)
		if err != nil {
			return nil, err
		}
	}
	return func() { x.memory.Release(n) }, nil
}

func (x *Limits) press(n int) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.pressed += n
	x.grant()
}

// line takes a place in the line for a worker; await must follow.
func (x *Limits) line(h haste) *place {
	p := &place{turn: make(chan struct{}, 1), haste: h}
	x.mu.Lock()
	defer x.mu.Unlock()
	x.join(p)
	return p
}

// join puts p into its line; mu is held.
func (x *Limits) join(p *place) {
	if p.haste == now {
		x.last = time.Now()
	}
	x.lines[p.haste] = append(x.lines[p.haste], p)
	x.grant()
}

// hurry lets p wait no longer than h says; it does nothing once it is p's turn.
func (x *Limits) hurry(p *place, h haste) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if p.haste > h && x.leave(p) {
		p.haste = h
		x.join(p)
	}
}

// leave takes p out of its line and says whether it was in it; mu is held.
func (x *Limits) leave(p *place) bool {
	line := &x.lines[p.haste]
	k := slices.Index(*line, p)
	if k < 0 {
		return false
	}
	*line = slices.Delete(*line, k, k+1)
	return true
}

// await waits for the turn of p; done must follow, unless there is an error.
func (x *Limits) await(ctx context.Context, p *place) error {
	select {
	case <-p.turn:
		return nil
	case <-ctx.Done():
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if !x.leave(p) { // its turn came at the same moment
		x.free++
		x.spared(p, -1)
		x.grant()
	}
	return ctx.Err()
}

// done gives the worker of p back.
func (x *Limits) done(p *place) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if p.haste == now {
		x.last = time.Now()
	}
	x.free++
	x.spared(p, -1)
	x.grant()
}

func (x *Limits) spared(p *place, n int) {
	if p.haste == spare {
		x.sparing += n
	}
}

// grant hands turns out; mu is held.
func (x *Limits) grant() {
	for h := range x.lines {
		line := &x.lines[h]
		for x.free > 0 && len(*line) > 0 && (haste(h) < spare || x.maySpare()) {
			p := (*line)[0]
			*line = slices.Delete(*line, 0, 1)
			x.free--
			x.spared(p, 1)
			p.turn <- struct{}{}
		}
	}
}

// maySpare says whether a worker may turn to what perhaps nobody reads: a quarter of
// them always, all but one where it is quiet. mu is held.
func (x *Limits) maySpare() bool {
	if x.pressed > 0 || x.sparing < x.workers/4 {
		return true
	}
	left := quiet - time.Since(x.last)
	if left <= 0 {
		return x.sparing < max(x.workers-1, 1)
	}
	if x.later == nil {
		x.later = time.AfterFunc(left, func() {
			x.mu.Lock()
			defer x.mu.Unlock()
			x.later = nil
			x.grant()
		})
	}
	return false
}

// buffer returns n bytes of any content; recycle takes them back.
func (x *Limits) buffer(n int64) []byte {
	k := max(bits.Len64(uint64(n-1)), minPooledBits)
	if n <= 0 || k > maxPooledBits {
		return make([]byte, n)
	}
	if b, ok := x.buffers[k].Get().(*[]byte); ok {
		return (*b)[:n]
	}
	return make([]byte, n, 1<<k)
}

// recycle takes a buffer that nobody refers to any more.
func (x *Limits) recycle(b []byte) {
	k := bits.Len(uint(cap(b))) - 1
	if k < minPooledBits || k > maxPooledBits || cap(b) != 1<<k {
		return
	}
	x.buffers[k].Put(&b)
}
