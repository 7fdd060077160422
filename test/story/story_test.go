package story

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/apparate/apparate/snapshotter/agent"
	"github.com/apparate/apparate/snapshotter/host"
	"github.com/apparate/apparate/test/cluster"
	"github.com/apparate/apparate/test/images"
	"github.com/apparate/apparate/test/tools"
)

// acceleration is what a user applies: the registry with the switch on, and a rule.
const acceleration = `
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
metadata: {name: web}
spec:
  description: 加速分发 (web servers)
  trigger: {registryRef: {name: main}, namespace: library, repository: "nginx|cold", tag: "latest|1"}
`

// flags are the values with which the chart is installed. Files that nobody reads stay
// cold, for the tests that read them.
func flags() []string {
	return []string{"--set", "operator.replicas=1", "--set", "node.backgroundFetchDelay=-1s", "--set", "node.startupTaint=true", "--set", "operator.resources=null"}
}

// TestStory follows the seed document on one cluster, step by step, and then what comes
// after it: upgrade, power cut, uninstallation.
func TestStory(t *testing.T) {
	t.Parallel()
	w := newWorld(t, cluster.Options{})
	before := w.traces()
	w.part("rules and accelerated images", (*world).rules)
	var installed time.Time
	w.part("nodes", func(w *world) {
		// What the operator left stays: registries, rules, images. Nodes are begun anew.
		w.helmRun("uninstall", "apparate", "-n", namespace, "--wait")
		w.label("node-1", "node-2")
		w.helmRun("package", filepath.Join(w.root, "charts", "apparate"), "-d", w.Dir)
		installed = time.Now()
		w.helmRun(append([]string{"install", "apparate", filepath.Join(w.Dir, "apparate-1.0.0.tgz"), "-n", namespace, "--create-namespace"}, flags()...)...)
		w.nodesReady("node-1", "node-2")
		w.t.Logf("from helm install to both nodes ready: %.1f s", time.Since(installed).Seconds())
		w.allReady()
	})
	w.part("a lazy start", func(w *world) { w.lazyStart(installed) })
	w.part("the unlabelled node", (*world).plainStart)
	w.part("a third node joins", (*world).join)
	w.part("either tag is deleted", (*world).deletions)
	w.part("a push that matches no rule", (*world).unmatched)
	w.part("upgrade under a reader", (*world).upgrade)
	w.part("power cut", (*world).powerCut)
	w.part("uninstallation under a reader", func(w *world) { w.uninstall(before) })
}

// label labels nodes.
func (w *world) label(names ...string) {
	w.t.Helper()
	for _, n := range names {
		w.kubectl("", "label", "node", n, "cloud.tencent.com/apparate=true", "--overwrite")
	}
}

// rules installs the chart in a cluster where no node is labelled, turns acceleration
// on, and sees accelerated images appear.
func (w *world) rules() {
	w.helmRun(append([]string{"install", "apparate", filepath.Join(w.root, "charts", "apparate"), "-n", namespace, "--create-namespace", "--wait"}, flags()...)...)
	if pods, err := w.nodePods(w.t.Context()); err != nil || len(pods) != 0 {
		w.t.Fatalf("without a label there are pods on nodes: %v, %v", pods, err)
	}
	w.kubectl(acceleration, "apply", "-f", "-")
	address := cluster.RegistryAddress + "/library/nginx:latest"
	if out := w.command(w.bin("apparate"), "verify", address); !strings.Contains(out, "yes") {
		w.t.Errorf("verify before the push says %q", out)
	}
	nginx, _, err := images.Build(w.t.Context(), "nginx", w.cache("images"), w.t.Output())
	if err == nil {
		err = w.Push(w.t.Context(), "library/nginx:latest", nginx)
	}
	if err != nil {
		w.t.Fatal(err)
	}
	cold, err := coldImage(w.t.Context(), w)
	if err == nil {
		err = w.Push(w.t.Context(), "library/cold:1", cold)
	}
	if err != nil {
		w.t.Fatal(err)
	}
	for _, image := range []string{"library/nginx:latest-apparate", "library/cold:1-apparate"} {
		w.eventually(image+" to appear", 2*time.Minute, func(ctx context.Context) error {
			d, err := w.head(ctx, image)
			if err == nil && d != types.OCIManifestSchema1 && d != types.OCIImageIndex {
				err = fmt.Errorf("it is a %s, not an OCI image", d)
			}
			return err
		})
	}
}

