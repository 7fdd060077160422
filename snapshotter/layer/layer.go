package layer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/apparate/apparate/snapshotter/fetch"
	"github.com/apparate/apparate/snapshotter/toc"
)

// Cache keeps the verified chunks of one layer, named by their index in
// toc.Index.Chunks. All methods may be called in parallel. Package cachetest has
// the suite that an implementation must pass.
type Cache interface {
	// Have says whether chunk i is there. It may be gone a moment later.
	Have(i int) bool
	// ReadAt fills p from off within chunk i. It is false, and p undefined, when
	// the chunk is not there, or turns out not to match its digest.
	ReadAt(i int, p []byte, off int64) (ok bool, err error)
	// Put keeps the whole of chunk i, which the caller has verified. An error
	// means that it is not kept. Put does not hold on to p.
	Put(i int, p []byte) error
	// Drop forgets chunk i.
	Drop(i int)
	// Present is how many bytes of chunks are there.
	Present() int64
	// Complete says that all chunks are there and verified.
	Complete() bool
	// Close ends the use of the cache; reads fail from then on.
	Close() error
}

// Gate lets background requests see demand reads; *prefetch.Gate is one.
type Gate interface {
	// Enter and Leave bracket a demand read that waits for the registry.
	Enter()
	Leave()
	// Idle returns a channel that is or will be closed once no demand read waits.
	Idle() <-chan struct{}
}

// Options are the choices of a Layer; the zero value is usable.
type Options struct {
	// Coalesce is how many compressed bytes a demand request may reach by taking
	// missing neighbours along; negative none. 0 means what could have come while the
	// registry only answers (see Link), from 512 KiB to 1 MiB, but an eighth of
	// that, and at least 128 KiB, within a file that is larger than 64 MiB: such files are
	// read in places or from end to end, and reading ahead serves the latter.
	Coalesce int64
	// Gap is how many compressed bytes that are not wanted may lie between two
	// members of one request; 0 means 16 KiB, negative none.
	Gap int64
	// ReadAhead is how far a sequential reader is fetched ahead of, in bytes of
	// content; 0 means 16 MiB, negative not at all.
	ReadAhead int64
	// Limits bounds memory and decompression; nil means bounds of its own. All
	// layers of a process should share one.
	Limits *Limits
	// Gate is told of demand reads and asked before background work; nil means
	// that background requests do not give way.
	Gate Gate
	// Logger gets failed verifications; nil means slog.Default.
	Logger *slog.Logger
}

// Link is what a blob may tell of the way to its registry; those of package fetch do.
type Link interface {
	// Worth is how many bytes could come while the registry answers a request; 0 is
	// not known.
	Worth() int64
	// Line is how fast bytes come, in bytes a second, and which part of that, from 0 to
	// 1, requests of readers leave unused; 0 and 0 is not known.
	Line() (rate int64, free float64)
}

const (
	// adaptive is Options.Coalesce where coalesce decides.
	adaptive = -1
	// A little more than 512 KiB and 1 MiB: so that chunks fit that do not compress.
	minCoalesce      = 528 << 10
	maxCoalesce      = 1056 << 10
	hugeFile         = 64 << 20
	hugeCoalesce     = 128 << 10
	hugeShare        = 8 // of what a round trip is worth
	defaultGap       = 16 << 10
	defaultReadAhead = 16 << 20
)

