package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/apparate/apparate/snapshotter/host"
	"github.com/apparate/apparate/snapshotter/service"
)

// podRootEnv tells the process on the host where the pod's files are.
const podRootEnv = "APPARATE_POD_ROOT"

// enterHost copies this program to the host and runs it there with the same arguments,
// in the host's mount namespace and in all others of the pod, until it ends. This
// process stays where it is: whoever looks into the pod sees the pod.
func enterHost(ctx context.Context, dir string) error {
	if os.Getpid() == 1 {
		return errors.New("process 1 is this one, not that of the host: give the pod hostPID: true")
	}
	program := filepath.Join(dir, "bin", "apparate-node")
	if _, err := host.CopyProgram("/proc/self/exe", filepath.Join("/proc/1/root", program)); err != nil {
		return fmt.Errorf("copying the program to the host (does the pod have hostPID: true and privileged: true?): %w", err)
	}
	cmd := exec.Command(program, os.Args[1:]...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=/proc/%d/root", podRootEnv, os.Getpid()),
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
	ended := make(chan error, 1)
	if err := startOnHost(cmd); err != nil {
		return fmt.Errorf("running %s on the host: %w", program, err)
	}
	go func() { ended <- cmd.Wait() }()
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, unix.SIGHUP)
	defer signal.Stop(hup)
	done := ctx.Done()
	for {
		select {
		case err := <-ended:
			if errors.As(err, new(*exec.ExitError)) {
				return reported{err} // it has said why
			}
			return err
		case <-done:
			done = nil
			if err := cmd.Process.Signal(unix.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
				return err
			}
		case <-hup:
		}
	}
}

// startOnHost starts a command in the mount namespace of process 1.
func startOnHost(cmd *exec.Cmd) error {
	return service.OnThread(func() (err error) {
		fd, err := unix.Open("/proc/1/ns/mnt", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, unix.Close(fd)) }()
		// A thread that shares its root with others may not leave their namespace.
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			return err
		}
		if err := unix.Setns(fd, unix.CLONE_NEWNS); err != nil {
			return err
		}
		return cmd.Start()
	})
}
