package host

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	goruntime "runtime"
	"slices"
	"strings"
	"testing"
	"time"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/contrib/snapshotservice"
	"github.com/containerd/containerd/v2/plugins/snapshots/native"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"

	"github.com/apparate/apparate/test/images"
	"github.com/apparate/apparate/test/registry"
	"github.com/apparate/apparate/test/tools"
)

// world is a real containerd with a second snapshotter called like ours, its ctr, and
// a registry.
type world struct {
	*Store
	t      *testing.T
	reg    *registry.Registry
	ctr    string
	socket string
	old    bool   // containerd 1.4, 1.6 or 1.7
	second string // the directory of the second snapshotter
}

// versions runs a test with each containerd.
func versions(t *testing.T, test func(t *testing.T, w *world)) {
	for _, program := range []string{tools.ContainerdCRI, tools.Containerd17, tools.Containerd16, tools.Containerd14} {
		t.Run(program, func(t *testing.T) { test(t, newWorld(t, program)) })
	}
}

func newWorld(t *testing.T, program string) *world {
	t.Helper()
	paths, err := tools.Ensure(t.Context(), t.Output(), program)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	short, err := os.MkdirTemp("", "c-") // sockets have short names
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(short) })
	w := &world{
		t: t, reg: registry.New(t), socket: short + "/s", second: filepath.Join(dir, "second"),
		ctr: filepath.Join(filepath.Dir(paths[program]), tools.Ctr), old: program != tools.ContainerdCRI,
	}
	w.serveSecond(short + "/p")
	config := filepath.Join(dir, "config.toml")
	text := fmt.Sprintf(`version = 2
root = '%[1]s/root'
state = '%[2]s/state'
disabled_plugins = ['io.containerd.grpc.v1.cri', 'io.containerd.cri.v1.images', 'io.containerd.cri.v1.runtime', 'io.containerd.nri.v1.nri']
[grpc]
  address = '%[2]s/s'
[ttrpc]
  address = '%[2]s/t'
[plugins.'io.containerd.internal.v1.opt']
  path = '%[1]s/opt'
[proxy_plugins.%[3]s]
  type = 'snapshot'
  address = '%[2]s/p'
`, dir, short, Name)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(paths[program], "--config", config, "--log-level", "warn")
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(unix.SIGTERM) // still runs
		_ = cmd.Wait()                       // ended by us
		_ = log.Close()
		if t.Failed() {
			b, _ := os.ReadFile(log.Name())
			t.Logf("%s", b[max(0, len(b)-5000):])
		}
	})
	w.eventually("containerd answers", func() bool {
		_, err = ContainerdVersion(t.Context(), w.socket)
		return err == nil
	})
	if w.Store, err = OpenStore(w.socket); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.Close() })
	return w
}

// serveSecond serves a snapshotter that copies.
func (w *world) serveSecond(socket string) {
	w.t.Helper()
	sn, err := native.NewSnapshotter(w.second)
	if err != nil {
		w.t.Fatal(err)
	}
	l, err := net.Listen("unix", socket)
	if err != nil {
		w.t.Fatal(err)
	}
	g := grpc.NewServer()
	snapshotsapi.RegisterSnapshotsServer(g, snapshotservice.FromSnapshotter(sn))
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = g.Serve(l) // until Stop
	}()
	w.t.Cleanup(func() { g.Stop(); <-done; _ = sn.Close() })
}

func (w *world) eventually(what string, ok func() bool) {
	w.t.Helper()
	for range 600 {
		if ok() {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	w.t.Fatalf("not within 30 s: %s", what)
}

// run runs ctr in a namespace.
func (w *world) run(ns string, args ...string) string {
	w.t.Helper()
	out, err := w.try(w.t.Context(), ns, args...)
	if err != nil {
		w.t.Fatal(err)
	}
	return out
}

func (w *world) try(ctx context.Context, ns string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, w.ctr, append([]string{"--address", w.socket, "-n", ns}, args...)...)
	var bad bytes.Buffer
	cmd.Stderr = &bad // warnings, too
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("ctr %s: %w: %s", strings.Join(args, " "), err, &bad)
	}
	return string(out), err
}

