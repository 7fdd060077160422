package conversion

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/apparate/apparate/api/v1alpha1"
)

// Metrics counts conversions. Labels are bounded: no images, no digests.
type Metrics struct {
	ended   *prometheus.CounterVec
	seconds prometheus.Histogram
	bytes   *prometheus.CounterVec
	retries *prometheus.CounterVec
}

// NewMetrics registers the metrics; what waits and runs is asked of the pool,
// what is unfinished of the backlog.
func NewMetrics(r prometheus.Registerer, p *Pool, b *Backlog) *Metrics {
	m := &Metrics{
		ended: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "apparate_conversions_total", Help: "Conversions that ended for good, by the reason of their Succeeded condition.",
		}, []string{"result"}),
		seconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "apparate_conversion_seconds", Help: "How long conversions took that made an image.",
			Buckets: prometheus.ExponentialBuckets(0.25, 2, 14), // to half an hour and more
		}),
		bytes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "apparate_conversion_bytes_total", Help: "Compressed bytes read from and written to registries.",
		}, []string{"direction"}),
		retries: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "apparate_conversion_retries_total", Help: "Attempts that failed and are made again, by the kind of the failure.",
		}, []string{"reason"}),
	}
	waiting := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "apparate_conversion_queue_depth", Help: "Conversions that wait for a worker.",
	}, func() float64 { n, _ := p.Counts(); return float64(n) })
	running := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "apparate_conversions_running", Help: "Conversions that run.",
	}, func() float64 { _, n := p.Counts(); return float64(n) })
	unfinished := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "apparate_conversions_unfinished", Help: "ImageConversions that have not ended: waiting, running, held, or to be tried again.",
	}, func() float64 { return float64(b.Len()) })
	r.MustRegister(m.ended, m.seconds, m.bytes, m.retries, waiting, running, unfinished)
	return m
}

// note counts what a conversion has come to.
func (m *Metrics) note(c *v1alpha1.ImageConversion, elapsed float64) {
	s := succeeded(c)
	if m == nil || s == nil {
		return
	}
	switch {
	case Finished(c):
		m.ended.WithLabelValues(s.Reason).Inc()
	case s.Reason == v1alpha1.ReasonRetrying:
		m.retries.WithLabelValues(retryReason(s.Message)).Inc()
	}
	if b := c.Status.Bytes; b != nil && s.Reason == v1alpha1.ReasonConverted {
		m.seconds.Observe(elapsed)
		m.bytes.WithLabelValues("in").Add(float64(b.In))
		m.bytes.WithLabelValues("out").Add(float64(b.Out))
	}
}
