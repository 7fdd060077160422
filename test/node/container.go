package node

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strconv"
	"strings"
	"syscall"

	"github.com/apparate/apparate/test/tools"
)

// Container is a container that Run started.
type Container struct {
	// ID names the container in containerd.
	ID string

	n      *Node
	cmd    *exec.Cmd // ctr run, which lives as long as the container
	out    *output
	stderr *output
	done   chan struct{}
	err    error
}

// Run starts a container named id from the pulled image ref, in the host's
// network, with the given environment ("NAME=value"); args replace the image's
// command when given. It returns at once: WaitLine and the caller's own probes
// tell when the program is ready.
func (n *Node) Run(ctx context.Context, ref, snapshotter, id string, env []string, args ...string) (*Container, error) {
	argv := []string{
		"run", "--rm", "--net-host", "--snapshotter", snapshotter,
		"--runc-binary", n.o.Tools[tools.Runc], "--runc-root", n.o.Dir + "/runc",
	}
	for _, e := range env {
		argv = append(argv, "--env", e)
	}
	argv = append(append(argv, ref, id), args...)
	c := &Container{ID: id, n: n, out: newOutput(), stderr: newOutput(), done: make(chan struct{})}
	// Not bound to ctx: a killed ctr would leave the container behind. Stop ends it.
	c.cmd = n.ctr(context.WithoutCancel(ctx), argv...)
	c.cmd.Stdout, c.cmd.Stderr = c.out, c.stderr
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := c.cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting ctr: %w", err)
	}
	go func() { // ends with the container
		c.err = c.cmd.Wait()
		close(c.done)
	}()
	n.mu.Lock()
	n.containers[id] = c
	n.mu.Unlock()
	return c, nil
}

// Output returns what the container has printed so far.
func (c *Container) Output() string { return c.out.String() }

// WaitLine waits until the container has printed line.
func (c *Container) WaitLine(ctx context.Context, line string) error {
	for {
		ok, changed := c.out.hasLine(line)
		if ok {
			return nil
		}
		select {
		case <-changed:
		case <-c.done:
			if ok, _ := c.out.hasLine(line); ok {
				return nil
			}
			return c.ended()
		case <-ctx.Done():
			return fmt.Errorf("container %s has not printed %q: %w; it printed %q %q", c.ID, line, ctx.Err(), c.out, c.stderr)
		}
	}
}

// WaitPage waits until the server in the container answers url with body.
func (c *Container) WaitPage(ctx context.Context, url, body string) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	served := make(chan error, 1)
	go func() { served <- WaitPage(ctx, url, body) }()
	select {
	case err := <-served:
		return err
	case <-c.done:
		cancel()
		if err := <-served; err == nil {
			return nil // just in time
		}
		return c.ended()
	}
}

// Done is closed when the container has ended; then Err says how.
func (c *Container) Done() <-chan struct{} { return c.done }

// Err returns why the container ended, nil for exit status 0. It is valid once
// Done is closed.
func (c *Container) Err() error {
	if c.err == nil {
		return nil
	}
	return c.ended()
}

func (c *Container) ended() error {
	return fmt.Errorf("container %s has ended (%w): %s %s", c.ID, orExited(c.err), c.out, c.stderr)
}

// Exec runs a command in the running container and returns its output.
func (c *Container) Exec(ctx context.Context, args ...string) ([]byte, error) {
	id := fmt.Sprintf("exec-%d", c.n.next())
	return c.n.Ctr(ctx, append([]string{"task", "exec", "--exec-id", id, c.ID}, args...)...)
}

// PID returns the process id of the container's first process on the host.
func (c *Container) PID(ctx context.Context) (int, error) {
	out, err := c.n.Ctr(ctx, "task", "ls")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(out)) { // columns: id, pid, status
		if f := strings.Fields(line); len(f) >= 2 && f[0] == c.ID {
			return strconv.Atoi(f[1])
		}
	}
	return 0, fmt.Errorf("container %s is not running", c.ID)
}

// Stop kills the container, waits for its end and removes it.
func (c *Container) Stop(ctx context.Context) error {
	c.n.mu.Lock()
	delete(c.n.containers, c.ID)
	c.n.mu.Unlock()
	select {
	case <-c.done:
		return nil
	default:
	}
	_, killErr := c.n.Ctr(ctx, "task", "kill", "--signal", "SIGKILL", c.ID)
	select {
	case <-c.done: // ctr run --rm has removed container and snapshot
		return nil
	case <-ctx.Done():
		_ = c.cmd.Process.Kill()
		<-c.done
		return errors.Join(fmt.Errorf("container %s did not stop: %w", c.ID, ctx.Err()), killErr)
	}
}

// next returns a number that no exec of the node has had.
func (n *Node) next() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.execs++
	return n.execs
}
