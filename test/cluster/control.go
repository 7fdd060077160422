package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/apparate/apparate/test/tools"
)

const (
	controllerManager = "kube-controller-manager"
	scheduler         = "kube-scheduler"
	registry          = "registry"

	patience = 2 * time.Minute // for anything that is waited for
	poll     = 50 * time.Millisecond
)

// process is a program of the control plane.
type process struct {
	name string
	cmd  *exec.Cmd
	done chan struct{}
	err  error // valid once done is closed
}

func (p *process) kill() {
	_ = p.cmd.Process.Kill() // it may have ended
	<-p.done
}

// run starts a program in the control plane's network. Its output is in the log by
// its name.
func (c *Cluster) run(name, path string, args ...string) error {
	log, err := os.OpenFile(c.logFile(name), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }() // the program has it
	p := &process{name: name, cmd: exec.Command(path, args...), done: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr, p.cmd.Dir = log, log, c.Dir
	if err := c.space.start(p.cmd); err != nil {
		return fmt.Errorf("starting %s: %w", name, err)
	}
	go func() { // ends with the program, which Close kills
		p.err = p.cmd.Wait()
		close(p.done)
	}()
	c.mu.Lock()
	c.processes = append(c.processes, p)
	c.mu.Unlock()
	return nil
}

func (c *Cluster) logFile(name string) string { return filepath.Join(c.Dir, "log", name+".log") }

// kube returns the path of a part of Kubernetes.
func (c *Cluster) kube(part string) string {
	return filepath.Join(filepath.Dir(c.tools[tools.Kube]), part)
}

// startAPI starts etcd, the API server and the registry, and waits for them.
func (c *Cluster) startAPI(ctx context.Context) error {
	const etcdURL, peerURL = "http://127.0.0.1:2379", "http://127.0.0.1:2380"
	if err := c.run("etcd", c.kube("etcd"), "--name=etcd", "--data-dir="+filepath.Join(c.Dir, "etcd"), "--unsafe-no-fsync=true",
		"--listen-client-urls="+etcdURL, "--advertise-client-urls="+etcdURL, "--listen-peer-urls="+peerURL,
		"--initial-advertise-peer-urls="+peerURL, "--initial-cluster=etcd="+peerURL); err != nil {
		return err
	}
	pki := c.pki.file
	if err := c.run("kube-apiserver", c.kube("kube-apiserver"), append([]string{
		"--etcd-servers=" + etcdURL, "--bind-address=0.0.0.0", "--secure-port=6443", "--advertise-address=" + controlIP,
		"--allow-privileged=true", "--service-cluster-ip-range=" + servicesNet, "--authorization-mode=Node,RBAC",
		"--enable-admission-plugins=NodeRestriction", "--client-ca-file=" + pki("ca.crt"), "--cert-dir=" + c.pki.dir,
		"--tls-cert-file=" + pki("apiserver.crt"), "--tls-private-key-file=" + pki("apiserver.key"),
		"--service-account-issuer=https://kubernetes.default.svc",
		"--service-account-key-file=" + pki("accounts.key"), "--service-account-signing-key-file=" + pki("accounts.key"),
		// There is no DNS to find a node by its name.
		"--kubelet-preferred-address-types=InternalIP", "--kubelet-certificate-authority=" + pki("ca.crt"),
		"--kubelet-client-certificate=" + pki(admin+".crt"), "--kubelet-client-key=" + pki(admin+".key"),
	}, c.o.APIServer...)...); err != nil {
		return err
	}
	if err := c.ServeRegistry(ctx, c.o.Registry...); err != nil {
		return err
	}
	client, err := c.client()
	if err != nil {
		return err
	}
	return c.wait(ctx, "the API server to be ready", func(ctx context.Context) error {
		_, err := client.RESTClient().Get().AbsPath("/readyz").DoRaw(ctx)
		return err
	})
}

// startControllers starts the rest of the control plane: not earlier, as the
// controller manager ends where it may not yet read its configuration.
func (c *Cluster) startControllers(context.Context) error {
	common := func(name string) []string {
		k := c.kubeconfig(name)
		return []string{"--kubeconfig=" + k, "--authentication-kubeconfig=" + k, "--authorization-kubeconfig=" + k,
			"--bind-address=127.0.0.1", "--leader-elect=false", "--cert-dir=" + c.pki.dir}
	}
	pki := c.pki.file
	if err := c.run(controllerManager, c.kube(controllerManager), append(append(common(controllerManager),
		"--use-service-account-credentials=true", "--service-account-private-key-file="+pki("accounts.key"), "--root-ca-file="+pki("ca.crt"),
		"--cluster-signing-cert-file="+pki("ca.crt"), "--cluster-signing-key-file="+pki("ca.key"),
		// A node that is off is seen after seconds and not after a minute. Kubelets
		// say every two seconds that they live.
		"--node-monitor-grace-period=8s", "--node-monitor-period=1s"), c.o.Controllers...)...); err != nil {
		return err
	}
	return c.run(scheduler, c.kube(scheduler), common(scheduler)...)
}

// ServeRegistry starts the registry, in place of the one that runs, with these flags
// besides its address and directory, such as --notify=URL and --notify-header. What
// was pushed stays.
func (c *Cluster) ServeRegistry(ctx context.Context, flags ...string) error {
	c.mu.Lock()
	for i, p := range c.processes {
		if p.name == registry {
			p.kill()
			c.processes = append(c.processes[:i:i], c.processes[i+1:]...)
			break
		}
	}
	c.mu.Unlock()
	root := filepath.Join(c.Dir, "registry")
	if err := os.MkdirAll(root, 0o755); err != nil {
		return err
	}
	if err := c.run(registry, c.tools[tools.Registry], append([]string{"--root=" + root, "--address=" + RegistryAddress}, flags...)...); err != nil {
		return err
	}
	client := &http.Client{Transport: c.Transport()}
	defer client.CloseIdleConnections()
	return c.wait(ctx, "the registry to answer", func(ctx context.Context) error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+RegistryAddress+"/v2/", nil)
		if err != nil {
			return err
		}
		resp, err := client.Do(req)
		if err != nil {
			return err
		}
		return resp.Body.Close() // a demand for credentials is an answer, too
	})
}

