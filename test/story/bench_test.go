package story

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/apparate/apparate/test/cluster"
	"github.com/apparate/apparate/test/images"
)

// BenchmarkStarts measures from `kubectl apply` of a pod to its first correct answer,
// the plain image and the accelerated one in turn, on a node that has nothing of them.
// The registry is in the same machine: what is left out is the time on a wire.
func BenchmarkStarts(b *testing.B) {
	w := newWorld(b, cluster.Options{Nodes: 1})
	specs := map[string]images.Spec{}
	for _, name := range images.Names() {
		img, spec, err := images.Build(b.Context(), name, w.cache("images"), b.Output())
		if err == nil {
			err = w.Push(b.Context(), "library/"+name+":latest", img)
		}
		if err != nil {
			b.Fatal(err)
		}
		w.command(w.bin("apparate"), "convert", cluster.RegistryAddress+"/library/"+name+":latest")
		specs[name] = spec
	}
	w.label("node-1")
	w.helmRun(append([]string{"install", "apparate", filepath.Join(w.root, "charts", "apparate"), "-n", namespace, "--create-namespace"},
		append(flags(), "--set", "operator.replicas=0")...)...)
	w.nodesReady("node-1")
	for _, name := range images.Names() {
		b.Run(name, func(b *testing.B) {
			w := w.in(b)
			var plain, lazy time.Duration
			for range b.N {
				plain += w.start(name, "latest", specs[name])
				lazy += w.start(name, "latest-apparate", specs[name])
			}
			b.ReportMetric(plain.Seconds()/float64(b.N), "plain-s")
			b.ReportMetric(lazy.Seconds()/float64(b.N), "lazy-s")
			b.ReportMetric(0, "ns/op")
		})
	}
}

// start starts a pod and returns how long its first correct answer took.
func (w *world) start(image, tag string, spec images.Spec) time.Duration {
	w.t.Helper()
	probe := ""
	if spec.Path != "" {
		probe = "readinessProbe: {httpGet: {path: " + spec.Path + ", port: 8081}, periodSeconds: 1}"
	}
	begin := time.Now()
	w.kubectl(fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: bench, labels: {app: bench}}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: c
    image: library/%s:%s
    env: [{name: PORT, value: "8080; listen 8081"}]
    %s
`, image, tag, probe), "apply", "-f", "-")
	if spec.Line == "" {
		w.podsReady("app=bench", begin)
	} else {
		w.eventually("the line of "+image, 2*time.Minute, func(ctx context.Context) error {
			out, bad, err := w.Kubectl(ctx, "", "logs", "bench")
			if err == nil && !strings.Contains(out, spec.Line) {
				err = errors.New(out + bad)
			}
			return err
		})
	}
	took := time.Since(begin)
	w.kubectl("", "delete", "pod", "bench", "--wait=true")
	w.emptyNode("node-1", "library/"+image)
	return took
}
