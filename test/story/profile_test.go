package story

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/apparate/apparate/api/profile"
	"github.com/apparate/apparate/test/cluster"
	"github.com/apparate/apparate/test/images"
)

// learning is the registry with acceleration on, and the rule for the image.
const learning = `
apiVersion: apparate.cloud.tencent.com/v1alpha1
kind: Registry
metadata: {name: main}
spec:
  endpoint: http://` + cluster.RegistryAddress + `
  accelerationEnabled: true
  scan: {interval: 10s}
---
apiVersion: apparate.cloud.tencent.com/v1alpha1
kind: AccelerationRule
metadata: {name: python}
spec:
  trigger: {registryRef: {name: main}, namespace: library, repository: python}
`

// TestProfile: the cluster learns by itself. What the first start of a fresh image on one
// node reads becomes its profile, and the first start on another node does not wait for
// it any more. Neither strangers nor a node that lies can do harm to that.
func TestProfile(t *testing.T) {
	t.Parallel()
	w := newWorld(t, cluster.Options{})
	w.helmRun(append([]string{"install", "apparate", filepath.Join(w.root, "charts", "apparate"), "-n", namespace, "--create-namespace"}, flags()...)...)
	w.label("node-1", "node-2", "node-3")
	w.nodesReady("node-1", "node-2", "node-3")
	w.kubectl(learning, "apply", "-f", "-")
	python, spec, err := images.Build(t.Context(), "python", w.cache("images"), t.Output())
	if err != nil {
		t.Fatal(err)
	}
	w.part("a fresh image", func(w *world) { w.accelerate(python, "1", 1) })
	var first, second profile.Sample
	w.part("the first start, on node-1", func(w *world) {
		first = w.learn("first", "1", "node-1", spec)
		if first.Profile != "" || len(first.Layers) == 0 || first.Outcome.Requests == 0 || first.Outcome.WaitedReads == 0 {
			w.t.Errorf("it is not a start of a fresh image without a profile: %s", told(first))
		}
		w.published(1)
	})
	w.part("a node that lies, and strangers", func(w *world) { w.lie(first) })
	w.part("the first start on node-2", func(w *world) {
		second = w.learn("second", "1", "node-2", spec)
		w.gain(first, second)
	})
	w.part("the next version of the image", func(w *world) {
		changed, err := mutate.AppendLayers(python, layerOf(w.t, "app/version", "2\n"))
		if err != nil {
			w.t.Fatal(err)
		}
		w.accelerate(changed, "2", 2)
		w.eventually("it takes the profile over", time.Minute, func(context.Context) error {
			metrics, err := w.operatorMetrics()
			if err == nil && !strings.Contains(metrics, `apparate_profiles_total{result="inherited"} 1`) {
				err = errors.New(metrics)
			}
			return err
		})
		third := w.learn("third", "2", "node-3", spec)
		if third.Manifest == first.Manifest {
			w.t.Error("it is the same image")
		}
		w.gain(first, third)
	})
}

// accelerate pushes an image, and waits until so many pushes are accelerated.
func (w *world) accelerate(img v1.Image, tag string, pushes int) {
	w.t.Helper()
	if err := w.Push(w.t.Context(), "library/python:"+tag, img); err != nil {
		w.t.Fatal(err)
	}
	w.eventually("the accelerated image", 3*time.Minute, func(ctx context.Context) error {
		out, bad, err := w.Kubectl(ctx, "", "get", "imageconversions", "-o", `jsonpath={range .items[*]}{.status.conditions[?(@.type=="Succeeded")].status} {end}`)
		if err == nil && strings.Count(out, "True") != pushes {
			err = errors.New(out + bad)
		}
		return err
	})
}

