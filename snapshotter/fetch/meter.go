package fetch

import (
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
	if !ok || g.rated == 0 {
		return 0
	}
	known := slices.Clone(g.rates[:min(g.rated, samples)])
	slices.Sort(known)
	return int64(answer.Seconds() * known[len(known)/2])
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

// came notes that n bytes came in the time d after the first.
func (g *gauge) came(n int64, d time.Duration) {
	if n < minRated || d <= 0 {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.rates[g.rated%samples] = float64(n) / d.Seconds()
	g.rated++
}
