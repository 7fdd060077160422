// Package systemd boots a real Debian whose process 1 is systemd, for tests: in mount,
// pid, uts, ipc and cgroup namespaces of its own, from packages, without anything of
// the machine's own systemd. Its network is the machine's.
//
//	m := systemd.Start(t, systemd.Options{})
//	out, err := m.Exec(ctx, "systemctl", "status")
//	m.PowerCut(); m.Boot(ctx) // what is on its disk is there again
//
// Its root is a directory on disk; /usr is read-only, and of all machines. A real
// containerd is installed as containerd.service, with its programs in /usr/local/bin;
// its configuration is the caller's, by Options.Prepare. runc is Debian's.
// /opt/inside is the program in the folder inside, which calls package service there.
package systemd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/apparate/apparate/test/tools"
)

// Options of a machine; the zero value is a Debian 12.
type Options struct {
	// Release of Debian; empty for Bookworm.
	Release string
	// Unified gives it cgroups of version 2 alone, also where the machine has version 1.
	// On machines that have version 2 alone it always is so.
	Unified bool
	// Prepare is called before the first boot: what Path names may be changed.
	Prepare func(m *Machine) error
}

// Machine is a booted Debian, or one that is off.
type Machine struct {
	// Name is its host name.
	Name string

	o     Options
	dir   string
	tree  string
	tools map[string]string
	lock  *os.File

	cmd  *exec.Cmd // process 1; nil while it is off
	done chan struct{}
}

// Config is what the first process reads from its standard input, as JSON.
type Config struct {
	// Root is the directory that becomes the root.
	Root string
	// Binds are directories and files to show, read-only, by their place in the root.
	Binds map[string]string
	// Unified leaves out cgroups of version 1.
	Unified bool
}

// Start boots a machine that ends with the test. Where the test fails, it shows the
// end of the journal.
func Start(t *testing.T, o Options) *Machine {
	t.Helper()
	m, err := New(t.Context(), t.Output(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(m.Journal(context.Background()))
		}
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := m.Boot(t.Context()); err != nil {
		t.Fatal(err)
	}
	return m
}

// New makes the disk of a machine, which is off. The caller closes it.
func New(ctx context.Context, progress io.Writer, o Options) (m *Machine, err error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("a machine is made of namespaces and mounts: run this as root")
	}
	if o.Release == "" {
		o.Release = Bookworm
	}
	m = &Machine{o: o}
	if m.tree, err = ensureTree(ctx, progress, o.Release); err != nil {
		return nil, err
	}
	if m.tools, err = tools.Ensure(ctx, progress, tools.ContainerdCRI); err != nil {
		return nil, err
	}
	cache, err := tools.CacheDir()
	if err != nil {
		return nil, err
	}
	all := filepath.Join(cache, "machines")
	if err := os.MkdirAll(all, 0o755); err != nil {
		return nil, err
	}
	if err := sweep(all); err != nil {
		return nil, fmt.Errorf("removing what an earlier machine left: %w", err)
	}
	if m.dir, err = os.MkdirTemp(all, "apparate-machine-"); err != nil {
		return nil, err
	}
	m.Name = filepath.Base(m.dir)
	if m.lock, err = lock(m.dir); err != nil {
		return nil, err
	}
	if err := m.make(ctx, progress); err != nil {
		return nil, errors.Join(err, m.Close())
	}
	return m, nil
}

func (m *Machine) make(ctx context.Context, progress io.Writer) error {
	root, err := tools.Root(ctx)
	if err != nil {
		return err
	}
	if err := tools.GoBuild(ctx, progress, "inside", root, m.inside(), "-ldflags", "-s -w", "./test/systemd/inside"); err != nil {
		return err
	}
	if err := m.install(ctx); err != nil {
		return fmt.Errorf("making the disk of %s: %w", m.Name, err)
	}
	if m.o.Prepare != nil {
		return m.o.Prepare(m)
	}
	return nil
}

