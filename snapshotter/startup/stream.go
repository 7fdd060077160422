package startup

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/apparate/apparate/api/profile"
	"github.com/apparate/apparate/snapshotter/fetch"
	"github.com/apparate/apparate/snapshotter/layer"
)

const (
	// maxPending bounds the decoded chunks that wait for indexes of layers.
	maxPending = 32 << 20
	// maxDecoding bounds the groups between the network and the cache.
	maxDecoding = 4
	// skipBytes is how many bytes of groups that nobody needs are read over rather
	// than asked around: what a round trip costs on a fast link.
	skipBytes = 256 << 10
	// maxGiveWay is how long the stream stands still between two groups for readers'
	// requests: longer, and the registry would hang up.
	maxGiveWay = 500 * time.Millisecond
	// urgentPoll is how often a stream that stands still looks whether a reader waits
	// for it.
	urgentPoll = 2 * time.Millisecond
	// minJudged is how many chunks are seen before a stream is judged by them.
	minJudged = 32
)

// Reasons why a stream ended early; they are labels of a metric.
const (
	abandonedUnread  = "not_read"  // the program reads other chunks
	abandonedBad     = "bad_pack"  // the pack is not what the table says
	abandonedCached  = "cached"    // most of it is here
	abandonedForeign = "no_match"  // nothing of it belongs to the image
	abandonedFailed  = "registry"  // it could not be read
	abandonedClosed  = "shut_down" // the daemon ends
	endedBudget      = "budget"    // as much as it may fetch
	endedWhole       = ""          // all that is wanted was streamed
)

// streamOptions say what a stream brings and what it heeds.
type streamOptions struct {
	table *profile.Table
	// own says that the table was made of this very image, so that its chunks belong
	// to it and the stream need not wait for indexes.
	own bool
	// open opens the pack.
	open func(context.Context) (fetch.Blob, error)
	// budget is how many bytes the stream may fetch now.
	budget func() int64
	// judge says how many chunks the program has read first, and how many of those the
	// table has.
	judge  func() (read, hit int)
	gate   layer.Gate
	limits *layer.Limits
	// mounted is closed once the image can be read.
	mounted <-chan struct{}
	// event is told what happened, by the name of a timeline's event.
	event func(name string)
	// spawn runs what nobody waits for.
	spawn func(func())
	log   *slog.Logger
}

// stream brings the chunks of one pack to the layers of one image.
type stream struct {
	streamOptions
	offsets []int64          // of the groups, and the end of the pack
	groupOf map[uint64]int32 // the first group that has a chunk, by its ID

	// What readers look at without a lock. Times are nanoseconds since epoch.
	epoch    time.Time
	received atomic.Int64 // bytes of the pack
	asked    atomic.Int64 // when the first request was sent
	first    atomic.Int64 // when the first byte came, 0 before
	latest   atomic.Int64 // when the last byte came, or reading was taken up again
	idle     atomic.Int64 // how long we did not read since the first byte
	reading  atomic.Bool
	current  atomic.Int32 // the group being read
	within   atomic.Int64 // bytes of it that came
	waiting  atomic.Int32 // readers
	closed   atomic.Bool
	state    []atomic.Uint32 // of each group
	done     []chan struct{} // closed when a group is settled
	over     chan struct{}   // closed when the stream has ended

	stats streamStats

	decoders *decoders
	slots    chan struct{} // of groups between the network and the cache
	early    chan struct{} // of those that are decoded before the image is mounted
	work     sync.WaitGroup

	mu       sync.Mutex
	feeds    []*feed
	targets  map[[32]byte][]target
	matched  int64               // bytes of content of chunks that the table lists
	had      int64               // and that were here before the stream
	places   map[uint64][]target // by ID; not changed any more once complete
	reason   string              // why the plan is to fetch nothing
	complete bool                // no more layers come
	applying int                 // feeds that are given what came before them
	pending  []piece
	bytes    int64 // of pending
	held     []int // groups that are settled once applying is 0 and complete
	changed  chan struct{}
}

// The states of a group.
const (
	ahead   = iota // not here yet
	taken          // received, being decoded
	settled        // its chunks are where they belong, or will not come
)

// streamStats are counts of a stream.
type streamStats struct {
	chunks    atomic.Int64
	content   atomic.Int64 // bytes that the table promises of them
	bad       atomic.Int64 // those that did not decompress, or belong nowhere
	delivered atomic.Int64 // bytes of content that the cache took
	decode    atomic.Int64 // nanoseconds
	overtaken atomic.Int64 // reads that had better ask themselves
}

