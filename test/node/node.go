// Package node starts one container host of real processes for the demo and the
// end-to-end tests: a containerd of its own, runc, and the snapshotter under
// test, all below one directory and apart from anything else on the machine.
//
// Close stops what was started, by process id, and then looks for what is left:
// processes that name the node's directories, mounts below them. Both are ended
// and removed, so a failed test leaves nothing behind either.
package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/apparate/apparate/test/tools"
)

// Snapshotters by name, as ctr's --snapshotter takes them.
const (
	Overlayfs = "overlayfs"
	Apparate  = "apparate"
)

// Options say what a node is made of.
type Options struct {
	// Dir holds all state and logs. It is made when missing, and must be on a
	// file system that overlayfs can write to.
	Dir string
	// Tools are the paths of containerd, its shim, ctr and runc; see tools.Ensure.
	Tools map[string]string
	// Snapshotter is the apparate program; empty for a node without it.
	Snapshotter string
	// SnapshotterArgs are appended to the snapshotter's command line.
	SnapshotterArgs []string
	// Registries are host:port addresses that are reached over plain HTTP.
	Registries []string
	// Config is added to containerd's configuration: for snapshotters that are not ours.
	Config string
	// Path are directories in which containerd, and what it starts, looks for programs
	// before those of PATH. Without any it decompresses by itself, whatever else the
	// machine has: two machines measure the same.
	Path []string
	// SnapshotDirs are further directories that lower directories of overlay mounts
	// may be relative to; see Container.RootMount.
	SnapshotDirs []string
}

// Node is a running container host.
type Node struct {
	o   Options
	run string // sockets: their paths must be short

	containerd, snapshotter *process

	mu         sync.Mutex
	containers map[string]*Container
	execs      int
}

// Start starts a node and waits until it answers. The caller closes it.
func Start(ctx context.Context, o Options) (n *Node, err error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("a node mounts file systems and starts containers: run this as root")
	}
	for _, t := range []string{tools.Containerd, tools.Shim, tools.Ctr, tools.Runc} {
		if o.Tools[t] == "" {
			return nil, fmt.Errorf("the path of %s is missing", t)
		}
	}
	if o.Dir, err = filepath.Abs(o.Dir); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(o.Dir, 0o755); err != nil {
		return nil, err
	}
	n = &Node{o: o, containers: map[string]*Container{}}
	if n.run, err = os.MkdirTemp("", "node-"); err != nil {
		return nil, err
	}
	if err := n.start(ctx); err != nil {
		return nil, errors.Join(err, n.Close())
	}
	return n, nil
}

func (n *Node) start(ctx context.Context) error {
	if err := n.writeHosts(); err != nil {
		return err
	}
	if n.o.Snapshotter != "" {
		if err := n.StartSnapshotter(ctx); err != nil {
			return err
		}
	}
	config := filepath.Join(n.o.Dir, "containerd.toml")
	if err := os.WriteFile(config, []byte(n.config()), 0o644); err != nil {
		return err
	}
	var err error
	// containerd looks for the shim beside itself first, and then in PATH.
	n.containerd, err = startProcess("containerd", n.logFile("containerd"), environment(n.o.Path), n.o.Tools[tools.Containerd], "--config", config, "--log-level", "warn")
	if err != nil {
		return err
	}
	return n.containerd.answers(ctx, "unix", n.ContainerdSocket())
}

// environment is that of a containerd with the directories path before those of PATH.
func environment(path []string) []string {
	if len(path) == 0 { // containerd, pkg/archive/compression
		return []string{"CONTAINERD_DISABLE_IGZIP=1", "CONTAINERD_DISABLE_PIGZ=1"}
	}
	return []string{"PATH=" + strings.Join(append(slices.Clone(path), os.Getenv("PATH")), string(os.PathListSeparator))}
}

// ContainerdSocket is where containerd answers.
func (n *Node) ContainerdSocket() string { return filepath.Join(n.run, "containerd.sock") }

// SnapshotterSocket is where the snapshotter answers.
func (n *Node) SnapshotterSocket() string { return filepath.Join(n.run, "snapshotter.sock") }

// StatusSocket is where the snapshotter answers about itself, in HTTP.
func (n *Node) StatusSocket() string { return filepath.Join(n.run, "status.sock") }

// SnapshotterRoot is the snapshotter's directory.
func (n *Node) SnapshotterRoot() string { return filepath.Join(n.o.Dir, "apparate") }

// HostsDir is the node's certs.d directory, where registries are described.
func (n *Node) HostsDir() string { return filepath.Join(n.o.Dir, "certs.d") }

func (n *Node) logFile(name string) string { return filepath.Join(n.o.Dir, name+".log") }

// StartSnapshotter starts the snapshotter, also again after KillSnapshotter.
func (n *Node) StartSnapshotter(ctx context.Context) error {
	argv := append([]string{
		n.o.Snapshotter, "snapshotter", "--root", n.SnapshotterRoot(), "--address", n.SnapshotterSocket(), "--hosts-dir", n.HostsDir(),
	}, n.o.SnapshotterArgs...)
	p, err := startProcess("apparate snapshotter", n.logFile("snapshotter"), nil, argv...)
	if err != nil {
		return err
	}
	n.snapshotter = p
	return p.answers(ctx, "unix", n.SnapshotterSocket())
}

