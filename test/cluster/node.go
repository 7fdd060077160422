package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/apparate/apparate/test/cluster/boot"
	"github.com/apparate/apparate/test/tools"
)

// NodeOptions of a node; the zero value is a node with containerd 2.4.2 and a kubelet.
type NodeOptions struct {
	// Containerd is the version: "2.4", "1.7", "1.6" (Debian 12's) or "1.4" (Debian
	// 11's, which no kubelet of today speaks to: such a node has none).
	Containerd string
	// NoFuse leaves out /dev/fuse.
	NoFuse bool
	// NoKubelet leaves out the kubelet and kube-proxy: the node is a containerd.
	NoKubelet bool
	// Disk is the size in bytes of an ext4 file system that is the node's own; 0 puts
	// its root on the machine's disk.
	Disk int64
	// Kubelet replaces keys at the top of the kubelet's configuration, such as
	// imageGCHighThresholdPercent; KubeletFlags are further flags of its command, such
	// as --image-credential-provider-config.
	Kubelet      map[string]any
	KubeletFlags []string
	// Prepare is called before the node starts for the first time: what Path names is
	// there and may be changed.
	Prepare func(n *Node) error
}

// program is the name of the containerd for package tools.
func (o NodeOptions) program() string {
	switch o.Containerd {
	case "1.7":
		return tools.Containerd17
	case "1.6":
		return tools.Containerd16
	case "1.4":
		return tools.Containerd14
	default:
		return tools.ContainerdCRI
	}
}

// Node is a node of a cluster.
type Node struct {
	// Name and IP are its own in the cluster.
	Name, IP string

	c     *Cluster
	o     NodeOptions
	index int
	dir   string // which has the root, or the image of the disk

	mu      sync.Mutex
	cmd     *exec.Cmd // the first process; nil while the node is off
	done    chan struct{}
	err     error // of the first process, once done is closed
	started time.Time
}

// newNode makes the disk of a node.
func (c *Cluster) newNode(i int) (*Node, error) {
	n := &Node{Name: nodeName(i), IP: nodeIP(i), c: c, o: c.options(i), index: i, dir: filepath.Join(c.Dir, "nodes", nodeName(i))}
	switch n.o.Containerd {
	case "", "2.4", "1.7", "1.6":
	case "1.4":
		n.o.NoKubelet = true
	default:
		return nil, fmt.Errorf("containerd %q: there are 2.4, 1.7, 1.6 and 1.4", n.o.Containerd)
	}
	if err := n.install(); err != nil {
		return nil, err
	}
	if n.o.Prepare != nil {
		if err := n.o.Prepare(n); err != nil {
			return nil, err
		}
	}
	if n.o.Disk == 0 {
		return n, nil
	}
	out, err := exec.Command("mkfs.ext4", "-q", "-F", "-d", n.root(), n.image(), fmt.Sprintf("%dk", n.o.Disk>>10)).CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("mkfs.ext4 (package e2fsprogs): %w: %s", err, out)
	}
	return n, nil
}

func (n *Node) root() string { return filepath.Join(n.dir, "root") }

// image is the file with the node's disk, where it has its own.
func (n *Node) image() string {
	if n.o.Disk == 0 {
		return ""
	}
	return filepath.Join(n.dir, "disk.img")
}

// Path names a file of the node for this process. Links in it that are absolute lead
// astray. While the node is off, what is in memory (/run, /tmp, /dev) is not there,
// and neither is anything of a node with a disk of its own.
func (n *Node) Path(path string) string {
	if pid := n.pid(); pid != 0 {
		return filepath.Join(fmt.Sprintf("/proc/%d/root", pid), path)
	}
	return filepath.Join(n.root(), path)
}

// pid is that of the node's first process, 0 while the node is off.
func (n *Node) pid() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.cmd == nil {
		return 0
	}
	return n.cmd.Process.Pid
}

