// Package story shows the product as its user meets it: on a real cluster of three
// nodes, with helm, kubectl and a registry, from the first rule to the last trace that
// an uninstallation does not leave.
package story

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/apparate/apparate/snapshotter/host"
	"github.com/apparate/apparate/test/cluster"
	"github.com/apparate/apparate/test/tools"
)

// namespace is where the chart is installed.
const namespace = "apparate"

// world is a cluster and what is installed in it.
type world struct {
	*cluster.Cluster
	t    testing.TB
	root string // of the repository
	helm string
}

// newWorld starts a cluster whose registry has the image of the installation.
func newWorld(t testing.TB, o cluster.Options) *world {
	t.Helper()
	ctx := t.Context()
	root, err := tools.Root(ctx)
	if err != nil {
		t.Fatal(err)
	}
	paths, err := tools.Ensure(ctx, t.Output(), tools.Helm)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{"apparate", "apparate-operator"} {
		if _, err := os.Stat(filepath.Join(root, "bin", p)); err != nil {
			t.Fatalf("%v: run 'make build' first, or 'make e2e'", err)
		}
	}
	w := &world{Cluster: cluster.Start(t, o), t: t, root: root, helm: paths[tools.Helm]}
	w.pushInstallation("1.0.0")
	return w
}

// bin is a program of ours.
func (w *world) bin(name string) string { return filepath.Join(w.root, "bin", name) }

// in returns the world for a part of the test.
func (w *world) in(t testing.TB) *world {
	c := *w
	c.t = t
	return &c
}

// part runs a part of the test; what comes after it needs it.
func (w *world) part(name string, f func(w *world)) {
	w.t.Helper()
	begin := time.Now()
	t, ok := w.t.(*testing.T)
	if !ok || !t.Run(name, func(t *testing.T) { f(w.in(t)) }) {
		w.t.FailNow()
	}
	w.t.Logf("%s: %.1f s", name, time.Since(begin).Seconds())
}

// command runs a program in the control plane's network, which has to succeed.
func (w *world) command(name string, args ...string) string {
	w.t.Helper()
	out, err := w.try(name, args...)
	if err != nil {
		w.t.Fatal(err)
	}
	return out
}

func (w *world) try(name string, args ...string) (string, error) {
	cmd := w.Command(w.t.Context(), name, args...)
	var out, bad bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &bad
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%s %s: %w: %s%s", filepath.Base(name), strings.Join(args, " "), err, &out, &bad)
	}
	return out.String(), nil
}

// helmRun runs helm with directories of its own.
func (w *world) helmRun(args ...string) string {
	w.t.Helper()
	dir := filepath.Join(w.Dir, "helm")
	env := []string{"HELM_CACHE_HOME=" + dir + "/cache", "HELM_CONFIG_HOME=" + dir + "/config", "HELM_DATA_HOME=" + dir + "/data", w.helm}
	return w.command("env", append(env, args...)...)
}

// kubectl runs kubectl, which has to succeed.
func (w *world) kubectl(stdin string, args ...string) string {
	w.t.Helper()
	out, bad, err := w.Kubectl(w.t.Context(), stdin, args...)
	if err != nil {
		w.t.Fatalf("kubectl %s: %v: %s%s", strings.Join(args, " "), err, out, bad)
	}
	return out
}