// withDefaults fills in what was left out.
func (o Options) withDefaults() Options {
	choose := func(v *int64, def int64) {
		switch {
		case *v == 0:
			*v = def
		case *v < 0:
			*v = 0
		}
	}
	if o.Coalesce < 0 {
		o.Coalesce = 0
	} else if o.Coalesce == 0 {
		o.Coalesce = adaptive
	}
	choose(&o.Gap, defaultGap)
	choose(&o.ReadAhead, defaultReadAhead)
	if o.Limits == nil {
		o.Limits = NewLimits(0, 0)
	}
	if o.Gate == nil {
		o.Gate = openGate{}
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	return o
}

// coalesce is how many compressed bytes a demand request may reach that has the content
// at an address.
func (l *Layer) coalesce(addr int64) int64 {
	if l.o.Coalesce != adaptive {
		return l.o.Coalesce
	}
	worth := int64(0)
	if k, ok := l.blob.(Link); ok {
		worth = k.Worth()
	}
	if x, ok := l.ahead.file(addr); ok && x.huge() {
		return min(max(worth/hugeShare, hugeCoalesce), minCoalesce)
	}
	return min(max(worth, minCoalesce), maxCoalesce)
}

// openGate is the Gate of a layer without one.
type openGate struct{}

func (openGate) Enter() {}
func (openGate) Leave() {}

// Idle returns nil: without a gate nobody asks.
func (openGate) Idle() <-chan struct{} { return nil }

// Layer is the verified content of one layer. All methods may be called in
// parallel.
type Layer struct {
	key   string
	idx   *toc.Index
	blob  fetch.Blob
	cache Cache
	o     Options
	ahead *readAhead
	stats counters
	waits waits
	total int64 // bytes of content

	// ctx is the life of the layer: requests run in it, not in a reader's.
	ctx      context.Context
	later    context.Context // ctx for background requests
	cancel   context.CancelFunc
	requests sync.WaitGroup

	// recordings and supplies are nil or not changed any more: replaced under mu.
	recordings atomic.Pointer[[]*Recording]
	supplies   atomic.Pointer[[]Supply]

	mu      sync.Mutex
	closed  bool
	flights map[int]*flight // members that are being fetched, and unkept ones
	sweeps  sweeps
	unkept  unkept
}

// New makes the Layer that idx describes, of the compressed blob. key names it
// in errors and logs. blob and c belong to the layer from now on: Close closes
// them. A nil c is a cache that keeps nothing. idx must pass Check; its Entries are
// not needed.
func New(key string, idx *toc.Index, blob fetch.Blob, c Cache, o Options) *Layer {
	if c == nil {
		c = noCache{}
	}
	l := &Layer{key: key, idx: idx, blob: blob, cache: c, o: o.withDefaults(), flights: map[int]*flight{}}
	l.ctx, l.cancel = context.WithCancel(context.Background())
	l.later = fetch.WithPriority(l.ctx, fetch.Background)
	l.ahead = newReadAhead(idx, l.o)
	for i := range idx.Chunks {
		l.total += idx.Chunks[i].Size
	}
	return l
}

// Size is the length of the layer's address space in bytes.
func (l *Layer) Size() int64 { return l.idx.DataSize }

// Key is the name that New was given.
func (l *Layer) Key() string { return l.key }

// Complete says that all content is in the cache and verified.
func (l *Layer) Complete() bool { return l.cache.Complete() }

// ReadAt fills p with the bytes of the address space from off. Padding between
// files reads as zeros. As FUSE wants it, a read that crosses the end returns
// what is there, n < len(p), and no error; at or past the end n is 0.
// Otherwise it is all of p or an error: a *DigestError, a *fetch.Error, ErrClosed, or
// that of ctx. p is undefined after an error.
func (l *Layer) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("layer %s: read at offset %d", l.key, off)
	}
	if l.ctx.Err() != nil {
		return 0, ErrClosed
	}
	if off >= l.idx.DataSize {
		return 0, nil
	}
	p = p[:min(int64(len(p)), l.idx.DataSize-off)]
	l.record(off, int64(len(p)))
	misses, err := l.readCached(p, off)
	if err != nil {
		return 0, err
	}
	until := int64(0)
	if !l.cache.Complete() && (len(misses) > 0 || !l.known(off)) {
		until = l.ahead.note(off, int64(len(p)))
	}
	switch {
	case len(misses) > 0:
		err = l.readMissing(ctx, p, off, misses, until)
	case until > 0:
		_, err = l.claim(nil, off+int64(len(p)), until, demand)
	}
	if err != nil {
		return 0, err
	}
	l.stats.served.Add(int64(len(p)))
	return len(p), nil
}

// readCached fills p from the cache, with zeros between chunks, and returns the
// chunks that are not there.
func (l *Layer) readCached(p []byte, off int64) (misses []int, err error) {
	end := off + int64(len(p))
	at := off
	i, j := l.idx.ChunkRange(off, int64(len(p)))
	for ; i < j; i++ {
		c := &l.idx.Chunks[i]
		if c.Addr > at {
			clear(p[at-off : c.Addr-off])
			at = c.Addr
		}
		stop := min(end, c.Addr+c.Size)
		ok, err := l.readChunk(i, p[at-off:stop-off], at-c.Addr)
		if err != nil {
			return nil, err
		}
		if !ok {
			misses = append(misses, i)
		}
		at = stop
	}
	clear(p[at-off:])
	return misses, nil
}

// readChunk reads from the cache. Trouble of its disk is a miss: the chunk is
// dropped, and fetched again.
func (l *Layer) readChunk(i int, p []byte, off int64) (bool, error) {
	ok, err := l.cache.ReadAt(i, p, off)
	if err == nil {
		return ok, nil
	}
	if l.ctx.Err() != nil {
		return false, ErrClosed
	}
	l.cache.Drop(i)
	l.o.Logger.Warn("cannot read from the cache, fetching again", "layer", l.key, "chunk", i, "error", err)
	return false, nil
}

