// Package kube runs a real Kubernetes control plane for tests: etcd and
// kube-apiserver, started by controller-runtime's envtest, and on request the
// controller manager and the scheduler. All of it is on loopback, below one
// directory, and gone when the test is, also when that is killed.
package kube

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/envtest"

	"github.com/apparate/apparate/test/tools"
)

// Options of a cluster.
type Options struct {
	// CRDs are directories with the YAML of definitions to install, CRDObjects
	// definitions themselves.
	CRDs       []string
	CRDObjects []*apiextensionsv1.CustomResourceDefinition
	// Controllers runs kube-controller-manager and kube-scheduler as well: there
	// is garbage collection, and Jobs get pods, which no node runs.
	Controllers bool
}

// Cluster is a running control plane.
type Cluster struct {
	// Config is an administrator's.
	Config *rest.Config
	// Kubeconfig is the path of the same as a file.
	Kubeconfig string
	// Server is the URL of the API server.
	Server string

	dir   string
	bin   string
	env   *envtest.Environment
	procs []*exec.Cmd
	logs  []string
}

// Start runs a control plane that ends with the test.
func Start(t testing.TB, o Options) *Cluster {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	c, err := Run(ctx, t.Output(), t.TempDir(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			for _, l := range c.logs {
				t.Logf("%s:\n%s", l, tail(l))
			}
		}
	})
	return c
}

// withParent makes the components end with this process; see hack/kube.
const withParent = "KUBE_END_WITH_PARENT"

var setenv sync.Once

// Run runs a control plane whose data are below dir. Progress of building it, if
// need be, is written to progress. The caller closes it.
func Run(ctx context.Context, progress io.Writer, dir string, o Options) (*Cluster, error) {
	paths, err := tools.Ensure(ctx, progress, tools.Kube)
	if err != nil {
		return nil, err
	}
	// envtest starts its processes with our environment, and has no other way in.
	setenv.Do(func() { err = os.Setenv(withParent, "1") })
	if err != nil {
		return nil, err
	}
	c := &Cluster{dir: dir, bin: filepath.Dir(paths[tools.Kube])}
	c.env = &envtest.Environment{
		BinaryAssetsDirectory: c.bin,
		CRDDirectoryPaths:     o.CRDs, CRDs: o.CRDObjects, ErrorIfCRDPathMissing: true,
		ControlPlaneStartTimeout: 2 * time.Minute, ControlPlaneStopTimeout: time.Minute,
	}
	etcd := c.env.ControlPlane.GetAPIServer() // also makes the structures
	etcd.CertDir = filepath.Join(dir, "pki")
	c.env.ControlPlane.Etcd = &envtest.Etcd{DataDir: filepath.Join(dir, "etcd")}
	c.env.ControlPlane.Etcd.Configure().Set("unsafe-no-fsync", "true")
	for _, d := range []string{etcd.CertDir, c.env.ControlPlane.Etcd.DataDir} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, err
		}
	}
	if c.Config, err = c.env.Start(); err != nil {
		return nil, errors.Join(fmt.Errorf("starting the control plane: %w", err), c.env.Stop())
	}
	c.Server = c.Config.Host
	c.Kubeconfig = filepath.Join(dir, "kubeconfig")
	if err := os.WriteFile(c.Kubeconfig, c.env.KubeConfig, 0o600); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	if o.Controllers {
		if err := c.controllers(ctx); err != nil {
			return nil, errors.Join(err, c.Close())
		}
	}
	return c, nil
}

// controllers runs the controller manager and the scheduler.
func (c *Cluster) controllers(ctx context.Context) error {
	common := []string{
		"--kubeconfig=" + c.Kubeconfig, "--authentication-kubeconfig=" + c.Kubeconfig, "--authorization-kubeconfig=" + c.Kubeconfig,
		"--bind-address=127.0.0.1", "--secure-port=0", "--leader-elect=false",
	}
	if err := c.start("kube-controller-manager", append(common,
		"--service-account-private-key-file="+filepath.Join(c.dir, "pki", "sa-signer.key"))...); err != nil {
		return err
	}
	if err := c.start("kube-scheduler", common...); err != nil {
		return err
	}
	// Both work once a namespace gets its service account: pods need it.
	client, err := kubernetes.NewForConfig(c.Config)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		_, err := client.CoreV1().ServiceAccounts("default").Get(ctx, "default", metav1.GetOptions{})
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the controller manager makes no service account: %w: %s", err, tail(c.logs[0]))
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func (c *Cluster) start(name string, args ...string) error {
	path := filepath.Join(c.dir, name+".log")
	log, err := os.Create(path)
	if err != nil {
		return err
	}
	cmd := exec.Command(filepath.Join(c.bin, name), args...)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return errors.Join(fmt.Errorf("starting %s: %w", name, err), log.Close())
	}
	c.procs, c.logs = append(c.procs, cmd), append(c.logs, path)
	return log.Close() // it has its own
}

// Close stops everything.
func (c *Cluster) Close() error {
	for _, p := range c.procs {
		_ = p.Process.Kill() // they have nothing to save
		_ = p.Wait()         // killed
	}
	c.procs = nil
	return c.env.Stop()
}

// Kubectl runs kubectl with the text stdin.
func (c *Cluster) Kubectl(ctx context.Context, stdin string, args ...string) (stdout, stderr string, err error) {
	cmd := exec.CommandContext(ctx, filepath.Join(c.bin, "kubectl"), append([]string{"--kubeconfig", c.Kubeconfig}, args...)...)
	var out, bad bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &bad
	// Its cache of the API is below HOME otherwise.
	cmd.Env = append(os.Environ(), "HOME="+c.dir, "KUBECACHEDIR="+filepath.Join(c.dir, "kubecache"))
	err = cmd.Run()
	return out.String(), bad.String(), err
}

// User makes a user without any right but those of everybody, and returns its
// configuration, also as the path of a kubeconfig file.
func (c *Cluster) User(name string) (*rest.Config, string, error) {
	u, err := c.env.AddUser(envtest.User{Name: name}, nil)
	if err != nil {
		return nil, "", fmt.Errorf("adding user %s: %w", name, err)
	}
	text, err := u.KubeConfig()
	if err != nil {
		return nil, "", fmt.Errorf("the kubeconfig of %s: %w", name, err)
	}
	path := filepath.Join(c.dir, "kubeconfig-"+name)
	return u.Config(), path, os.WriteFile(path, text, 0o600)
}

// Namespace makes a namespace of its own for a test and returns its name.
func (c *Cluster) Namespace(t testing.TB) string {
	t.Helper()
	client, err := kubernetes.NewForConfig(c.Config)
	if err != nil {
		t.Fatal(err)
	}
	ns, err := client.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "test-"}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return ns.Name
}

// tail returns the end of a log.
func tail(path string) string {
	const most = 3000
	b, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	return string(b[max(0, len(b)-most):])
}