// layer is a layer with one file.
func (w *world) layer(text string) images.Blob {
	w.t.Helper()
	var b bytes.Buffer
	tw := tar.NewWriter(&b)
	err := tw.WriteHeader(&tar.Header{Name: text, Mode: 0o644, Size: int64(len(text))})
	if err == nil {
		_, err = tw.Write([]byte(text))
	}
	if err := errors.Join(err, tw.Close()); err != nil {
		w.t.Fatal(err)
	}
	return images.Blob{Bytes: b.Bytes()}
}

// image is an image of layers with these texts, and one that is its own.
func (w *world) image(texts ...string) v1.Image {
	w.t.Helper()
	var layers []images.Blob
	for _, text := range texts {
		layers = append(layers, w.layer(text))
	}
	img, err := images.Compose(layers...)
	if err != nil {
		w.t.Fatal(err)
	}
	return img
}

// push pushes an image or an index and returns its name.
func (w *world) push(repo string, img remote.Taggable) string {
	w.t.Helper()
	ref := w.reg.Host() + "/" + repo + ":1"
	tag, err := name.ParseReference(ref)
	if err != nil {
		w.t.Fatal(err)
	}
	switch i := img.(type) {
	case v1.ImageIndex:
		err = remote.WriteIndex(tag, i)
	case v1.Image:
		err = remote.Write(tag, i)
	default:
		err = fmt.Errorf("%T is not an image", img)
	}
	if err != nil {
		w.t.Fatal(err)
	}
	return ref
}

// pullArgs are ctr's for a pull by the client, as CRI does it.
func (w *world) pullArgs(snapshotter, ref string) []string {
	args := []string{"images", "pull", "--plain-http", "--snapshotter", snapshotter}
	if !w.old {
		args = append(args, "--local")
	}
	return append(args, ref)
}

func (w *world) pull(ns, snapshotter, ref string) {
	w.t.Helper()
	w.run(ns, w.pullArgs(snapshotter, ref)...)
}

// forget removes the content of the layers of img.
func (w *world) forget(ns string, img v1.Image, layers ...int) {
	w.t.Helper()
	all, err := img.Layers()
	if err != nil {
		w.t.Fatal(err)
	}
	for i, l := range all {
		if len(layers) > 0 && !slices.Contains(layers, i) {
			continue
		}
		d, err := l.Digest()
		if err != nil {
			w.t.Fatal(err)
		}
		w.run(ns, "content", "rm", d.String())
	}
}

// unusable are the names of images by namespace: "k8s.io/repo:1".
func (w *world) unusable(snapshotter string) []string {
	w.t.Helper()
	all, err := w.Unusable(w.t.Context(), snapshotter)
	if err != nil {
		w.t.Fatal(err)
	}
	var names []string
	for _, i := range all {
		if i.Snapshotter != snapshotter {
			w.t.Errorf("%s is for %q", i, i.Snapshotter)
		}
		for _, n := range i.Names {
			names = append(names, i.Namespace+"/"+strings.TrimPrefix(n, w.reg.Host()+"/"))
		}
	}
	return names
}

func (w *world) drop(snapshotter string) {
	w.t.Helper()
	all, err := w.Unusable(w.t.Context(), snapshotter)
	if err == nil {
		err = w.Drop(w.t.Context(), all)
	}
	if err != nil {
		w.t.Fatal(err)
	}
}

// names are those of all images of a namespace, without the registry.
func (w *world) names(ns string) []string {
	w.t.Helper()
	out := strings.Fields(w.run(ns, "images", "ls", "-q"))
	for i := range out {
		out[i] = strings.TrimPrefix(out[i], w.reg.Host()+"/")
	}
	slices.Sort(out)
	return out
}

func equal(t *testing.T, what string, got []string, want ...string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s: %q, not %q", what, got, want)
	}
}