// Fetch brings the members [from, to) into the cache, as background work, and
// returns when they are there, or ctx ended. Members that others are fetching are
// waited for. It may return early, with nil, when it gave way to a reader: the
// caller asks Missing again. An error also says that a chunk could not be kept.
func (l *Layer) Fetch(ctx context.Context, from, to int) error {
	if from < 0 || to > len(l.idx.Members) || from > to {
		return fmt.Errorf("layer %s: no members [%d, %d)", l.key, from, to)
	}
	var need []int
	for m := from; m < to; m++ {
		if !l.cached(m) {
			need = append(need, m)
		}
	}
	tickets, err := l.claim(need, 0, 0, background)
	if err != nil {
		return err
	}
	for _, t := range tickets {
		if t.f == nil {
			continue
		}
		select {
		case <-t.f.stored:
		case <-ctx.Done():
			return ctx.Err()
		}
		err := t.f.err
		if err == nil && t.f.putErr != nil {
			// Not kept when it came; the disk may have room by now.
			err = l.keepAgain(t.f)
		}
		if err != nil && !errors.Is(err, errCut) {
			return err
		}
	}
	return nil
}

// Missing returns the next members [lo, hi) at or after from that one request brings, of at
// most bytes compressed bytes but at least one member: the first and the last of them are not
// in the cache, others may be. ok is false when none is missing.
func (l *Layer) Missing(from int, bytes int64) (lo, hi int, ok bool) {
	n := len(l.idx.Members)
	lo = max(from, 0)
	for lo < n && l.cached(lo) {
		lo++
	}
	if lo >= n {
		return 0, 0, false
	}
	start := l.idx.Members[lo].Offset
	gap, _ := l.backgroundGap()
	hi = lo + 1
	for m := hi; m < n; m++ {
		x, last := &l.idx.Members[m], &l.idx.Members[hi-1]
		if x.Offset+x.Size-start > bytes || x.Offset-last.Offset-last.Size > gap {
			break
		}
		if !l.cached(m) {
			hi = m + 1
		}
	}
	return lo, hi, true
}

// cached says whether all chunks of a member are in the cache.
func (l *Layer) cached(m int) bool {
	x := &l.idx.Members[m]
	for i := x.First; i < x.First+x.Count; i++ {
		if !l.cache.Have(i) {
			return false
		}
	}
	return true
}

// Close ends all requests and reads, waits for the requests, and closes the
// cache and the blob. Reads return ErrClosed from then on.
func (l *Layer) Close() error {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return nil
	}
	l.closed = true
	l.mu.Unlock()
	l.cancel()
	l.requests.Wait()
	return errors.Join(l.cache.Close(), l.blob.Close())
}

// noCache keeps nothing.
type noCache struct{}

var errNoCache = errors.New("there is no cache")

func (noCache) Have(int) bool                           { return false }
func (noCache) ReadAt(int, []byte, int64) (bool, error) { return false, nil }
func (noCache) Put(int, []byte) error                   { return errNoCache }
func (noCache) Drop(int)                                {}
func (noCache) Present() int64                          { return 0 }
func (noCache) Complete() bool                          { return false }
func (noCache) Close() error                            { return nil }

// counters is Stats as it is counted.
type counters struct {
	demand, background, served, waited, digest atomic.Int64
	demandBytes, backgroundBytes               atomic.Int64
	wait, supplyWait, decode                   atomic.Int64 // nanoseconds
}

// bytes counts what requests of a priority fetch.
func (c *counters) bytes(p priority) *atomic.Int64 {
	if p == demand {
		return &c.demandBytes
	}
	return &c.backgroundBytes
}

// Stats is what a layer did since New. All counts only grow, except CachedBytes.
type Stats struct {
	// DemandRequests and BackgroundRequests are range requests to the registry;
	// fetching ahead of a sequential reader counts as demand.
	DemandRequests, BackgroundRequests int64
	// FetchedBytes came from the registry by them, compressed; DemandBytes are those of
	// demand requests.
	FetchedBytes, DemandBytes int64
	// ServedBytes were returned by ReadAt.
	ServedBytes int64
	// WaitedReads are reads that could not be answered from the cache.
	WaitedReads int64
	// WaitTime is how long those waited, all together; SupplyWait is the part of it that
	// was spent waiting for a Supply, and not for a request.
	WaitTime, SupplyWait time.Duration
	// DecodeTime was spent decompressing and hashing, all workers together.
	DecodeTime time.Duration
	// DigestFailures are members that did not match their digests, counting each try.
	DigestFailures int64
	// CachedBytes of ContentBytes are in the cache, uncompressed.
	CachedBytes, ContentBytes int64
	// BlobBytes is the length of the compressed blob.
	BlobBytes int64
}

// Stats returns the counts so far.
func (l *Layer) Stats() Stats {
	s := &l.stats
	return Stats{
		DemandRequests: s.demand.Load(), BackgroundRequests: s.background.Load(),
		FetchedBytes: s.demandBytes.Load() + s.backgroundBytes.Load(), DemandBytes: s.demandBytes.Load(), ServedBytes: s.served.Load(), WaitedReads: s.waited.Load(),
		WaitTime: time.Duration(s.wait.Load()), SupplyWait: time.Duration(s.supplyWait.Load()), DecodeTime: time.Duration(s.decode.Load()),
		DigestFailures: s.digest.Load(),
		CachedBytes:    l.cache.Present(), ContentBytes: l.total, BlobBytes: l.blob.Size(),
	}
}
