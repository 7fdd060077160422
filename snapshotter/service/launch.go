package service

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// launch starts the process and waits until it is ready.
func (s *supervised) launch(ctx context.Context, d Daemon) (err error) {
	limit := orDefault(d.StartTimeout)
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("not ready within %v", limit))
	defer cancel()
	n, err := listenNotify(s.file(d.Name, "notify"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, n.close()) }()
	r, exit, err := s.run(d, []string{"NOTIFY_SOCKET=" + n.path}, -999)
	if err != nil {
		return err
	}
	waiting, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	go func() { // ends with the process, or with us
		select {
		case e := <-exit:
			stop(fmt.Errorf("ended before it was ready: %s", e.How))
		case <-waiting.Done():
		}
	}()
	if err := n.ready(waiting); err != nil {
		// Whatever ctx says, nothing half is left.
		end, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		why := fmt.Errorf("%s: %w%s", d.Name, err, output{path: d.LogFile}.last())
		return errors.Join(why, s.end(end, d.Name, d.StopTimeout))
	}
	r.Ready = true
	if g, err := groupOf(d.Name); err == nil {
		if all, err := g.processes(); err == nil {
			for p := range all { // what it started before we got to its own score
				setOOM(p.PID, -999)
			}
		}
	}
	return writeJSON(s.file(d.Name, "process"), r)
}

// run starts a process in the service's group, writes down which it is, and later how
// it ended, which is sent to exit as well.
func (s *supervised) run(d Daemon, env []string, oom int) (r running, exit <-chan ended, err error) {
	g, err := groupOf(d.Name)
	if err == nil {
		err = g.make()
	}
	if err != nil {
		return r, nil, err
	}
	log, err := openLog(d.LogFile)
	if err != nil {
		return r, nil, fmt.Errorf("%s: opening its log: %w", d.Name, err)
	}
	defer func() { err = errors.Join(err, log.Close()) }() // the process has it
	cmd := hostCommand(context.Background(), d, d.Argv, log)
	cmd.Env = append(cmd.Env, env...)
	if err := spawn(cmd, g); err != nil {
		return r, nil, fmt.Errorf("starting %s: %w", d.Name, err)
	}
	p, err := findProcess(cmd.Process.Pid) // it is our child: nobody else has its pid
	if err != nil {
		return r, nil, err
	}
	setOOM(p.PID, oom)
	r = running{process: p, Since: time.Now(), Definition: definition(d)}
	done := make(chan ended, 1)
	go func() { // ends with the process, or with us
		e := ended{process: p, How: "exit status 0"}
		if err := cmd.Wait(); err != nil {
			e.How = err.Error()
		}
		done <- e
		if err := s.writeExit(d.Name, e); err != nil {
			slog.Warn("how a service ended is not written down", "service", d.Name, "end", e.How, "error", err)
		}
	}()
	return r, done, writeJSON(s.file(d.Name, "process"), r)
}

// writeExit writes how the service's process ended, unless that is forgotten already,
// be it with the whole directory.
func (s *supervised) writeExit(name string, e ended) error {
	err := s.locked(context.Background(), func() error {
		r, err := s.process(name)
		if err != nil || r.process != e.process {
			return err
		}
		return writeJSON(s.file(name, "exit"), e)
	})
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// hostPath is where the host has its programs.
const hostPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// hostCommand is a command of a daemon as the host runs it: nothing of our environment is
// in its own.
func hostCommand(ctx context.Context, d Daemon, argv []string, log *os.File) *exec.Cmd {
	cmd := exec.CommandContext(ctx, hostProgram(argv[0]), argv[1:]...)
	cmd.Args[0] = argv[0]
	cmd.Dir, cmd.Stdout, cmd.Stderr = "/", log, log
	cmd.Env = append([]string{"PATH=" + hostPath}, d.Env...)
	return cmd
}

// hostProgram is the path of a program: our own PATH is that of a container.
func hostProgram(name string) string {
	if strings.Contains(name, "/") {
		return name
	}
	for _, dir := range filepath.SplitList(hostPath) {
		if p := filepath.Join(dir, name); unix.Access(p, unix.X_OK) == nil {
			return p
		}
	}
	return name
}

// postStart runs the command for a daemon that is ready.
func (s *supervised) postStart(ctx context.Context, d Daemon) {
	ctx, cancel := context.WithTimeout(ctx, orDefault(d.StartTimeout))
	defer cancel()
	log, err := openLog(d.LogFile)
	if err == nil {
		cmd := hostCommand(ctx, d, d.PostStart, log)
		cmd.WaitDelay = time.Second
		err = errors.Join(cmd.Run(), log.Close())
	}
	if err != nil {
		slog.Warn("the command after the start of a service failed", "service", d.Name, "command", d.PostStart, "log", d.LogFile, "error", err)
	}
}

// openLog opens a log for appending, a new one when it has become long.
func openLog(path string) (*os.File, error) {
	const most = 8 << 20
	if path == "" {
		path = os.DevNull
	} else if fi, err := os.Stat(path); err == nil && fi.Mode().IsRegular() && fi.Size() > most {
		if err := os.Rename(path, path+".1"); err != nil {
			return nil, err
		}
	}
	return os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o640)
}

// end ends all processes of the service: the main one by SIGTERM, and after the time
// out, like the others, by SIGKILL.
func (s *supervised) end(ctx context.Context, name string, limit time.Duration) error {
	r, err := s.process(name)
	if err != nil {
		return err
	}
	g, err := groupOf(name)
	if err != nil {
		return err
	}
	if r.alive() {
		if err := r.signal(unix.SIGTERM); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("stopping %s: %w", name, err)
		}
		waiting, cancel := context.WithTimeout(ctx, orDefault(limit))
		err := r.wait(waiting)
		cancel()
		if ctx.Err() != nil {
			return fmt.Errorf("stopping %s: %w", name, context.Cause(ctx))
		}
		if err != nil && !errors.Is(err, context.DeadlineExceeded) {
			return fmt.Errorf("stopping %s: %w", name, err)
		}
	}
	if err := g.kill(ctx); err != nil {
		return fmt.Errorf("stopping %s: %w", name, err)
	}
	return g.remove(ctx)
}