// SnapshotterPID is the process id of the snapshotter that was started: of its
// holder, where it has one.
func (n *Node) SnapshotterPID() int { return n.snapshotter.pid() }

// KillSnapshotter kills the started process as a crash would and waits for its end.
func (n *Node) KillSnapshotter() error {
	if err := n.snapshotter.cmd.Process.Kill(); err != nil {
		return err
	}
	<-n.snapshotter.done
	return nil
}

// writeHosts describes the registries in containerd's certs.d format.
func (n *Node) writeHosts() error {
	for _, host := range n.o.Registries {
		dir := filepath.Join(n.HostsDir(), host)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		text := fmt.Sprintf("server = \"http://%s\"\n\n[host.\"http://%s\"]\n  capabilities = [\"pull\", \"resolve\"]\n", host, host)
		if err := os.WriteFile(filepath.Join(dir, "hosts.toml"), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return os.MkdirAll(n.HostsDir(), 0o755)
}

// config is containerd's configuration. Its transfer service unpacks only for
// snapshotters that it is told of, and passes layer labels only to those that
// ask by their exports.
func (n *Node) config() string {
	var s strings.Builder
	fmt.Fprintf(&s, `version = 3
root = %q
state = %q
disabled_plugins = ["io.containerd.nri.v1.nri", "io.containerd.tracing.processor.v1.otlp", "io.containerd.internal.v1.tracing"]

[grpc]
  address = %q

[ttrpc]
  address = %q

[[plugins."io.containerd.transfer.v1.local".unpack_config]]
  platform = "linux"
  snapshotter = "overlayfs"
`, filepath.Join(n.o.Dir, "containerd"), filepath.Join(n.o.Dir, "state"), n.ContainerdSocket(), n.ContainerdSocket()+".ttrpc")
	if n.o.Snapshotter != "" {
		fmt.Fprintf(&s, `
[[plugins."io.containerd.transfer.v1.local".unpack_config]]
  platform = "linux"
  snapshotter = "apparate"

[proxy_plugins.apparate]
  type = "snapshot"
  address = %q
  [proxy_plugins.apparate.exports]
    root = %q
    enable_remote_snapshot_annotations = "true"
`, n.SnapshotterSocket(), n.SnapshotterRoot())
	}
	s.WriteString(n.o.Config)
	return s.String()
}

// Ctr runs ctr on the node's containerd and returns its standard output.
func (n *Node) Ctr(ctx context.Context, args ...string) ([]byte, error) {
	out, err := n.ctr(ctx, args...).Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			err = fmt.Errorf("%w: %s", err, strings.TrimSpace(string(exit.Stderr)))
		}
		if ctx.Err() != nil {
			err = context.Cause(ctx) // which killed it
		}
		return out, fmt.Errorf("ctr %s: %w", strings.Join(args, " "), err)
	}
	return out, nil
}

func (n *Node) ctr(ctx context.Context, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, n.o.Tools[tools.Ctr], append([]string{"--address", n.ContainerdSocket()}, args...)...)
}

// Pull pulls the image ref and unpacks it for the snapshotter, through
// containerd's transfer service as Kubernetes does.
func (n *Node) Pull(ctx context.Context, ref, snapshotter string) error {
	_, err := n.Ctr(ctx, "images", "pull", "--hosts-dir", n.HostsDir(), "--snapshotter", snapshotter, ref)
	return err
}

// RemoveImage removes the image ref and waits until its content and snapshots
// are collected.
func (n *Node) RemoveImage(ctx context.Context, ref string) error {
	_, err := n.Ctr(ctx, "images", "rm", "--sync", ref)
	return err
}

// Logs returns what the node's daemons have logged.
func (n *Node) Logs() string {
	var s strings.Builder
	for _, name := range []string{"snapshotter", "containerd"} {
		if b, err := os.ReadFile(n.logFile(name)); err == nil {
			fmt.Fprintf(&s, "--- %s\n%s\n", name, b)
		}
	}
	return s.String()
}

// WriteLogs writes the daemons' logs to w.
func (n *Node) WriteLogs(w io.Writer) { _, _ = io.WriteString(w, n.Logs()) }

// Close stops all containers and daemons, and ends and unmounts what is left.
// The directory stays, for its logs. An error says what did not stop by itself.
func (n *Node) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	n.mu.Lock()
	running := n.containers
	n.containers = map[string]*Container{}
	n.mu.Unlock()
	var errs []error
	for _, c := range running {
		errs = append(errs, c.Stop(ctx))
	}
	const grace = 10 * time.Second
	if n.containerd != nil {
		errs = append(errs, n.containerd.stop(grace))
	}
	if n.snapshotter != nil {
		errs = append(errs, n.snapshotter.stop(grace))
	}
	errs = append(errs, killLeft(n.run, n.o.Dir), unmountLeft(n.o.Dir), os.RemoveAll(n.run))
	return errors.Join(errs...)
}
