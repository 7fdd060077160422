// Package cluster runs a real Kubernetes on this machine, for tests and for people: a
// control plane and several nodes in network namespaces, each node a kubelet and a
// containerd with a root, processes, cgroups and devices of its own, and a registry.
// It needs root, and nothing but what package tools builds or unpacks into its cache.
//
// A test has a cluster of its own with
//
//	c := cluster.Start(t, cluster.Options{})
//	c.Push(ctx, "library/app:1", image)                // 10.89.0.1:5000/library/app:1, or just app:1
//	out, bad, err := c.Kubectl(ctx, yaml, "apply", "-f", "-")
//	client, err := kubernetes.NewForConfig(c.Config()) // works from the test's own process
//	c.Command(ctx, "helm", "install", ...)             // a program of the machine, inside, with KUBECONFIG
//	n := c.Node(1)                                     // node-1
//	out, err := n.Exec(ctx, "ctr", "-n", "k8s.io", "images", "ls")
//	os.ReadFile(n.Path("/etc/containerd/config.toml"))
//	n.PowerCut(); n.Start(ctx); c.WaitReady(ctx, n)
//
// and Run and Close are the same without a test. `make cluster-up` gives people one
// that stays; see the command in the folder run.
//
// # Addresses
//
// All of them are inside namespaces made here, which have no way out: the control
// plane is 10.89.0.1 (API :6443, registry :5000), node I is 10.89.0.1I, its pods are
// 10.244.I.0/24, services are 10.96.0.0/16. There is no DNS. The test's process
// reaches them by Dial, Transport and Config; services by way of node 1.
//
// # Nodes
//
// A node's root is a directory on disk (nodes/NAME/root below the cluster's) with an
// /etc of its own, plus the machine's /usr, read-only but for /usr/local. containerd
// is started as on any node, with /etc/containerd/config.toml, the kubelet with
// /var/lib/kubelet/config.yaml; both are restarted whenever they end, until the file
// /run/service/NAME.down is there. Their logs are in /var/log. A power cut ends every
// process and every mount of the node at once; what is on its disk is there again when
// it starts.
//
// Whatever ends the owner of a cluster, also kill -9, ends all its processes, and with
// them the namespaces and the mounts. What then is left, directories and cgroups, is
// removed when the next cluster starts.
package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"k8s.io/client-go/kubernetes"

	"github.com/apparate/apparate/test/tools"
)

// Options of a cluster; the zero value is three nodes with containerd 2.
type Options struct {
	// Dir is the directory that has all clusters, each in a sub-directory by its name.
	// It is on a disk. The default is in the project's cache.
	Dir string
	// Name of the cluster; by default a unique one.
	Name string
	// Nodes is how many to start; 0 means 3.
	Nodes int
	// Node gives options to the node with the number i, from 1; nil means none.
	Node func(i int) NodeOptions
	// Registry, APIServer and Controllers are further flags of the registry (see
	// hack/tools/registry), kube-apiserver and kube-controller-manager.
	Registry, APIServer, Controllers []string
	// Relay is a host:port of the machine's loopback at which the API server is to be
	// reached from outside of the namespaces, for people; see Kubeconfig.
	Relay string
}

// Cluster is a running cluster.
type Cluster struct {
	// Name and Dir are where it lives.
	Name, Dir string
	// Kubeconfig is the path of an administrator's kubeconfig for programs inside of
	// the control plane's network, as Command starts them.
	Kubeconfig string

	o        Options
	progress io.Writer
	tools    map[string]string
	lock     *os.File
	space    *space
	pki      *pki
	nodes    []*Node
	relay    net.Listener

	mu        sync.Mutex
	closed    bool
	processes []*process // of the control plane, in the order of their start
}

// Run starts a cluster and returns once all nodes are ready and pods can be made.
// Progress lines are written to progress. The caller closes it; where ctx ends before
// Run is done, nothing is left.
func Run(ctx context.Context, progress io.Writer, o Options) (_ *Cluster, err error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("a cluster makes namespaces and mounts file systems: run this as root")
	}
	if o.Nodes == 0 {
		o.Nodes = 3
	}
	if o.Nodes > maxNodes {
		return nil, fmt.Errorf("nodes: %d is more than the addresses are for, %d", o.Nodes, maxNodes)
	}
	if o.Dir == "" {
		cache, err := tools.CacheDir()
		if err != nil {
			return nil, err
		}
		o.Dir = filepath.Join(cache, "clusters")
	}
	c := &Cluster{o: o, progress: progress}
	if err := c.programs(ctx); err != nil {
		return nil, err
	}
	if err := Sweep(o.Dir, progress); err != nil {
		return nil, fmt.Errorf("removing what an earlier cluster left: %w", err)
	}
	if err := c.claim(); err != nil {
		return nil, err
	}
	if err := c.start(ctx); err != nil {
		return nil, errors.Join(err, c.logged(), c.Close())
	}
	return c, nil
}

