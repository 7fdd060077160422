package blobfs

import (
	"sync"
	"time"
)

// limitEvery is how often one blob may put a line into the log.
const limitEvery = time.Second

// limitBlobs bounds the memory of the limiter.
const limitBlobs = 1024

// limiter lets one line a second and blob through: a registry that is down fails
// thousands of reads a second, and the first line says it all.
type limiter struct {
	now  func() time.Time
	mu   sync.Mutex
	seen map[uint64]*silence
}

type silence struct {
	until time.Time
	count int
}

// allow reports whether id may log now, and how many lines of it were swallowed
// since the last time.
func (l *limiter) allow(id uint64) (swallowed int, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.now()
	s := l.seen[id]
	if s != nil && now.Before(s.until) {
		s.count++
		return 0, false
	}
	if s == nil {
		// Forgetting all is crude, and right: it costs a few lines too many.
		if len(l.seen) >= limitBlobs {
			clear(l.seen)
		}
		s = &silence{}
		l.seen[id] = s
	}
	swallowed, s.count = s.count, 0
	s.until = now.Add(limitEvery)
	return swallowed, true
}
