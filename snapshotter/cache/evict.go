package cache

import (
	"cmp"
	"errors"
	"math"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// reserve promises n bytes to a write, evicting as much as that takes. settle
// must follow.
func (s *Store) reserve(n int64) error {
	if s.promise(n) {
		return nil
	}
	if n > s.o.Budget {
		return ErrFull
	}
	s.makeRoom(n)
	if !s.promise(n) {
		return ErrFull
	}
	return nil
}

func (s *Store) promise(n int64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.o.Budget > 0 && s.used+s.reserved+n > s.o.Budget {
		return false
	}
	s.reserved += n
	return true
}

// settle replaces a promise of room bytes by what the layer really takes now.
func (s *Store) settle(b *Blob, room int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reserved -= room
	if b.e.blob != b {
		return // closed meanwhile, and accounted for
	}
	// Within the lock, so that an older answer cannot overwrite a newer one.
	data := b.allocated()
	s.used += data - b.e.data
	b.e.data = data
}

// makeRoom evicts until n more bytes fit into the budget, or nothing is left
// that could go.
func (s *Store) makeRoom(n int64) {
	if s.o.Budget == 0 {
		return
	}
	s.evicting.Lock()
	gone := s.evict(func() int64 { return s.used + s.reserved + n - s.o.Budget })
	s.evicting.Unlock()
	s.tell(gone)
}

// freeSome gives about n bytes back to a disk that others filled.
func (s *Store) freeSome(n int64) {
	s.evicting.Lock()
	s.mu.Lock()
	target := s.used - max(n, 4<<20)
	s.mu.Unlock()
	gone := s.evict(func() int64 { return s.used - target })
	s.evicting.Unlock()
	s.tell(gone)
}

// tell reports evicted layers to whoever wants to know.
func (s *Store) tell(gone []string) {
	if s.o.OnEvict == nil {
		return
	}
	for _, key := range gone {
		s.o.OnEvict(key)
	}
}

// evict takes the layers that nobody uses, the one unused for longest first,
// and then chunks of layers in use, until over (called under the lock) is not
// positive. It returns the keys of the layers it removed. evicting is held.
func (s *Store) evict(over func() int64) (keys []string) {
	keys = s.evictUnused(over)
	s.evictChunks(over)
	return keys
}

// evictUnused removes layers that nobody has open, the oldest first.
func (s *Store) evictUnused(over func() int64) (keys []string) {
	for {
		s.mu.Lock()
		if over() <= 0 {
			s.mu.Unlock()
			return keys
		}
		e := s.oldestUnusedLocked()
		if e == nil {
			s.mu.Unlock()
			return keys
		}
		gone, err := s.detachLocked(e)
		s.mu.Unlock()
		if err == nil {
			err = os.RemoveAll(gone)
		}
		if err != nil {
			s.complain(err)
			return keys
		}
		keys = append(keys, e.key)
	}
}

func (s *Store) oldestUnusedLocked() *entry {
	var oldest *entry
	for _, e := range s.layers {
		if e.refs == 0 && !e.held && (oldest == nil || e.lastUsed.Before(oldest.lastUsed)) {
			oldest = e
		}
	}
	return oldest
}

// victim is a chunk that may go; word is what it had when it was chosen.
type victim struct {
	b    *Blob
	i    int
	age  uint32
	word uint32
}

// evictChunks punches out the chunks of open layers that were used least
// recently, whichever layer they are of: were a layer that is being written spared,
// two of them would evict each other's newest chunks for ever.
func (s *Store) evictChunks(over func() int64) {
	s.mu.Lock()
	need := over()
	if need <= 0 {
		s.mu.Unlock()
		return
	}
	var open []*Blob
	for _, e := range s.layers {
		if e.blob != nil && !e.sealed {
			open = append(open, e.blob)
		}
	}
	s.mu.Unlock()
	// Some more than needed, so that not every write has to look at all chunks.
	need += s.o.Budget / 64

	victims := s.chunks(open)
	changed := map[*Blob]bool{}
	for _, v := range victims {
		if need <= 0 {
			break
		}
		v.b.evict(v.i, v.word)
		changed[v.b] = true
		need -= v.b.idx.Chunks[v.i].Size
	}
	for b := range changed {
		s.settle(b, 0)
	}
}

// chunks returns the chunks that are there, the longest unused first.
func (s *Store) chunks(blobs []*Blob) []victim {
	now := s.tick.Load()
	var vs []victim
	for _, b := range blobs {
		for i := range b.word {
			w := b.word[i].Load()
			if st := w & stateMask; st == unverified || st == verified {
				// A difference, so that the counter may wrap.
				vs = append(vs, victim{b, i, now - b.stamp[i].Load(), w})
			}
		}
	}
	slices.SortFunc(vs, func(a, b victim) int { return cmp.Compare(b.age, a.age) })
	return vs
}

// isFull says whether an error is a disk or quota without room.
func isFull(err error) bool {
	return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT)
}

// complain logs trouble with the disk, which comes a thousand times at once.
func (s *Store) complain(err error) {
	if silent, ok := s.full.allow(time.Now()); ok {
		s.o.Logger.Warn("cache does not keep everything; reads go on from the registry",
			"dir", s.dir, "error", err, "unlogged", silent)
	}
}

// limiter lets one message through per period and counts the others.
type limiter struct {
	every time.Duration

	mu     sync.Mutex
	next   time.Time
	silent int
}

func (l *limiter) allow(now time.Time) (silent int, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if now.Before(l.next) {
		l.silent = min(l.silent+1, math.MaxInt-1)
		return 0, false
	}
	silent, l.silent = l.silent, 0
	l.next = now.Add(l.every)
	return silent, true
}

// buffer returns n bytes of scratch; release takes them back.
func (s *Store) buffer(n int64) *[]byte {
	if b, ok := s.buffers.Get().(*[]byte); ok {
		if int64(cap(*b)) >= n {
			*b = (*b)[:n]
			return b
		}
	}
	b := make([]byte, n)
	return &b
}

func (s *Store) release(b *[]byte) {
	if cap(*b) <= maxPooled {
		s.buffers.Put(b)
	}
}

// openRegular opens a file only if it is a regular one: a link or a pipe put
// there by somebody else is not followed and does not block.
func openRegular(path string, flags int) (*os.File, error) {
	f, err := os.OpenFile(path, flags|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o600)
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = &os.PathError{Op: "open", Path: path, Err: errors.New("not a regular file")}
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}
