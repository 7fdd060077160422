// Package e2e shows the node as a whole: real containerd, runc, FUSE and EROFS,
// with the built program bin/apparate as its snapshotter.
package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/apparate/apparate/test/node"
	"github.com/apparate/apparate/test/registry"
	"github.com/apparate/apparate/test/tools"
)

// commands are the external programs and our own, built once for all tests.
var commands = map[string]string{}

const apparate = "apparate"

func TestMain(m *testing.M) {
	code, err := setup(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		code = 1
	}
	os.Exit(code)
}

func setup(m *testing.M) (int, error) {
	if os.Geteuid() != 0 {
		return 1, errors.New("these tests mount file systems and start containers: run them as root")
	}
	ctx := context.Background()
	paths, err := tools.Ensure(ctx, os.Stderr, tools.Containerd, tools.Shim, tools.Ctr, tools.Runc)
	if err != nil {
		return 1, err
	}
	commands = paths
	root, err := tools.Root(ctx)
	if err != nil {
		return 1, err
	}
	commands[apparate] = filepath.Join(root, "bin", "apparate")
	if _, err := os.Stat(commands[apparate]); err != nil {
		return 1, fmt.Errorf("%w: run 'make build' first, or 'make e2e'", err)
	}
	if err := roomy(os.TempDir()); err != nil {
		return 1, err
	}
	return m.Run(), nil
}

// roomy says whether nodes keep what they have fetched: where less than a fifth of the disk
// is free they give back what no image needs, which some tests look for.
func roomy(dir string) error {
	const least = 22 // percent, with what the tests themselves take
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil {
		return fmt.Errorf("%s: %w", dir, err)
	}
	if free := 100 * st.Bavail / st.Blocks; free < least {
		return fmt.Errorf("%d %% of the disk of %s are free, these tests need %d %%: remove something, or name another disk by TMPDIR", free, dir, least)
	}
	return nil
}

// host is a node and a registry for one test.
type host struct {
	*node.Node
	reg *registry.Registry
}

// start starts a registry and a node whose snapshotter gets args. At the end of
// the test nothing of it may be left: no mount, no process.
func start(t *testing.T, args ...string) *host {
	t.Helper()
	return startWith(t, commands[apparate], args...)
}

// startWith is start with another program as the snapshotter.
func startWith(t *testing.T, program string, args ...string) *host {
	t.Helper()
	reg := registry.New(t)
	dir := t.TempDir()
	n, err := node.Start(t.Context(), node.Options{
		Dir: dir, Tools: commands, Snapshotter: program,
		SnapshotterArgs: args, Registries: []string{reg.Host()},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			n.WriteLogs(t.Output())
		}
		if err := n.Close(); err != nil {
			t.Errorf("close the node: %v", err)
		}
		left, err := node.Left(dir)
		if err != nil || len(left) > 0 {
			t.Errorf("left behind: %v %v", left, err)
		}
	})
	return &host{n, reg}
}

// run runs the built program and returns what it printed.
func run(t *testing.T, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, commands[apparate], args...)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err := cmd.Run()
	if err != nil {
		err = fmt.Errorf("apparate %s: %w: %s", strings.Join(args, " "), err, errOut.String())
	}
	return out.String() + errOut.String(), err
}

// push pushes img as repo:tag and returns the reference.
func (h *host) push(t *testing.T, repo string, img v1.Image) string {
	t.Helper()
	ref := h.reg.Host() + "/" + repo
	tag, err := name.ParseReference(ref)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(tag, img); err != nil {
		t.Fatal(err)
	}
	return ref
}

// accelerate pushes and converts img and returns the accelerated reference.
func (h *host) accelerate(t *testing.T, repo string, img v1.Image) string {
	t.Helper()
	ref := h.push(t, repo, img)
	if _, err := run(t, "convert", ref); err != nil {
		t.Fatal(err)
	}
	h.reg.Forget()
	return ref + "-apparate"
}

// pull pulls ref for our snapshotter.
func (h *host) pull(t *testing.T, ref string) {
	t.Helper()
	if err := h.Pull(t.Context(), ref, node.Apparate); err != nil {
		t.Fatal(err)
	}
}

// sh runs a shell script in a new container of ref and waits for its end.
func (h *host) sh(t *testing.T, ref, id, script string) string {
	t.Helper()
	c, err := h.Run(t.Context(), ref, node.Apparate, id, nil, "/bin/sh", "-c", script)
	if err != nil {
		t.Fatal(err)
	}
	wait(t, c)
	return c.Output()
}

func wait(t *testing.T, c *node.Container) {
	t.Helper()
	select {
	case <-c.Done():
		if err := c.Err(); err != nil {
			t.Fatalf("container %s: %v\n%s", c.ID, err, c.Output())
		}
	case <-time.After(2 * time.Minute):
		t.Fatalf("container %s does not end\n%s", c.ID, c.Output())
	}
	if err := c.Stop(context.WithoutCancel(t.Context())); err != nil {
		t.Fatalf("container %s: %v", c.ID, err)
	}
}

// erofsMounts are the mount points of EROFS file systems below dir.
func erofsMounts(t *testing.T, dir string) []string {
	t.Helper()
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if strings.HasPrefix(f[4], dir+"/") && strings.Contains(line, " - erofs ") {
			out = append(out, f[4])
		}
	}
	return out
}

// eventually waits until ok, which a slow machine may need; it fails the test
// after a minute.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("never: %s", what)
}

// daemon is the process id of the one that does the work, below the holder.
func (h *host) daemon() (int, error) {
	pid := h.SnapshotterPID()
	// Any of its threads may have started it.
	lists, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	if err != nil {
		return 0, err
	}
	var children []string
	for _, l := range lists {
		b, err := os.ReadFile(l)
		if err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, syscall.ESRCH) {
			return 0, err
		}
		children = append(children, strings.Fields(string(b))...)
	}
	if len(children) != 1 {
		return 0, fmt.Errorf("the holder %d has the children %v, want one", pid, children)
	}
	return strconv.Atoi(children[0])
}

// stopSnapshotter ends the snapshotter as an administrator would, and waits.
func (h *host) stopSnapshotter(t *testing.T) {
	t.Helper()
	pid := h.SnapshotterPID()
	if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the snapshotter ends", func() bool { return errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) })
}
