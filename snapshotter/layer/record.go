package layer

import (
	"slices"
	"sync/atomic"
	"time"
)

// maxRecorded bounds what one Recording keeps: a start that reads more chunks of one
// layer reads all of it, and no order of them helps the next one.
const maxRecorded = 64 << 10

// Recording is which chunks of a layer were read first, and when. Reading costs it
// one bit a chunk, and a list entry the first time. All methods may be called in
// parallel with reads.
type Recording struct {
	began time.Time
	seen  []atomic.Uint32 // one bit a chunk
	n     atomic.Int64    // entries given out, also those for which there was no room
	list  []atomic.Uint64 // chunk<<32 | (milliseconds + 1); 0 until it is written
}

// Read is the first read of a chunk.
type Read struct {
	// Chunk is the index in toc.Index.Chunks.
	Chunk int
	// At is the time since the recording began, in whole milliseconds.
	At time.Duration
}

// Record begins to record reads of the layer, until Forget.
func (l *Layer) Record() *Recording {
	n := len(l.idx.Chunks)
	r := &Recording{began: time.Now(), seen: make([]atomic.Uint32, (n+31)/32), list: make([]atomic.Uint64, min(n, maxRecorded))}
	l.mu.Lock()
	defer l.mu.Unlock()
	var all []*Recording
	if old := l.recordings.Load(); old != nil {
		all = slices.Clone(*old)
	}
	all = append(all, r)
	l.recordings.Store(&all)
	return r
}

// Forget ends a recording; what it has stays readable.
func (l *Layer) Forget(r *Recording) {
	l.mu.Lock()
	defer l.mu.Unlock()
	old := l.recordings.Load()
	if old == nil {
		return
	}
	rest := slices.DeleteFunc(slices.Clone(*old), func(x *Recording) bool { return x == r })
	if len(rest) == 0 {
		l.recordings.Store(nil)
		return
	}
	l.recordings.Store(&rest)
}

// record notes a read of [off, off+n) where somebody records.
func (l *Layer) record(off, n int64) {
	all := l.recordings.Load()
	if all == nil {
		return
	}
	i, j := l.idx.ChunkRange(off, n)
	for _, r := range *all {
		for k := i; k < j; k++ {
			r.note(k)
		}
	}
}

// note appends chunk i unless it was read before.
func (r *Recording) note(i int) {
	word, bit := &r.seen[i/32], uint32(1)<<(i%32)
	if word.Load()&bit != 0 || word.Or(bit)&bit != 0 {
		return
	}
	k := r.n.Add(1) - 1
	if k < int64(len(r.list)) {
		ms := uint64(min(time.Since(r.began).Milliseconds(), 1<<31))
		r.list[k].Store(uint64(i)<<32 | (ms + 1))
	}
}

// Began is when the recording began.
func (r *Recording) Began() time.Time { return r.began }

// Reads returns the first reads from the from-th on, in their order. One that is
// just being written, and what follows it, comes with a later call.
func (r *Recording) Reads(from int) []Read {
	n := int(min(r.n.Load(), int64(len(r.list))))
	var out []Read
	for k := from; k < n; k++ {
		w := r.list[k].Load()
		if w == 0 {
			break
		}
		out = append(out, Read{Chunk: int(w >> 32), At: time.Duration(w&(1<<32-1)-1) * time.Millisecond})
	}
	return out
}

// Len is how many chunks were read; at most as many as are kept.
func (r *Recording) Len() int { return int(min(r.n.Load(), int64(len(r.list)))) }
