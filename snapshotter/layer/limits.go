package layer

import (
	"context"
	"math/bits"
	"runtime"
	"slices"
	"sync"

	"golang.org/x/sync/semaphore"
)

// Limits bounds what all layers that share it do at the same time, and lends
// them buffers.
type Limits struct {
	memory *semaphore.Weighted
	most   int64

	mu             sync.Mutex
	free           int             // workers
	urgent, others []chan struct{} // who waits for one

	// readers holds *gzip.Reader, frames *zstd.Decoder; buffers[k] holds *[]byte of 1<<k bytes.
	readers sync.Pool
	frames  sync.Pool
	buffers [maxPooledBits + 1]sync.Pool
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
	return &Limits{memory: semaphore.NewWeighted(bytes), most: bytes, free: workers}
}

// hold waits for n bytes of memory; release gives them back.
func (x *Limits) hold(ctx context.Context, n int64) (release func(), err error) {
	n = min(n, x.most)
	if err := x.memory.Acquire(ctx, n); err != nil {
		return nil, err
	}
	return func() { x.memory.Release(n) }, nil
}

// work waits for a turn to decompress; done gives it back. urgent is before what is not:
// a reader waits for it.
func (x *Limits) work(ctx context.Context, urgent bool) error {
	turn := make(chan struct{}, 1)
	queue := &x.others
	if urgent {
		queue = &x.urgent
	}
	x.mu.Lock()
	*queue = append(*queue, turn)
	x.grant()
	x.mu.Unlock()
	select {
	case <-turn:
		return nil
	case <-ctx.Done():
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if k := slices.Index(*queue, turn); k >= 0 {
		*queue = slices.Delete(*queue, k, k+1)
	} else { // it came at the same moment
		x.free++
		x.grant()
	}
	return ctx.Err()
}

func (x *Limits) done() {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.free++
	x.grant()
}

// grant hands turns out; mu is held.
func (x *Limits) grant() {
	for _, queue := range []*[]chan struct{}{&x.urgent, &x.others} {
		for ; x.free > 0 && len(*queue) > 0; x.free-- {
			(*queue)[0] <- struct{}{}
			*queue = slices.Delete(*queue, 0, 1)
		}
	}
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
