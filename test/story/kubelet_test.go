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

	"github.com/apparate/apparate/test/cluster"
)

// TestKubelet: what kubelet knows of lazy images is true. The figures of the image file
// system are those of our directory, a container's own are what it wrote and not what
// it read, limits of ephemeral storage count that alone, and images that nobody uses go
// when the disk is full, with what was fetched of them.
func TestKubelet(t *testing.T) {
	t.Parallel()
	w := newWorld(t, cluster.Options{Nodes: 1, Node: func(int) cluster.NodeOptions {
		return cluster.NodeOptions{Disk: 4 << 30, Kubelet: map[string]any{
			"evictionHard":                     map[string]any{"memory.available": "0%", "nodefs.available": "0%", "imagefs.available": "25%"},
			"evictionPressureTransitionPeriod": "5s",
		}}
	}})
	w.convertNginx()
	cold, err := coldImage(t.Context(), w)
	if err == nil {
		err = w.Push(t.Context(), "library/cold:1", cold)
	}
	if err != nil {
		t.Fatal(err)
	}
	w.command(w.bin("apparate"), "convert", cluster.RegistryAddress+"/library/cold:1")
	w.label("node-1")
	w.helmRun(append([]string{"install", "apparate", filepath.Join(w.root, "charts", "apparate"), "-n", namespace, "--create-namespace"}, append(flags(), "--set", "operator.replicas=0", "--set", "node.backgroundFetchDelay=5s")...)...)
	w.nodesReady("node-1")
	w.part("figures and limits", (*world).figures)
	w.part("image garbage collection", (*world).collection)
}

// summary is what we need of kubelet's summary (k8s.io/kubelet, stats/v1alpha1).
type summary struct {
	Node struct {
		Runtime struct {
			ImageFs struct{ UsedBytes, CapacityBytes int64 }
		}
	}
	Pods []struct {
		PodRef     struct{ Name string }
		Containers []struct {
			Rootfs struct{ UsedBytes *int64 }
		}
	}
}

func (w *world) summary(ctx context.Context) (s summary, err error) {
	out, bad, err := w.Kubectl(ctx, "", "get", "--raw", "/api/v1/nodes/node-1/proxy/stats/summary")
	if err != nil {
		return s, errors.Join(err, errors.New(bad))
	}
	return s, json.Unmarshal([]byte(out), &s)
}

// rootfs is how many bytes kubelet thinks that a pod's container takes.
func (s summary) rootfs(pod string) int64 {
	for _, p := range s.Pods {
		if p.PodRef.Name == pod && len(p.Containers) > 0 && p.Containers[0].Rootfs.UsedBytes != nil {
			return *p.Containers[0].Rootfs.UsedBytes
		}
	}
	return -1
}

// storage is a pod of cold:1-apparate that may take 20 MiB of disk.
func storage(name, command string) string {
	return fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: %s, labels: {app: %[1]s}}
spec:
  terminationGracePeriodSeconds: 0
  restartPolicy: Never
  containers:
  - name: c
    image: library/cold:1-apparate
    command: [sh, -c, %q]
    resources: {limits: {ephemeral-storage: 20Mi}}