// lock locks the directory of a machine for as long as we live.
func lock(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// sweep removes machines whose owner has ended, and with it their processes.
func sweep(all string) error {
	dirs, err := filepath.Glob(filepath.Join(all, "apparate-machine-*"))
	if err != nil {
		return err
	}
	for _, d := range dirs {
		l, err := lock(d)
		if errors.Is(err, unix.EWOULDBLOCK) || errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err == nil {
			err = errors.Join(removeGroups(filepath.Base(d)), os.RemoveAll(d), l.Close())
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (m *Machine) root() string   { return filepath.Join(m.dir, "root") }
func (m *Machine) inside() string { return filepath.Join(m.dir, "inside") }

// Path names a file of the machine for this process. While it is off, what is in
// memory (/run, /tmp, /dev) is not there, nor is /usr.
func (m *Machine) Path(path string) string {
	if m.cmd != nil {
		return filepath.Join(fmt.Sprintf("/proc/%d/root", m.cmd.Process.Pid), path)
	}
	return filepath.Join(m.root(), path)
}

// Boot starts the machine and waits until all units that belong to its start have
// started; see Exec("systemctl", "is-system-running") for how well.
func (m *Machine) Boot(ctx context.Context) error {
	joins, err := makeGroups(m.Name)
	if err != nil {
		return fmt.Errorf("making cgroups: %w", err)
	}
	config, err := json.Marshal(Config{
		Root: m.root(), Unified: m.o.Unified,
		Binds: map[string]string{
			"/usr": filepath.Join(m.tree, "usr"), "/usr/local/bin": filepath.Dir(m.tools[tools.ContainerdCRI]), "/opt/inside": m.inside(),
		},
	})
	if err != nil {
		return err
	}
	log, err := os.OpenFile(filepath.Join(m.dir, "console.log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }() // process 1 has it
	cmd := exec.Command(m.inside(), "init")
	cmd.Stdout, cmd.Stderr, cmd.Env = log, log, []string{}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	cmd.SysProcAttr = &unix.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC,
		Setsid:     true,
	}
	started := make(chan error)
	done := make(chan struct{})
	go onThread(func() { // ends with the machine, which ends with this thread
		cmd.SysProcAttr.Pdeathsig = unix.SIGKILL
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait() // PowerCut ends it
		}
		close(done)
	})
	if err := <-started; err != nil {
		return fmt.Errorf("starting %s: %w", m.Name, err)
	}
	m.cmd, m.done = cmd, done
	// It waits for its configuration: until then it is made what it is to be.
	for _, j := range joins {
		if err := os.WriteFile(j, fmt.Appendln(nil, cmd.Process.Pid), 0); err != nil {
			return fmt.Errorf("moving %s into its cgroup: %w", m.Name, err)
		}
	}
	if _, err = stdin.Write(config); err != nil {
		return err
	}
	return errors.Join(stdin.Close(), m.running(ctx))
}

// running waits until systemd has started everything.
func (m *Machine) running(ctx context.Context) error {
	const limit = 3 * time.Minute
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for {
		out, _ := m.Exec(ctx, "systemctl", "is-system-running", "--wait") // degraded is an error
		switch state := strings.TrimSpace(out); state {
		case "running", "degraded":
			return nil
		}
		select {
		case <-m.done:
			text, _ := os.ReadFile(filepath.Join(m.dir, "console.log")) // as far as there is one
			return fmt.Errorf("process 1 of %s has ended: %s", m.Name, text)
		case <-ctx.Done():
			return fmt.Errorf("%s does not boot: %w: systemctl says %q", m.Name, ctx.Err(), out)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// PowerCut ends every process of the machine at once, and with them its mounts. It does
// nothing to one that is off.
func (m *Machine) PowerCut() error {
	if m.cmd == nil {
		return nil
	}
	_ = m.cmd.Process.Kill() // it may have ended
	<-m.done                 // once the kernel has ended all others
	m.cmd = nil
	return removeGroups(m.Name)
}

// Close ends the machine and removes it from the disk.
func (m *Machine) Close() error {
	return errors.Join(m.PowerCut(), os.RemoveAll(m.dir), m.lock.Close())
}

// Command is a program of the machine. It is killed when ctx ends.
func (m *Machine) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	enter := []string{fmt.Sprintf("--target=%d", m.cmd.Process.Pid), "--mount", "--pid", "--uts", "--ipc", "--cgroup", "--", name}
	cmd := exec.CommandContext(ctx, "nsenter", append(enter, args...)...)
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LANG=C.UTF-8"}
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
	cmd.WaitDelay = 10 * time.Second
	return cmd
}

// Exec runs a program of the machine and returns its standard output.
func (m *Machine) Exec(ctx context.Context, name string, args ...string) (string, error) {
	out, err := m.Command(ctx, name, args...).Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			err = fmt.Errorf("%w: %s", err, strings.TrimSpace(string(exit.Stderr)))
		}
		err = fmt.Errorf("%s %s: %w", name, strings.Join(args, " "), err)
	}
	return string(out), err
}

// Journal is the end of the machine's journal of this boot.
func (m *Machine) Journal(ctx context.Context) string {
	if m.cmd == nil {
		return "off"
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	out, err := m.Exec(ctx, "journalctl", "--no-pager", "--lines=150", "--output=short-monotonic")
	if err != nil {
		return err.Error()
	}
	return out
}