func newStream(o streamOptions) *stream {
	n := len(o.table.Groups)
	s := &stream{
		streamOptions: o, offsets: make([]int64, n+1), groupOf: make(map[uint64]int32, o.table.Chunks()), epoch: time.Now(),
		state: make([]atomic.Uint32, n), done: make([]chan struct{}, n), over: make(chan struct{}),
		decoders: sharedDecoders(), slots: make(chan struct{}, maxDecoding),
		early: make(chan struct{}, max(1, runtime.GOMAXPROCS(0)/2)), targets: map[[32]byte][]target{}, changed: make(chan struct{}),
	}
	for i := range o.table.Groups {
		g := &o.table.Groups[i]
		s.offsets[i+1] = s.offsets[i] + g.Size
		s.done[i] = make(chan struct{})
		for _, c := range g.Chunks {
			if _, ok := s.groupOf[c.ID]; !ok {
				s.groupOf[c.ID] = int32(i)
			}
		}
	}
	return s
}

// run streams until there is nothing more to bring, and returns why it ended early.
// Nobody waits for it any more then. Until forget is called the layers heed what the
// table says of the reads to come.
func (s *stream) run(ctx context.Context) string {
	reason, err := s.read(ctx)
	s.work.Wait()
	if reason == endedWhole || reason == endedBudget {
		// What came before the indexes waits for them.
		s.awaitComplete(ctx)
	}
	s.end()
	if reason != endedWhole && reason != endedBudget {
		s.forget()
	}
	if err != nil && ctx.Err() == nil {
		s.log.Debug("stream of a start-up profile has ended", "pack", s.table.Pack, "error", err)
	}
	return reason
}

// end wakes everybody.
func (s *stream) end() {
	s.closed.Store(true)
	close(s.over)
	s.mu.Lock()
	s.pending, s.bytes = nil, 0
	s.mu.Unlock()
	s.event(eventPackDone)
}

// forget tells the layers that nothing is known of what is read.
func (s *stream) forget() {
	s.mu.Lock()
	feeds := s.feeds
	s.mu.Unlock()
	for _, f := range feeds {
		f.forget()
	}
}

// check says why a table is not streamed: its frames must not be longer than what is in
// them, as each is read into memory.
func check(t *profile.Table) error {
	for i := range t.Groups {
		g := &t.Groups[i]
		// zstd stores what does not get shorter, in blocks of 128 KiB with 3 bytes each.
		if n := g.ContentBytes(); g.Size > n+n>>7+4096 {
			return fmt.Errorf("group %d of the table has a frame of %d bytes for %d", i, g.Size, n)
		}
	}
	return nil
}