// head is the media type of an image of the registry.
func (w *world) head(ctx context.Context, image string) (types.MediaType, error) {
	ref, err := name.ParseReference(cluster.RegistryAddress+"/"+image, name.Insecure)
	if err != nil {
		return "", err
	}
	tr := w.Transport()
	defer tr.CloseIdleConnections()
	d, err := remote.Head(ref, remote.WithContext(ctx), remote.WithTransport(tr))
	if err != nil {
		return "", err
	}
	return d.MediaType, nil
}

func (w *world) cache(sub string) string {
	dir, err := tools.CacheDir()
	if err != nil {
		w.t.Fatal(err)
	}
	return filepath.Join(dir, sub)
}

// web is a Deployment of nginx.
func web(name, image, node, selector string) string {
	return fmt.Sprintf(`
apiVersion: apps/v1
kind: Deployment
metadata: {name: %s}
spec:
  selector: {matchLabels: {app: %[1]s}}
  template:
    metadata: {labels: {app: %[1]s}}
    spec:
      terminationGracePeriodSeconds: 0
      nodeSelector: {%s}
      %s
      containers:
      - name: nginx
        image: %s
        env: [{name: PORT, value: "8080; listen 8081"}]
        readinessProbe: {httpGet: {path: /index.html, port: 8081}, periodSeconds: 1}
`, name, selector, node, image)
}

const onLabelled = `cloud.tencent.com/apparate: "true"`

func on(node string) string { return "kubernetes.io/hostname: " + node }

// size is how many bytes the layers of an image of the registry have.
func (w *world) size(image string) (total int64) {
	w.t.Helper()
	ref, err := name.ParseReference(cluster.RegistryAddress+"/"+image, name.Insecure)
	if err != nil {
		w.t.Fatal(err)
	}
	tr := w.Transport()
	defer tr.CloseIdleConnections()
	img, err := remote.Image(ref, remote.WithTransport(tr))
	if err != nil {
		w.t.Fatal(err)
	}
	m, err := img.Manifest()
	if err != nil {
		w.t.Fatal(err)
	}
	for _, l := range m.Layers {
		total += l.Size
	}
	return total
}

// lazyStart starts the accelerated image by its label alone.
func (w *world) lazyStart(installed time.Time) {
	begin := time.Now()
	w.kubectl(web("web", "nginx:latest-apparate", "", onLabelled), "apply", "-f", "-")
	took := w.podsReady("app=web", begin)
	w.t.Logf("from helm install to the first accelerated pod ready: %.1f s; the pod alone: %.2f s", time.Since(installed).Seconds(), took.Seconds())
	node := w.kubectl("", "get", "pods", "-l", "app=web", "-o", "jsonpath={.items[0].spec.nodeName}")
	n := w.node(node)
	got, all := w.fetched(n), w.size("library/nginx:latest-apparate")
	w.t.Logf("on %s, of %.1f MB %.1f MB were fetched at ready (%d %%)", node, float64(all)/1e6, float64(got)/1e6, got*100/all)
	if got == 0 || got >= all/2 {
		w.t.Errorf("fetched are %d of %d bytes, want less than half, and some", got, all)
	}
	if w.lazyRoots(n) != 1 {
		w.t.Errorf("%d containers have a lazy root, want 1", w.lazyRoots(n))
	}
}

func (w *world) node(name string) *cluster.Node {
	for _, n := range w.Nodes() {
		if n.Name == name {
			return n
		}
	}
	w.t.Fatalf("no node %q", name)
	return nil
}

// plainStart starts both images on the node that is not labelled, and the plain one on a
// labelled one: times for comparison.
func (w *world) plainStart() {
	for _, c := range []struct{ app, image, node string }{
		{"ordinary", "nginx:latest-apparate", "node-3"}, {"plain3", "nginx:latest", "node-3"}, {"plain1", "nginx:latest", "node-1"},
	} {
		begin := time.Now()
		w.kubectl(web(c.app, c.image, "", on(c.node)), "apply", "-f", "-")
		w.t.Logf("%s on %s: ready after %.2f s", c.image, c.node, w.podsReady("app="+c.app, begin).Seconds())
	}
	if n := w.lazyRoots(w.node("node-3")); n != 0 {
		w.t.Errorf("%d lazy roots on the node without a label", n)
	}
	if _, err := os.Stat(w.node("node-3").Path("/var/lib/apparate/bin")); !errors.Is(err, os.ErrNotExist) {
		w.t.Errorf("something is installed on the node without a label: %v", err)
	}
}

