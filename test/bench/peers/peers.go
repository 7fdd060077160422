// Package peers runs what the benchmark compares us with: stargz-snapshotter, SOCI
// snapshotter and containerd's own EROFS snapshotter, each in its best documented
// configuration, and the strong form of overlayfs. They are tools of the benchmark,
// built into the cache from modules of their own; nothing of ours links them.
//
// A run of a peer is, in this order:
//
//	Ensure, Convert                  once; both do nothing when it is done already
//	Setup                            what the node's containerd has to know
//	node.Start, Start                the node, then the peer's daemon, on empty directories
//	pull with Setup.Snapshotter, run, NotLazy
//	Node.Close, Running.Close        in this order: containers stand on the daemon's mounts
package peers

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
)

// Registry is a registry that images are converted in.
type Registry struct {
	// Addr is its host:port, spoken to over plain HTTP.
	Addr string
}

// Options say where a peer runs.
type Options struct {
	// Dir holds the peer's state, configuration, socket and log. It must be empty, on
	// a file system that overlayfs can write to, and no longer than 80 characters.
	Dir string
	// Registry is the host:port in the references that will be pulled, plain HTTP.
	// It may differ from the one that images were converted in.
	Registry string
	// Containerd is the socket of the node's containerd. Setup does not need it.
	Containerd string
}

// Setup is what a node has to be started with; its fields are for node.Options.
type Setup struct {
	// Snapshotter is the peer's name in containerd.
	Snapshotter string
	// Config is added to containerd's configuration, Path to its PATH.
	Config string
	Path   []string
	// SnapshotDirs hold the peer's snapshots.
	SnapshotDirs []string
}

// Peer is one comparator of the benchmark. Calls may come from one goroutine at a time.
type Peer interface {
	// Name is the arm's name: "stargz", "stargz-opt", "soci", "soci-prefetch", "soci-parallel", "erofs-eager", "overlayfs-strong".
	Name() string
	// Ensure builds what the cache lacks of the peer's programs.
	Ensure(ctx context.Context, progress io.Writer) error
	// Version names the peer's release, and its tools' where they matter.
	Version() string
	// Convert writes the image that the peer starts best beside the plain one and
	// returns its tag, which names the plain image's digest, the peer's version and
	// options: where it exists nothing happens. A peer that takes images as they are
	// returns plainTag. Ensure comes first.
	Convert(ctx context.Context, r Registry, repository, plainTag string) (tag string, err error)
	// Setup says how the node's containerd is configured. Ensure comes first.
	Setup(o Options) (Setup, error)
	// Start starts the peer's daemon and waits until it answers. Ensure comes first.
	Start(ctx context.Context, o Options) (Running, error)
}

// Running is a started peer.
type Running interface {
	// Socket is where the daemon serves the snapshots API; empty for one inside containerd.
	Socket() string
	// Root is the directory of its mounts and its cache.
	Root() string
	// PID is the daemon's process; 0 for one inside containerd.
	PID() int
	// NotLazy counts the layers on the node that are not what the arm is about: that
	// a lazy snapshotter pulled whole, or that did not become EROFS images. For arms
	// that unpack by design it is 0.
	NotLazy(ctx context.Context) (int, error)
	// Close stops the daemon and removes its mounts. The directory stays, for its logs.
	Close() error
}

// Workload is how an image is started when what it reads is recorded.
type Workload struct {
	// Name tells the workloads of one image apart: what was recorded is kept by it.
	Name string
	// Env is added to the container's environment; Args replace the image's command
	// where given.
	Env, Args []string
	// Ready waits until the program has given its answer; printed returns what it
	// has printed so far. Nil waits for nothing.
	Ready func(ctx context.Context, printed func() string) error
}

// All returns the peers. What the recorder starts is asked of workload by the name
// of the repository, without the host.
func All(workload func(repository string) (Workload, error)) []Peer {
	s := &Stargz{}
	return []Peer{s, &Stargz{Workload: workload}, &Soci{}, &Soci{Workload: workload}, &Soci{Parallel: true}, &Erofs{}, &Overlayfs{}}
}

// tagged returns the tag for the converted form of an image, and whether it exists.
// The tag is made of the plain image's digest and of what is said to decide the result.
func tagged(ctx context.Context, r Registry, repository, plainTag, arm string, decides ...string) (tag string, exists bool, err error) {
	plain, err := reference(r, repository, plainTag)
	if err != nil {
		return "", false, err
	}
	d, err := remote.Head(plain, remote.WithContext(ctx))
	if err != nil {
		return "", false, fmt.Errorf("looking for %s: %w", plain, err)
	}
	hash := sha256.Sum256(fmt.Appendf(nil, "%s %q", d.Digest, decides))
	tag = fmt.Sprintf("%s-%s-%x", plainTag, arm, hash[:6])
	ref, err := reference(r, repository, tag)
	if err != nil {
		return "", false, err
	}
	var missing *transport.Error
	switch _, err := remote.Head(ref, remote.WithContext(ctx)); {
	case err == nil:
		return tag, true, nil
	case errors.As(err, &missing) && missing.StatusCode == http.StatusNotFound:
		return tag, false, nil
	default:
		return "", false, fmt.Errorf("looking for %s: %w", ref, err)
	}
}

func reference(r Registry, repository, tag string) (name.Reference, error) {
	return name.NewTag(r.Addr+"/"+repository+":"+tag, name.Insecure)
}

// socket is where a daemon serves, in o.Dir.
func (o Options) socket() string { return filepath.Join(o.Dir, "s.sock") }

func (o Options) root() string { return filepath.Join(o.Dir, "root") }

// check makes the directory and refuses one that the kernel has no name for: the
// path of a unix socket has 107 bytes.
func (o Options) check() error {
	const most = 80
	if len(o.Dir) > most || !filepath.IsAbs(o.Dir) {
		return fmt.Errorf("the directory %s is not an absolute path of at most %d characters", o.Dir, most)
	}
	return os.MkdirAll(o.root(), 0o700)
}

// versionOf is the version in the name of a program's directory in the cache:
// "v0.19.1" of stargz-v0.19.1-0123abcd/stargz.
func versionOf(program string) string {
	dir := filepath.Base(filepath.Dir(program))
	_, rest, _ := strings.Cut(dir, "-")
	if i := strings.LastIndex(rest, "-"); i >= 0 {
		rest = rest[:i]
	}
	return rest
}

// proxyConfig is containerd's configuration for a snapshotter that is a process of its own,
// with the labels that say which layer of which image a snapshot is for.
func proxyConfig(name string, o Options) string {
	return fmt.Sprintf(`
[[plugins."io.containerd.transfer.v1.local".unpack_config]]
  platform = "linux"
  snapshotter = %[1]q

[proxy_plugins.%[1]s]
  type = "snapshot"
  address = %[2]q
  [proxy_plugins.%[1]s.exports]
    root = %[3]q
    enable_remote_snapshot_annotations = "true"
`, name, o.socket(), o.root())
}