// read asks for one run of groups after the other.
func (s *stream) read(ctx context.Context) (string, error) {
	if !s.own && !s.awaitComplete(ctx) {
		return abandonedClosed, ctx.Err()
	}
	blob, err := s.open(ctx)
	if err != nil {
		return abandonedFailed, err
	}
	defer func() { _ = blob.Close() }() // what was read is verified
	for g := 0; g < len(s.table.Groups); {
		if s.state[g].Load() == settled {
			g++
			continue
		}
		next, reason, err := s.segment(ctx, blob, g)
		if reason != "" || err != nil {
			return reason, err
		}
		g = next
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.reason, nil
}

// segment reads groups from g on by one request and returns the next one to ask for.
func (s *stream) segment(ctx context.Context, blob fetch.Blob, g int) (next int, reason string, err error) {
	end := s.segmentEnd(g)
	if end == g {
		return g, endedBudget, nil
	}
	s.asked.CompareAndSwap(0, s.now())
	s.take(true)
	defer s.take(false)
	body, err := blob.Open(ctx, s.offsets[g], s.offsets[end]-s.offsets[g])
	if err != nil {
		return g, s.broken(ctx), err
	}
	defer func() { _ = body.Close() }() // may be closed early
	r := &counted{r: body, s: s}
	for ; g < end; g++ {
		s.current.Store(int32(g))
		s.within.Store(0)
		if s.state[g].Load() == settled {
			if s.settledRun(g) > skipBytes {
				return g, "", nil
			}
			if _, err := io.CopyN(io.Discard, r, s.table.Groups[g].Size); err != nil {
				return g, s.broken(ctx), err
			}
			continue
		}
		if reason, err := s.pause(ctx, g); reason != "" || err != nil {
			return g, reason, err
		}
		raw := make([]byte, s.table.Groups[g].Size)
		if _, err := io.ReadFull(r, raw); err != nil {
			return g, s.broken(ctx), err
		}
		s.state[g].CompareAndSwap(ahead, taken)
		if err := s.decodeLater(ctx, g, raw); err != nil {
			return g, abandonedClosed, err
		}
	}
	return g, "", nil
}

func (s *stream) broken(ctx context.Context) string {
	if ctx.Err() != nil {
		return abandonedClosed
	}
	return abandonedFailed
}

// segmentEnd is the group behind the last one of a request that begins with g: the
// budget ends it, and groups that nobody needs, where they are many.
func (s *stream) segmentEnd(g int) int {
	budget := s.budget() - s.received.Load()
	end := g
	for k := g; k < len(s.table.Groups) && s.offsets[k+1]-s.offsets[g] <= budget; k++ {
		if s.state[k].Load() == settled {
			if s.settledRun(k) > skipBytes {
				break
			}
			continue
		}
		end = k + 1
	}
	return end
}

// settledRun is how many bytes of the pack from group g on nobody needs.
func (s *stream) settledRun(g int) int64 {
	k := g
	for k < len(s.table.Groups) && s.state[k].Load() == settled {
		k++
	}
	return s.offsets[k] - s.offsets[g]
}

// pause lets the stream stand still before group g, while readers' requests are under
// way, chunks wait for their layers, or all workers are busy. A reason ends it.
func (s *stream) pause(ctx context.Context, g int) (reason string, err error) {
	s.take(false)
	defer s.take(true)
	s.giveWay(ctx)
	if err := s.awaitRoom(ctx, s.table.Groups[g].ContentBytes()); err != nil {
		return abandonedClosed, err
	}
	if read, hit := s.judge(); read >= minJudged && hit*4 < read {
		return abandonedUnread, nil
	}
	if s.stats.chunks.Load() >= minJudged && s.stats.bad.Load()*4 > s.stats.content.Load() {
		return abandonedBad, nil
	}
	if s.received.Load()+s.table.Groups[g].Size > s.budget() {
		return endedBudget, nil
	}
	return "", nil
}

// giveWay waits while requests of readers are under way, unless one waits for us.
func (s *stream) giveWay(ctx context.Context) {
	idle := s.gate.Idle()
	if idle == nil {
		return
	}
	for limit := time.Now().Add(maxGiveWay); s.waiting.Load() == 0 && time.Now().Before(limit); {
		t := time.NewTimer(urgentPoll)
		select {
		case <-idle:
			t.Stop()
			return
		case <-ctx.Done():
			t.Stop()
			return
		case <-t.C:
		}
	}
}

// awaitRoom waits until n bytes of content may wait for their layers, too.
func (s *stream) awaitRoom(ctx context.Context, n int64) error {
	return s.await(ctx, func() bool { return s.complete || s.bytes == 0 || s.bytes+n <= maxPending })
}

// awaitComplete waits until all layers are known.
func (s *stream) awaitComplete(ctx context.Context) bool {
	return s.await(ctx, func() bool { return s.complete && s.applying == 0 }) == nil
}

// await waits until good, which is asked under mu, or ctx ends.
func (s *stream) await(ctx context.Context, good func() bool) error {
	for {
		s.mu.Lock()
		ok, changed := good(), s.changed
		s.mu.Unlock()
		if ok {
			return ctx.Err()
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// notify wakes await; mu is held.
func (s *stream) notify() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// has says that the table lists a chunk.
func (s *stream) has(sum [32]byte) bool {
	_, ok := s.groupOf[profile.ID(sum)]
	return ok
}

// settle says that nothing more comes of a group.
func (s *stream) settle(g int) {
	if s.state[g].Swap(settled) != settled {
		close(s.done[g])
	}
}

func (s *stream) now() int64 { return int64(time.Since(s.epoch)) + 1 }

// take says whether bytes are being waited for, for the rate and for stalls.
func (s *stream) take(reading bool) {
	now := s.now()
	if reading == s.reading.Load() {
		return
	}
	if reading && s.first.Load() != 0 {
		s.idle.Add(now - s.latest.Load())
	}
	s.latest.Store(now)
	s.reading.Store(reading)
}

// counted counts the bytes of a response as they come.
type counted struct {
	r io.Reader
	s *stream
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	if n > 0 {
		s := c.s
		now := s.now()
		if s.first.CompareAndSwap(0, now) {
			s.event(eventPackFirstByte)
		}
		s.latest.Store(now)
		s.received.Add(int64(n))
		s.within.Add(int64(n))
	}
	if errors.Is(err, io.EOF) {
		if err = nil; n == 0 {
			err = fmt.Errorf("pack: %w", io.ErrUnexpectedEOF)
		}
	}
	return n, err
}
