package service

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Runtime says which container runtime is to be restarted, and how.
type Runtime struct {
	// Socket is where it answers: what is restarted is the process that listens there.
	Socket string
	// Command restarts it, where a host needs one of its own; empty: find out.
	Command []string
	// Wait bounds how long it may take until the runtime answers again, and
	// SupervisorWait how long until whatever supervises it has started it; 0 means
	// 60 s and 15 s.
	Wait, SupervisorWait time.Duration
	// Log is appended to by a runtime that we have to start ourselves and whose output
	// went to no file before; empty means /var/log/containerd.log.
	Log string
}

// NewRestarter decides how the runtime is restarted: by the command; by systemd, if a
// unit of it started the process that listens; by OpenRC; else by SIGTERM, upon which
// whatever supervises the process starts it again. If nothing does, we start it
// ourselves as it was started before.
//
// The runtime need not run if there is a command, or if systemd or OpenRC knows it by
// its name.
func NewRestarter(ctx context.Context, r Runtime) (Restarter, error) {
	if r.Wait <= 0 {
		r.Wait = time.Minute
	}
	if r.SupervisorWait <= 0 {
		r.SupervisorWait = 15 * time.Second
	}
	if r.Log == "" {
		r.Log = "/var/log/containerd.log"
	}
	p := &runtimeProcess{Runtime: r}
	down := p.record(ctx)
	if len(r.Command) > 0 {
		return &byCommand{p, r.Command}, nil
	}
	if isBooted() {
		unit, err := runtimeUnit(ctx, r.Socket, p.process.PID)
		if err != nil {
			return nil, err
		}
		if unit != "" {
			return &byUnit{p, unit}, nil
		}
	}
	if s := openRC("/", r.Socket, down == nil); s != "" {
		return &byCommand{p, []string{"rc-service", s, "restart"}}, nil
	}
	if down != nil {
		return nil, down
	}
	if p.process.PID == 1 {
		return nil, fmt.Errorf("process 1 listens on %s, and not the container runtime itself: say how that is restarted with a command", r.Socket)
	}
	return &bySignal{runtimeProcess: p}, nil
}

// services are the names under which a runtime is installed, by its socket.
func services(socket string) []string {
	if strings.Contains(socket, "/k3s/") { // rke2's, too
		return []string{"k3s", "k3s-agent", "rke2-server", "rke2-agent"}
	}
	return []string{"containerd"}
}

// openRC is the service of OpenRC that the runtime is, empty without. A runtime that
// runs is one that OpenRC has started; if it does not, it is one that it could.
func openRC(root, socket string, runs bool) string {
	for _, s := range services(socket) {
		if _, err := os.Stat(filepath.Join(root, "run/openrc/started", s)); err == nil {
			return s
		}
	}
	if _, err := os.Stat(filepath.Join(root, "run/openrc/softlevel")); runs || err != nil {
		return ""
	}
	for _, s := range services(socket) {
		if _, err := os.Stat(filepath.Join(root, "etc/init.d", s)); err == nil {
			return s
		}
	}
	return ""
}

// byCommand runs a command.
type byCommand struct {
	*runtimeProcess
	command []string
}

// How names the command.
func (b *byCommand) How() string { return "command " + strings.Join(b.command, " ") }

// Restart runs the command and waits for the runtime.
func (b *byCommand) Restart(ctx context.Context) error {
	old := b.now(ctx)
	if err := b.run(ctx); err != nil {
		return fmt.Errorf("%s: %w", b.How(), err)
	}
	return b.wait(ctx, b.Wait, old)
}

// run runs the command as a program of the host, beside process 1: what it starts may
// be the runtime.
func (b *byCommand) run(ctx context.Context) (err error) {
	running, cancel := context.WithTimeoutCause(ctx, b.Wait, fmt.Errorf("not done within %v", b.Wait))
	defer cancel()
	// A file and no pipe: nothing that goes on running must be waited for, or be
	// killed by a pipe that nobody reads.
	out, err := os.CreateTemp("", "apparate-restart-*.log")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close(), os.Remove(out.Name())) }()
	g, err := groupOfProcess(1)
	if err != nil {
		return err
	}
	cmd := hostCommand(running, Daemon{Env: []string{"HOME=/root"}}, b.command, out)
	if err := spawn(cmd, g); err != nil {
		return err
	}
	if err := cmd.Wait(); err != nil {
		if running.Err() != nil {
			err = context.Cause(running)
		}
		return fmt.Errorf("%w%s", err, output{path: out.Name()}.last())
	}
	return nil
}

// byUnit asks systemd.
type byUnit struct {
	*runtimeProcess
	unit string
}

// How names the unit.
func (b *byUnit) How() string { return "systemd unit " + b.unit }

