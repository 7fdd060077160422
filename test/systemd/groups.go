package systemd

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// hierarchies are the directories where the machine's cgroups are mounted: those of
// version 1 and the one of version 2, as far as there are.
func hierarchies() (all []string, err error) {
	mounts, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) {
		return m.FSType != "cgroup" && m.FSType != "cgroup2" || m.Root != "/", false
	})
	for _, m := range mounts {
		all = append(all, m.Mountpoint)
	}
	if err == nil && len(all) == 0 {
		err = errors.New("no cgroups are mounted")
	}
	return all, err
}

// makeGroups makes the groups that become the roots of a machine's, and returns the
// files to which the process id of its first process is written.
func makeGroups(name string) (joins []string, err error) {
	all, err := hierarchies()
	if err != nil {
		return nil, err
	}
	for _, h := range all {
		if err := handDown(h); err != nil {
			return nil, err
		}
		dir := filepath.Join(h, name)
		if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, err
		}
		for _, f := range []string{"cpuset.cpus", "cpuset.mems"} { // version 1: without, no process can join
			above, err := os.ReadFile(filepath.Join(h, f))
			if err != nil || len(strings.TrimSpace(string(above))) == 0 {
				continue
			}
			if err := os.WriteFile(filepath.Join(dir, f), above, 0); err != nil {
				return nil, err
			}
		}
		joins = append(joins, filepath.Join(dir, "cgroup.procs"))
	}
	return joins, nil
}

// handDown gives the controllers of a root of version 2 to the groups below it, unless
// it is a container's, and has processes: machines do without.
func handDown(root string) error {
	b, err := os.ReadFile(filepath.Join(root, "cgroup.controllers"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil // version 1
	}
	if err != nil {
		return err
	}
	for _, c := range strings.Fields(string(b)) {
		if err := os.WriteFile(filepath.Join(root, "cgroup.subtree_control"), []byte("+"+c), 0); err != nil && !errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("handing down %s: %w", c, err)
		}
	}
	return nil
}

// removeGroups removes the groups of a machine, whose processes are dead.
func removeGroups(name string) error {
	all, err := hierarchies()
	if err != nil {
		return err
	}
	var errs []error
	for _, h := range all {
		for range 500 { // the dead leave a moment later
			if err = removeDirs(filepath.Join(h, name)); err == nil {
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// removeDirs removes a directory and those below it, whose files are the kernel's.
func removeDirs(dir string) error {
	all, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range all {
		if e.IsDir() {
			if err := removeDirs(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	if err := unix.Rmdir(dir); err != nil && !errors.Is(err, unix.ENOENT) {
		return &fs.PathError{Op: "rmdir", Path: dir, Err: err}
	}
	return nil
}
