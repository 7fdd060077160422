// Package control shows the control plane as a whole: the built operator as a
// process of its own, a real API server, and CNCF Distribution with its
// notifications pointed at the operator.
package control

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/apparate/apparate/api/v1alpha1"
	"github.com/apparate/apparate/controllers/operator"
	"github.com/apparate/apparate/test/images"
	"github.com/apparate/apparate/test/kube"
	"github.com/apparate/apparate/test/node"
	"github.com/apparate/apparate/test/tools"
)

// What all tests of the package share; each works in a namespace of its own.
var (
	cluster  *kube.Cluster
	commands = map[string]string{} // programs by name
	root     string                // of the repository
)

func TestMain(m *testing.M) {
	code, err := setup(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "control:", err)
		code = 1
	}
	os.Exit(code)
}

func setup(m *testing.M) (code int, err error) {
	ctx := context.Background()
	ctrllog.SetLogger(logr.Discard()) // of clients; the operator's own is shown where a test fails
	if root, err = tools.Root(ctx); err != nil {
		return 1, err
	}
	for _, p := range []string{"apparate", "apparate-operator"} {
		commands[p] = filepath.Join(root, "bin", p)
		if _, err := os.Stat(commands[p]); err != nil {
			return 1, fmt.Errorf("%w: run 'make build' first, or 'make e2e'", err)
		}
	}
	paths, err := tools.Ensure(ctx, os.Stderr, tools.Registry, tools.Kube)
	if err != nil {
		return 1, err
	}
	commands[tools.Registry] = paths[tools.Registry]
	dir, err := os.MkdirTemp("", "apparate-control-")
	if err != nil {
		return 1, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	cluster, err = kube.Run(ctx, os.Stderr, dir, kube.Options{CRDs: []string{filepath.Join(root, "config", "crd")}})
	if err != nil {
		return 1, err
	}
	defer func() { err = errors.Join(err, cluster.Close()) }()
	return m.Run(), nil
}

// binding gives the role of config/rbac to the user as whom operators run.
const binding = `
apiVersion: v1
kind: Namespace
metadata: {name: apparate-system}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: apparate-operator}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: apparate-operator}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: operator}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: apparate-operator, namespace: apparate-system}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: apparate-operator}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: operator}]
`

// account is the user as whom operators run in a cluster.
type account struct {
	config     *rest.Config
	kubeconfig string
}

var accounts = map[*kube.Cluster]*account{}

// operatorOf returns the user as whom operators run: with the rights of config/rbac
// and no others.
func operatorOf(t testing.TB, c *kube.Cluster) *account {
	t.Helper()
	if a := accounts[c]; a != nil {
		return a
	}
	a := &account{}
	var err error
	if a.config, a.kubeconfig, err = c.User("operator"); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"apply", "-f", "-"}, {"apply", "-f", filepath.Join(root, "config", "rbac", "role.yaml")}} {
		if out, bad, err := c.Kubectl(t.Context(), binding, args...); err != nil {
			t.Fatal(err, out, bad)
		}
	}
	accounts[c] = a
	return a
}

// world is an API server, a registry and an operator for one test.
type world struct {
	t         testing.TB
	limit     time.Duration // how long to wait for anything
	cluster   *kube.Cluster
	namespace string
	client    client.Client
	registry  *node.Registry
	token     string
	user      string // name:password of the registry; "" for none
	webhook   string // host:port of the operator's notification endpoint
	metrics   string
	probe     string
	args      []string
	op        *exec.Cmd
	ended     chan error
	log       *syncBuffer
}

// options of a world.
type options struct {
	lost         bool          // notifications do not arrive
	registryArgs []string      // further arguments of the registry
	args         []string      // further flags of the operator
	kubeconfig   string        // instead of the cluster's
	cluster      *kube.Cluster // instead of the one that all share
	stopped      bool          // the operator is not started yet
}

