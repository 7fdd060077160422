package cluster

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// space is a network namespace, which lives as long as this process holds it or a
// process is in it, and a thread of this process that is in it.
type space struct {
	fd   int
	work chan func()
}

// newSpace makes a network namespace.
func newSpace() (*space, error) {
	s := &space{work: make(chan func())}
	made := make(chan error)
	// Children are started by this thread alone: they are in its namespace, and the
	// signal that ends them with their parent is sent when the thread that started
	// them ends.
	onThread(func() {
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			s.fd, err = unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		}
		made <- err
		for f := range s.work {
			f()
		}
	})
	if err := <-made; err != nil {
		close(s.work)
		return nil, err
	}
	return s, nil
}

// onThread runs f on a thread of its own, which ends with it.
func onThread(f func()) {
	locked := func() {
		runtime.LockOSThread() // and never unlocked
		f()
	}
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() != os.Getpid() {
			locked()
			return
		}
		// The first thread is not one that ends, and stands for the whole process in
		// /proc: keep it busy until another one is taken.
		defer runtime.UnlockOSThread()
		done := make(chan struct{})
		go func() {
			defer close(done)
			locked()
		}()
		<-done
	}()
}

// do runs f in the namespace. It must not block: all programs are started by it.
func (s *space) do(f func() error) error {
	done := make(chan error)
	s.work <- func() { done <- f() }
	return <-done
}

// start starts cmd in the namespace; it ends with this process.
func (s *space) start(cmd *exec.Cmd) error {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &unix.SysProcAttr{}
	}
	cmd.SysProcAttr.Pdeathsig = unix.SIGKILL
	return s.do(cmd.Start)
}

// path names the namespace for other programs, as long as this process lives.
func (s *space) path() string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), s.fd) }

// close lets go of the namespace; what was started in it has to have ended.
func (s *space) close() error {
	close(s.work)
	return unix.Close(s.fd)
}

// dial connects in the namespace; addr has to have an IP address.
func (s *space) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	if net.ParseIP(host) == nil {
		return nil, fmt.Errorf("dialling %s: there is no DNS in the cluster, give an IP address", addr)
	}
	type result struct {
		conn net.Conn
		err  error
	}
	done := make(chan result)
	onThread(func() {
		var r result
		if r.err = unix.Setns(s.fd, unix.CLONE_NEWNET); r.err == nil {
			// With an address there is one socket, made by this thread.
			r.conn, r.err = (&net.Dialer{Timeout: 30 * time.Second}).DialContext(ctx, network, addr)
		}
		done <- r
	})
	r := <-done
	return r.conn, r.err
}

// Dial connects to an address inside of the control plane's network, from this
// process. It has to be an IP address.
func (c *Cluster) Dial(ctx context.Context, network, addr string) (net.Conn, error) {
	return c.space.dial(ctx, network, addr)
}

// Transport is for HTTP to addresses inside of the control plane's network, such as
// the registry's.
func (c *Cluster) Transport() *http.Transport {
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.Proxy, t.DialContext = nil, c.Dial
	return t
}

// Command is a program of the machine that runs inside of the control plane's network
// with KUBECONFIG set. It sees the machine's files. Its whole process group is killed
// when ctx ends.
func (c *Cluster) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "nsenter", append(append(c.enterSpace(), name), args...)...)
	cmd.Env = controlEnv(c.Kubeconfig)
	killGroup(cmd)
	return cmd
}

// killGroup makes the end of a command's context end its children, too.
func killGroup(cmd *exec.Cmd) {
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
	cmd.WaitDelay = 10 * time.Second
}
