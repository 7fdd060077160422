package startup

import (
	"github.com/prometheus/client_golang/prometheus"
)

// metrics count what profiles did.
type metrics struct {
	found     *prometheus.CounterVec
	used      prometheus.Counter
	abandoned *prometheus.CounterVec
	packBytes prometheus.Counter
	reads     *prometheus.CounterVec
	content   *prometheus.CounterVec
}

func newMetrics() *metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: "apparate_snapshotter_profile_" + name, Help: help})
	}
	vec := func(name, help, label string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: "apparate_snapshotter_profile_" + name, Help: help}, []string{label})
	}
	return &metrics{
		found:     vec("found_total", "Starts of images by where their profile is from (registry, kept, repository, none).", "origin"),
		used:      counter("used_total", "Starts of images whose profile was streamed."),
		abandoned: vec("abandoned_total", "Streams of profiles that ended before all was there, by the reason.", "reason"),
		packBytes: counter("pack_bytes_total", "Bytes of packs fetched from registries."),
		reads:     vec("chunks_read_total", "Chunks that starts with a profile read first, by whether it had them (hit, miss).", "in"),
		content:   vec("content_bytes_total", "Content that streams brought, by whether the start read it (used, waste).", "how"),
	}
}

// Describe implements prometheus.Collector.
func (e *Engine) Describe(ch chan<- *prometheus.Desc) {
	for _, c := range e.metrics.all() {
		c.Describe(ch)
	}
}

// Collect implements prometheus.Collector.
func (e *Engine) Collect(ch chan<- prometheus.Metric) {
	for _, c := range e.metrics.all() {
		c.Collect(ch)
	}
}

func (m *metrics) all() []prometheus.Collector {
	return []prometheus.Collector{m.found, m.used, m.abandoned, m.packBytes, m.reads, m.content}
}

// ended counts a stream that has ended.
func (m *metrics) ended(s *stream, reason string) {
	m.packBytes.Add(float64(s.received.Load()))
	if reason != endedWhole {
		m.abandoned.WithLabelValues(reason).Inc()
	}
}

// judged counts what a start made of its profile, when it is over.
func (m *metrics) judged(s *stream, read, hit int, used int64) {
	m.reads.WithLabelValues("hit").Add(float64(hit))
	m.reads.WithLabelValues("miss").Add(float64(read - hit))
	brought := s.stats.delivered.Load()
	used = min(used, brought)
	m.content.WithLabelValues("used").Add(float64(used))
	m.content.WithLabelValues("waste").Add(float64(brought - used))
}