// newWorld starts a registry and an operator that watches one namespace.
func newWorld(t testing.TB, o options) *world {
	t.Helper()
	w := &world{t: t, limit: time.Minute, cluster: o.cluster, token: random(t)}
	if w.cluster == nil {
		w.cluster = cluster
	}
	w.namespace = w.cluster.Namespace(t)
	scheme, err := operator.Scheme()
	if err != nil {
		t.Fatal(err)
	}
	if w.client, err = client.New(w.cluster.Config, client.Options{Scheme: scheme}); err != nil {
		t.Fatal(err)
	}
	w.webhook, w.metrics, w.probe = freeAddress(t), freeAddress(t), freeAddress(t)
	args := o.registryArgs
	if !o.lost {
		args = append(args, "--notify", "http://"+w.webhook+"/v1/notifications/"+w.namespace+"/main", "--notify-header", "Authorization: Bearer "+w.token)
	}
	if w.registry, err = node.StartRegistry(t.Context(), commands[tools.Registry], t.TempDir(), args...); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.registry.Close(); err != nil {
			t.Error(err)
		}
	})
	kubeconfig := o.kubeconfig
	if kubeconfig == "" {
		kubeconfig = operatorOf(t, w.cluster).kubeconfig
	}
	w.args = append([]string{
		"--kubeconfig", kubeconfig, "--namespace", w.namespace, "--leader-elect=false",
		"--notification-address", w.webhook, "--metrics-address", w.metrics, "--probe-address", w.probe,
		"--first-retry", "200ms", "--max-retry", "2s", "--check-interval", "1s", "--temp-dir", t.TempDir(), "--log-format", "text",
	}, o.args...)
	w.log = &syncBuffer{}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("metrics:\n%s", w.metric("apparate_"))
		}
		w.stop(syscall.SIGTERM)
		if t.Failed() {
			t.Logf("the operator's log:\n%s", w.log)
		}
		if strings.Contains(w.log.String(), w.token) {
			t.Error("the token is in the operator's log")
		}
		if strings.Contains(w.log.String(), "DATA RACE") || strings.Contains(w.log.String(), "panic") {
			t.Errorf("the operator's log:\n%s", w.log)
		}
	})
	if !o.stopped {
		w.start()
		w.ready()
	}
	return w
}

// start starts the operator.
func (w *world) start() {
	w.t.Helper()
	cmd := exec.Command(commands["apparate-operator"], w.args...)
	cmd.Stdout, cmd.Stderr = w.log, w.log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	w.op, w.ended = cmd, make(chan error, 1)
	started, ended := make(chan error), w.ended
	go func() {
		// Pdeathsig is sent when the thread ends that started the process.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			ended <- cmd.Wait()
		}
	}()
	if err := <-started; err != nil {
		w.t.Fatal(err)
	}
}

// stop ends the operator, if it runs.
func (w *world) stop(sig syscall.Signal) {
	w.t.Helper()
	if w.op == nil {
		return
	}
	_ = w.op.Process.Signal(sig) // it may have ended
	select {
	case err := <-w.ended:
		_, _ = fmt.Fprintf(w.log, "the operator ended: %v\n", err) // memory
	case <-time.After(45 * time.Second):
		_ = w.op.Process.Kill() // nothing else is left to try
		w.t.Errorf("the operator does not end on %v", sig)
	}
	w.op = nil
}

// metric returns the operator's metrics whose names begin with prefix.
func (w *world) metric(prefix string) string {
	resp, err := http.Get("http://" + w.metrics + "/metrics")
	if err != nil {
		return err.Error()
	}
	defer func() { _ = resp.Body.Close() }() // nothing was written
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return err.Error()
	}
	var found strings.Builder
	for line := range strings.Lines(string(b)) {
		if strings.HasPrefix(line, prefix) {
			found.WriteString(line)
		}
	}
	return found.String()
}

// notify sends a notification of a push, as a registry would.
func (w *world) notify(repo, tag string) {
	w.t.Helper()
	body := fmt.Sprintf(`{"push_data":{"tag":%q,"pushed_at":%d},"repository":{"repo_name":%q}}`, tag, time.Now().Unix(), repo)
	resp, err := http.Post("http://"+w.webhook+"/v1/notifications/"+w.namespace+"/main?token="+w.token, "application/json", strings.NewReader(body))
	if err != nil {
		w.t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }() // nothing was written
	if resp.StatusCode != http.StatusAccepted {
		answer, _ := io.ReadAll(resp.Body)
		w.t.Fatalf("%s: %s", resp.Status, answer)
	}
}

// ready waits until the operator is.
func (w *world) ready() {
	w.t.Helper()
	w.eventually("the operator is ready", func() error {
		resp, err := http.Get("http://" + w.probe + "/readyz")
		if err != nil {
			return err
		}
		defer func() { _ = resp.Body.Close() }() // nothing was written
		if resp.StatusCode != http.StatusOK {
			return errors.New(resp.Status)
		}
		return nil
	})
}

// eventually waits until check returns nil, while the operator runs.
func (w *world) eventually(what string, check func() error) {
	w.t.Helper()
	w.wait(what, true, check)
}

