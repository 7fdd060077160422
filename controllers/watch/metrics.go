package watch

import (
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/apimachinery/pkg/types"

	"github.com/apparate/apparate/controllers/watch/dialect"
)

// Metrics counts notifications and scans.
type Metrics struct {
	notifications *prometheus.CounterVec
	requests      *prometheus.CounterVec
	scans         *prometheus.CounterVec

	mu   sync.Mutex
	last map[types.NamespacedName]time.Time // of the last complete scan
	age  *prometheus.Desc
	now  func() time.Time
}

// NewMetrics registers the metrics. now is the clock.
func NewMetrics(r prometheus.Registerer, now func() time.Time) *Metrics {
	registry := []string{"namespace", "registry"}
	m := &Metrics{
		notifications: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "apparate_notifications_total", Help: "Push notifications by the dialect of the sender (empty: not recognised) and what became of them.",
		}, []string{"source", "verdict"}),
		scans: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "apparate_scans_total", Help: "Scans of registries; result is complete or incomplete.",
		}, append(registry, "result")),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "apparate_scan_requests_total", Help: "Requests that scans sent to registries.",
		}, registry),
		last: map[types.NamespacedName]time.Time{}, now: now,
		age: prometheus.NewDesc("apparate_scan_age_seconds", "Time since the last complete scan of a registry ended.", registry, nil),
	}
	r.MustRegister(m.notifications, m.scans, m.requests, m)
	return m
}

// Notification counts one; it is a Receiver's Count.
func (m *Metrics) Notification(d dialect.Name, v Verdict) {
	m.notifications.WithLabelValues(string(d), string(v)).Inc()
}

// Scan counts one.
func (m *Metrics) Scan(key types.NamespacedName, r ScanResult) {
	result := "complete"
	if r.Err != nil {
		result = "incomplete"
	}
	m.scans.WithLabelValues(key.Namespace, key.Name, result).Inc()
	m.requests.WithLabelValues(key.Namespace, key.Name).Add(float64(r.Requests))
	if r.Err == nil {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.last[key] = r.End
	}
}

// Forget drops the metrics of a registry that is gone.
func (m *Metrics) Forget(key types.NamespacedName) {
	labels := prometheus.Labels{"namespace": key.Namespace, "registry": key.Name}
	m.scans.DeletePartialMatch(labels)
	m.requests.DeletePartialMatch(labels)
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.last, key)
}

// Describe implements prometheus.Collector.
func (m *Metrics) Describe(c chan<- *prometheus.Desc) { c <- m.age }

// Collect implements prometheus.Collector.
func (m *Metrics) Collect(c chan<- prometheus.Metric) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for key, at := range m.last {
		c <- prometheus.MustNewConstMetric(m.age, prometheus.GaugeValue, m.now().Sub(at).Seconds(), key.Namespace, key.Name)
	}
}
