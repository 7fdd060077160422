package layer

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"
)

// Supply is somebody who brings chunks of a layer without being asked: the stream of
// a start-up profile. It must be comparable. All methods are called in parallel.
type Supply interface {
	// Coming says that chunk i is on its way. It is asked under a lock: it must take
	// none, and be quick.
	Coming(i int) bool
	// Knows says that chunk i was brought or is coming, asked as Coming is. Of the reads
	// around it Supply knows more than their order tells.
	Knows(i int) bool
	// Await returns once chunk i was given to Put, when ctx ends, or when the reader had
	// better ask the registry itself; it is for Supply to know when that is. A reader
	// looks into the cache afterwards.
	Await(ctx context.Context, i int)
}

// Expect has readers that miss a chunk wait for s where s has it coming, and requests
// leave out what is. Until the returned function is called, nothing is fetched ahead of
// sequential readers of what s knows either.
func (l *Layer) Expect(s Supply) (forget func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var all []Supply
	if old := l.supplies.Load(); old != nil {
		all = slices.Clone(*old)
	}
	all = append(all, s)
	l.supplies.Store(&all)
	return sync.OnceFunc(func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		rest := slices.DeleteFunc(slices.Clone(*l.supplies.Load()), func(x Supply) bool { return x == s })
		if len(rest) == 0 {
			l.supplies.Store(nil)
			return
		}
		l.supplies.Store(&rest)
	})
}

// known says that somebody knows of the chunk at an address.
func (l *Layer) known(addr int64) bool {
	all := l.supplies.Load()
	if all == nil {
		return false
	}
	i, j := l.idx.ChunkRange(addr, 1)
	return i < j && slices.ContainsFunc(*all, func(s Supply) bool { return s.Knows(i) })
}

// Put keeps p, the whole of chunk i, in the cache. sum is the SHA-256 of p, which
// the caller has computed: a chunk with another digest is refused. An error also says
// that the cache does not keep it.
func (l *Layer) Put(i int, p []byte, sum [32]byte) error {
	if i < 0 || i >= len(l.idx.Chunks) || l.idx.Chunks[i].Digest != sum {
		return fmt.Errorf("layer %s: chunk %d is not sha256:%x", l.key, i, sum)
	}
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return ErrClosed
	}
	l.requests.Add(1) // Close waits with closing the cache
	l.mu.Unlock()
	defer l.requests.Done()
	return l.cache.Put(i, p)
}

// Have says whether chunk i is in the cache.
func (l *Layer) Have(i int) bool { return l.cache.Have(i) }

// Chunks is how many chunks the layer has; Chunk says what chunk i is.
func (l *Layer) Chunks() int { return len(l.idx.Chunks) }

// Chunk returns the digest (SHA-256 of the content) and the size in bytes of chunk i.
func (l *Layer) Chunk(i int) (digest [32]byte, size int64) {
	c := &l.idx.Chunks[i]
	return c.Digest, c.Size
}

// supply returns who has chunk i coming, nil when nobody has.
func (l *Layer) supply(i int) Supply {
	all := l.supplies.Load()
	if all == nil {
		return nil
	}
	for _, s := range *all {
		if s.Coming(i) {
			return s
		}
	}
	return nil
}

// coming says that whatever is missing of a member is on its way without a request.
func (l *Layer) coming(m int) bool {
	if l.supplies.Load() == nil {
		return false
	}
	x := &l.idx.Members[m]
	for i := x.First; i < x.First+x.Count; i++ {
		if !l.cache.Have(i) && l.supply(i) == nil {
			return false
		}
	}
	return true
}

// awaitSupply waits for those of misses that are on their way, fills their part of p
// and returns the others.
func (l *Layer) awaitSupply(ctx context.Context, p []byte, off int64, misses []int) (left []int, err error) {
	if l.supplies.Load() == nil {
		return misses, nil
	}
	end := off + int64(len(p))
	for _, i := range misses {
		s := l.supply(i)
		if s == nil || l.requested(i) {
			left = append(left, i)
			continue
		}
		began := time.Now()
		s.Await(ctx, i)
		l.stats.supplyWait.Add(int64(time.Since(began)))
		c := &l.idx.Chunks[i]
		from, to := max(off, c.Addr), min(end, c.Addr+c.Size)
		ok, err := l.readChunk(i, p[from-off:to-off], from-c.Addr)
		if err != nil {
			return nil, err
		}
		if !ok {
			left = append(left, i)
		}
	}
	return left, ctx.Err()
}

// requested says that a request of the layer brings chunk i.
func (l *Layer) requested(i int) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.flights[l.idx.Chunks[i].Member] != nil
}

// Hold waits for n bytes of the memory that requests share; release gives them back.
func (x *Limits) Hold(ctx context.Context, n int64) (release func(), err error) {
	return x.hold(ctx, n)
}

// Work waits for a turn to decompress what readers will ask for, in line with what they
// wait for now; done gives it back.
func (x *Limits) Work(ctx context.Context) (done func(), err error) {
	p := x.line(now)
	if err := x.await(ctx, p); err != nil {
		return nil, err
	}
	return func() { x.done(p) }, nil
}