// join labels the third node.
func (w *world) join() {
	// As a new node of a cluster that keeps pods away from it until it is ready.
	w.kubectl("", "taint", "node", "node-3", agent.Taint+"=:NoSchedule")
	w.label("node-3")
	w.nodesReady("node-1", "node-2", "node-3")
	w.eventually("the startup taint to be lifted", time.Minute, func(context.Context) error {
		if out := w.kubectl("", "get", "node", "node-3", "-o", "jsonpath={.spec.taints}"); out != "" {
			return errors.New(out)
		}
		return nil
	})
	begin := time.Now()
	w.kubectl(web("third", "nginx:latest-apparate", "", on("node-3")), "apply", "-f", "-")
	w.podsReady("app=third", begin)
	// What ran before goes on, on whatever it was started from.
	for _, app := range []string{"web", "ordinary", "plain3", "plain1"} {
		w.podsReady("app="+app, begin)
	}
	w.allReady()
}

// deletions deletes the plain tag and starts the accelerated image, and the other way
// round, each on a node that has nothing of it.
func (w *world) deletions() {
	tags := []struct{ gone, start, app string }{
		{"library/nginx:latest", "nginx:latest-apparate", "accelerated-alone"}, {"library/nginx:latest-apparate", "nginx:latest", "plain-alone"},
	}
	w.kubectl("", "delete", "deployment", "--all", "--wait=true")
	for _, c := range tags {
		w.emptyNode("node-2", "nginx")
		img := w.take(c.gone)
		w.kubectl(web(c.app, c.start, "", on("node-2")), "apply", "-f", "-")
		w.podsReady("app="+c.app, time.Now())
		w.kubectl("", "delete", "deployment", c.app, "--wait=true")
		img()
	}
}

// take deletes a tag of the registry, and returns how to put it back.
func (w *world) take(image string) (back func()) {
	w.t.Helper()
	ref, err := name.NewTag(cluster.RegistryAddress+"/"+image, name.Insecure)
	if err != nil {
		w.t.Fatal(err)
	}
	tr := w.Transport()
	d, err := remote.Get(ref, remote.WithTransport(tr))
	if err != nil {
		w.t.Fatal(err)
	}
	// By its tag, as a person does; the manifest may have another.
	if err := remote.Delete(ref, remote.WithTransport(tr)); err != nil {
		w.t.Fatalf("deleting %s: %v", image, err)
	}
	return func() {
		defer tr.CloseIdleConnections()
		if err := remote.Tag(ref, d, remote.WithTransport(tr)); err != nil {
			w.t.Fatal(err)
		}
	}
}

// emptyNode makes a node forget the images with a word in their names.
func (w *world) emptyNode(node, word string) {
	w.t.Helper()
	n := w.node(node)
	// kubelet removes dead containers in its own time.
	w.eventually("no container of "+word+" on "+node, 2*time.Minute, func(ctx context.Context) error {
		out, err := n.Exec(ctx, "ctr", "-n", "k8s.io", "containers", "ls")
		if err == nil && strings.Contains(out, word) {
			err = errors.New(out)
		}
		return err
	})
	out, err := n.Exec(w.t.Context(), "ctr", "-n", "k8s.io", "images", "ls")
	if err != nil {
		w.t.Fatal(err)
	}
	// Each image has several names, of which CRI's is a digest.
	digests := map[string]bool{}
	for line := range strings.Lines(out) {
		if f := strings.Fields(line); len(f) > 2 && strings.Contains(f[0], word) {
			digests[f[2]] = true
		}
	}
	for line := range strings.Lines(out) {
		if f := strings.Fields(line); len(f) > 2 && digests[f[2]] {
			if out, err := n.Exec(w.t.Context(), "ctr", "-n", "k8s.io", "images", "rm", "--sync", f[0]); err != nil {
				w.t.Fatal(err, out)
			}
		}
	}
}

