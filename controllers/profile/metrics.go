package profile

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Metrics counts samples and profiles. A nil one counts nothing.
type Metrics struct {
	samples  *prometheus.CounterVec
	profiles *prometheus.CounterVec
	seconds  prometheus.Histogram
	bytes    prometheus.Counter
}

// NewMetrics registers the metrics; what is kept is asked of the keeper.
func NewMetrics(r prometheus.Registerer, held func() (images int, bytes int64)) *Metrics {
	m := &Metrics{
		samples: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "apparate_samples_total", Help: "Samples of starts that nodes sent, by what became of them.",
		}, []string{"verdict"}),
		profiles: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "apparate_profiles_total", Help: "Start-up profiles: published, inherited (of another tag of the repository), unchanged (the one in the registry is as good), or failed (tried again).",
		}, []string{"result"}),
		seconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "apparate_profile_seconds", Help: "How long it took to make and push a profile.",
			Buckets: prometheus.ExponentialBuckets(0.05, 2, 14), // to ten minutes
		}),
		bytes: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "apparate_profile_bytes_total", Help: "Bytes of the packs of profiles that were published.",
		}),
	}
	images := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "apparate_sample_images", Help: "Images of which samples are kept in memory.",
	}, func() float64 { n, _ := held(); return float64(n) })
	memory := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "apparate_sample_memory_bytes", Help: "Memory that samples take.",
	}, func() float64 { _, n := held(); return float64(n) })
	r.MustRegister(m.samples, m.profiles, m.seconds, m.bytes, images, memory)
	return m
}

// Sample counts one; it is a Receiver's Count.
func (m *Metrics) Sample(v Verdict) {
	if m != nil {
		m.samples.WithLabelValues(string(v)).Inc()
	}
}

// made counts a piece of work that came to its end; p is nil where nothing was published.
func (m *Metrics) made(p *Published, took time.Duration) {
	switch {
	case m == nil:
	case p == nil:
		m.profiles.WithLabelValues("unchanged").Inc()
	default:
		m.profiles.WithLabelValues("published").Inc()
		m.seconds.Observe(took.Seconds())
		m.bytes.Add(float64(p.Bytes))
	}
}

func (m *Metrics) inherited(n int) {
	if m != nil {
		m.profiles.WithLabelValues("inherited").Add(float64(n))
	}
}

func (m *Metrics) failed() {
	if m != nil {
		m.profiles.WithLabelValues("failed").Inc()
	}
}
