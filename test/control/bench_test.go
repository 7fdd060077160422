package control

import (
	"bytes"
	"fmt"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/apparate/apparate/api/v1alpha1"
)

// percentile of durations, in milliseconds.
func percentile(all []time.Duration, p float64) float64 {
	slices.Sort(all)
	return float64(all[int(p*float64(len(all)-1))]) / float64(time.Millisecond)
}

// BenchmarkNotification measures from the notification of a push to its answer,
// which comes when the ImageConversion exists: the real API server, the real
// registry, the operator as a process that converts meanwhile.
func BenchmarkNotification(b *testing.B) {
	w := newWorld(b, options{lost: true, args: []string{"--max-waiting", "1000000", "--scan-qps", "1000"}})
	w.apply(w.sample("registry.yaml"))
	w.apply(w.sample("accelerationrule.yaml"))
	w.eventually("the rule is ready", func() error { return w.rule("nginx", "True", "Ready") })
	img := image(b, "bench")
	w.push("elsewhere:latest", img)
	d, err := remote.Get(w.ref("elsewhere:latest"))
	if err != nil {
		b.Fatal(err)
	}
	w.push("library/nginx:0", img)
	var took []time.Duration
	b.ResetTimer()
	for i := range b.N {
		b.StopTimer()
		tag := fmt.Sprintf("1.%d", i)
		if err := remote.Tag(w.ref("library/nginx:"+tag).(name.Tag), d); err != nil {
			b.Fatal(err)
		}
		body := fmt.Sprintf(`{"events":[{"id":"%d","action":"push","target":{"mediaType":"x.manifest","digest":%q,"repository":"library/nginx","tag":%q}}]}`, i, d.Digest, tag)
		req, err := http.NewRequest(http.MethodPost, "http://"+w.webhook+"/v1/notifications/"+w.namespace+"/main", strings.NewReader(body))
		if err != nil {
			b.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+w.token)
		b.StartTimer()
		start := time.Now()
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			b.Fatal(err)
		}
		var answer bytes.Buffer
		if _, err := answer.ReadFrom(resp.Body); err != nil {
			b.Fatal(err)
		}
		_ = resp.Body.Close() // read whole
		if !strings.Contains(answer.String(), `"conversion":"nginx-`) {
			b.Fatal(answer.String())
		}
		took = append(took, time.Since(start))
	}
	b.ReportMetric(percentile(took, 0.5), "p50-ms")
	b.ReportMetric(percentile(took, 0.99), "p99-ms")
}

// memory of the operator in MB.
func (w *world) memory() float64 {
	w.t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", w.op.Process.Pid))
	if err != nil {
		w.t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); f[0] == "VmRSS:" {
			kB, err := strconv.ParseFloat(f[1], 64)
			if err != nil {
				w.t.Fatal(err)
			}
			return kB / 1e3
		}
	}
	return 0
}

// BenchmarkQueue measures what ten thousand conversions that wait cost: requests of
// the operator to the API server, its memory, and how quick that server is.
func BenchmarkQueue(b *testing.B) {
	const queued = 10_000
	f := &fuse{kill: func() {}}
	var requests atomic.Int64
	f.seen = func() { requests.Add(1) }
	w := newWorld(b, options{lost: true, kubeconfig: f.apiProxy(b)})
	// A registry that takes connections and says nothing: the workers are busy.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = l.Close() }() // nothing was written
	w.apply(fmt.Sprintf("apiVersion: apparate.cloud.tencent.com/v1alpha1\nkind: Registry\nmetadata: {name: main}\nspec: {endpoint: %q, accelerationEnabled: true}", "http://"+l.Addr().String()))
	latency := func() float64 {
		var took []time.Duration
		for range 100 {
			start := time.Now()
			var o v1alpha1.Registry
			if err := w.client.Get(b.Context(), client.ObjectKey{Namespace: w.namespace, Name: "main"}, &o); err != nil {
				b.Fatal(err)
			}
			took = append(took, time.Since(start))
		}
		return percentile(took, 0.5)
	}
	before := latency()
	start := time.Now()
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for i := g; i < queued; i += 8 {
				c := &v1alpha1.ImageConversion{
					ObjectMeta: metav1.ObjectMeta{Namespace: w.namespace, Name: fmt.Sprintf("c-%d", i)},
					Spec:       v1alpha1.ImageConversionSpec{RegistryRef: v1alpha1.LocalReference{Name: "main"}, Repository: "library/app", Tag: fmt.Sprintf("t%d", i)},
				}
				if err := w.client.Create(b.Context(), c); err != nil {
					b.Error(err)
				}
			}
		})
	}
	wg.Wait()
	w.limit = 10 * time.Minute
	w.eventually("all are queued", func() error {
		m := w.metric("apparate_conversion_queue_depth ")
		if f := strings.Fields(m); len(f) < 2 || f[1] == "0" {
			return fmt.Errorf("%s", m)
		}
		var out v1alpha1.ImageConversionList
		if err := w.client.List(b.Context(), &out, client.InNamespace(w.namespace)); err != nil {
			return err
		}
		for _, c := range out.Items {
			if len(c.Status.Conditions) == 0 {
				return fmt.Errorf("%s was not looked at", c.Name)
			}
		}
		return nil
	})
	b.ReportMetric(time.Since(start).Seconds(), "queued-s")
	time.Sleep(3 * time.Second)
	requests.Store(0)
	const quiet = 20 * time.Second
	time.Sleep(quiet)
	b.ReportMetric(float64(requests.Load())/quiet.Seconds(), "requests/s")
	b.ReportMetric(w.memory(), "RSS-MB")
	b.ReportMetric(latency()/before, "latency-ratio")
}
