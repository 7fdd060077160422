package layer

import (
	"sync"
	"time"
)

const (
	// minWaited is how long readers of a layer have waited for the registry before the rest
	// of it may come beside their requests.
	minWaited = time.Second
	// waitedShare is the part of the time that the rest takes, by which readers must have
	// waited: there, some more of it costs less than it saves.
	waitedShare = 8
	// minFree is the part of the line that readers must leave unused: beside a request that
	// takes a quarter of its time for the bytes, another one costs it at most that once more.
	minFree = 0.75
	// minAnswers is the part of the waiting that answers must take. Where it is the machine
	// that takes the time, it has none for the rest either.
	minAnswers = 0.5
	// maxEagerGap bounds what is read over rather than asked around, and eagerGapShare says
	// what part of a round trip's worth it may be.
	maxEagerGap, eagerGapShare = 1 << 20, 4
)

// Eager says that the rest of the layer had better be fetched now, beside the requests of
// readers: they have waited for a good part of the time that it takes, and mostly not for
// bytes but for answers, while the line was idle. So many small waits, one after the other,
// never take much longer than a plain pull of everything. It takes no lock of the layer.
func (l *Layer) Eager() bool {
	k, ok := l.blob.(Link)
	if !ok {
		return false
	}
	waited := l.waits.total()
	if waited < minWaited {
		return false
	}
	rate, free := k.Line()
	if rate == 0 || free < minFree {
		return false
	}
	answers := float64(k.Worth()) / float64(rate) * float64(l.stats.demand.Load())
	if answers < minAnswers*waited.Seconds() {
		return false
	}
	rest := l.blob.Size() - l.stats.demandBytes.Load() - l.stats.backgroundBytes.Load()
	return waited.Seconds()*waitedShare >= float64(rest)/float64(rate)
}

// backgroundGap is the Options.Gap of background requests, and whether they are eager: those
// read over more that is here already, as the rest is in pieces where readers were.
func (l *Layer) backgroundGap() (gap int64, eager bool) {
	k, ok := l.blob.(Link)
	if !ok || !l.Eager() {
		return l.o.Gap, false
	}
	return max(l.o.Gap, min(k.Worth()/eagerGapShare, maxEagerGap)), true
}

// waits sums up the time in which at least one reader waited for the registry.
type waits struct {
	mu    sync.Mutex
	now   int // who waits
	since time.Time
	sum   time.Duration
}

func (w *waits) enter() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.now++; w.now == 1 {
		w.since = time.Now()
	}
}

func (w *waits) leave() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.now--; w.now == 0 {
		w.sum += time.Since(w.since)
	}
}

func (w *waits) total() time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.now > 0 {
		return w.sum + time.Since(w.since)
	}
	return w.sum
}
