package service

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	healthapi "google.golang.org/grpc/health/grpc_health_v1"
)

// runtimeProcess is the runtime as it was started.
type runtimeProcess struct {
	Runtime
	process        process
	exe            string
	argv, env      []string
	dir            string
	group          group
	limits         []unix.Rlimit
	oom            int
	stdout, stderr output
	host           bool // it has the mounts and the root that we have
}

// record notes how the process that listens on the socket was started.
func (r *runtimeProcess) record(ctx context.Context) error {
	pid, err := SocketOwner(ctx, r.Socket)
	if err != nil {
		return fmt.Errorf("no container runtime at %s (start it, or name its socket): %w", r.Socket, err)
	}
	n := runtimeProcess{Runtime: r.Runtime}
	if err := n.read(pid); err != nil {
		return fmt.Errorf("looking at the container runtime, process %d: %w", pid, err)
	}
	*r = n
	return nil
}

// read reads all that is known of a process.
func (r *runtimeProcess) read(pid int) (err error) {
	if r.process, err = findProcess(pid); err != nil {
		return err
	}
	proc := func(name string) string { return fmt.Sprintf("/proc/%d/%s", pid, name) }
	for name, to := range map[string]*string{"exe": &r.exe, "cwd": &r.dir, "fd/1": &r.stdout.path, "fd/2": &r.stderr.path} {
		if *to, err = os.Readlink(proc(name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	// A program that was replaced since is started as the new one.
	r.exe = strings.TrimSuffix(r.exe, " (deleted)")
	for name, to := range map[string]*[]string{"cmdline": &r.argv, "environ": &r.env} {
		b, err := os.ReadFile(proc(name))
		if err != nil {
			return err
		}
		*to = zeroes(b)
	}
	if r.exe == "" || len(r.argv) == 0 {
		return errors.New("it has just ended")
	}
	if r.group, err = groupOfProcess(pid); err != nil {
		return err
	}
	b, err := os.ReadFile(proc("oom_score_adj"))
	if err != nil {
		return err
	}
	if r.oom, err = strconv.Atoi(strings.TrimSpace(string(b))); err != nil {
		return err
	}
	r.limits = make([]unix.Rlimit, unix.RLIMIT_RTTIME+1)
	for i := range r.limits {
		if err := unix.Prlimit(pid, i, nil, &r.limits[i]); err != nil {
			return fmt.Errorf("its limits: %w", err)
		}
	}
	r.host = true
	for _, what := range []string{"ns/mnt", "root"} {
		ours, err := os.Stat("/proc/thread-self/" + what)
		if err != nil {
			return err
		}
		its, err := os.Stat(proc(what))
		if err != nil {
			return err
		}
		r.host = r.host && os.SameFile(ours, its)
	}
	return nil
}

func zeroes(b []byte) []string {
	if len(b) == 0 {
		return nil
	}
	return strings.Split(strings.TrimSuffix(string(b), "\x00"), "\x00")
}

// now is the process that runs at present, or the last one that was seen to.
func (r *runtimeProcess) now(ctx context.Context) process {
	_ = r.record(ctx) // without one, the last is what we know
	return r.process
}

// twins are the processes with the runtime's program and command line.
func (r *runtimeProcess) twins() (all []process) {
	exes, _ := filepath.Glob("/proc/[0-9]*/exe") // the pattern is right
	for _, f := range exes {
		if exe, err := os.Readlink(f); err != nil || strings.TrimSuffix(exe, " (deleted)") != r.exe {
			continue
		}
		argv, err := os.ReadFile(filepath.Join(filepath.Dir(f), "cmdline"))
		if err != nil || !slices.Equal(zeroes(argv), r.argv) {
			continue
		}
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(f))); err == nil {
			if p, err := findProcess(pid); err == nil {
				all = append(all, p)
			}
		}
	}
	return all
}

// SocketOwner is the process that listens on a unix socket (SO_PEERCRED in unix(7)), by
// its number in the pid namespace of the host. By name we might find another one.
func SocketOwner(ctx context.Context, socket string) (pid int, err error) {
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

// answers says whether another process than old listens and is in health.
func (r *runtimeProcess) answers(ctx context.Context, old process) (err error) {
	pid, err := SocketOwner(ctx, r.Socket)
	if err != nil {
		return err
	}
	if p, err := findProcess(pid); err != nil || p == old {
		return errors.Join(fmt.Errorf("the old process %d still listens", pid), err)
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

// wait waits until another process than old answers, and notes how that was started.
func (r *runtimeProcess) wait(ctx context.Context, limit time.Duration, old process) error {
	const poll, try = 50 * time.Millisecond, 5 * time.Second
	waiting, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("no answer within %v", limit))
	defer cancel()
	end, _ := waiting.Deadline() // it has one
	var err error
	for {
		asking, stop := context.WithTimeout(waiting, try)
		now := r.answers(asking, old)
		if now == nil {
			now = r.record(asking)
		}
		stop()
		if now == nil {
			return nil
		}
		if err == nil || time.Now().Before(end) { // else it says that the time is over, and not why
			err = now
		}
		_ = sleep(waiting, poll)
		switch {
		case ctx.Err() != nil:
			return fmt.Errorf("the container runtime at %s: %w", r.Socket, context.Cause(ctx))
		case waiting.Err() != nil:
			return fmt.Errorf("the container runtime at %s: %w: %w", r.Socket, context.Cause(waiting), err)
		}
	}
}
