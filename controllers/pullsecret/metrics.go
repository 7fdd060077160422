package pullsecret

import (
	"sync"

	"github.com/prometheus/client_golang/prometheus"
)

// Metrics counts. A nil one counts nothing.
type Metrics struct {
	entries, bad, broken          prometheus.Gauge
	secrets, attachments, foreign prometheus.Gauge
	writes, failures              *prometheus.CounterVec

	mu   sync.Mutex
	sums counts
	of   map[string]counts // by namespace
}

// counts of one namespace.
type counts struct{ secrets, attachments, foreign int }

// NewMetrics registers the metrics.
func NewMetrics(r prometheus.Registerer) *Metrics {
	gauge := func(name, help string) prometheus.Gauge {
		return prometheus.NewGauge(prometheus.GaugeOpts{Name: name, Help: help})
	}
	counter := func(name, help, label string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, []string{label})
	}
	m := &Metrics{
		entries:     gauge("apparate_pull_secret_entries", "Entries of the list of pull secrets that can be used."),
		bad:         gauge("apparate_pull_secret_bad_entries", "Entries of the list of pull secrets that cannot be used; the log says why."),
		broken:      gauge("apparate_pull_secret_list_broken", "1 while the list of pull secrets cannot be read at all."),
		secrets:     gauge("apparate_pull_secrets", "Pull secrets that are kept in namespaces."),
		attachments: gauge("apparate_pull_secret_attachments", "References to them in service accounts."),
		foreign:     gauge("apparate_pull_secrets_foreign", "Pull secrets that cannot be made since a Secret of the same name is somebody else's."),
		writes:      counter("apparate_pull_secret_writes_total", "Changes that were made, by what.", "what"),
		failures:    counter("apparate_pull_secret_failures_total", "Looks at a namespace that failed, by the API server's reason.", "reason"),
		of:          map[string]counts{},
	}
	r.MustRegister(m.entries, m.bad, m.broken, m.secrets, m.attachments, m.foreign, m.writes, m.failures)
	return m
}

func (m *Metrics) read(c *Config) {
	if m != nil {
		m.entries.Set(float64(len(c.Entries)))
		m.bad.Set(float64(len(c.Mistakes)))
	}
}

func (m *Metrics) unreadable(is bool) {
	if m == nil {
		return
	}
	m.broken.Set(0)
	if is {
		m.broken.Set(1)
	}
}

// wrote counts a change of the API server's objects.
func (m *Metrics) wrote(what string) {
	if m != nil {
		m.writes.WithLabelValues(what).Inc()
	}
}

func (m *Metrics) failed(reason string) {
	if m != nil {
		m.failures.WithLabelValues(reason).Inc()
	}
}

// namespace notes what there is in one.
func (m *Metrics) namespace(name string, now counts) {
	if m == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	old := m.of[name]
	if m.of[name] = now; now == (counts{}) {
		delete(m.of, name)
	}
	m.sums.secrets += now.secrets - old.secrets
	m.sums.attachments += now.attachments - old.attachments
	m.sums.foreign += now.foreign - old.foreign
	m.secrets.Set(float64(m.sums.secrets))
	m.attachments.Set(float64(m.sums.attachments))
	m.foreign.Set(float64(m.sums.foreign))
}
