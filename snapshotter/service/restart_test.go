package service

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/apparate/apparate/test/tools"
)

// TestRestartSupervised restarts what somebody else starts again.
func TestRestartSupervised(t *testing.T) {
	c := newContainerd(t)
	c.loop(t)
	c.run(t)
	before, task := c.answers(t), c.task(t)
	r := c.restarter(t, Runtime{})
	if want := fmt.Sprintf("SIGTERM to process %d", before.PID); !strings.Contains(r.How(), want) {
		t.Errorf("%q, want %q", r.How(), want)
	}
	for range 2 {
		if err := r.Restart(t.Context()); err != nil {
			t.Fatal(err)
		}
		now := c.answers(t)
		if now == before || c.task(t) != task {
			t.Fatalf("process %v as before, or the container is another one: %s, it was %s", now, c.task(t), task)
		}
		before = now
	}
	c.stall.Store(int64(200 * time.Millisecond)) // in 10 ms it might not be seen
	c.configure(t, "version = nonsense\n")
	if err := r.Restart(t.Context()); err == nil || !strings.Contains(err.Error(), "has started it 3 times") || !strings.Contains(err.Error(), "containerd: failed to unmarshal TOML") {
		t.Errorf("with a broken configuration: %v", err)
	}
	c.configure(t, fmt.Sprintf(goodConfig, c.dir))
	if err := r.Restart(t.Context()); err != nil || c.task(t) != task {
		t.Errorf("repaired: %v", err)
	}
	// Who only needs longer is waited for.
	c.stall.Store(int64(2500 * time.Millisecond))
	r = c.restarter(t, Runtime{SupervisorWait: 1500 * time.Millisecond})
	if err := r.Restart(t.Context()); err != nil || c.task(t) != task {
		t.Errorf("a slow one: %v", err)
	}
	if all := children(t, c); len(all) != 1 {
		t.Errorf("there run %v, want one", all)
	}
}

// how is what is to be as before in a process that is started again.
func how(t *testing.T, pid int) map[string]string {
	t.Helper()
	all := map[string]string{}
	for _, f := range []string{"cmdline", "environ", "cgroup", "oom_score_adj"} {
		all[f] = contents(t, fmt.Sprintf("/proc/%d/%s", pid, f))
	}
	for _, f := range []string{"exe", "cwd", "fd/0", "fd/1", "fd/2", "ns/net", "ns/mnt"} {
		to, err := os.Readlink(fmt.Sprintf("/proc/%d/%s", pid, f))
		if err != nil {
			t.Fatal(err)
		}
		all[f] = to
	}
	var l unix.Rlimit
	if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, nil, &l); err != nil {
		t.Fatal(err)
	}
	all["files"] = fmt.Sprint(l.Max)
	return all
}

// TestRestartAlone restarts what nobody starts again, from a pod whose end follows.
func TestRestartAlone(t *testing.T) {
	c := newContainerd(t)
	c.once(t, nil, 0)
	c.run(t)
	before, task := c.answers(t), c.task(t)
	was := how(t, before.PID)
	pod, err := groupOf(testName(t, "pod"))
	if err != nil {
		t.Fatal(err)
	}
	if err := pod.make(); err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, "helper", "restarter", c.socket)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := spawn(cmd, pod); err != nil {
		t.Fatal(err)
	}
	line := make([]byte, 100)
	if n, err := out.Read(line); string(line[:n]) != "restarted\n" {
		t.Fatalf("%q, %v", line[:n], err)
	}
	if err := errors.Join(pod.kill(t.Context()), pod.remove(t.Context())); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // was killed
	now := c.answers(t)
	if now == before || c.task(t) != task {
		t.Errorf("process %v as before, or the container is another one: %s", now, c.task(t))
	}
	for what, is := range how(t, now.PID) {
		if is != was[what] {
			t.Errorf("%s is %q, was %q", what, is, was[what])
		}
	}
	if left := opened(t, now.PID); slices.ContainsFunc(left, func(f string) bool { return !strings.HasPrefix(f, c.dir) }) {
		t.Errorf("it has %v open", left)
	}
	if text := contents(t, c.log()); strings.Count(text, "containerd successfully booted") != 2 {
		t.Errorf("its log: %s", text)
	}
}

