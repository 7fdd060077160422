package service

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/apparate/apparate/test/debian"
	"github.com/apparate/apparate/test/tools"
)

// containerd is a real one that a test starts, in a group of its own.
type containerd struct {
	dir, config, socket string
	paths               map[string]string
	group               group
	stall               atomic.Int64 // nanoseconds that a start takes longer
}

const goodConfig = `version = 3
root = '%[1]s/root'
state = '%[1]s/state'
disabled_plugins = ["io.containerd.nri.v1.nri", "io.containerd.tracing.processor.v1.otlp", "io.containerd.internal.v1.tracing"]
[grpc]
  address = '%[1]s/s'
[ttrpc]
  address = '%[1]s/t'
`

func newContainerd(t *testing.T) *containerd {
	t.Helper()
	paths, err := tools.Ensure(t.Context(), t.Output(), tools.Containerd, tools.Shim, tools.Ctr, tools.Runc)
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "c-") // sockets have short names
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	c := &containerd{dir: dir, config: filepath.Join(dir, "config.toml"), socket: filepath.Join(dir, "s"), paths: paths}
	c.configure(t, fmt.Sprintf(goodConfig, dir))
	if c.group, err = groupOf(testName(t, "containerd-"+filepath.Base(dir)[2:])); err != nil {
		t.Fatal(err)
	}
	if err := c.group.make(); err != nil {
		t.Fatal(err)
	}
	return c
}

func (c *containerd) configure(t *testing.T, text string) {
	t.Helper()
	// At once: with an empty file it would be another containerd, the machine's.
	if err := WriteFile(c.config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func (c *containerd) log() string { return filepath.Join(c.dir, "err.log") }

// start starts it. Its standard error is a file, unless that is given.
func (c *containerd) start(stderr *os.File, flags uintptr) (*exec.Cmd, error) {
	if stderr == nil {
		f, err := os.OpenFile(c.log(), os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
		if err != nil {
			return nil, err
		}
		defer func() { _ = f.Close() }() // it has it
		stderr = f
	}
	cmd := exec.Command(c.paths[tools.Containerd], "--config", c.config)
	cmd.Args[0] = "containerd"
	cmd.Dir, cmd.Stderr, cmd.Env = c.dir, stderr, []string{"PATH=" + hostPath, "MARK=a b", "EMPTY="}
	cmd.SysProcAttr = &unix.SysProcAttr{Cloneflags: flags}
	if err := spawn(cmd, c.group); err != nil {
		return nil, err
	}
	low := unix.Rlimit{Cur: 5000, Max: 6000}
	return cmd, errors.Join(unix.Prlimit(cmd.Process.Pid, unix.RLIMIT_NOFILE, &low, nil),
		os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", cmd.Process.Pid), []byte("7"), 0))
}

// once starts it and waits until it answers; nobody starts it again.
func (c *containerd) once(t *testing.T, stderr *os.File, flags uintptr) {
	t.Helper()
	cmd, err := c.start(stderr, flags)
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = cmd.Wait() }() // ends with it, which is killed in the end
	c.answers(t)
}

func (c *containerd) answers(t *testing.T) process {
	t.Helper()
	r := runtimeProcess{Runtime: Runtime{Socket: c.socket}}
	if err := r.wait(t.Context(), time.Minute, process{}); err != nil {
		t.Fatal(err, r.stderr.last())
	}
	return r.process
}

// loop starts it again and again until the test ends.
func (c *containerd) loop(t *testing.T) {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		for ctx.Err() == nil {
			cmd, err := c.start(nil, 0)
			if err != nil {
				t.Error(err)
				return
			}
			if stall := time.Duration(c.stall.Load()); stall > 0 {
				_ = cmd.Process.Signal(unix.SIGSTOP) // it may have ended
				_ = sleep(ctx, stall)
				_ = cmd.Process.Signal(unix.SIGCONT)
			}
			kill := context.AfterFunc(ctx, func() { _ = cmd.Process.Kill() })
			_ = cmd.Wait() // however it ends
			kill()
			_ = sleep(ctx, 100*time.Millisecond)
		}
	})
	t.Cleanup(func() {
		stop()
		wg.Wait()
	})
	c.answers(t)
}

func (c *containerd) ctr(t *testing.T, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, c.paths[tools.Ctr], append([]string{"--address", c.socket}, args...)...).Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			err = fmt.Errorf("%w: %s", err, exit.Stderr)
		}
		t.Fatalf("ctr %v: %v", args, err)
	}
	return string(out)
}

// busybox is Debian's static busybox.
var busybox = sync.OnceValues(func() (program []byte, err error) {
	cache, err := tools.CacheDir()
	if err != nil {
		return nil, err
	}
	ctx := context.Background()
	pkgs, err := debian.Open(filepath.Join(cache, "debian"), os.Stderr).Fetch(ctx, "busybox-static")
	if err != nil {
		return nil, err
	}
	return program, pkgs[0].Files(ctx, func(h *tar.Header, r io.Reader) (err error) {
		if filepath.Base(h.Name) == "busybox" && h.Typeflag == tar.TypeReg && h.Mode&0o111 != 0 {
			program, err = io.ReadAll(r)
		}
		return err
	})
})

// run starts a container, and ends it with the test.
func (c *containerd) run(t *testing.T) {
	t.Helper()
	root := filepath.Join(c.dir, "container")
	if err := os.MkdirAll(filepath.Join(root, "bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	b, err := busybox()
	if err == nil {
		err = os.WriteFile(filepath.Join(root, "bin/busybox"), b, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	id := "c" + filepath.Base(c.dir)[2:]
	c.ctr(t, "run", "-d", "--rootfs", "--runc-binary", c.paths[tools.Runc], "--runc-root", c.dir+"/runc", root, id, "/bin/busybox", "sleep", "3600")
	pid, err := strconv.Atoi(strings.Fields(c.task(t))[1])
	if err != nil {
		t.Fatal(err)
	}
	p, err := findProcess(pid)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.signal(unix.SIGKILL) }) // there at most, if containerd is not
	t.Cleanup(func() { c.ctr(t, "task", "rm", "--force", id) })
}

// task is the line of ctr that describes the container's process.
func (c *containerd) task(t *testing.T) string {
	t.Helper()
	lines := strings.Split(strings.TrimSpace(c.ctr(t, "task", "ls")), "\n")
	if len(lines) != 2 || !strings.Contains(lines[1], "RUNNING") {
		t.Fatalf("tasks: %q, want one that runs", lines)
	}
	return lines[1]
}

func (c *containerd) restarter(t *testing.T, r Runtime) Restarter {
	t.Helper()
	r.Socket, r.Log = c.socket, filepath.Join(c.dir, "other.log")
	got, err := NewRestarter(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// children are the containerds that run.
func children(t *testing.T, c *containerd) map[process]bool {
	t.Helper()
	all, err := c.group.processes()
	if err != nil {
		t.Fatal(err)
	}
	for p := range all {
		exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", p.PID))
		if err != nil || exe != c.paths[tools.Containerd] {
			delete(all, p)
		}
	}
	return all
}
