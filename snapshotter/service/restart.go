package service

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/dbus"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	healthapi "google.golang.org/grpc/health/grpc_health_v1"
)

// Runtime says which container runtime is to be restarted, and how.
type Runtime struct {
	// Socket is where it answers. It has to run: what is restarted is the process
	// that listens there.
	Socket string
	// Command restarts it, where a host needs one of its own; empty: find out.
	Command []string
	// Wait bounds how long it may take until the runtime answers again, and
	// SupervisorWait how long until whatever supervises it has started it; 0 means
	// 60 s and 15 s.
	Wait, SupervisorWait time.Duration
}

// NewRestarter looks at the runtime that runs and decides how it is restarted: by the
// command; by systemd, if a unit of it owns the process; by OpenRC; else by SIGTERM,
// upon which whatever supervises the process starts it again. If nothing does, we
// start it ourselves as it was started before.
func NewRestarter(ctx context.Context, r Runtime) (Restarter, error) {
	if r.Wait <= 0 {
		r.Wait = time.Minute
	}
	if r.SupervisorWait <= 0 {
		r.SupervisorWait = 15 * time.Second
	}
	base := &runtimeProcess{Runtime: r}
	if err := base.record(ctx); err != nil {
		return nil, err
	}
	if len(r.Command) > 0 {
		return &byCommand{base, r.Command}, nil
	}
	if unit, err := unitOf(ctx, base.process.PID); err != nil {
		return nil, err
	} else if unit != "" {
		return &byUnit{base, unit}, nil
	}
	if _, err := os.Stat("/run/openrc/started/containerd"); err == nil {
		return &byCommand{base, []string{"rc-service", "containerd", "restart"}}, nil
	}
	return &bySignal{base}, nil
}

// unitOf is the service of systemd that a process belongs to, "" without.
func unitOf(ctx context.Context, pid int) (unit string, err error) {
	if fi, err := os.Stat(booted); err != nil || !fi.IsDir() {
		return "", nil
	}
	err = (*systemd)(nil).do(ctx, func(c *dbus.Conn) error {
		name, err := c.GetUnitNameByPID(ctx, uint32(pid))
		if err == nil && strings.HasSuffix(name, ".service") {
			unit = name
		}
		return nil // a process of no unit is an error there
	})
	return unit, err
}

// runtimeProcess is the runtime as it was started.
type runtimeProcess struct {
	Runtime
	process process
	exe     string
	argv    []string
	env     []string
	dir     string
	group   group
}

// record notes how the process that listens on the socket was started.
func (r *runtimeProcess) record(ctx context.Context) error {
	pid, err := listener(ctx, r.Socket)
	if err != nil {
		return fmt.Errorf("finding the container runtime at %s (is it running there?): %w", r.Socket, err)
	}
	p, err := findProcess(pid)
	if err != nil {
		return err
	}
	proc := func(name string) string { return fmt.Sprintf("/proc/%d/%s", pid, name) }
	argv, err := os.ReadFile(proc("cmdline"))
	if err != nil {
		return err
	}
	env, err := os.ReadFile(proc("environ"))
	if err != nil {
		return err
	}
	exe, err := os.Readlink(proc("exe"))
	if err != nil {
		return err
	}
	dir, err := os.Readlink(proc("cwd"))
	if err != nil {
		return err
	}
	g, err := groupOfProcess(pid)
	if err != nil {
		return err
	}
	// A program that was replaced since is started as the new one.
	r.exe, r.argv, r.env = strings.TrimSuffix(exe, " (deleted)"), zeroes(argv), zeroes(env)
	r.process, r.dir, r.group = p, dir, g
	return nil
}

func zeroes(b []byte) []string {
	return strings.Split(strings.TrimSuffix(string(b), "\x00"), "\x00")
}

