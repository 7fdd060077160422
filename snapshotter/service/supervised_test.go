package service

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestSupervised is the life of a service.
func TestSupervised(t *testing.T) {
	ctx := t.Context()
	m, log := manager(t)
	name := testName(t, "life")
	if err := m.Start(ctx, name); !errors.Is(err, ErrNotInstalled) {
		t.Errorf("start of what is not installed: %v", err)
	}
	for what, f := range map[string]func(context.Context, string) error{"stop": m.Stop, "remove": m.Remove} {
		if err := f(ctx, name); err != nil {
			t.Errorf("%s of what is not installed: %v", what, err)
		}
	}
	d := daemon(name, log, "serve", "a b", `$HOME "%n"`)
	d.Env = []string{"KEY=a value"}
	d.PostStart = []string{"/bin/sh", "-c", "echo after $KEY; exit 1"}
	for i, want := range []bool{true, false} {
		if changed, err := m.Install(ctx, d); err != nil || changed != want {
			t.Fatalf("install %d: %v, %v", i, changed, err)
		}
	}
	for range 2 { // once is enough
		if err := m.Start(ctx, name); err != nil {
			t.Fatal(err)
		}
	}
	st, err := m.Status(ctx, name)
	if err != nil || !st.Installed || !st.Running || !st.Ready || st.PID == 0 || st.Since.IsZero() || st.Outdated || st.LastExit != "" {
		t.Fatalf("status: %+v, %v", st, err)
	}
	text := contents(t, log)
	if strings.Count(text, "serving") != 1 || strings.Count(text, "after a value") != 1 || !strings.Contains(text, `[a b $HOME "%n"]`) {
		t.Errorf("the log: %s", text)
	}
	if strings.Contains(text, "HOME=") {
		t.Errorf("our environment is the daemon's: %s", text)
	}
	alone(t, st.PID, name)

	if err := m.Reload(ctx, name); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the daemon hears the signal", func() bool { return strings.Contains(contents(t, log), "heard hangup") })

	d.Env = nil
	if changed, err := m.Install(ctx, d); err != nil || !changed {
		t.Fatalf("install of another: %v, %v", changed, err)
	}
	if st, err := m.Status(ctx, name); err != nil || !st.Outdated {
		t.Errorf("status: %+v, %v, want it to be outdated", st, err)
	}
	if err := m.Restart(ctx, name); err != nil {
		t.Fatal(err)
	}
	now, err := m.Status(ctx, name)
	if err != nil || !now.Ready || now.Outdated || now.PID == st.PID {
		t.Errorf("status after the restart: %+v, %v, it was %+v", now, err, st)
	}
	if err := m.Stop(ctx, name); err != nil {
		t.Fatal(err)
	}
	if st, err := m.Status(ctx, name); err != nil || st.Running || st.Ready || !st.Installed {
		t.Errorf("status after the stop: %+v, %v", st, err)
	}
	eventually(t, "how it ended is known", func() bool {
		st, err := m.Status(ctx, name)
		return err == nil && st.LastExit == "exit status 0"
	})
	if err := m.Remove(ctx, name); err != nil {
		t.Fatal(err)
	}
	nothingLeft(t, m, name)
}

// alone looks whether a process is on its own.
func alone(t *testing.T, pid int, name string) {
	t.Helper()
	groups := contents(t, fmt.Sprintf("/proc/%d/cgroup", pid))
	for line := range strings.Lines(groups) {
		// A hierarchy without a mount has no group of ours.
		if f := strings.SplitN(strings.TrimSpace(line), ":", 3); f[2] != "/"+name {
			g, err := parseGroup(line, strings.NewReader(contents(t, "/proc/self/mountinfo")))
			if err != nil || len(g) > 0 {
				t.Errorf("it is in %s (%v, %v)", line, g, err)
			}
		}
	}
	if sid, err := unix.Getsid(pid); err != nil || sid != pid {
		t.Errorf("its session is %d, %v, want one of its own", sid, err)
	}
	// Its runtime, too, opens files when it starts; what was inherited stays open.
	var left []string
	for range 500 {
		if left = opened(t, pid); len(left) == 0 {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("it has %v open", left)
}

// opened are the files that a process has open, but for its log.
func opened(t *testing.T, pid int) (all []string) {
	t.Helper()
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		to, err := os.Readlink(f)
		// Go itself looks at the limits of its cgroup.
		if err == nil && strings.HasPrefix(to, "/") && to != os.DevNull && !strings.HasSuffix(to, "/log") && !strings.HasPrefix(to, "/sys/fs/cgroup/") {
			all = append(all, to)
		}
	}
	return all
}

// TestSupervisedSurvives kills everything in the cgroup of who started it, as the end
// of a pod does.
func TestSupervisedSurvives(t *testing.T) {
	ctx := t.Context()
	m, log := manager(t)
	name := testName(t, "survivor")
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
	leak, err := os.Open(self)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = leak.Close() }()
	starter := exec.Command(self, "helper", "starter", m.dir, name, log)
	starter.ExtraFiles = []*os.File{leak}
	starter.Stderr = os.Stderr
	out, err := starter.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := spawn(starter, pod); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "started\n" {
		t.Fatalf("the starter says %q, %v", line, err)
	}
	all, err := pod.processes()
	if err != nil || len(all) != 1 {
		t.Fatalf("in the pod are %v, %v, want the starter alone", all, err)
	}
	if err := pod.kill(ctx); err != nil {
		t.Fatal(err)
	}
	if err := starter.Wait(); err == nil || err.Error() != "signal: killed" {
		t.Errorf("the starter ended by %v", err)
	}
	st, err := m.Status(ctx, name)
	if err != nil || !st.Ready || !st.Running {
		t.Fatalf("status: %+v, %v", st, err)
	}
	alone(t, st.PID, name)
	if err := m.Reload(ctx, name); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the daemon hears the signal", func() bool { return strings.Contains(contents(t, log), "heard hangup") })
	if err := m.Remove(ctx, name); err != nil {
		t.Fatal(err)
	}
	nothingLeft(t, m, name)
}