// learn starts the image on a node that has nothing of it, and returns what its daemon
// says that the start read.
func (w *world) learn(pod, tag, node string, spec images.Spec) profile.Sample {
	w.t.Helper()
	// By its Registry's name: a profile is of that, and not of a mirror's.
	w.kubectl(fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: %s}
spec:
  nodeName: %s
  terminationGracePeriodSeconds: 0
  containers: [{name: c, image: "%s/library/python:%s-apparate"}]
`, pod, node, cluster.RegistryAddress, tag), "apply", "-f", "-")
	begin := time.Now()
	w.eventually("the line of "+pod, 2*time.Minute, func(ctx context.Context) error {
		out, bad, err := w.Kubectl(ctx, "", "logs", pod)
		if err == nil && !strings.Contains(out, spec.Line) {
			err = errors.New(out + bad)
		}
		return err
	})
	took := time.Since(begin)
	var samples []profile.Sample
	w.eventually("the sample of "+pod, time.Minute, func(ctx context.Context) error {
		b, err := w.atDaemon(ctx, node, "/samples")
		if err != nil {
			return err
		}
		if samples, err = profile.DecodeSamples(b); err != nil || len(samples) == 0 {
			return fmt.Errorf("%s, %w", b, err)
		}
		return nil
	})
	if len(samples) != 1 {
		w.t.Fatalf("%s has samples of %d starts, not of one", node, len(samples))
	}
	w.t.Logf("%s on %s: its line %.2f s after its creation; %s", pod, node, took.Seconds(), told(samples[0]))
	return samples[0]
}

// told are the figures of a start.
func told(s profile.Sample) string {
	o, chunks := s.Outcome, 0
	var last uint32
	for n := range s.Layers {
		chunks += s.Layers[n].Len()
		last = max(last, slices.Max(append(s.Layers[n].At, 0)))
	}
	return fmt.Sprintf("%d chunks read, the last %d ms after the container's creation; %d requests for %.1f MB, pack %.1f MB (profile %.19s); %d reads waited %d ms",
		chunks, last, o.Requests, float64(o.FetchedBytes)/1e6, float64(o.PackBytes)/1e6, s.Profile, o.WaitedReads, o.WaitMillis)
}

// gain demands that a start needed far fewer requests and waited far more seldom than one
// without a profile.
func (w *world) gain(without, with profile.Sample) {
	w.t.Helper()
	w.t.Logf("without a profile: %s", told(without))
	w.t.Logf("with it:           %s", told(with))
	const fewer = 3
	a, b := without.Outcome, with.Outcome
	if with.Profile == "" || b.PackBytes == 0 {
		w.t.Errorf("no profile was used")
	}
	if b.Requests*fewer > a.Requests || b.WaitedReads*fewer > a.WaitedReads {
		w.t.Errorf("%d requests and %d reads that waited, without a profile %d and %d: want a third at most", b.Requests, b.WaitedReads, a.Requests, a.WaitedReads)
	}
}

// atDaemon asks the daemon of a node at its status socket.
func (w *world) atDaemon(ctx context.Context, node, path string) (_ []byte, err error) {
	socket := w.node(node).Path("/run/apparate/status.sock")
	c := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://apparate"+path, nil)
	if err != nil {
		return nil, err
	}
	resp, err := c.Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, resp.Body.Close()) }()
	return io.ReadAll(resp.Body)
}

// published waits until so many profiles are published, by the events of conversions.
func (w *world) published(want int) {
	w.t.Helper()
	var text string
	w.eventually("the event of a profile", time.Minute, func(ctx context.Context) error {
		out, bad, err := w.Kubectl(ctx, "", "get", "events", "--field-selector", "reason=ProfilePublished,involvedObject.kind=ImageConversion",
			"-o", `jsonpath={range .items[*]}{.involvedObject.name}: {.message}{"\n"}{end}`)
		if err == nil && strings.Count(out, "\n") < want {
			err = errors.New(out + bad)
		}
		text = out
		return err
	})
	w.t.Logf("%s", strings.TrimSpace(text))
	if !strings.HasPrefix(text, "python-1-") || strings.Count(text, "\n") != want {
		w.t.Errorf("events: %q", text)
	}
}

// lie sends samples to the operator: a stranger's are refused, those of a node that lies
// do not change the profile.
func (w *world) lie(good profile.Sample) {
	ip := w.operatorIP()
	token := func(account string, more ...string) string {
		return strings.TrimSpace(w.kubectl("", append([]string{"-n", namespace, "create", "token", account}, more...)...))
	}
	tr := w.Transport()
	defer tr.CloseIdleConnections()
	send := func(what, token string, body []byte, codes ...int) {
		w.t.Helper()
		req, err := http.NewRequestWithContext(w.t.Context(), http.MethodPost, "http://"+net.JoinHostPort(ip, "8083")+profile.SamplesPath, bytes.NewReader(body))
		if err != nil {
			w.t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+token)
		resp, err := (&http.Client{Transport: tr}).Do(req)
		if err != nil {
			w.t.Fatalf("%s: %v", what, err)
		}
		text, err := io.ReadAll(resp.Body)
		if err := errors.Join(err, resp.Body.Close()); err != nil {
			w.t.Fatal(err)
		}
		if !slices.Contains(codes, resp.StatusCode) {
			w.t.Errorf("%s: %s: %s", what, resp.Status, text)
		}
	}
	text := func(s profile.Sample) []byte {
		b, err := json.Marshal(s)
		if err != nil {
			w.t.Fatal(err)
		}
		return b
	}
	const audience = "--audience=" + profile.SamplesAudience
	send("another account", token("apparate-operator", audience), text(good), http.StatusUnauthorized)
	send("a token for the API server", token("apparate-node"), text(good), http.StatusUnauthorized)
	send("no token", "", text(good), http.StatusUnauthorized)
	node := token("apparate-node", audience)
	unknown := good
	unknown.Started = time.Now()
	unknown.Layers = []profile.SampleLayer{{Digest: good.Layers[0].Digest, TOCDigest: good.Layers[0].TOCDigest}}
	for n := range profile.MaxChunks {
		unknown.Layers[0].Add([32]byte{byte(n), byte(n >> 8), 1}, uint32(n))
	}
	send("chunks that nobody has", node, text(unknown), http.StatusAccepted)
	send("too many chunks", node, text(withChunk(unknown)), http.StatusUnprocessableEntity)
	send("huge", node, bytes.Repeat([]byte(" "), 5<<20), http.StatusRequestEntityTooLarge)
	foreign := good
	foreign.Image = "elsewhere.example/library/python"
	send("an image of another registry", node, text(foreign), http.StatusOK)
	nowhere := good
	nowhere.Manifest = "sha256:" + strings.Repeat("0", 64)
	send("an image that is not there", node, text(nowhere), http.StatusAccepted)
	w.eventually("the sample of an image that is not there to be given up", time.Minute, func(context.Context) error {
		nowhere.Started = nowhere.Started.Add(time.Second)
		metrics, err := w.operatorMetrics()
		if err == nil && !strings.Contains(metrics, `apparate_samples_total{verdict="notAccelerated"}`) {
			send("an image that is not there", node, text(nowhere), http.StatusAccepted, http.StatusOK)
			err = errors.New(metrics)
		}
		return err
	})
	w.published(1)
}

// withChunk is a sample with one chunk more.
func withChunk(s profile.Sample) profile.Sample {
	s.Layers = slices.Clone(s.Layers)
	s.Layers[0].Chunks, s.Layers[0].At = slices.Clone(s.Layers[0].Chunks), slices.Clone(s.Layers[0].At)
	s.Layers[0].Add([32]byte{1}, 0)
	return s
}

// operatorIP is the address of the operator's only pod.
func (w *world) operatorIP() string {
	w.t.Helper()
	return w.kubectl("", "-n", namespace, "get", "pods", "-l", "app.kubernetes.io/component=operator", "-o", "jsonpath={.items[0].status.podIP}")
}

// operatorMetrics are those of samples and profiles.
func (w *world) operatorMetrics() (_ string, err error) {
	tr := w.Transport()
	defer tr.CloseIdleConnections()
	req, err := http.NewRequestWithContext(w.t.Context(), http.MethodGet, "http://"+net.JoinHostPort(w.operatorIP(), "8080")+"/metrics", nil)
	if err != nil {
		return "", err
	}
	resp, err := (&http.Client{Transport: tr}).Do(req)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, resp.Body.Close()) }()
	b, err := io.ReadAll(resp.Body)
	var found strings.Builder
	for line := range strings.Lines(string(b)) {
		if strings.HasPrefix(line, "apparate_sample") || strings.HasPrefix(line, "apparate_profile") {
			found.WriteString(line)
		}
	}
	return found.String(), err
}

// layerOf is a layer of one file.
func layerOf(t testing.TB, path, text string) v1.Layer {
	t.Helper()
	var b bytes.Buffer
	out := tar.NewWriter(&b)
	err := out.WriteHeader(&tar.Header{Name: path, Mode: 0o644, Size: int64(len(text))})
	if _, werr := out.Write([]byte(text)); err != nil || werr != nil {
		t.Fatal(err, werr)
	}
	if err := out.Close(); err != nil {
		t.Fatal(err)
	}
	return static.NewLayer(b.Bytes(), types.OCIUncompressedLayer)
}