// programs builds what the cluster runs.
func (c *Cluster) programs(ctx context.Context) (err error) {
	names := []string{tools.Registry, tools.Kube, tools.Runc, tools.Nft, tools.CNI}
	for i := range c.o.Nodes {
		names = append(names, c.options(i+1).program())
	}
	c.tools, err = tools.Ensure(ctx, c.progress, names...)
	return err
}

// options returns those of node i.
func (c *Cluster) options(i int) NodeOptions {
	if c.o.Node == nil {
		return NodeOptions{}
	}
	return c.o.Node(i)
}

// start starts everything and waits for it.
func (c *Cluster) start(ctx context.Context) (err error) {
	root, err := tools.Root(ctx)
	if err != nil {
		return err
	}
	if err := tools.GoBuild(ctx, c.progress, "init and pause", root, c.bin()+string(filepath.Separator),
		"-ldflags", "-s -w", "./test/cluster/init", "./test/cluster/pause"); err != nil {
		return err
	}
	begin := time.Now()
	say := func(what string) { c.say("%s after %.1f s", what, time.Since(begin).Seconds()) }
	if c.space, err = newSpace(); err != nil {
		return fmt.Errorf("making a network namespace: %w", err)
	}
	if err := c.bridge(); err != nil {
		return fmt.Errorf("making the control plane's network: %w", err)
	}
	if err := c.certificates(); err != nil {
		return fmt.Errorf("making certificates: %w", err)
	}
	if err := c.startAPI(ctx); err != nil {
		return err
	}
	say("API server started")
	if err := c.startNodes(ctx); err != nil {
		return err
	}
	say("nodes started")
	if err := c.startControllers(ctx); err != nil {
		return err
	}
	if err := c.listen(); err != nil {
		return err
	}
	if err := c.WaitReady(ctx, c.nodes...); err != nil {
		return err
	}
	say("nodes ready")
	if err := c.waitAccount(ctx); err != nil {
		return err
	}
	say("ready for pods")
	return nil
}

func (c *Cluster) startNodes(ctx context.Context) error {
	if err := c.pushPause(ctx); err != nil {
		return fmt.Errorf("pushing the pause image: %w", err)
	}
	for i := range c.o.Nodes {
		n, err := c.newNode(i + 1)
		if err != nil {
			return fmt.Errorf("making the disk of %s: %w", nodeName(i+1), err)
		}
		c.nodes = append(c.nodes, n)
	}
	var g errgroup.Group
	for _, n := range c.nodes {
		g.Go(func() error { return n.Start(ctx) })
	}
	return g.Wait()
}

// Node returns the node with the number i, from 1.
func (c *Cluster) Node(i int) *Node { return c.nodes[i-1] }

// Nodes returns all nodes.
func (c *Cluster) Nodes() []*Node { return append([]*Node(nil), c.nodes...) }

// Close ends everything and removes it from the disk. To do it again is no error.
func (c *Cluster) Close() error {
	c.mu.Lock()
	closed := c.closed
	c.closed = true
	c.mu.Unlock()
	if closed {
		return nil
	}
	var errs []error
	if c.relay != nil {
		errs = append(errs, c.relay.Close())
	}
	var g errgroup.Group
	for _, n := range c.nodes {
		g.Go(n.PowerCut)
	}
	errs = append(errs, g.Wait())
	c.mu.Lock()
	for i := len(c.processes) - 1; i >= 0; i-- { // nothing is saved: the disk goes, too
		c.processes[i].kill()
	}
	c.mu.Unlock()
	if c.space != nil {
		errs = append(errs, c.space.close())
	}
	errs = append(errs, removeGroups(c.Name), os.RemoveAll(c.Dir), c.lock.Close())
	return errors.Join(errs...)
}

// bin is where the programs of the cluster itself are.
func (c *Cluster) bin() string { return filepath.Join(c.Dir, "bin") }

func (c *Cluster) say(format string, args ...any) { tools.Say(c.progress, "cluster: "+format, args...) }

// client returns a client of the API server.
func (c *Cluster) client() (*kubernetes.Clientset, error) { return kubernetes.NewForConfig(c.Config()) }
