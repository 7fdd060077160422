package kube

import (
	"archive/tar"
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/apparate/apparate/test/tools"
)

//go:embed node.sh
var nodeScript string

// controllers of the first cgroup version that a node gets groups in.
var controllers = []string{"cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "blkio", "pids", "systemd"}

// StartNode adds a node to the cluster: a real kubelet and containerd in namespaces
// of their own, but for the network, which is the host's. Only pods with
// hostNetwork run on it, of images of the registry (host:port, plain HTTP), which
// also gets the pause image. It needs root and cgroups of version 1, and ends with
// the test, together with everything that it started.
func (c *Cluster) StartNode(t testing.TB, registry string) (name string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("a node mounts file systems and starts containers: run this test as root")
	}
	paths, err := tools.Ensure(t.Context(), t.Output(), tools.ContainerdCRI, tools.Runc)
	if err != nil {
		t.Fatal(err)
	}
	pushPause(t, registry)
	name = fmt.Sprintf("node-%d", os.Getpid())
	dir := filepath.Join(c.dir, name)
	script := filepath.Join(dir, "node.sh")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(script, []byte(nodeScript), 0o755); err != nil {
		t.Fatal(err)
	}
	join := ""
	for _, k := range controllers {
		g, err := cgroup(k, name)
		if err != nil {
			t.Fatalf("making a cgroup (version 1 is needed): %v", err)
		}
		join += fmt.Sprintf("echo $$ >%s/cgroup.procs; ", g)
	}
	cmd := exec.Command("bash", "-ec", join+`exec unshare --mount --uts --ipc --pid --cgroup --fork --kill-child "$@"`, "node",
		script, dir, filepath.Dir(paths[tools.ContainerdCRI]), paths[tools.Runc], filepath.Join(c.bin, "kubelet"), c.Kubeconfig, registry)
	cmd.Env = append(os.Environ(), "NODE="+name, "KUBELET_PORT="+freePort(t))
	log, err := os.Create(filepath.Join(dir, "node.log"))
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	ended := make(chan error, 1)
	go func() {
		// Pdeathsig is sent when the starting thread ends: keep it.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		ended <- errors.Join(cmd.Run(), log.Close())
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // its child is the node's first process, and goes with it
		t.Logf("the node ended: %v", <-ended)
		if t.Failed() {
			for _, l := range []string{"node.log", "kubelet.log", "containerd.log"} {
				t.Logf("%s:\n%s", l, tail(filepath.Join(dir, l)))
			}
		}
		for _, k := range controllers {
			if err := removeGroups(filepath.Join("/sys/fs/cgroup", k, name)); err != nil {
				t.Errorf("removing a cgroup: %v", err)
			}
		}
	})
	c.waitNode(t, name, ended)
	return name
}

// waitNode waits until the node is ready.
func (c *Cluster) waitNode(t testing.TB, name string, ended chan error) {
	t.Helper()
	client, err := kubernetes.NewForConfig(c.Config)
	if err != nil {
		t.Fatal(err)
	}
	for limit := time.Now().Add(2 * time.Minute); time.Now().Before(limit); time.Sleep(100 * time.Millisecond) {
		select {
		case err := <-ended:
			ended <- err
			t.Fatalf("the node ended at its start: %v", err)
		default:
		}
		n, err := client.CoreV1().Nodes().Get(t.Context(), name, metav1.GetOptions{})
		if err != nil {
			continue
		}
		for _, cond := range n.Status.Conditions {
			if cond.Type == corev1.NodeReady && cond.Status == corev1.ConditionTrue {
				return
			}
		}
	}
	t.Fatalf("node %s does not become ready", name)
}

// cgroup makes a group; a new one of cpuset has to be given processors and memory.
func cgroup(controller, name string) (string, error) {
	parent := filepath.Join("/sys/fs/cgroup", controller)
	dir := filepath.Join(parent, name)
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return "", err
	}
	if controller != "cpuset" {
		return dir, nil
	}
	for _, f := range []string{"cpuset.cpus", "cpuset.mems"} {
		b, err := os.ReadFile(filepath.Join(parent, f))
		if err != nil {
			return "", err
		}
		if err := os.WriteFile(filepath.Join(dir, f), b, 0o644); err != nil {
			return "", err
		}
	}
	return dir, nil
}

// removeGroups removes a group and those below it, once their processes are gone.
func removeGroups(dir string) error {
	var err error
	for range 100 {
		err = filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() && p != dir {
				_ = removeGroups(p) // the parent tells
				return fs.SkipDir
			}
			return err
		})
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err = syscall.Rmdir(dir); err == nil {
			return nil
		}
		time.Sleep(50 * time.Millisecond)
	}
	return fmt.Errorf("%s: %w", dir, err)
}

func freePort(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }() // nothing was written
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return port
}

// pauseSource is a program that waits to be told to end: what holds a pod together.
const pauseSource = `package main

import (
	"os"
	"os/signal"
	"syscall"
)

func main() {
	end := make(chan os.Signal, 1)
	signal.Notify(end, os.Interrupt, syscall.SIGTERM)
	<-end
}
`

// pushPause builds the pause image and pushes it.
func pushPause(t testing.TB, registry string) {
	t.Helper()
	dir := t.TempDir()
	for f, text := range map[string]string{"main.go": pauseSource, "go.mod": "module pause\n\ngo 1.26\n"} {
		if err := os.WriteFile(filepath.Join(dir, f), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	program := filepath.Join(dir, "pause")
	if err := tools.GoBuild(t.Context(), t.Output(), "pause", dir, program, "-ldflags", "-s -w", "."); err != nil {
		t.Fatal(err)
	}
	PushProgram(t, registry+"/test/pause:1", program)
}

// PushProgram pushes an image that has a static program and nothing else, which it
// runs.
func PushProgram(t testing.TB, image, program string) {
	t.Helper()
	body, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	h := &tar.Header{Name: filepath.Base(program), Mode: 0o755, Size: int64(len(body)), Format: tar.FormatPAX}
	if err := errors.Join(w.WriteHeader(h), write(w, body), w.Close()); err != nil {
		t.Fatal(err)
	}
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(layer.Bytes())), nil })
	if err != nil {
		t.Fatal(err)
	}
	img, err := mutate.AppendLayers(empty.Image, l)
	if err != nil {
		t.Fatal(err)
	}
	img, err = mutate.ConfigFile(img, &v1.ConfigFile{
		OS: "linux", Architecture: runtime.GOARCH, RootFS: rootFS(t, img),
		Config: v1.Config{Cmd: []string{"/" + filepath.Base(program)}},
	})
	if err != nil {
		t.Fatal(err)
	}
	ref, err := name.ParseReference(image, name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(ref, img, remote.WithContext(context.WithoutCancel(t.Context()))); err != nil {
		t.Fatal(err)
	}
}

func write(w io.Writer, b []byte) error {
	_, err := w.Write(b)
	return err
}

func rootFS(t testing.TB, img v1.Image) v1.RootFS {
	t.Helper()
	f, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	return f.RootFS
}