// initHelper is process 1 of a pid namespace, and a host. In it a starter runs that has
// other namespaces, as a pod has.
func initHelper(args []string) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	if err := unix.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		return err
	}
	dir, name, log := args[0], args[1], args[2]
	starter := exec.Command(os.Args[0], "helper", "starter", dir, name, log)
	starter.Stderr = os.Stderr
	starter.SysProcAttr = &unix.SysProcAttr{Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC | unix.CLONE_NEWCGROUP}
	out, err := starter.StdoutPipe()
	if err != nil {
		return err
	}
	if err := starter.Start(); err != nil {
		return err
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		return fmt.Errorf("the starter says %q: %w", line, err)
	}
	m, err := NewSupervised(dir)
	if err != nil {
		return err
	}
	st, err := m.Status(context.Background(), name)
	if err != nil {
		return err
	}
	var errs []error
	for _, n := range movable() {
		var spaces [3]string
		for i, pid := range []int{os.Getpid(), starter.Process.Pid, st.PID} {
			if spaces[i], err = os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, n.name)); err != nil {
				return err
			}
		}
		if spaces[1] == spaces[0] || spaces[2] != spaces[0] {
			errs = append(errs, fmt.Errorf("%s: the host's, the starter's, the daemon's: %v", n.name, spaces))
		}
	}
	return errors.Join(append(errs, m.Remove(context.Background(), name))...)
}

// TestSupervisedNamespaces starts a service from other namespaces than the host's.
func TestSupervisedNamespaces(t *testing.T) {
	m, log := manager(t)
	name := testName(t, "spaces")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, "helper", "init", m.dir, name, log)
	cmd.SysProcAttr = &unix.SysProcAttr{Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	nothingLeft(t, m, name)
	// Without the host's pids, and without its mounts, it says what to do.
	for flags, want := range map[uintptr]string{unix.CLONE_NEWPID: "hostPID: true"} {
		cmd := exec.Command(self, "helper", "starter", m.dir, name, log)
		cmd.SysProcAttr = &unix.SysProcAttr{Cloneflags: flags}
		if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), want) {
			t.Errorf("started all the same: %v, %s", err, out)
		}
	}
}

// TestSupervisedFails starts what does not come up.
func TestSupervisedFails(t *testing.T) {
	ctx := t.Context()
	m, log := manager(t)
	for what, want := range map[string]string{
		"fail":   "ended before it was ready: exit status 3: it cannot be done",
		"silent": "not ready within 300ms",
	} {
		name := testName(t, what)
		d := daemon(name, log, what)
		d.StopTimeout = 100_000_000
		if what == "silent" {
			d.StartTimeout = 300_000_000
		}
		if _, err := m.Install(ctx, d); err != nil {
			t.Fatal(err)
		}
		if err := m.Start(ctx, name); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", what, err, want)
		}
		if st, err := m.Status(ctx, name); err != nil || st.Running {
			t.Errorf("%s: status %+v, %v", what, st, err)
		}
		if err := m.Remove(ctx, name); err != nil {
			t.Fatal(err)
		}
		nothingLeft(t, m, name)
	}
}

// TestSupervisedKeep kills a service, which is started again, and again.
func TestSupervisedKeep(t *testing.T) {
	m, log := manager(t)
	name := testName(t, "kept")
	if _, err := m.Install(t.Context(), daemon(name, log, "serve")); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- m.Keep(ctx, name) }()
	var pids []int
	for range 3 {
		var st Status
		eventually(t, "the service runs", func() (ok bool) {
			var err error
			st, err = m.Status(ctx, name)
			return err == nil && st.Ready && !slices.Contains(pids, st.PID)
		})
		if len(pids) > 0 && st.LastExit != "signal: killed" {
			t.Errorf("status: %+v, want it to tell how the one before ended", st)
		}
		pids = append(pids, st.PID)
		if err := unix.Kill(st.PID, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	if err := m.Remove(t.Context(), name); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	nothingLeft(t, m, name)
}

// TestSupervisedDetached starts a program that removes itself.
func TestSupervisedDetached(t *testing.T) {
	ctx := t.Context()
	m, log := manager(t)
	name := testName(t, "detached")
	for range 2 {
		if err := m.RunDetached(ctx, daemon(name, log, "sleep")); err != nil {
			t.Fatal(err)
		}
	}
	st, err := m.Status(ctx, name)
	if err != nil || !st.Running || st.Installed {
		t.Fatalf("status: %+v, %v", st, err)
	}
	alone(t, st.PID, name)
	if err := m.Remove(ctx, name); err != nil {
		t.Fatal(err)
	}
	nothingLeft(t, m, name)

	if err := m.RunDetached(ctx, daemon(name, log, "remover", m.dir, name)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it has removed itself", func() bool { return strings.Contains(contents(t, log), "removed, and ends") })
	// Its manager does not know it any more: it is found by its command.
	eventually(t, "it has ended", func() bool { return len(helpers(t, name)) == 0 })
	if st, err := m.Status(ctx, name); err != nil || st != (Status{}) {
		t.Errorf("status: %+v, %v, want none", st, err)
	}
	nothingLeft(t, m, name)
}