// Restart restarts the unit and waits for the runtime.
func (b *byUnit) Restart(ctx context.Context) error {
	old := b.now(ctx)
	asking, cancel := context.WithTimeoutCause(ctx, b.Wait, fmt.Errorf("not done within %v", b.Wait))
	defer cancel()
	err := new(systemd).job(asking, "restart of", b.unit, restartFresh)
	if err != nil && asking.Err() == nil {
		return err
	}
	// k3s is started long after its runtime answers.
	if werr := b.wait(ctx, b.Wait, old); werr != nil {
		return errors.Join(err, werr)
	}
	return nil
}

// bySignal ends the process.
type bySignal struct {
	*runtimeProcess
	// alone is true once nothing has started the runtime but us.
	alone bool
}

// How says what is done.
func (b *bySignal) How() string {
	return fmt.Sprintf("SIGTERM to process %d (%s)", b.process.PID, b.exe)
}

// Restart ends the process, waits for its supervisor, and is that where there is
// none. Where the process is gone already it is only started.
func (b *bySignal) Restart(ctx context.Context) error {
	old := b.now(ctx)
	words := b.stderr.mark()
	if err := end(ctx, old); err != nil {
		return fmt.Errorf("ending the container runtime, process %d: %w", old.PID, err)
	}
	if !b.alone {
		came, err := b.supervised(ctx, old)
		if err == nil || ctx.Err() != nil {
			return err
		}
		if came {
			return fmt.Errorf("%w%s", err, words.last())
		}
		b.alone = true
	}
	return b.start(ctx, old)
}

// end ends the process alone, whose children are the containers.
func end(ctx context.Context, p process) error {
	const patience = 30 * time.Second
	for _, s := range []unix.Signal{unix.SIGTERM, unix.SIGKILL} {
		if err := p.signal(s); errors.Is(err, unix.ESRCH) {
			return nil
		} else if err != nil {
			return err
		}
		waiting, cancel := context.WithTimeout(ctx, patience)
		err := p.wait(waiting)
		cancel()
		if err == nil || ctx.Err() != nil || !errors.Is(err, context.DeadlineExceeded) {
			return err
		}
	}
	return fmt.Errorf("it does not end within %v of SIGKILL", patience)
}

// supervised waits for somebody to start the runtime again. came says whether anybody
// has tried.
func (b *bySignal) supervised(ctx context.Context, old process) (came bool, err error) {
	waiting, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	w := &watch{runtime: *b.runtimeProcess, old: old, seen: map[process]bool{}}
	done := make(chan struct{})
	go func() { // ends with waiting
		defer close(done)
		if w.until(waiting) {
			stop(fmt.Errorf("whatever supervises it has started it %d times, and it ended each time", tries))
		}
	}()
	err = b.wait(waiting, b.SupervisorWait, old)
	if err != nil && waiting.Err() == nil && w.came() {
		err = b.wait(waiting, b.Wait, old) // it only needs longer
	}
	stop(nil)
	<-done
	return w.came(), err
}

// tries is how often a supervisor may fail to start the runtime: more would be of no
// use, and take the time that the node is well without a runtime.
const tries = 3

// watch looks for the processes that a supervisor starts.
type watch struct {
	runtime runtimeProcess // as it was
	old     process
	mu      sync.Mutex
	seen    map[process]bool
}

// until watches until ctx ends, or tries processes were started and have ended.
func (w *watch) until(ctx context.Context) bool {
	const poll = 10 * time.Millisecond
	for sleep(ctx, poll) == nil {
		ended := 0
		w.mu.Lock()
		for _, p := range w.runtime.twins() {
			if p != w.old {
				w.seen[p] = true
			}
		}
		for p := range w.seen {
			if !p.alive() {
				ended++
			}
		}
		w.mu.Unlock()
		if ended >= tries {
			return true
		}
	}
	return false
}

func (w *watch) came() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.seen) > 0
}

// start starts the runtime as it was started before, in the groups that it was in.
func (b *bySignal) start(ctx context.Context, old process) (err error) {
	if !b.host {
		return fmt.Errorf("nothing has started the container runtime again within %v, and it has mounts of its own, so we cannot: start it (%s), and say how it is restarted with a command",
			b.SupervisorWait, strings.Join(b.argv, " "))
	}
	cmd := exec.Command(b.exe)
	cmd.Args, cmd.Env, cmd.Dir = b.argv, b.env, b.dir
	words, err := b.spawn(cmd)
	if err != nil {
		return fmt.Errorf("starting the container runtime (%s): %w", b.exe, err)
	}
	child := b.process
	starting, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	done := make(chan struct{})
	go func() { // ends with the process, or with us
		defer close(done)
		how := "exit status 0"
		if err := cmd.Wait(); err != nil {
			how = err.Error()
		}
		stop(fmt.Errorf("it ended at its start: %s", how))
	}()
	err = b.wait(starting, b.Wait, old)
	switch {
	case err == nil && b.process == child:
		return nil
	case err != nil && ctx.Err() != nil:
		return err // it goes on; another Restart would end it
	}
	_ = cmd.Process.Kill() // it has ended, is of no use, or somebody else was faster
	<-done
	if err != nil {
		return fmt.Errorf("%w%s", err, words.last())
	}
	return nil
}
