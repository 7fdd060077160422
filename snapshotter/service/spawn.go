package service

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"

	"golang.org/x/sys/unix"
)

// namespace is one that a process of the host is moved to that of process 1.
type namespace struct {
	name string
	flag int
}

func movable() []namespace {
	return []namespace{{"net", unix.CLONE_NEWNET}, {"uts", unix.CLONE_NEWUTS}, {"ipc", unix.CLONE_NEWIPC}, {"cgroup", unix.CLONE_NEWCGROUP}}
}

// sameNamespace says whether the calling thread and process 1 share a namespace. Where
// we may not look, as process 1 may do more than we, nothing could be entered either:
// then it is taken for the same.
func sameNamespace(name string) (bool, error) {
	ours, err := os.Stat("/proc/thread-self/ns/" + name)
	if errors.Is(err, fs.ErrNotExist) {
		return true, nil // a kernel without such namespaces
	}
	if err != nil {
		return false, err
	}
	host, err := os.Stat("/proc/1/ns/" + name)
	if errors.Is(err, fs.ErrPermission) {
		return true, nil
	}
	return err == nil && os.SameFile(ours, host), err
}

// onHost fails where what we start cannot be one of the host's.
func onHost() error {
	// /proc is the host's, and shows us by the pid that we have there.
	self, err := os.Readlink("/proc/self")
	if err != nil {
		return fmt.Errorf("looking into /proc: %w", err)
	}
	if self != strconv.Itoa(os.Getpid()) {
		return errors.New("this is not the pid namespace of the host: give the pod hostPID: true")
	}
	same, err := sameNamespace("mnt")
	if err != nil {
		return fmt.Errorf("looking at the mount namespace of process 1: %w", err)
	}
	if !same {
		return errors.New("this is not the mount namespace of the host: enter that of process 1 first")
	}
	return nil
}

// spawn starts cmd in the group and in the host's namespaces, as a session of its
// own, without any descriptor but its standard ones.
func spawn(cmd *exec.Cmd, g group) error {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &unix.SysProcAttr{}
	}
	cmd.SysProcAttr.Setsid = true
	if err := closeOnExec(); err != nil {
		return err
	}
	if dir := g.unified(); dir != "" {
		fd, err := unix.Open(dir, unix.O_DIRECTORY|unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("opening the cgroup %s: %w", dir, err)
		}
		defer func() { _ = unix.Close(fd) }() // only looked at
		cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, fd
	}
	return OnThread(func() error {
		if err := g.enter(); err != nil {
			return err
		}
		for _, n := range movable() {
			if err := join(n); err != nil {
				return fmt.Errorf("entering the %s namespace of process 1: %w", n.name, err)
			}
		}
		err := cmd.Start()
		if !errors.Is(err, unix.ENOSYS) || !cmd.SysProcAttr.UseCgroupFD {
			return err
		}
		return errors.New("the kernel cannot start processes in a cgroup (clone3): use Linux 5.7 or newer")
	})
}

// join moves the calling thread to the namespace of process 1.
func join(n namespace) error {
	same, err := sameNamespace(n.name)
	if err != nil || same {
		return err
	}
	fd, err := unix.Open("/proc/1/ns/"+n.name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	return errors.Join(unix.Setns(fd, n.flag), unix.Close(fd))
}

// closeOnExec keeps what we inherited from being inherited again. What a command is
// given on purpose is given all the same.
func closeOnExec() error {
	all, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return err
	}
	for _, e := range all {
		if fd, err := strconv.Atoi(filepath.Base(e.Name())); err == nil && fd > 2 {
			unix.CloseOnExec(fd)
		}
	}
	return nil
}

// OnThread runs f on a thread that ends with it, so that whatever f does to the thread,
// such as entering namespaces, is of no consequence. The first thread cannot end, and is the one that /proc/self
// shows: it is kept busy until another one has been found.
func OnThread(f func() error) error {
	done := make(chan error, 1)
	var start func()
	start = func() {
		runtime.LockOSThread()
		if unix.Gettid() != os.Getpid() {
			done <- f()
			return // locked: the thread ends, too
		}
		defer runtime.UnlockOSThread()
		next := make(chan struct{})
		go func() {
			defer close(next)
			start()
		}()
		<-next
	}
	go start()
	return <-done
}
