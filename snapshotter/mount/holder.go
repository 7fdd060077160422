package mount

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

const (
	// longLife is how long a daemon lives that does not count as failing.
	longLife = time.Second
	// patience is how many short lives in a row are restarted at once.
	patience = 3
	// firstDelay and lastDelay bound the wait after that; it doubles.
	firstDelay, lastDelay = 100 * time.Millisecond, 5 * time.Second
	// drain is how long a dead daemon's last word is waited for.
	drain = 100 * time.Millisecond
)

// holder runs one daemon after the other.
type holder struct {
	HoldOptions
	lock     *os.File
	listener *net.UnixListener
	dev      *os.File
	// served says that some daemon was ready, told that the world knows.
	served, told bool
	// keep says that the service manager has our descriptors, too.
	keep bool
}

// child is one daemon.
type child struct {
	cmd   *exec.Cmd
	began time.Time
	ready <-chan bool  // one value: whether it became ready
	ended <-chan error // one value: how it ended
}

// run keeps a daemon running until ctx ends.
func (h *holder) run(ctx context.Context) error {
	replace := make(chan os.Signal, 1)
	signal.Notify(replace, syscall.SIGHUP)
	defer signal.Stop(replace)
	for short := 0; ; {
		c, err := h.start()
		if err != nil && !h.served {
			return err
		}
		if err == nil {
			var more bool
			if more, err = h.watch(ctx, c, replace); !more {
				return err
			}
			if err == nil || time.Since(c.began) >= longLife {
				short = 0
			} else {
				short++
			}
		} else {
			short++
		}
		if err != nil {
			h.Logger.Warn("the daemon ended; starting it again", "error", err, "wait", delay(short))
		}
		select {
		case <-time.After(delay(short)):
		case <-ctx.Done():
			return nil
		}
	}
}

// delay is the wait after a number of short lives.
func delay(short int) time.Duration {
	if short <= patience {
		return 0
	}
	return min(firstDelay<<min(short-patience-1, 10), lastDelay)
}

// watch waits for the end of a daemon, or brings it about. more says that the
// next is to be started, err why that was not on purpose.
func (h *holder) watch(ctx context.Context, c *child, replace <-chan os.Signal) (more bool, err error) {
	ready := c.ready
	for {
		select {
		case ok := <-ready:
			ready = nil
			h.announce(ok)
			if err := Lean(); err != nil {
				h.Logger.Debug("memory was not given back", "error", err)
			}
		case <-replace:
			h.Logger.Info("replacing the daemon", "pid", c.cmd.Process.Pid)
			h.stop(c, syscall.SIGUSR2)
			return true, nil
		case <-ctx.Done():
			sig := syscall.SIGTERM
			if h.keep {
				sig = syscall.SIGUSR2 // its mounts stay
			}
			h.stop(c, sig)
			return false, nil
		case err := <-c.ended:
			if ready != nil {
				h.announce(<-ready) // its end closed the pipe
			}
			var exit *exec.ExitError
			byItself := errors.As(err, &exit) && exit.Exited()
			if err == nil {
				err = errors.New("exit status 0")
			}
			err = fmt.Errorf("daemon, pid %d, ended: %w", c.cmd.Process.Pid, err)
			return h.served || !byItself, err
		}
	}
}

// announce tells the world, once, that a daemon serves.
func (h *holder) announce(ready bool) {
	if !ready || h.told {
		return
	}
	h.served, h.told = true, true
	if err := notifySystemd(); err != nil {
		h.Logger.Warn("systemd was not told that we are ready", "error", err)
	}
	if h.Ready != nil {
		h.Ready()
	}
}

// start starts a daemon with everything it inherits.
func (h *holder) start() (*child, error) {
	l, err := h.listener.File()
	if err != nil {
		return nil, fmt.Errorf("start the daemon: %w", err)
	}
	defer func() { _ = l.Close() }() // a copy
	r, w, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("start the daemon: %w", err)
	}
	defer func() { _ = w.Close() }() // the daemon has its own
	cmd := h.Command()
	if cmd.Env == nil {
		cmd.Env = os.Environ()
	}
	cmd.Env = append(without(cmd.Env, "NOTIFY_SOCKET"), heldEnv+"="+heldVersion)
	cmd.ExtraFiles = []*os.File{fuseFD - 3: h.dev, listenerFD - 3: l, lockFD - 3: h.lock, readyFD - 3: w}
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	// An interrupt from a terminal is for us; we end the daemon in order.
	cmd.SysProcAttr.Setpgid = true
	if err := cmd.Start(); err != nil {
		return nil, errors.Join(fmt.Errorf("start the daemon: %w", err), r.Close())
	}
	if err := record(h.lock, cmd.Process.Pid); err != nil {
		h.Logger.Warn("the lock file does not name the daemon", "error", err)
	}
	h.Logger.Info("started the daemon", "pid", cmd.Process.Pid)
	ready, ended := make(chan bool, 1), make(chan error, 1)
	go func() {
		n, _ := r.Read(make([]byte, 1))
		_ = r.Close() // only read
		ready <- n == 1
	}()
	go func() {
		err := cmd.Wait()
		// What the daemon wrote is read already or never: somebody it started may
		// have the other end, and must not keep us waiting.
		_ = r.SetReadDeadline(time.Now().Add(drain))
		ended <- err
	}()
	return &child{cmd: cmd, began: time.Now(), ready: ready, ended: ended}, nil
}

// stop ends a daemon with sig, or kills it when that takes too long.
func (h *holder) stop(c *child, sig os.Signal) {
	if err := c.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		h.Logger.Warn("the daemon was not told to end", "error", err)
	}
	t := time.NewTimer(h.StopTimeout)
	defer t.Stop()
	var err error
	select {
	case err = <-c.ended:
	case <-t.C:
		h.Logger.Warn("the daemon does not end: killing it", "pid", c.cmd.Process.Pid)
		_ = c.cmd.Process.Kill() // fails only when it has ended
		err = <-c.ended
	}
	h.Logger.Info("the daemon has ended", "pid", c.cmd.Process.Pid, "status", fmt.Sprint(err))
}

// without drops a variable from an environment.
func without(env []string, name string) []string {
	var out []string
	for _, v := range env {
		if !strings.HasPrefix(v, name+"=") {
			out = append(out, v)
		}
	}
	return out
}
