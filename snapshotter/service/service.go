// Package service runs programs on a host so that they outlive the pod which starts
// them, by whatever manages services there, and restarts the container runtime by
// whatever manages that.
//
// Everything happens in the namespaces of the host: the caller is in its mount and
// pid namespaces, and names its paths.
package service

import (
	"context"
	"errors"
	"time"
)

// StoreEnv is 1 in the environment of a service whose manager keeps descriptors for
// it; see Daemon.Descriptors.
const StoreEnv = "APPARATE_FD_STORE"

// Daemon is a program that is to run for ever, or for [Manager.RunDetached] once.
type Daemon struct {
	// Name is that of the unit or of the state files, such as "apparate": lower case
	// letters, digits and dashes.
	Name string
	// Description is one line for people.
	Description string
	// Argv is the command; its first word is an absolute path, of letters, digits and
	// "/._+@-". The program says READY=1 to NOTIFY_SOCKET once it serves
	// (sd_notify(3)), and replaces itself on SIGHUP.
	Argv []string
	// Env has further variables, KEY=VALUE. Everybody on the host can read them.
	Env []string
	// Before and After are units of systemd, such as containerd.service, whose start
	// waits for this one, or that this one's start waits for. They need not exist.
	// When the daemon does not come up, they start nevertheless.
	Before, After []string
	// Mounts are paths whose file systems have to be mounted before it starts.
	Mounts []string
	// PostStart is a command that is run whenever the daemon has become ready, and that
	// Before waits for. Its failure is in the log and nowhere else.
	PostStart []string
	// Descriptors is how many descriptors the manager shall keep for it while it is
	// restarted (sd_pid_notify_with_fds(3)); see [Manager.KeepsDescriptors].
	Descriptors int
	// StartTimeout is how long it may take to be ready, StopTimeout how long to end
	// before it is killed; 0 means 60 s.
	StartTimeout, StopTimeout time.Duration
	// LogFile gets its output where there is no journal. It is begun anew at a start
	// when it has more than 8 MiB; then the old one is kept, with ".1" appended.
	LogFile string
}

// Status is how a service is.
type Status struct {
	// Installed is true between Install and Remove.
	Installed bool
	// Running is true while its main process, PID, lives; Ready once that serves.
	Running, Ready bool
	PID            int
	// Since is when the process was started.
	Since time.Time
	// Outdated is true when it runs as an earlier Install wanted it: see Restart.
	Outdated bool
	// LastExit is how the process before ended, such as "exit status 1" or "signal:
	// killed". Empty: it did not, or nobody knows.
	LastExit string
}

// Manager starts, stops and supervises services on one host. It may be used by
// several processes, but not at the same time for the same service. What it does
// when repeated changes nothing.
type Manager interface {
	// Name is "systemd" or "supervised".
	Name() string
	// KeepsDescriptors says whether Daemon.Descriptors works, so that Restart and a
	// crash end none of the daemon's mounts.
	KeepsDescriptors() bool
	// Install makes the service known, and started at boot where that is possible.
	// changed tells that it was not known in the very same way before; a daemon that
	// runs then is Status.Outdated until it is restarted.
	Install(ctx context.Context, d Daemon) (changed bool, err error)
	// Start starts it and waits until it is ready. The error has the last line that
	// the daemon said.
	Start(ctx context.Context, name string) error
	// Keep starts it again whenever it ends, until ctx ends, and returns nil then.
	// systemd does so by itself: there it only waits.
	Keep(ctx context.Context, name string) error
	// Reload sends SIGHUP to the main process.
	Reload(ctx context.Context, name string) error
	// Restart ends it and starts it, and waits until it is ready.
	Restart(ctx context.Context, name string) error
	// Stop ends it, and all that it started. A name that is not known is no error.
	Stop(ctx context.Context, name string) error
	// Remove does that as well, and removes every trace but its log. Of the service that
	// the caller itself is, it removes the traces and nothing else.
	Remove(ctx context.Context, name string) error
	// Status of a name that is not known is the zero Status.
	Status(ctx context.Context, name string) (Status, error)
	// RunDetached starts a program that is no daemon: it is not waited for and not
	// started again, and outlives the caller. Where one of that name runs nothing
	// happens.
	RunDetached(ctx context.Context, d Daemon) error
}

// ErrNotInstalled says that a service has to be installed first; for errors.Is.
var ErrNotInstalled = errors.New("is not installed")

// Restarter restarts the container runtime.
type Restarter interface {
	// Restart restarts it and waits until it answers. After an error it may be called
	// again, also when there is no process any more.
	Restart(ctx context.Context) error
	// How says in a few words what Restart does, such as "systemd unit
	// containerd.service".
	How() string
}