// eventually waits until f is content.
func (w *world) eventually(what string, limit time.Duration, f func(ctx context.Context) error) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), limit)
	defer cancel()
	var err error
	for {
		// The last one, that the end of ctx cut off, says nothing.
		if now := f(ctx); now == nil {
			return
		} else if ctx.Err() == nil || err == nil {
			err = now
		}
		select {
		case <-ctx.Done():
			w.t.Fatalf("%s: not within %v: %v\n%s", what, limit, err, w.explain())
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// explain collects what a person would look at.
func (w *world) explain() string {
	var all strings.Builder
	for _, args := range [][]string{
		{"get", "pods", "-A", "-o", "wide"}, {"get", "events", "-A", "--sort-by=.lastTimestamp"},
		{"get", "nodes", "-o", `jsonpath={range .items[*]}{.metadata.name}: {.metadata.annotations.apparate\.cloud\.tencent\.com/node}{"\n"}{end}`},
		{"-n", namespace, "logs", "-l", "app.kubernetes.io/component=node", "--tail=30", "--prefix"},
		{"-n", namespace, "logs", "-l", "app.kubernetes.io/component=operator", "--tail=20", "--prefix"},
	} {
		out, bad, err := w.Kubectl(context.Background(), "", args...)
		fmt.Fprintf(&all, "$ kubectl %s\n%s%s", strings.Join(args, " "), out, bad)
		if err != nil {
			fmt.Fprintln(&all, err)
		}
	}
	for _, n := range w.Nodes() {
		for _, log := range []string{"apparate.log", "retire.log"} {
			if b, err := os.ReadFile(n.Path("/var/lib/apparate/" + log)); err == nil {
				fmt.Fprintf(&all, "%s %s:\n%s", n.Name, log, b[max(0, len(b)-4000):])
			}
		}
	}
	return all.String()
}

// ready waits until pods with a label are ready, and returns the time since begin.
func (w *world) podsReady(selector string, begin time.Time) time.Duration {
	w.t.Helper()
	w.eventually("pods "+selector+" to be ready", 4*time.Minute, func(ctx context.Context) error {
		out, bad, err := w.Kubectl(ctx, "", "get", "pods", "-l", selector, "-o", `jsonpath={range .items[*]}{.status.conditions[?(@.type=="Ready")].status} {end}`)
		if err != nil {
			return errors.Join(err, errors.New(bad))
		}
		if f := strings.Fields(out); len(f) == 0 || strings.Contains(out, "False") {
			return fmt.Errorf("ready: %q", out)
		}
		return nil
	})
	return time.Since(begin)
}

// nodePods are the nodes that have a pod of the DaemonSet, and whether it is ready.
func (w *world) nodePods(ctx context.Context) (map[string]bool, error) {
	out, bad, err := w.Kubectl(ctx, "", "-n", namespace, "get", "pods", "-l", "app.kubernetes.io/component=node", "-o",
		`jsonpath={range .items[*]}{.spec.nodeName} {.status.conditions[?(@.type=="Ready")].status}{"\n"}{end}`)
	if err != nil {
		return nil, errors.Join(err, errors.New(bad))
	}
	pods := map[string]bool{}
	for line := range strings.Lines(out) {
		if f := strings.Fields(line); len(f) == 2 {
			pods[f[0]] = f[1] == "True"
		}
	}
	return pods, nil
}

// nodesReady waits until exactly these nodes have a pod of the DaemonSet, ready.
func (w *world) nodesReady(names ...string) {
	w.t.Helper()
	w.eventually(fmt.Sprintf("pods of the DaemonSet, ready, on exactly %v", names), 3*time.Minute, func(ctx context.Context) error {
		pods, err := w.nodePods(ctx)
		if err != nil || len(pods) != len(names) {
			return errors.Join(fmt.Errorf("pods: %v", pods), err)
		}
		for _, n := range names {
			if !pods[n] {
				return fmt.Errorf("pods: %v", pods)
			}
		}
		return nil
	})
}

// nodeStatus is what the annotation of a node says.
func (w *world) nodeStatus(ctx context.Context, node string) (s host.Status, err error) {
	out, bad, err := w.Kubectl(ctx, "", "get", "node", node, "-o", `jsonpath={.metadata.annotations.apparate\.cloud\.tencent\.com/node}`)
	if err != nil {
		return s, errors.Join(err, errors.New(bad))
	}
	if out == "" {
		return s, errors.New("no annotation")
	}
	return s, json.Unmarshal([]byte(out), &s)
}

// allReady says whether all nodes of the cluster are Ready.
func (w *world) allReady() {
	w.t.Helper()
	out := w.kubectl("", "get", "nodes", "-o", `jsonpath={range .items[*]}{.metadata.name}={.status.conditions[?(@.type=="Ready")].status} {end}`)
	for _, f := range strings.Fields(out) {
		if !strings.HasSuffix(f, "=True") {
			w.t.Errorf("nodes: %s", out)
		}
	}
}

// fetched is how many bytes of lazy layers a node has fetched.
func (w *world) fetched(n *cluster.Node) int64 {
	w.t.Helper()
	out, err := n.Exec(w.t.Context(), "/var/lib/apparate/bin/apparate", "status", "--output", "json")
	if err != nil {
		w.t.Fatal(err)
	}
	var s struct {
		FetchedBytes int64 `json:"fetchedBytes"`
	}
	if err := json.Unmarshal([]byte(out), &s); err != nil {
		w.t.Fatal(err)
	}
	return s.FetchedBytes
}

// lazyRoots is how many containers of a node have an EROFS image of ours as the lower
// directory of their root.
func (w *world) lazyRoots(n *cluster.Node) (roots int) {
	w.t.Helper()
	b, err := os.ReadFile(filepath.Join(filepath.Dir(n.Path("/")), "mounts"))
	if err != nil {
		w.t.Fatal(err)
	}
	images := map[string]bool{}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 2 && f[2] == "erofs" {
			images[f[1]] = true
		}
	}
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) < 4 || f[2] != "overlay" {
			continue
		}
		for _, o := range strings.Split(f[3], ",") {
			lower, ok := strings.CutPrefix(o, "lowerdir=")
			if ok && images[lower] {
				roots++
			}
		}
	}
	return roots
}
