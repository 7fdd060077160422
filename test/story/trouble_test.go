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

	"github.com/apparate/apparate/snapshotter/host"
	"github.com/apparate/apparate/test/cluster"
	"github.com/apparate/apparate/test/images"
)

// TestTrouble: whatever is wrong with a node, it stays Ready, ordinary and accelerated
// images start on it, and one line in an event, in the node's annotation and in
// `apparate status` says what to do.
func TestTrouble(t *testing.T) {
	t.Parallel()
	const disk = 3 << 30
	w := newWorld(t, cluster.Options{Nodes: 4, Node: func(i int) cluster.NodeOptions {
		switch i {
		case 2:
			return cluster.NodeOptions{NoFuse: true}
		case 3:
			return cluster.NodeOptions{Disk: disk}
		}
		return cluster.NodeOptions{}
	}})
	w.convertNginx()
	w.part("four nodes", (*world).fourTroubles)
	w.part("the configuration is repaired", (*world).repair)
	w.part("wrong credentials", (*world).wrongCredentials)
	w.part("pull secrets of pods", (*world).podSecrets)
	w.part("the disk of a node that works fills up", (*world).fullDisk)
}

// convertNginx pushes nginx and its accelerated image.
func (w *world) convertNginx() {
	w.t.Helper()
	nginx, _, err := images.Build(w.t.Context(), "nginx", w.cache("images"), w.t.Output())
	if err == nil {
		err = w.Push(w.t.Context(), "library/nginx:latest", nginx)
	}
	if err != nil {
		w.t.Fatal(err)
	}
	w.command(w.bin("apparate"), "convert", cluster.RegistryAddress+"/library/nginx:latest")
}

// broken is no TOML.
const broken = "version = 3\n[plugins\nthis is not TOML\n"

// fourTroubles installs the chart where node-1 has a broken configuration, node-2 no
// FUSE, node-3 no room on its disk, and node-4 a kernel without EROFS (forced).
func (w *world) fourTroubles() {
	n1 := w.node("node-1")
	pid := n1.Service("containerd")
	if err := os.WriteFile(n1.Path("/etc/containerd/config.toml"), []byte(broken), 0o600); err != nil {
		w.t.Fatal(err)
	}
	w.fill("node-3", 500<<20)
	w.label("node-1", "node-2", "node-3")
	args := append([]string{"install", "apparate", filepath.Join(w.root, "charts", "apparate"), "-n", namespace, "--create-namespace"}, flags()...)
	w.helmRun(args...)
	w.says("node-1", host.Broken, "ContainerdConfigInvalid", "config.toml", "correct it")
	w.says("node-2", host.NotLazy, "PreflightFailed", "fuse", "modprobe fuse")
	w.says("node-3", host.NotLazy, "PreflightFailed", "disk", "free ")
	if now, err := os.ReadFile(n1.Path("/etc/containerd/config.toml")); err != nil || string(now) != broken {
		w.t.Errorf("the broken configuration was touched: %v, %q", err, now)
	}
	if now := n1.Service("containerd"); now != pid {
		w.t.Errorf("containerd with the broken configuration was restarted: it would not have come back")
	}
	w.helmRun(append([]string{"upgrade", "apparate", filepath.Join(w.root, "charts", "apparate"), "-n", namespace, "--set", "node.extraArgs={--fail-check=erofs}"}, flags()...)...)
	w.label("node-4")
	w.says("node-4", host.NotLazy, "PreflightFailed", "erofs", "Linux 6.12")
	w.allReady()
	for _, node := range []string{"node-1", "node-2", "node-3", "node-4"} {
		w.kubectl(web("on-"+node, "nginx:latest-apparate", "", on(node)), "apply", "-f", "-")
	}
	for _, node := range []string{"node-1", "node-2", "node-3", "node-4"} {
		w.podsReady("app=on-"+node, time.Now())
		if n := w.lazyRoots(w.node(node)); n != 0 {
			w.t.Errorf("%d lazy roots on %s", n, node)
		}
	}
	w.helmRun(append([]string{"upgrade", "apparate", filepath.Join(w.root, "charts", "apparate"), "-n", namespace}, flags()...)...)
}

// fill leaves free bytes on the disk of a node.
func (w *world) fill(node string, free int64) {
	w.t.Helper()
	n := w.node(node)
	out, err := n.Exec(w.t.Context(), "sh", "-c", fmt.Sprintf("a=$(df --output=avail -B1 /var | tail -1); fallocate -l $((a - %d)) /var/filler", free))
	if err != nil {
		w.t.Fatal(err, out)
	}
}