// eventuallyAlive is eventually where the operator may end.
func (w *world) eventuallyAlive(what string, check func() error) {
	w.t.Helper()
	w.wait(what, false, check)
}

func (w *world) wait(what string, alive bool, check func() error) {
	w.t.Helper()
	var err error
	for limit := time.Now().Add(w.limit); time.Now().Before(limit); time.Sleep(20 * time.Millisecond) {
		if err = check(); err == nil {
			return
		}
		if !alive {
			continue
		}
		select {
		case end := <-w.ended:
			w.ended <- end
			w.t.Fatalf("%s: %v; the operator ended: %v", what, err, end)
		default:
		}
	}
	w.t.Fatalf("not so: %s: %v", what, err)
}

// kubectl runs kubectl in the world's namespace and returns all that it printed.
func (w *world) kubectl(stdin string, args ...string) (string, error) {
	out, bad, err := w.cluster.Kubectl(w.t.Context(), stdin, append([]string{"-n", w.namespace}, args...)...)
	return out + bad, err
}

// apply applies YAML.
func (w *world) apply(yaml string) {
	w.t.Helper()
	if out, err := w.kubectl(yaml, "apply", "-f", "-"); err != nil {
		w.t.Fatalf("%v: %s", err, out)
	}
}

// sample reads a file of config/samples and puts this world's registry into it.
func (w *world) sample(file string) string {
	w.t.Helper()
	b, err := os.ReadFile(filepath.Join(root, "config", "samples", file))
	if err != nil {
		w.t.Fatal(err)
	}
	return strings.NewReplacer(
		"endpoint: registry.example.com", "endpoint: http://"+w.registry.Addr, "registry.example.com", w.registry.Addr,
		"change-me-to-a-long-random-token", w.token,
	).Replace(string(b))
}

// ref names an image of the world's registry.
func (w *world) ref(image string) name.Reference {
	w.t.Helper()
	r, err := name.ParseReference(w.registry.Addr+"/"+image, name.Insecure)
	if err != nil {
		w.t.Fatal(err)
	}
	return r
}

// auth is what the registry wants of a test.
func (w *world) auth() authn.Authenticator {
	if w.user == "" {
		return authn.Anonymous
	}
	name, password, _ := strings.Cut(w.user, ":")
	return &authn.Basic{Username: name, Password: password}
}

// push pushes an image.
func (w *world) push(image string, img v1.Image) {
	w.t.Helper()
	if err := remote.Write(w.ref(image), img, remote.WithAuth(w.auth())); err != nil {
		w.t.Fatal(err)
	}
}

// accelerated waits for the accelerated image of image, checks it with the built
// program and returns its manifest.
func (w *world) accelerated(image string) *v1.Manifest {
	w.t.Helper()
	var m *v1.Manifest
	w.eventually(image+"-apparate is there", func() error {
		img, err := remote.Image(w.ref(image + "-apparate"))
		if err != nil {
			return err
		}
		source, err := remote.Head(w.ref(image))
		if err != nil {
			return err
		}
		if m, err = img.Manifest(); err != nil {
			return err
		}
		if from := m.Annotations["cloud.tencent.com/apparate.source.digest"]; from != source.Digest.String() {
			return fmt.Errorf("it was made from %s, and the source is %s", from, source.Digest)
		}
		return nil
	})
	out, err := exec.Command(commands["apparate"], "check", w.ref(image+"-apparate").Name()).CombinedOutput()
	if err != nil {
		w.t.Errorf("apparate check: %v: %s", err, out)
	}
	return m
}

// conversions lists those of the namespace.
func (w *world) conversions() []v1alpha1.ImageConversion {
	w.t.Helper()
	var l v1alpha1.ImageConversionList
	if err := w.client.List(w.t.Context(), &l, client.InNamespace(w.namespace)); err != nil {
		w.t.Fatal(err)
	}
	return l.Items
}

// image makes a small image that differs with the seed.
func image(t testing.TB, seed string) v1.Image {
	t.Helper()
	img, err := images.Compose(
		images.Blob{Bytes: archive(t, "base", strings.Repeat("the same in all images ", 4000))},
		images.Blob{Bytes: archive(t, "app", strings.Repeat(seed, 3000))},
	)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func random(t testing.TB) string {
	t.Helper()
	b := make([]byte, 24)
	if _, err := rand.Read(b); err != nil {
		t.Fatal(err)
	}
	return base64.RawURLEncoding.EncodeToString(b)
}

// freeAddress finds a port of loopback that nobody listens on.
func freeAddress(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }() // nothing was written
	return l.Addr().String()
}
