package node

import (
	"context"
	"time"
)

// Daemon is a process beside a node: a snapshotter that is not ours.
type Daemon struct{ p *process }

// StartDaemon runs argv, whose output is appended to the file log, with the directories
// path before those of PATH, as Options.Path has them. It ends with this process, if
// nobody stops it before. The name is for messages.
func StartDaemon(name, log string, path []string, argv ...string) (*Daemon, error) {
	p, err := startProcess(name, log, environment(path), argv...)
	if err != nil {
		return nil, err
	}
	return &Daemon{p: p}, nil
}

// PID is its process id, valid until Stop returns.
func (d *Daemon) PID() int { return d.p.pid() }

// Answers waits until a connection to its unix socket succeeds.
func (d *Daemon) Answers(ctx context.Context, socket string) error {
	return d.p.answers(ctx, "unix", socket)
}

// Stop asks it to end, and kills it when it has not within grace, which is an error,
// as it is when it had ended before.
func (d *Daemon) Stop(grace time.Duration) error { return d.p.stop(grace) }

// UnmountBelow removes all mounts below dir, of dead FUSE servers as well.
func UnmountBelow(dir string) error { return unmountLeft(dir) }
