package node

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// Left describes what is still there below the given directories: mounts below
// them and processes whose command line names them, this one excepted. It is
// empty when nothing is left.
func Left(dirs ...string) ([]string, error) {
	var left []string
	pids, err := processes(dirs...)
	if err != nil {
		return nil, err
	}
	for _, pid := range pids {
		left = append(left, fmt.Sprintf("process %d: %s", pid, commandLine(pid)))
	}
	for _, dir := range dirs {
		mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
		if err != nil {
			return nil, err
		}
		for _, m := range mounts {
			left = append(left, fmt.Sprintf("mount %s on %s", m.FSType, m.Mountpoint))
		}
	}
	return left, nil
}

// Sweep ends and removes what a node left whose owner died: processes and mounts
// below dir, and dir itself.
func Sweep(dir string) error { return errors.Join(killLeft(dir), unmountLeft(dir), os.RemoveAll(dir)) }

// killLeft kills the processes that name one of dirs on their command line:
// shims, which outlive containerd by design, and what a daemon forked.
func killLeft(dirs ...string) error {
	const limit = 10 * time.Second
	for start := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		pids, err := processes(dirs...)
		if err != nil || len(pids) == 0 {
			return err
		}
		for _, pid := range pids {
			_ = syscall.Kill(pid, syscall.SIGKILL) // may be gone by now
		}
		if time.Since(start) > limit {
			return fmt.Errorf("processes %v of the node cannot be killed", pids)
		}
	}
}

// processes lists the living processes that name one of dirs, or a path below it.
func processes(dirs ...string) ([]int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		line := commandLine(pid) // empty for a zombie, which is no one's to kill
		for _, dir := range dirs {
			if (strings.Contains(line, dir+"/") || strings.Contains(line+" ", dir+" ")) && ours(line) {
				pids = append(pids, pid)
				break
			}
		}
	}
	return pids, nil
}

// ours says whether a command line is of a program that a node starts: an editor
// or a shell that names the directory is not.
func ours(line string) bool {
	program, _, _ := strings.Cut(line, " ")
	switch base := filepath.Base(program); base {
	case "containerd", "containerd-shim-runc-v2", "runc", "ctr", "apparate", "exe": // exe: a program that ran itself again
		return true
	}
	return false
}

func commandLine(pid int) string {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		return "" // gone
	}
	return strings.TrimSpace(string(bytes.ReplaceAll(b, []byte{0}, []byte{' '})))
}

// unmountLeft removes all mounts below dir. FUSE connections are aborted first:
// their server is dead, and an unmount on top of them could wait for it.
func unmountLeft(dir string) error {
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
	if err != nil {
		return err
	}
	for _, m := range mounts {
		if strings.HasPrefix(m.FSType, "fuse") {
			err := os.WriteFile(fmt.Sprintf("/sys/fs/fuse/connections/%d/abort", m.Minor), []byte("1"), 0)
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
	}
	var errs []error
	for i := len(mounts) - 1; i >= 0; i-- { // the last mounted first
		if err := unix.Unmount(mounts[i].Mountpoint, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
			errs = append(errs, fmt.Errorf("unmounting %s: %w", mounts[i].Mountpoint, err))
		}
	}
	return errors.Join(errs...)
}