// listener is the process that listens on a unix socket (SO_PEERCRED in unix(7)). By
// name we might find another one.
func listener(ctx context.Context, socket string) (pid int, err error) {
	c, err := new(net.Dialer).DialContext(ctx, "unix", socket)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	u, ok := c.(*net.UnixConn)
	if !ok {
		return 0, fmt.Errorf("%s is no unix socket", socket)
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	if cerr := raw.Control(func(fd uintptr) { cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); cerr != nil {
		return 0, cerr
	}
	if err != nil {
		return 0, err
	}
	if cred.Pid == 0 {
		return 0, errors.New("its process is in another pid namespace: give the pod hostPID: true")
	}
	return int(cred.Pid), nil
}

// answers says whether another process than before listens and is in health.
func (r *runtimeProcess) answers(ctx context.Context) (err error) {
	pid, err := listener(ctx, r.Socket)
	if err != nil {
		return err
	}
	if p, err := findProcess(pid); err != nil || p == r.process {
		return errors.Join(errors.New("the old process still listens"), err)
	}
	c, err := grpc.NewClient("unix:"+r.Socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	h, err := healthapi.NewHealthClient(c).Check(ctx, &healthapi.HealthCheckRequest{})
	if err == nil && h.GetStatus() != healthapi.HealthCheckResponse_SERVING {
		err = fmt.Errorf("its health is %v", h.GetStatus())
	}
	return err
}

// wait waits until the runtime answers and notes how it was started this time.
func (r *runtimeProcess) wait(ctx context.Context, limit time.Duration) error {
	const poll, try = 50 * time.Millisecond, 5 * time.Second
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("no answer within %v", limit))
	defer cancel()
	for {
		asking, stop := context.WithTimeout(ctx, try)
		err := r.answers(asking)
		stop()
		if err == nil {
			return r.record(ctx)
		}
		if serr := sleep(ctx, poll); serr != nil {
			return fmt.Errorf("the container runtime at %s: %w: %w", r.Socket, context.Cause(ctx), err)
		}
	}
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
	running, cancel := context.WithTimeout(ctx, b.Wait)
	defer cancel()
	cmd := exec.CommandContext(running, b.command[0], b.command[1:]...)
	cmd.WaitDelay = time.Second
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", b.How(), err, lastLine(out))
	}
	return b.wait(ctx, b.Wait)
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
	restarting, cancel := context.WithTimeout(ctx, b.Wait)
	defer cancel()
	if err := (*systemd)(nil).job(restarting, "restart of", b.unit, restartUnit); err != nil {
		return err
	}
	return b.wait(ctx, b.Wait)
}

// bySignal ends the process.
type bySignal struct{ *runtimeProcess }

// How says what is done.
func (b *bySignal) How() string {
	return fmt.Sprintf("SIGTERM to process %d (%s)", b.process.PID, b.exe)
}

// Restart ends the process, waits for its supervisor, and is that where there is
// none. Where the process is gone already it is only started.
func (b *bySignal) Restart(ctx context.Context) error {
	const patience = 30 * time.Second
	ended, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	err := b.process.signal(unix.SIGTERM)
	if err == nil {
		err = b.process.wait(ended)
	}
	if err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("ending the container runtime, process %d: %w", b.process.PID, err)
	}
	err = b.wait(ctx, b.SupervisorWait)
	if err == nil || ctx.Err() != nil {
		return err
	}
	if pid, lerr := listener(ctx, b.Socket); lerr == nil {
		// Its supervisor is there, and only needs longer.
		if werr := b.wait(ctx, b.Wait); werr != nil {
			return fmt.Errorf("process %d: %w", pid, werr)
		}
		return nil
	}
	return b.start(ctx)
}

// start starts the runtime as it was started before, in the groups that it was in.
func (b *bySignal) start(ctx context.Context) (err error) {
	log, err := os.CreateTemp("", "apparate-runtime-*.log")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, log.Close(), os.Remove(log.Name())) }()
	cmd := exec.Command(b.exe)
	cmd.Args, cmd.Env, cmd.Dir = b.argv, b.env, b.dir
	cmd.Stdout, cmd.Stderr = log, log
	if err := b.group.make(); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if err := spawn(cmd, b.group); err != nil {
		return fmt.Errorf("starting the container runtime (%s): %w", b.exe, err)
	}
	starting, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() { // ends with the process, or with us
		err := cmd.Wait()
		cancel(fmt.Errorf("it ended at its start: %w", errors.Join(err)))
	}()
	if err := b.wait(starting, b.Wait); err != nil {
		_ = cmd.Process.Kill() // has ended, or is of no use
		text, _ := os.ReadFile(log.Name())
		return fmt.Errorf("%w: %s", err, lastLine(text))
	}
	return nil
}
