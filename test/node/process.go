package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"
)

// process is a daemon that we started. Its output goes to a log file.
type process struct {
	name string
	log  string
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended
	err  error         // how it ended, once done is closed
}

// startProcess runs argv as a daemon whose output is appended to the file log, with
// env ("NAME=value") added to our environment.
func startProcess(name, log string, env []string, argv ...string) (*process, error) {
	out, err := os.OpenFile(log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return nil, err
	}
	p := &process{name: name, log: log, cmd: exec.Command(argv[0], argv[1:]...), done: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = out, out
	p.cmd.Env = append(os.Environ(), env...)
	// A group of its own, so that an interrupt at the terminal reaches us alone
	// and we stop things in order; and the end of this test or demo, however it
	// comes, is the daemon's end.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	started := make(chan error)
	go func() {
		// The kernel sends Pdeathsig when the starting thread ends: keep it.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := p.cmd.Start()
		started <- err
		if err != nil {
			return
		}
		p.err = errors.Join(p.cmd.Wait(), out.Close())
		close(p.done)
	}()
	if err := <-started; err != nil {
		return nil, errors.Join(fmt.Errorf("starting %s: %w", name, err), out.Close())
	}
	return p, nil
}

// pid is the process id; it stays valid until stop returns.
func (p *process) pid() int { return p.cmd.Process.Pid }

// stop asks the process to end, and kills it when it has not within grace.
func (p *process) stop(grace time.Duration) error {
	select {
	case <-p.done:
		return fmt.Errorf("%s had ended by itself (%w): %s", p.name, orExited(p.err), p.tail())
	default:
	}
	_ = p.cmd.Process.Signal(syscall.SIGTERM) // may have ended just now
	select {
	case <-p.done:
		return nil
	case <-time.After(grace):
	}
	_ = p.cmd.Process.Kill()
	<-p.done
	return fmt.Errorf("%s did not stop within %v and was killed", p.name, grace)
}

func orExited(err error) error {
	if err == nil {
		return errors.New("exit status 0")
	}
	return err
}

// tail returns the last lines of the process's log.
func (p *process) tail() string {
	const most = 2000
	b, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	if len(b) > most {
		b = b[len(b)-most:]
	}
	return string(bytes.TrimSpace(b))
}

// answers waits until a connection to address succeeds.
func (p *process) answers(ctx context.Context, network, address string) error {
	const limit = 30 * time.Second
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	var d net.Dialer
	for {
		c, err := d.DialContext(ctx, network, address)
		if err == nil {
			return c.Close()
		}
		select {
		case <-p.done:
			return fmt.Errorf("%s ended at its start (%w): %s", p.name, orExited(p.err), p.tail())
		case <-ctx.Done():
			return fmt.Errorf("%s does not answer on %s: %w: %s", p.name, address, context.Cause(ctx), p.tail())
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// output collects what a program prints, for waiting on a line.
type output struct {
	mu      sync.Mutex
	text    bytes.Buffer
	changed chan struct{} // closed and replaced at each write
}

var _ io.Writer = (*output)(nil)

func newOutput() *output { return &output{changed: make(chan struct{})} }

// Write keeps the first MiB and takes the rest without keeping it.
func (o *output) Write(b []byte) (int, error) {
	const most = 1 << 20
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.text.Len() < most {
		o.text.Write(b)
	}
	close(o.changed)
	o.changed = make(chan struct{})
	return len(b), nil
}

// String returns what was printed so far.
func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String()
}

// hasLine says whether a whole line equals want, and otherwise returns a channel
// that closes when there is more to look at.
func (o *output) hasLine(want string) (bool, <-chan struct{}) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return strings.Contains("\n"+o.text.String(), "\n"+want+"\n"), o.changed
}