// says waits until event, annotation, condition and status of a node name the reason,
// and all of words.
func (w *world) says(node string, state host.Phase, reason string, words ...string) {
	w.t.Helper()
	var s host.Status
	w.eventually(node+" to say what is wrong", 2*time.Minute, func(ctx context.Context) (err error) {
		s, err = w.nodeStatus(ctx, node)
		if err == nil && (s.State != state || s.Reason != reason) {
			err = fmt.Errorf("it says %+v", s)
		}
		return err
	})
	w.t.Logf("%s: %s", node, s.Message)
	lines := map[string]string{"annotation": s.Message}
	lines["condition"] = w.kubectl("", "get", "node", node, "-o", `jsonpath={.status.conditions[?(@.type=="ApparateReady")].message}`)
	w.eventually("an event of "+node, time.Minute, func(ctx context.Context) error {
		out, bad, err := w.Kubectl(ctx, "", "get", "events", "-o", "json", "--field-selector", "involvedObject.name="+node+",reason=Apparate"+reason)
		var list struct {
			Items []struct{ Message string }
		}
		if err = errors.Join(err, json.Unmarshal([]byte(out), &list)); err != nil || len(list.Items) == 0 {
			return errors.Join(fmt.Errorf("none: %s", bad), err)
		}
		lines["event"] = list.Items[len(list.Items)-1].Message
		return nil
	})
	out, err := w.node(node).Exec(w.t.Context(), "/var/lib/apparate/bin/apparate-node", "status")
	if err == nil {
		w.t.Errorf("apparate status on %s does not fail: %s", node, out)
	}
	lines["status"] = out
	for where, line := range lines {
		for _, word := range words {
			if !strings.Contains(line, word) {
				w.t.Errorf("%s: the %s does not name %q: %s", node, where, word, line)
			}
		}
		if where != "status" && strings.Contains(line, "\n") {
			w.t.Errorf("%s: the %s has several lines: %q", node, where, line)
		}
	}
}

// repair puts a configuration there that works: the node joins by itself.
func (w *world) repair() {
	good, err := os.ReadFile(w.node("node-4").Path("/etc/containerd/config.toml"))
	if err != nil {
		w.t.Fatal(err)
	}
	if err := os.WriteFile(w.node("node-1").Path("/etc/containerd/config.toml"), good, 0o600); err != nil {
		w.t.Fatal(err)
	}
	w.lazyNode("node-1")
	w.lazyNode("node-4")
	w.allReady()
	w.kubectl("", "delete", "deployment", "--all", "--wait=true")
}

// lazyNode waits until a node mounts lazily.
func (w *world) lazyNode(node string) {
	w.t.Helper()
	w.eventually(node+" to be one with lazy images", 3*time.Minute, func(ctx context.Context) error {
		s, err := w.nodeStatus(ctx, node)
		if err == nil && s.State != host.Ready {
			err = fmt.Errorf("it says %+v", s)
		}
		return err
	})
}

// wrongCredentials gives nodes a password that the registry refuses: images are pulled
// by kubelet with the right one, the ordinary way, and the node says why.
func (w *world) wrongCredentials() {
	args := append([]string{"upgrade", "apparate", filepath.Join(w.root, "charts", "apparate"), "-n", namespace}, flags()...)
	w.helmRun(append(args, "--set", "imagePullSecretsCrs.dockerUsername=robot", "--set", "imagePullSecretsCrs.dockerPassword=outdated-secret",
		"--set", "imagePullSecretsCrs.dockerServer="+cluster.RegistryAddress, "--set", "operator.pullSecrets=never")...)
	// kubelet brings the new Secret into the pod in its own time.
	w.eventually("the credentials to be handed over", 3*time.Minute, func(context.Context) error {
		b, err := os.ReadFile(w.node("node-4").Path("/var/lib/apparate/credentials/chart.json"))
		if err == nil && !strings.Contains(string(b), "robot") {
			err = errors.New("they are old")
		}
		return err
	})
	if err := w.ServeRegistry(w.t.Context(), "--user=robot:right-secret"); err != nil {
		w.t.Fatal(err)
	}
	w.kubectl("", "create", "secret", "docker-registry", "right", "--docker-server=docker.io", "--docker-username=robot", "--docker-password=right-secret")
	w.emptyNode("node-4", "nginx")
	w.kubectl(web("secret", "nginx:latest-apparate", "imagePullSecrets: [{name: right}]", on("node-4")), "apply", "-f", "-")
	w.podsReady("app=secret", time.Now())
	var s host.Status
	w.eventually("node-4 to say that the registry refuses its credentials", time.Minute, func(ctx context.Context) (err error) {
		if s, err = w.nodeStatus(ctx, "node-4"); err == nil && !strings.Contains(s.Trouble, "refuses the credentials") {
			err = fmt.Errorf("it says %+v", s)
		}
		return err
	})
	w.t.Logf("node-4: %s", s.Trouble)
	out, err := w.node("node-4").Exec(w.t.Context(), "/var/lib/apparate/bin/apparate", "status")
	if err != nil || !strings.Contains(out, "refuses the credentials") {
		w.t.Errorf("apparate status: %v, %s", err, out)
	}
	events := w.kubectl("", "get", "events", "-A", "-o", "yaml")
	if !strings.Contains(events, "ApparateRegistryTrouble") {
		w.t.Error("no event tells of the trouble")
	}
	w.allReady()
	// Nobody may read the passwords but who has to.
	nodes := w.kubectl("", "get", "nodes", "-o", "yaml")
	logs := w.kubectl("", "-n", namespace, "logs", "-l", "app.kubernetes.io/component=node", "--tail=-1") + out
	for where, text := range map[string]string{"events": events, "nodes": nodes, "logs": logs} {
		for _, secret := range []string{"outdated-secret", "right-secret"} {
			if strings.Contains(text, secret) {
				w.t.Errorf("%s have a password", where)
			}
		}
	}
	w.noSecretsOnDisk(w.node("node-4"))
}

