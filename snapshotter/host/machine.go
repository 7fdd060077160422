package host

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/apparate/apparate/snapshotter/service"
)

// Names of what is installed. The snapshotter's is part of the directory from which
// containerd 1.6 and older take its figures.
const (
	// Name is that of the snapshotter for containerd, and of the daemon's service.
	Name = "apparate"
	// retireName is the service of [Machine.StartRetiring].
	retireName = "apparate-retire"
	runDir     = "/run/apparate"
	// Socket is where containerd reaches the snapshotter, StatusSocket where the
	// daemon says how it is.
	Socket       = runDir + "/snapshotter.sock"
	StatusSocket = runDir + "/status.sock"
	// StatusFile has the last [Status], as JSON.
	StatusFile = runDir + "/node.json"
	// In memory: on a machine that starts and has no daemon, containerd has no drop-in.
	dropInDir = runDir + "/containerd"
	glob      = dropInDir + "/*.toml"
)

// Options say what is to be done to a machine to make it a node.
type Options struct {
	// Dir is the directory of what has to stay over a boot; it is made.
	Dir string
	// Binary is the program to install; empty: the one that runs.
	Binary string
	// Config is containerd's main configuration file; empty: the one that the running
	// containerd was started with.
	Config string
	// Socket is containerd's.
	Socket string
	// RestartCommand restarts containerd; empty: find out how.
	RestartCommand []string
	// Kubelet is kubelet's version, which is that of k3s and rke2, too; it is needed
	// there.
	Kubelet string
	// Daemon are options of `apparate snapshotter` by their names without dashes.
	Daemon map[string][]string
	// MinFree is how many bytes of disk have to be free at first.
	MinFree uint64
	// Healthy says whether the node is well, beyond containerd itself; nil: nothing is
	// asked. It is asked before containerd's configuration is changed, and after. It is
	// ErrNotReady only when it is known that the node is not.
	Healthy func(ctx context.Context) error
	// Wait bounds how long containerd and Healthy may take after a restart; 0 is 90 s.
	// Settle is for how long both have to stay well; 0 is 10 s.
	Wait, Settle time.Duration
	// FailCheck makes a check of the preflight fail, for tests of what happens then.
	FailCheck string
	// Version is ours, for people.
	Version string
	Logger  *slog.Logger
}

// ErrNotReady says that a node is not ready; for errors.Is.
var ErrNotReady = errors.New("the node is not Ready")

// Machine is a host that is or becomes a node. Its methods are not to be called at the
// same time; other processes are kept out by a lock.
type Machine struct {
	Options
	manager service.Manager
	checked map[string]State // of the last preflight
	// binary is the digest of Binary once it is known: every look asks for it, and the
	// program of a process does not change.
	binary string

	mu     sync.Mutex
	status Status
}

// validDir is what a configuration file of containerd may name without quoting.
var validDir = regexp.MustCompile(`^/[A-Za-z0-9/._+@-]+$`)

// New returns the machine that this process runs on. It has to be in the mount and
// pid namespaces of process 1.
func New(ctx context.Context, o Options) (*Machine, error) {
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	if o.Wait <= 0 {
		o.Wait = 90 * time.Second
	}
	if o.Settle <= 0 {
		o.Settle = 10 * time.Second
	}
	if o.Binary == "" {
		o.Binary = "/proc/self/exe"
	}
	if !validDir.MatchString(o.Dir) || filepath.Clean(o.Dir) != o.Dir {
		return nil, fmt.Errorf("directory %q: give a clean absolute path of letters, digits and /._+@-", o.Dir)
	}
	if o.FailCheck != "" {
		o.Logger.Warn("a check is made to fail", "check", o.FailCheck)
	}
	m, err := service.Detect(ctx)
	if err != nil {
		return nil, err
	}
	return &Machine{Options: o, manager: m, status: Status{Version: o.Version, State: Installing}}, nil
}

func (m *Machine) path(name string) string { return filepath.Join(m.Dir, name) }

// Program is where the program is installed.
func (m *Machine) Program() string { return m.path("bin/apparate") }

// CredentialsDir is the directory of files with registry credentials that the daemon
// reads; mode 0700.
func (m *Machine) CredentialsDir() string { return m.path("credentials") }

// locked runs f while no other process changes this machine.
func (m *Machine) locked(ctx context.Context, f func() error) (err error) {
	if err := os.MkdirAll(m.Dir, 0o755); err != nil {
		return err
	}
	fd, err := unix.Open(m.path("lock"), unix.O_CREAT|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return fmt.Errorf("%s: %w", m.path("lock"), err)
	}
	defer func() { err = errors.Join(err, unix.Close(fd)) }()
	const poll = 100 * time.Millisecond
	for {
		switch err := unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB); {
		case err == nil:
			return f()
		case !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR):
			return fmt.Errorf("%s: %w", m.path("lock"), err)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("another process works on %s: %w", m.Dir, ctx.Err())
		case <-time.After(poll):
		}
	}
}

// Keep keeps the daemon running until ctx ends, where the host does not do so by
// itself.
func (m *Machine) Keep(ctx context.Context) error { return m.manager.Keep(ctx, Name) }