// TestRestartBroken breaks the configuration of what nobody starts again.
func TestRestartBroken(t *testing.T) {
	c := newContainerd(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	go func() { _, _ = io.Copy(io.Discard, r) }() // ends with the pipe
	c.once(t, w, 0)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	s := c.restarter(t, Runtime{SupervisorWait: time.Second})
	c.configure(t, "version = nonsense\n")
	for range 2 {
		err := s.Restart(t.Context())
		if err == nil || !strings.Contains(err.Error(), "it ended at its start: exit status 1: containerd: failed to unmarshal TOML") {
			t.Errorf("with a broken configuration: %v", err)
		}
	}
	c.configure(t, fmt.Sprintf(goodConfig, c.dir))
	if err := s.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	now := c.answers(t)
	// Nobody may read the pipe for as long as it runs.
	if to := how(t, now.PID)["fd/2"]; to != filepath.Join(c.dir, "other.log") {
		t.Errorf("its output goes to %s", to)
	}
	if err := s.Restart(t.Context()); err != nil { // at once, as nobody else does it
		t.Error(err)
	}
	if all := children(t, c); len(all) != 1 || all[now] {
		t.Errorf("there run %v, it was %v", all, now)
	}
}

// TestRestartInterrupted leaves nothing in the way of the next try.
func TestRestartInterrupted(t *testing.T) {
	c := newContainerd(t)
	c.once(t, nil, 0)
	s := c.restarter(t, Runtime{SupervisorWait: time.Hour})
	ctx, cancel := context.WithTimeoutCause(t.Context(), time.Second, errors.New("out of patience"))
	defer cancel()
	if err := s.Restart(ctx); err == nil || !strings.Contains(err.Error(), "out of patience") {
		t.Errorf("interrupted: %v", err)
	}
	s.(*bySignal).SupervisorWait = 0
	// Something takes its place that does not answer.
	l, err := net.Listen("unix", c.socket)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := NewRestarter(t.Context(), Runtime{Socket: c.socket}); err != nil {
		t.Error(err) // it is a process like any other
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := s.Restart(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestRestartElsewhere cannot start what has other mounts, and says so.
func TestRestartElsewhere(t *testing.T) {
	c := newContainerd(t)
	c.once(t, nil, unix.CLONE_NEWNS)
	s := c.restarter(t, Runtime{SupervisorWait: 100 * time.Millisecond})
	if err := s.Restart(t.Context()); err == nil || !strings.Contains(err.Error(), "mounts of its own") || !strings.Contains(err.Error(), c.config) {
		t.Errorf("%v", err)
	}
}

// TestRestartCommand restarts by a command, which is the father of the runtime and
// whose output that goes on using.
func TestRestartCommand(t *testing.T) {
	c := newContainerd(t)
	script := filepath.Join(c.dir, "restart")
	text := fmt.Sprintf("#!/bin/sh\n[ -z \"$SECRET\" ] || exit 9\n[ -n \"$1\" ] && kill $1\n%s --config %s &\n", c.paths[tools.Containerd], c.config)
	if err := os.WriteFile(script, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("SECRET", "of the pod")
	t.Cleanup(func() {
		pid, err := SocketOwner(context.Background(), c.socket) // in the group of process 1
		if err != nil {
			t.Error(err)
			return
		}
		if p, err := findProcess(pid); err != nil || p.signal(unix.SIGKILL) != nil || p.wait(context.Background()) != nil {
			t.Errorf("process %d is left: %v", pid, err)
		}
	})
	s := c.restarter(t, Runtime{Command: []string{script}}) // it does not run yet
	if s.How() != "command "+script {
		t.Error(s.How())
	}
	if err := s.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	first := c.answers(t)
	s = c.restarter(t, Runtime{Command: []string{script, fmt.Sprint(first.PID)}})
	if err := s.Restart(t.Context()); err != nil || c.answers(t) == first {
		t.Fatalf("the old one runs, %v", err)
	}
	for want, argv := range map[string][]string{
		"exit status 3: no such service": {"sh", "-c", "echo first; echo no such service >&2; exit 3"},
		"not done within 2s":             {"sleep", "1000"},
		"the old process":                {"true"}, // restarts nothing
		"no such file":                   {"/no/such/program"},
	} {
		s := c.restarter(t, Runtime{Command: argv, Wait: 2 * time.Second})
		if err := s.Restart(t.Context()); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %v, want %q", argv, err, want)
		}
	}
	if left, err := filepath.Glob(filepath.Join(os.TempDir(), "apparate-restart-*")); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

// TestRestarterNone asks for what is not there.
func TestRestarterNone(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, socket := range []string{filepath.Join(dir, "none.sock"), file, dir} {
		_, err := NewRestarter(t.Context(), Runtime{Socket: socket})
		if err == nil || !strings.Contains(err.Error(), "no container runtime at "+socket+" (start it, or name its socket)") {
			t.Errorf("%s: %v", socket, err)
		}
	}
}

func TestOpenRC(t *testing.T) {
	const plain, k3s = "/run/containerd/containerd.sock", "/run/k3s/containerd/containerd.sock"
	for _, c := range []struct {
		files  string
		socket string
		runs   bool
		want   string
	}{
		{"", plain, true, ""},
		{"run/openrc/started/containerd", plain, true, "containerd"},
		{"run/openrc/started/k3s-agent", k3s, true, "k3s-agent"},
		{"run/openrc/started/k3s", plain, true, ""},
		{"run/openrc/softlevel etc/init.d/containerd", plain, false, "containerd"},
		{"run/openrc/softlevel etc/init.d/containerd", plain, true, ""}, // not OpenRC's
		{"etc/init.d/containerd", plain, false, ""},                     // another init
	} {
		root := t.TempDir()
		for f := range strings.FieldsSeq(c.files) {
			p := filepath.Join(root, f)
			if err := errors.Join(os.MkdirAll(filepath.Dir(p), 0o700), os.WriteFile(p, nil, 0o600)); err != nil {
				t.Fatal(err)
			}
		}
		if got := openRC(root, c.socket, c.runs); got != c.want {
			t.Errorf("%+v: %q", c, got)
		}
	}
}
