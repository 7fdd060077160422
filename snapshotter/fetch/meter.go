package fetch

import (
	"math"
	"slices"
	"sync"
	"time"
)

// Meter measures registries while they are used: how long one takes to answer, and
// how fast its bytes come then. The zero value is ready; all blobs of a process should
// share one. Registries are told apart by Config.Name.
type Meter struct {
	mu    sync.Mutex
	hosts map[string]*gauge
}

const (
	// samples is how many of the newest answers count.
	samples = 32
	// minAnswers is how many make a median to rely on.
	minAnswers = 8
	// usedWithin is the time over which the use of a line is averaged.
	usedWithin = time.Second
	// minRated is the shortest stream whose speed is taken: a shorter one was in
	// some buffer already.
	minRated = 128 << 10
	// maxHosts bounds the table.
	maxHosts = 64
)

// gauge is what is known of one registry.
type gauge struct {
	mu      sync.Mutex
	answers [samples]time.Duration // from asking to the first byte, a ring
	count   int
	rates   [samples]float64 // bytes a second, a ring
	rated   int
	// used is the bytes that readers got, those of a time ago by how long ago that was.
	used float64
	at   time.Time // of used
	// credit is how many requests may be sent twice; see hedge.
	credit float64
}

// host returns the gauge of a registry. Names come from image references, which anybody
// may write: there are no more than maxHosts, and then all is forgotten.
func (m *Meter) host(name string) *gauge {
	m.mu.Lock()
	defer m.mu.Unlock()
	g := m.hosts[name]
	if g == nil {
		if m.hosts == nil || len(m.hosts) >= maxHosts {
			m.hosts = map[string]*gauge{}
		}
		g = &gauge{credit: firstCredit}
		m.hosts[name] = g
	}
	return g
}

// Worth is how many bytes could have come from a registry in the time in which it only
// answers a request; 0 before that is known. Whoever asks for less pays more for asking
// than for the bytes. Answers are late on a busy machine, and what waited in a buffer
// comes fast: so it is the lower quartile of the times, and the median of the speeds.
func (m *Meter) Worth(name string) int64 {
	g := m.host(name)
	answer, ok := g.answer(4)
	g.mu.Lock()
	defer g.mu.Unlock()
	if !ok {
		return 0
	}
	return int64(answer.Seconds() * g.rate())
}

// Line is how fast bytes come from a registry, in bytes a second, and the part of that,
// from 0 to 1, that readers' requests have left unused lately; 0 and 0 before it is known.
func (m *Meter) Line(name string) (rate int64, free float64) {
	g := m.host(name)
	g.mu.Lock()
	defer g.mu.Unlock()
	r := g.rate()
	if r == 0 {
		return 0, 0
	}
	return int64(r), max(0, 1-g.fade(time.Now())/usedWithin.Seconds()/r)
}

// rate is the median of the speeds, 0 before one is known; mu is held.
func (g *gauge) rate() float64 {
	if g.rated == 0 {
		return 0
	}
	known := slices.Clone(g.rates[:min(g.rated, samples)])
	slices.Sort(known)
	return known[len(known)/2]
}

// fade returns what is left of used; mu is held.
func (g *gauge) fade(now time.Time) float64 {
	g.used *= math.Exp(-now.Sub(g.at).Seconds() / usedWithin.Seconds())
	g.at = now
	return g.used
}

// use notes that a reader got n bytes.
func (g *gauge) use(n int, now time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.used = g.fade(now) + float64(n)
}

// answer is the time to the first byte that one in part answers does not take; not ok
// before enough is known.
func (g *gauge) answer(part int) (time.Duration, bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.count < minAnswers {
		return 0, false
	}
	known := slices.Clone(g.answers[:min(g.count, samples)])
	slices.Sort(known)
	return known[len(known)/part], true
}

// answered notes how long the first byte took.
func (g *gauge) answered(d time.Duration) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.answers[g.count%samples] = d
	g.count++
}

// came notes that n bytes came in the time d after the first. What comes in the background
// stands still for readers, and counts only as long as nothing else is known.
func (g *gauge) came(n int64, d time.Duration, p Priority) {
	if n < minRated || d <= 0 {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if p == Background && g.rated > 0 {
		return
	}
	g.rates[g.rated%samples] = float64(n) / d.Seconds()
	g.rated++
}