// unmatched pushes what no rule matches.
func (w *world) unmatched() {
	img, err := cluster.Busybox(w.t.Context(), w.t.Output(), "sh")
	if err == nil {
		err = w.Push(w.t.Context(), "library/tools:latest", img)
	}
	if err != nil {
		w.t.Fatal(err)
	}
	out, err := w.try(w.bin("apparate"), "verify", cluster.RegistryAddress+"/library/tools:latest")
	if err == nil || !strings.Contains(out, "NoRuleMatches") || !strings.Contains(out, "library/tools") {
		w.t.Errorf("verify: %v, %q", err, out)
	}
}

// upgrade upgrades the chart to another image and other options while a container
// reads cold files.
func (w *world) upgrade() {
	r := w.read("reader-upgrade", "node-1")
	w.pushInstallation("1.0.1")
	before, err := w.daemon(w.node("node-1"))
	if err != nil {
		w.t.Fatal(err)
	}
	args := append([]string{"upgrade", "apparate", filepath.Join(w.Dir, "apparate-1.0.0.tgz"), "-n", namespace}, flags()...)
	w.helmRun(append(args, "--set", "image.tag=1.0.1", "--set", "node.cacheSize=10GiB")...)
	w.kubectl("", "-n", namespace, "rollout", "status", "daemonset/apparate-node", "--timeout=300s")
	w.eventually("the daemon of node-1 to be another one", time.Minute, func(context.Context) error {
		now, err := w.daemon(w.node("node-1"))
		if err == nil && now.PID == before.PID {
			err = fmt.Errorf("it is %d still", now.PID)
		}
		return err
	})
	r.goesOn(w)
	w.nodesReady("node-1", "node-2", "node-3")
	w.allReady()
	r.end(w)
}

// daemon asks the daemon of a node.
func (w *world) daemon(n *cluster.Node) (s host.DaemonStatus, err error) {
	out, err := n.Exec(w.t.Context(), "/var/lib/apparate/bin/apparate", "status", "--output", "json")
	if err != nil && !strings.HasPrefix(out, "{") {
		return s, err
	}
	return s, json.Unmarshal([]byte(out[:strings.LastIndexByte(out, '}')+1]), &s)
}

// containers are those of the pods on a node, by the pods' names.
func (w *world) containers(node string) map[string]string {
	w.t.Helper()
	out := w.kubectl("", "get", "pods", "-A", "--field-selector", "spec.nodeName="+node, "-o",
		`jsonpath={range .items[*]}{.metadata.name} {.status.containerStatuses[0].state.running.startedAt} {.status.containerStatuses[0].containerID}{"\n"}{end}`)
	all := map[string]string{}
	for line := range strings.Lines(out) {
		if f := strings.Fields(line); len(f) == 3 {
			all[f[0]] = f[2]
		} else if len(f) > 0 {
			all[f[0]] = ""
		}
	}
	return all
}

// powerCut cuts the power of a node that runs lazy containers.
func (w *world) powerCut() {
	w.kubectl(web("power", "nginx:latest-apparate", "", on("node-2")), "apply", "-f", "-")
	w.podsReady("app=power", time.Now())
	n := w.node("node-2")
	before := w.containers("node-2")
	if err := n.PowerCut(); err != nil {
		w.t.Fatal(err)
	}
	begin := time.Now()
	if err := n.Start(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
	if err := w.WaitReady(w.t.Context(), n); err != nil {
		w.t.Fatal(err)
	}
	w.eventually("all containers of node-2 to be new ones", 2*time.Minute, func(context.Context) error {
		now := w.containers("node-2")
		for pod, id := range before {
			if now[pod] == id || now[pod] == "" {
				return fmt.Errorf("%s is %q", pod, now[pod])
			}
		}
		return nil
	})
	w.nodesReady("node-1", "node-2", "node-3")
	w.podsReady("app=power", begin)
	w.t.Logf("after a power cut everything is back after %.1f s", time.Since(begin).Seconds())
	w.eventually("a lazy root on node-2 again", time.Minute, func(context.Context) error {
		if w.lazyRoots(n) == 0 {
			return errors.New("there is none")
		}
		return nil
	})
	w.kubectl("", "delete", "deployment", "power", "--wait=true")
}