// Start starts the node. It returns when its first process runs; see WaitReady.
func (n *Node) Start(context.Context) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.cmd != nil {
		return fmt.Errorf("%s is on already", n.Name)
	}
	joins, err := makeGroups(n.c.Name, n.Name)
	if err != nil {
		return fmt.Errorf("making cgroups of %s: %w", n.Name, err)
	}
	config, err := json.Marshal(n.config())
	if err != nil {
		return err
	}
	log, err := os.OpenFile(n.c.logFile(n.Name), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }() // the node has it
	cmd := exec.Command(filepath.Join(n.c.bin(), "init"))
	cmd.Stdout, cmd.Stderr, cmd.Env = log, log, []string{}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	cmd.SysProcAttr = &unix.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC,
		Setsid:     true,
	}
	if err := n.c.space.start(cmd); err != nil {
		return fmt.Errorf("starting %s: %w", n.Name, err)
	}
	n.cmd, n.done, n.started = cmd, make(chan struct{}), time.Now()
	go func(done chan struct{}) { // ends with the node, which PowerCut does
		n.err = cmd.Wait()
		close(done)
	}(n.done)
	// The process waits for its configuration: until then it is made what it is to be.
	for _, j := range joins {
		if err := os.WriteFile(j, fmt.Appendln(nil, cmd.Process.Pid), 0); err != nil {
			return fmt.Errorf("moving %s into its cgroup: %w", n.Name, err)
		}
	}
	if err := n.c.connect(n.index, cmd.Process.Pid); err != nil {
		return fmt.Errorf("connecting %s: %w", n.Name, err)
	}
	_, err = stdin.Write(config)
	return errors.Join(err, stdin.Close(), door(n.dir, enterNode(cmd.Process.Pid)))
}

// ended returns an error where the node ended by itself.
func (n *Node) ended() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.cmd == nil {
		return fmt.Errorf("%s is off", n.Name)
	}
	select {
	case <-n.done:
		return fmt.Errorf("%s ended: %w", n.Name, n.err)
	default:
		return nil
	}
}

// PowerCut ends every process of the node at once, and with them its mounts and its
// network. It does nothing to a node that is off.
func (n *Node) PowerCut() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.cmd == nil {
		return nil
	}
	_ = n.cmd.Process.Kill() // it may have ended
	<-n.done                 // once the kernel has ended all others
	n.cmd = nil
	if err := os.Remove(filepath.Join(n.dir, doorName)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return removeNodeGroups(n.c.Name, n.Name)
}

// Command is a program of the node that runs in all of its namespaces. Its whole
// process group is killed when ctx ends.
func (n *Node) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "nsenter", append(append(enterNode(n.pid()), name), args...)...)
	cmd.Env = boot.Environment()
	killGroup(cmd)
	return cmd
}

// Exec runs a program of the node, as Command does, and returns what it wrote to both
// of its outputs.
func (n *Node) Exec(ctx context.Context, name string, args ...string) (string, error) {
	out, err := n.Command(ctx, name, args...).CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%s on %s: %w: %s", name, n.Name, err, tail(out, 500))
	}
	return string(out), err
}

// Service returns the process id of a service in the node: containerd, kubelet or
// kube-proxy. It is 0 while the service does not run.
func (n *Node) Service(name string) int {
	b, err := os.ReadFile(n.Path("/run/service/" + name + ".pid"))
	if err != nil {
		return 0
	}
	var pid int
	if _, err := fmt.Sscan(string(b), &pid); err != nil {
		return 0
	}
	return pid
}

// Kill sends SIGKILL to a service, which is then restarted.
func (n *Node) Kill(ctx context.Context, service string) error {
	pid := n.Service(service)
	if pid == 0 {
		return fmt.Errorf("%s does not run on %s", service, n.Name)
	}
	_, err := n.Exec(ctx, "kill", "-KILL", fmt.Sprint(pid))
	return err
}

// Logs returns the ends of the node's logs, by name.
func (n *Node) Logs() map[string]string {
	all := map[string]string{"init": fileTail(n.c.logFile(n.Name))}
	for _, s := range []string{"containerd", "kubelet", "kube-proxy"} {
		all[s] = fileTail(n.Path("/var/log/" + s + ".log"))
	}
	return all
}