// wait calls try until it succeeds. It fails when ctx ends, after a while, and when a
// program of the control plane ends.
func (c *Cluster) wait(ctx context.Context, what string, try func(context.Context) error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, patience, fmt.Errorf("gave up after %v", patience))
	defer cancel()
	for {
		err := try(ctx)
		if err == nil {
			return nil
		}
		if ended := c.ended(); ended != nil {
			return fmt.Errorf("waiting for %s: %w", what, ended)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for %s: %w: %w", what, context.Cause(ctx), err)
		case <-time.After(poll):
		}
	}
}

// ended returns an error where a program of the control plane does not run.
func (c *Cluster) ended() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, p := range c.processes {
		select {
		case <-p.done:
			return fmt.Errorf("%s ended: %w", p.name, errors.Join(p.err, errors.New("see its log")))
		default:
		}
	}
	return nil
}

// WaitReady waits until the nodes, which have a kubelet, are ready.
func (c *Cluster) WaitReady(ctx context.Context, nodes ...*Node) error {
	client, err := c.client()
	if err != nil {
		return err
	}
	for _, n := range nodes {
		if n.o.NoKubelet {
			continue
		}
		if err := c.wait(ctx, n.Name+" to be ready", func(ctx context.Context) error {
			if err := n.ended(); err != nil {
				return err
			}
			node, err := client.CoreV1().Nodes().Get(ctx, n.Name, metav1.GetOptions{})
			if err != nil {
				return err
			}
			return n.ready(node)
		}); err != nil {
			return err
		}
	}
	return nil
}

// ready says why the node is not. What was said of it before its last start does not
// count.
func (n *Node) ready(node *corev1.Node) error {
	n.mu.Lock()
	started := n.started.Truncate(time.Second)
	n.mu.Unlock()
	for _, cond := range node.Status.Conditions {
		switch {
		case cond.Type != corev1.NodeReady:
		case cond.LastHeartbeatTime.Time.Before(started):
			return errors.New("the kubelet has not reported since the node's start")
		case cond.Status != corev1.ConditionTrue:
			return fmt.Errorf("%s: %s", cond.Reason, cond.Message)
		default:
			return nil
		}
	}
	return errors.New("it has no condition Ready yet")
}

// waitAccount waits until pods can be made: they need a service account.
func (c *Cluster) waitAccount(ctx context.Context) error {
	client, err := c.client()
	if err != nil {
		return err
	}
	return c.wait(ctx, "the default service account", func(ctx context.Context) error {
		_, err := client.CoreV1().ServiceAccounts(metav1.NamespaceDefault).Get(ctx, "default", metav1.GetOptions{})
		return err
	})
}

// Kubectl runs kubectl as the administrator, with the text stdin.
func (c *Cluster) Kubectl(ctx context.Context, stdin string, args ...string) (stdout, stderr string, err error) {
	cmd := c.Command(ctx, c.kube("kubectl"), args...)
	var out, bad bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &bad
	err = cmd.Run()
	return out.String(), bad.String(), err
}

// listen relays the API server to the machine's loopback.
func (c *Cluster) listen() (err error) {
	if c.o.Relay == "" {
		return nil
	}
	if c.relay, err = net.Listen("tcp", c.o.Relay); err != nil {
		return fmt.Errorf("the relay to the API server: %w", err)
	}
	go func() { // ends with the listener, which Close closes
		for {
			conn, err := c.relay.Accept()
			if err != nil {
				return
			}
			go c.pass(conn)
		}
	}()
	return nil
}

// pass passes bytes on to the API server and back until either side ends.
func (c *Cluster) pass(conn net.Conn) {
	defer func() { _ = conn.Close() }() // both ways are over
	server, err := c.Dial(context.Background(), "tcp", strings.TrimPrefix(apiURL, "https://"))
	if err != nil {
		return // the client sees the connection end
	}
	defer func() { _ = server.Close() }() // both ways are over
	done := make(chan struct{}, 2)
	for _, way := range [][2]net.Conn{{conn, server}, {server, conn}} {
		go func() {
			_, _ = io.Copy(way[0], way[1]) // its end is the end of both
			done <- struct{}{}
		}()
	}
	<-done
}

// WriteKubeconfig writes an administrator's kubeconfig for people outside of the
// namespaces, by way of the relay.
func (c *Cluster) WriteKubeconfig(path string) error {
	cert, err := os.ReadFile(c.pki.file(admin + ".crt"))
	if err != nil {
		return err
	}
	key, err := os.ReadFile(c.pki.file(admin + ".key"))
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return c.pki.kubeconfig(path, "https://"+c.relay.Addr().String(), identity{cert, key})
}
