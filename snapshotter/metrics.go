package snapshotter

import (
	"context"
	"errors"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/apparate/apparate/snapshotter/fetch"
	"github.com/apparate/apparate/snapshotter/source"
	"github.com/apparate/apparate/snapshotter/toc"
)

// Metrics counts what Prepare decides. It is safe for parallel use.
type Metrics struct {
	prepared  *prometheus.CounterVec
	fallbacks *prometheus.CounterVec
}

// NewMetrics returns counters registered with r; nil r keeps them to ourselves.
func NewMetrics(r prometheus.Registerer) *Metrics {
	m := &Metrics{
		prepared: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "apparate_snapshotter_layers_total",
			Help: "Layers that containerd asked for, by how they are provided (lazy, pulled).",
		}, []string{"how"}),
		fallbacks: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "apparate_snapshotter_fallbacks_total",
			Help: "Layers pulled the ordinary way, by the reason why they could not be lazy.",
		}, []string{"reason"}),
	}
	if r != nil {
		r.MustRegister(m.prepared, m.fallbacks)
	}
	return m
}

func (m *Metrics) lazy() { m.prepared.WithLabelValues("lazy").Inc() }

func (m *Metrics) fallback(reason string) {
	m.prepared.WithLabelValues("pulled").Inc()
	m.fallbacks.WithLabelValues(reason).Inc()
}

// notAuthorized is the Reason of a registry that wants other credentials.
const notAuthorized = "not_authorized"

// Reason names why a layer cannot be lazy, in a few fixed words fit for a
// metric's label.
func Reason(err error) string {
	var fe *fetch.Error
	switch {
	case errors.Is(err, source.ErrNoReference):
		return "no_reference"
	case errors.Is(err, source.ErrNoTOCDigest):
		return "no_toc_digest"
	case errors.Is(err, fetch.ErrNoRanges):
		return "registry_without_ranges"
	case errors.Is(err, context.DeadlineExceeded):
		return "timeout"
	case errors.As(err, &fe) && (fe.Status == 401 || fe.Status == 403):
		return notAuthorized
	case errors.As(err, &fe):
		return "registry"
	}
	return toc.Reason(err)
}