func TestStoreLoaded(t *testing.T) {
	versions(t, func(t *testing.T, w *world) {
		for name, want := range map[string]bool{"overlayfs": true, "native": true, Name: true, "nothing": false, "zfs": false, "": false} {
			if got, err := w.Loaded(t.Context(), name); err != nil || got != want {
				t.Errorf("%s: %t, %v", name, got, err)
			}
		}
		if _, err := w.Unusable(t.Context(), "nothing"); err == nil || !strings.Contains(err.Error(), "does not know the snapshotter nothing") {
			t.Errorf("images for an unknown snapshotter: %v", err)
		}
		if err := w.Clear(t.Context(), "nothing"); err == nil {
			t.Error("an unknown snapshotter was cleared")
		}
	})
}

func TestStoreAway(t *testing.T) {
	s, err := OpenStore(filepath.Join(t.TempDir(), "socket"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	_, loaded := s.Loaded(t.Context(), Name)
	_, users := s.Users(t.Context(), Name)
	_, unusable := s.Unusable(t.Context(), Name)
	for _, err := range []error{loaded, users, unusable, s.Clear(t.Context(), Name)} {
		if err == nil || !strings.Contains(err.Error(), s.socket) {
			t.Errorf("no containerd: %v", err)
		}
	}
}

// foreign is an image for another platform.
func (w *world) foreign(text string) v1.Image {
	w.t.Helper()
	img := w.image(text)
	f, err := img.ConfigFile()
	if err != nil {
		w.t.Fatal(err)
	}
	f = f.DeepCopy()
	f.OS, f.Architecture = "linux", "s390x"
	img, err = mutate.ConfigFile(img, f)
	if err != nil {
		w.t.Fatal(err)
	}
	return img
}

// index is an index of images by their architecture.
func index(byArch map[string]v1.Image) v1.ImageIndex {
	idx := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	for arch, img := range byArch {
		idx = mutate.AppendManifests(idx, mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: arch}}})
	}
	return idx
}

// The images of a node by what is left of them, before and after a change of
// snapshotter and back.
func TestStoreUnusable(t *testing.T) {
	versions(t, func(t *testing.T, w *world) {
		const ns, other = kubernetes, "default"
		whole := w.push("whole", w.image("whole"))
		w.pull(ns, "overlayfs", whole)

		thrown := w.image("base", "thrown")
		w.pull(ns, "overlayfs", w.push("thrown", thrown))
		id, err := thrown.ConfigName()
		if err != nil {
			t.Fatal(err)
		}
		w.run(ns, "images", "tag", w.reg.Host()+"/thrown:1", id.String())
		w.run(ns, "images", "tag", w.reg.Host()+"/thrown:1", w.reg.Host()+"/thrown@"+id.String())

		// Its upper layer is not unpacked, its lower one is that of the one above.
		half := w.push("half", w.image("base", "half"))
		w.run(ns, "content", "fetch", "--plain-http", half)
		w.forget(ns, thrown)

		lazy := w.image("lazy")
		w.pull(ns, Name, w.push("lazy", lazy))
		w.forget(ns, lazy)

		platforms := w.push("platforms", index(map[string]v1.Image{"s390x": w.foreign("far"), goruntime.GOARCH: w.image("near")}))
		w.pull(ns, "overlayfs", platforms)
		lazyIndex := w.image("lazy index")
		w.pull(ns, Name, w.push("lazyindex", index(map[string]v1.Image{"s390x": w.foreign("far"), goruntime.GOARCH: lazyIndex})))
		w.forget(ns, lazyIndex)

		far := w.foreign("elsewhere")
		w.run(ns, "content", "fetch", "--plain-http", "--platform", "linux/s390x", w.push("far", index(map[string]v1.Image{"s390x": far})))
		w.forget(ns, far)

		// In a namespace of people.
		for repo, snapshotters := range map[string][]string{"ours": {Name}, "both": {Name, "native"}, "theirs": {"native"}} {
			img := w.image("of people", repo)
			for _, s := range snapshotters {
				w.pull(other, s, w.push(repo, img))
			}
			w.forget(other, img)
		}

		equal(t, "for ours", w.unusable(Name), "k8s.io/half:1", "k8s.io/thrown:1", "k8s.io/thrown@"+id.String(), "k8s.io/"+id.String())
		// The order of namespaces is that of their names.
		equal(t, "for overlayfs", w.unusable("overlayfs"), "default/ours:1", "k8s.io/lazy:1", "k8s.io/lazyindex:1")

		// A container that runs while its image goes.
		w.run(ns, "containers", "create", "--snapshotter", "overlayfs", w.reg.Host()+"/thrown:1", "running")
		w.drop(Name)
		equal(t, "for ours after dropping", w.unusable(Name))
		equal(t, "kubelet's images", w.names(ns), "far:1", "lazy:1", "lazyindex:1", "platforms:1", "whole:1")
		equal(t, "people's images", w.names(other), "both:1", "ours:1", "theirs:1")
		if out := w.run(ns, "snapshots", "--snapshotter", "overlayfs", "ls"); !strings.Contains(out, "running") {
			t.Errorf("the snapshot of the container is gone:\n%s", out)
		}
		if users, err := w.Users(t.Context(), "overlayfs"); err != nil || len(users) != 1 || users[0] != (User{ns, "running", w.reg.Host() + "/thrown:1"}) {
			t.Errorf("users: %v, %v", users, err)
		}
		w.run(ns, "snapshots", "--snapshotter", "overlayfs", "mounts", "/mnt", "running")

		// Back.
		w.drop("overlayfs")
		equal(t, "for overlayfs after dropping", w.unusable("overlayfs"))
		equal(t, "kubelet's images", w.names(ns), "far:1", "platforms:1", "whole:1")
		equal(t, "people's images", w.names(other), "both:1", "theirs:1")
		// What was dropped is pulled anew, as kubelet does.
		for _, repo := range []string{"thrown", "half", "lazy", "lazyindex"} {
			w.pull(ns, "overlayfs", w.reg.Host()+"/"+repo+":1")
		}
		equal(t, "for overlayfs after pulling", w.unusable("overlayfs"))
		equal(t, "for ours after pulling", w.unusable(Name))
	})
}