// podSecrets lets nodes use the pull secrets of their pods: the image is lazy again.
func (w *world) podSecrets() {
	args := append([]string{"upgrade", "apparate", filepath.Join(w.root, "charts", "apparate"), "-n", namespace}, flags()...)
	w.helmRun(append(args, "--set", "node.podCredentials=true", "--set", "imagePullSecretsCrs=null")...)
	w.kubectl("", "-n", namespace, "rollout", "status", "daemonset/apparate-node", "--timeout=180s")
	w.lazyNode("node-4")
	w.kubectl("", "delete", "deployment", "secret", "--wait=true")
	w.emptyNode("node-4", "nginx")
	w.kubectl("", "create", "secret", "docker-registry", "here", "--docker-server="+cluster.RegistryAddress, "--docker-username=robot", "--docker-password=right-secret")
	w.kubectl(web("pod-secret", cluster.RegistryAddress+"/library/nginx:latest-apparate", "imagePullSecrets: [{name: here}]", on("node-4")), "apply", "-f", "-")
	w.podsReady("app=pod-secret", time.Now())
	if n := w.lazyRoots(w.node("node-4")); n != 1 {
		w.t.Errorf("%d lazy roots, want that of the pod with the right secret\n%s", n, w.explain())
	}
	if fi, err := os.Stat(w.node("node-4").Path("/var/lib/apparate/credentials/pods.json")); err != nil || fi.Mode().Perm() != 0o600 {
		w.t.Errorf("the file of pods' credentials: %v, %v", fi, err)
	}
	w.kubectl("", "delete", "deployment", "pod-secret", "--wait=true")
}

// noSecretsOnDisk looks for passwords in files of ours that others than root may read.
func (w *world) noSecretsOnDisk(n *cluster.Node) {
	w.t.Helper()
	out, err := n.Exec(w.t.Context(), "sh", "-c", "grep -rlE 'outdated-secret|right-secret' /var/lib/apparate /run/apparate /var/log /etc/containerd 2>/dev/null; true")
	if err != nil {
		w.t.Fatal(err)
	}
	files := strings.Fields(out)
	if len(files) == 0 {
		w.t.Error("the daemon has no file with the credentials")
	}
	for _, f := range files {
		fi, err := os.Stat(n.Path(f))
		if err != nil || fi.Mode().Perm()&0o077 != 0 || !strings.HasPrefix(f, "/var/lib/apparate/credentials/") {
			w.t.Errorf("%s has a password: %v, %v", f, fi.Mode(), err)
		}
	}
}

// fullDisk makes room on node-3, so that it joins, and takes it away again.
func (w *world) fullDisk() {
	if err := w.ServeRegistry(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
	n := w.node("node-3")
	if err := os.Remove(n.Path("/var/filler")); err != nil {
		w.t.Fatal(err)
	}
	w.lazyNode("node-3")
	w.emptyNode("node-3", "nginx") // of what was pulled the ordinary way
	w.kubectl(web("roomy", "nginx:latest-apparate", "", on("node-3")), "apply", "-f", "-")
	w.podsReady("app=roomy", time.Now())
	w.fill("node-3", 200<<20)
	w.says("node-3", host.Broken, "PreflightFailed", "disk", "free ")
	w.podsReady("app=roomy", time.Now())
	if w.lazyRoots(n) != 1 {
		w.t.Errorf("%d lazy roots, want that of the pod that runs", w.lazyRoots(n))
	}
	w.allReady()
}
