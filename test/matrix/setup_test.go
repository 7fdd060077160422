// Package matrix shows one node of each containerd that there is in the field, from
// 1.4 to 2.4, becoming a node with lazy images and leaving that again, driven by the
// interface that kubelet speaks to it.
package matrix

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/apparate/apparate/test/cluster"
	"github.com/apparate/apparate/test/cri"
	"github.com/apparate/apparate/test/tools"
)

const (
	socket  = "/run/containerd/containerd.sock"
	config  = "/etc/containerd/config.toml"
	program = "/usr/local/bin/apparate"
	hostDir = "/var/lib/apparate"
	root    = "/var/lib/containerd/io.containerd.snapshotter.v1.apparate"

	// What a container reads while its node is shaken, one file after the other: for
	// longer than all that takes.
	coldFiles, coldSize = 4000, 20 << 10
)

// TestMain has all nodes go on at the same time, also where processors are few: most of
// the time everything waits for something to stay well.
func TestMain(m *testing.M) {
	flag.Parse()
	if err := flag.Set("test.parallel", strconv.Itoa(len(kinds))); err != nil {
		fmt.Fprintln(os.Stderr, "matrix:", err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// kind is a kind of node.
type kind struct {
	containerd, cri string
	// discard is an option of containerd that throws layers away once they are
	// unpacked.
	discard bool
}

var kinds = []kind{
	{containerd: "1.4", cri: cri.V1alpha2, discard: true},
	{containerd: "1.6", cri: cri.V1, discard: true},
	{containerd: "1.7", cri: cri.V1},
	{containerd: "2.4", cri: cri.V1},
}

// prepare changes the configuration of a node's containerd.
func (k kind) prepare(n *cluster.Node) error {
	if !k.discard {
		return nil
	}
	f, err := os.OpenFile(n.Path(config), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString("[plugins.\"io.containerd.grpc.v1.cri\".containerd]\n  discard_unpacked_layers = true\n")
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err
}

// images are those in the registry.
type images struct {
	before, plain, cold, fast string
	// coldBytes is what the accelerated one takes in the registry.
	coldBytes int64
}

// start starts one node of each kind, with the images in its registry.
func start(t *testing.T) (*cluster.Cluster, images) {
	t.Helper()
	ctx := t.Context()
	top, err := tools.Root(ctx)
	if err != nil {
		t.Fatal(err)
	}
	built := filepath.Join(top, "bin", "apparate")
	binary, err := os.ReadFile(built)
	if err != nil {
		t.Fatalf("%v: run 'make build' first, or 'make e2e'", err)
	}
	c := cluster.Start(t, cluster.Options{Nodes: len(kinds), Node: func(i int) cluster.NodeOptions {
		k := kinds[i-1]
		return cluster.NodeOptions{Containerd: k.containerd, NoKubelet: true, Prepare: k.prepare}
	}})
	for _, n := range c.Nodes() {
		if err := os.WriteFile(n.Path(program), binary, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	shell, err := cluster.Busybox(ctx, t.Output(), "sh")
	if err != nil {
		t.Fatal(err)
	}
	all := images{}
	push := func(name string, img v1.Image) string {
		if err := c.Push(ctx, name, img); err != nil {
			t.Fatal(err)
		}
		return cluster.RegistryAddress + "/" + name
	}
	all.before, all.plain = push("library/before:1", with(t, shell, "before")), push("library/plain:1", with(t, shell, "plain"))
	all.cold = push("library/cold:1", coldImage(t, shell))
	out, err := c.Command(ctx, built, "convert", "--plain-http", all.cold).CombinedOutput()
	if err != nil {
		t.Fatalf("apparate convert: %v: %s", err, out)
	}
	all.fast = all.cold + "-apparate"
	all.coldBytes = coldFiles * coldSize // random bytes do not become fewer
	return c, all
}

// with is an image with a file more.
func with(t *testing.T, base v1.Image, name string) v1.Image {
	t.Helper()
	return add(t, base, map[string][]byte{name: []byte(name)})
}

// coldImage is an image with files that are called by the digests of what is in them.
func coldImage(t *testing.T, base v1.Image) v1.Image {
	t.Helper()
	random := rand.NewChaCha8([32]byte{7})
	files := map[string][]byte{}
	for range coldFiles {
		b := make([]byte, coldSize)
		_, _ = random.Read(b) // it never fails
		sum := sha256.Sum256(b)
		files["data/"+hex.EncodeToString(sum[:])] = b
	}
	return add(t, base, files)
}

// add adds a layer with files, in any order.
func add(t *testing.T, base v1.Image, files map[string][]byte) v1.Image {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for name, text := range files {
		err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(text))})
		if err == nil {
			_, err = w.Write(text)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	img, err := mutate.Append(base, mutate.Addendum{Layer: static.NewLayer(b.Bytes(), types.OCIUncompressedLayer), MediaType: types.OCIUncompressedLayer})
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// host is a node under test.
type host struct {
	*cluster.Node
	kind
	images
	cri *cri.Client
	t   *testing.T
}

func newHost(t *testing.T, n *cluster.Node, k kind, all images) *host {
	t.Helper()
	h := &host{Node: n, kind: k, images: all, t: t}
	h.connect()
	if h.cri.Version != k.cri {
		t.Fatalf("containerd %s speaks %s", k.containerd, h.cri.Version)
	}
	return h
}

// connect waits until containerd answers.
func (h *host) connect() {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(h.t.Context(), time.Minute)
	defer cancel()
	c, err := cri.Await(ctx, h.Path(socket))
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { _ = c.Close() }) // the connection of a test
	h.cri = c
}

// must is for errors that end the test.
func (h *host) must(err error) {
	h.t.Helper()
	if err != nil {
		h.t.Fatal(err)
	}
}

// eventually waits until f returns nil.
func (h *host) eventually(what string, f func() error) {
	h.t.Helper()
	const patience = 2 * time.Minute
	var err error
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		if err = f(); err == nil {
			return
		}
	}
	h.t.Fatalf("%s: not within %v: %v", what, patience, err)
}

// run runs our program on the node.
func (h *host) run(args ...string) string {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(h.t.Context(), 5*time.Minute)
	defer cancel()
	out, err := h.Command(ctx, program, args...).CombinedOutput()
	if err != nil {
		h.t.Fatalf("apparate %s: %v: %s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// ensure has the image, and says whether it had to be pulled.
func (h *host) ensure(image string) (pulled bool) {
	h.t.Helper()
	pulled, err := h.cri.Ensure(h.t.Context(), image)
	h.must(err)
	return pulled
}

// box is a pod with one container.
type box struct {
	*cri.Container
	h   *host
	pod *cri.Pod
	pid int // in the node
}

// start starts a pod of an image that is there.
func (h *host) start(name, image string, args ...string) *box {
	h.t.Helper()
	ctx := h.t.Context()
	pod, err := h.cri.RunPod(ctx, name)
	h.must(err)
	c, err := pod.Start(ctx, name, image, args...)
	h.must(err)
	b := &box{Container: c, h: h, pod: pod}
	b.pid, err = c.PID(ctx)
	h.must(err)
	return b
}

// end ends the pod and removes it.
func (b *box) end() {
	b.h.t.Helper()
	b.h.must(b.pod.Remove(b.h.t.Context()))
}

// inside is the path of a file in the container.
func (b *box) inside(path string) string {
	return b.h.Path(fmt.Sprintf("/proc/%d/root%s", b.pid, path))
}