// What has changed since it was listed stays.
func TestStoreDropLate(t *testing.T) {
	versions(t, func(t *testing.T, w *world) {
		const ns = kubernetes
		img, moved := w.image("again"), w.image("moved")
		again, tag := w.push("again", img), w.push("moved", moved)
		w.pull(ns, Name, again)
		w.pull(ns, Name, tag)
		w.forget(ns, img)
		w.forget(ns, moved)
		listed, err := w.Unusable(t.Context(), "overlayfs")
		if err != nil || len(listed) != 2 {
			t.Fatalf("%v, %v", listed, err)
		}
		w.pull(ns, "overlayfs", again)
		w.pull(ns, "overlayfs", w.push("moved", w.image("now another")))
		if err := w.Drop(t.Context(), listed); err != nil {
			t.Fatal(err)
		}
		equal(t, "images", w.names(ns), "again:1", "moved:1")
	})
}

// An image that is dropped while it is pulled again is there in the end.
func TestStoreDropWhilePulling(t *testing.T) {
	versions(t, func(t *testing.T, w *world) {
		img := w.image("one", "two", "three")
		ref := w.push("app", img)
		for round := range 2 {
			w.pull(kubernetes, Name, ref)
			w.forget(kubernetes, img)
			ctx, cancel := context.WithCancelCause(t.Context())
			pulled := errors.New("pulled")
			go func() {
				_, err := w.try(t.Context(), kubernetes, w.pullArgs("overlayfs", ref)...)
				cancel(errors.Join(pulled, err))
			}()
			for ctx.Err() == nil {
				w.drop("overlayfs")
			}
			if err := context.Cause(ctx); !errors.Is(err, pulled) || err.Error() != pulled.Error() {
				t.Fatalf("round %d: %v", round, err)
			}
			equal(t, "images", w.names(kubernetes), "app:1")
			equal(t, "unusable", w.unusable("overlayfs"))
			w.run(kubernetes, "images", "rm", "--sync", ref)
		}
	})
}
