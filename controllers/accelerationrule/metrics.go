package accelerationrule

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/apparate/apparate/controllers/watch"
)

// Metrics counts decisions. A nil one counts nothing.
type Metrics struct {
	decisions *prometheus.CounterVec
	queued    *prometheus.CounterVec
}

// NewMetrics registers the metrics.
func NewMetrics(r prometheus.Registerer) *Metrics {
	m := &Metrics{
		decisions: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "apparate_images_total", Help: "Pushed images that were decided on, by the reason: Matched, or why they are skipped.",
		}, []string{"reason"}),
		queued: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "apparate_conversions_created_total", Help: "ImageConversions that were created, by where the push was seen.",
		}, []string{"origin"}),
	}
	r.MustRegister(m.decisions, m.queued)
	return m
}

func (m *Metrics) decided(reason string) {
	if m != nil {
		m.decisions.WithLabelValues(reason).Inc()
	}
}

func (m *Metrics) created(o watch.Origin) {
	if m != nil {
		m.queued.WithLabelValues(string(o)).Inc()
	}
}