`, name, command)
}

const snapshots = "/var/lib/containerd/io.containerd.snapshotter.v1.apparate"

// used is how many bytes of disk a directory of the node takes.
func (w *world) used(dir string) (bytes int64) {
	w.t.Helper()
	out, err := w.node("node-1").Exec(w.t.Context(), "sh", "-c", "du -sxB1 "+dir+" 2>/dev/null | cut -f1")
	if err == nil {
		_, err = fmt.Sscan(out, &bytes)
	}
	if err != nil {
		w.t.Fatal(err, out)
	}
	return bytes
}

func (w *world) figures() {
	const read, wrote = coldFiles * coldSize, 8 << 20
	w.kubectl(storage("reads", "cat /data/* >/dev/null && echo all read; sleep 100000"), "apply", "-f", "-")
	w.kubectl(storage("writes", "head -c 8388608 /dev/urandom >/written; sleep 100000"), "apply", "-f", "-")
	w.kubectl(storage("exceeds", "head -c 41943040 /dev/urandom >/written; sleep 100000"), "apply", "-f", "-")
	w.eventually("all files to be read", time.Minute, func(ctx context.Context) error {
		out, _, err := w.Kubectl(ctx, "", "logs", "reads")
		if err == nil && !strings.Contains(out, "all read") {
			err = errors.New("not yet")
		}
		return err
	})
	w.eventually("the pod that writes more than it may to be evicted", 4*time.Minute, func(ctx context.Context) error {
		out, bad, err := w.Kubectl(ctx, "", "get", "pod", "exceeds", "-o", "jsonpath={.status.phase} {.status.reason} {.status.message}")
		if err == nil && !strings.HasPrefix(out, "Failed Evicted") {
			err = errors.New(out + bad)
		}
		return err
	})
	var s summary
	w.eventually("kubelet's figures to be right", 4*time.Minute, func(ctx context.Context) (err error) {
		if s, err = w.summary(ctx); err != nil {
			return err
		}
		if n := s.rootfs("writes"); n < wrote || n > wrote+1<<20 {
			return fmt.Errorf("the pod that wrote %d bytes takes %d", wrote, n)
		}
		if n := s.rootfs("reads"); n < 0 || n > 1<<20 {
			return fmt.Errorf("the pod that read %d bytes and wrote nothing takes %d", read, n)
		}
		have := w.used(snapshots)
		if n := s.Node.Runtime.ImageFs.UsedBytes; have < read || n < have*9/10 || n > have*11/10 {
			return fmt.Errorf("the image file system has %d bytes used, our directory takes %d, and %d were read", n, have, read)
		}
		return nil
	})
	w.t.Logf("image file system: %.1f MB of %.1f MB used, as du says; %.1f MB were read lazily", float64(s.Node.Runtime.ImageFs.UsedBytes)/1e6,
		float64(s.Node.Runtime.ImageFs.CapacityBytes)/1e6, read/1e6)
	for _, pod := range []string{"reads", "writes"} {
		if out := w.kubectl("", "get", "pod", pod, "-o", "jsonpath={.status.phase}"); out != "Running" {
			w.t.Errorf("the pod that %s within its limit is %s", pod, out)
		}
	}
}

// cached is how many bytes of lazy layers the daemon keeps.
func (w *world) cached(ctx context.Context) (bytes int64, err error) {
	out, err := w.node("node-1").Exec(ctx, "/var/lib/apparate/bin/apparate", "status", "--output", "json")
	var s struct {
		CacheBytes int64 `json:"cacheBytes"`
	}
	// While the disk is full it is an error that has an answer as well.
	if jerr := json.NewDecoder(strings.NewReader(out)).Decode(&s); jerr != nil {
		return 0, errors.Join(err, jerr)
	}
	return s.CacheBytes, nil
}

// collection fills the disk while nobody uses the image any more.
func (w *world) collection() {
	w.kubectl("", "delete", "pod", "--all", "--wait=true")
	if n, err := w.cached(w.t.Context()); err != nil || n < coldFiles*coldSize {
		w.t.Fatalf("the daemon keeps %d bytes of %d that were read: %v", n, coldFiles*coldSize, err)
	}
	w.fill("node-1", 600<<20)
	n := w.node("node-1")
	w.eventually("the image to be gone, with what was fetched of it", 6*time.Minute, func(ctx context.Context) error {
		out, err := n.Exec(ctx, "ctr", "-n", "k8s.io", "images", "ls", "-q")
		if err == nil && strings.Contains(out, "library/cold:1-apparate") {
			err = errors.New("it is there")
		}
		if err != nil {
			return err
		}
		left, err := w.cached(ctx)
		if err == nil && left > 0 {
			err = fmt.Errorf("%d bytes are left", left)
		}
		return err
	})
	if err := os.Remove(n.Path("/var/filler")); err != nil {
		w.t.Fatal(err)
	}
	w.eventually("no pressure on the disk", 4*time.Minute, func(ctx context.Context) error {
		out, bad, err := w.Kubectl(ctx, "", "get", "node", "node-1", "-o", `jsonpath={.status.conditions[?(@.type=="DiskPressure")].status}`)
		if err == nil && out != "False" {
			err = errors.New(out + bad)
		}
		return err
	})
	w.allReady()
	// It is pulled again, lazily.
	w.kubectl(storage("again", "cat /data/00001 >/dev/null; sleep 100000"), "apply", "-f", "-")
	w.podsReady("app=again", time.Now())
	if w.lazyRoots(n) != 1 {
		w.t.Errorf("%d lazy roots", w.lazyRoots(n))
	}
}
