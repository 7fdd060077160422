package story

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/apparate/apparate/test/cluster"
)

// uninstall removes the chart while an accelerated pod reads cold files: it goes on, the
// node is as before for everybody else at once, and once it is gone nothing is left.
func (w *world) uninstall(before map[string][]string) {
	r := w.read("reader-uninstall", "node-1")
	w.helmRun("uninstall", "apparate", "-n", namespace, "--wait")
	n := w.node("node-1")
	w.eventually("containerd's configuration to be as before", 2*time.Minute, func(context.Context) error {
		return w.sameConfig(n, before)
	})
	r.goesOn(w)
	w.kubectl(web("after", "nginx:latest-apparate", "", on("node-1")), "apply", "-f", "-")
	w.podsReady("app=after", time.Now())
	if roots := w.lazyRoots(n); roots != 1 {
		w.t.Errorf("%d lazy roots, want that of the reader alone", roots)
	}
	if left := w.left(n, before); len(left) == 0 {
		w.t.Error("nothing is found of the snapshotter, although a container uses it")
	}
	r.goesOn(w)
	w.allReady()
	r.end(w)
	for _, n := range w.Nodes() {
		w.eventually("nothing to be left on "+n.Name, 3*time.Minute, func(context.Context) error {
			if left := w.left(n, before); len(left) > 0 {
				return fmt.Errorf("left are %s", strings.Join(left, "; "))
			}
			return w.sameConfig(n, before)
		})
	}
	w.podsReady("app=after", time.Now())
	w.allReady()
	out := w.kubectl("", "get", "nodes", "-o", "json")
	for _, word := range []string{"ApparateReady", "apparate.cloud.tencent.com/node"} {
		if strings.Contains(out, word) {
			w.t.Errorf("%s is left at a node", word)
		}
	}
}

// sameConfig compares containerd's configuration with that of before.
func (w *world) sameConfig(n *cluster.Node, before map[string][]string) error {
	now, err := os.ReadFile(n.Path("/etc/containerd/config.toml"))
	if err == nil && string(now) != before[n.Name+" config"][0] {
		err = errors.New("it is another")
	}
	return err
}

// traces are what there is on all nodes, for left.
func (w *world) traces() map[string][]string {
	w.t.Helper()
	all := map[string][]string{}
	for _, n := range w.Nodes() {
		config, err := os.ReadFile(n.Path("/etc/containerd/config.toml"))
		if err != nil {
			w.t.Fatal(err)
		}
		all[n.Name+" config"] = []string{string(config)}
		all[n.Name] = w.ours(n)
	}
	return all
}

// left is what there is on a node now and was not before.
func (w *world) left(n *cluster.Node, before map[string][]string) []string {
	return slices.DeleteFunc(w.ours(n), func(s string) bool { return slices.Contains(before[n.Name], s) })
}

// ours is everything on a node that has our name: files, mounts, processes, cgroups,
// and what containerd knows.
func (w *world) ours(n *cluster.Node) (found []string) {
	w.t.Helper()
	for _, dir := range []string{"/etc", "/var/lib", "/run", "/opt", "/usr/local", "/sys/fs/cgroup"} {
		root := n.Path(dir)
		err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
			if err != nil {
				return nil //nolint:nilerr // what goes meanwhile is not left
			}
			name := strings.TrimPrefix(path, root)
			if strings.Contains(e.Name(), "apparate") {
				found = append(found, "file "+dir+name)
			}
			// The contents of containers are theirs: pods' volumes and snapshots.
			if e.IsDir() && (strings.HasSuffix(name, "/snapshots") || strings.HasSuffix(name, "/pods") || e.Name() == "rootfs" || strings.HasSuffix(name, "io.containerd.content.v1.content")) {
				return fs.SkipDir
			}
			return nil
		})
		if err != nil {
			w.t.Fatal(err)
		}
	}
	mounts, err := os.ReadFile(filepath.Join(filepath.Dir(n.Path("/")), "mounts"))
	if err != nil {
		w.t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); len(f) > 3 && strings.Contains(strings.Join(f[:4], " "), "snapshotter.v1.apparate") {
			found = append(found, "mount "+f[1])
		}
	}
	for what, args := range map[string][]string{
		"process": {"sh", "-c", "for p in /proc/[0-9]*; do tr '\\0' ' ' <$p/cmdline; echo; done 2>/dev/null | grep -E '^/?[^ ]*apparate (snapshotter|node)|^[^ ]*apparate-node' || true"},
		"plugin":  {"sh", "-c", "ctr plugins ls 2>/dev/null | grep apparate || true"},
	} {
		out, err := n.Exec(w.t.Context(), args[0], args[1:]...)
		if err != nil {
			w.t.Fatal(err)
		}
		for line := range strings.Lines(out) {
			found = append(found, what+" "+strings.TrimSpace(line))
		}
	}
	return found
}
