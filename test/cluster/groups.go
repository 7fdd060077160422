package cluster

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/apparate/apparate/test/cluster/boot"
)

const groupRoot = "/sys/fs/cgroup"

// hierarchies returns the directories of the machine's cgroups: one for each of
// version 1, or the one of version 2.
func hierarchies() ([]string, error) {
	b, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return nil, err
	}
	var all []string
	for _, h := range boot.Hierarchies(string(b)) {
		all = append(all, filepath.Join(groupRoot, strings.TrimPrefix(h, "name=")))
	}
	if len(all) == 0 {
		all = []string{groupRoot}
	}
	return all, nil
}

func groupName(cluster string) string { return "apparate-" + cluster }

// makeGroups makes the groups of a node and returns the files to which the process id
// of its first process is written.
func makeGroups(cluster, node string) (joins []string, err error) {
	all, err := hierarchies()
	if err != nil {
		return nil, err
	}
	for _, h := range all {
		outer := filepath.Join(h, groupName(cluster))
		inner := filepath.Join(outer, node)
		if h == groupRoot {
			if err := handDown(h); err != nil {
				return nil, err
			}
		}
		for _, dir := range []string{outer, inner} {
			if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
				return nil, err
			}
			if err := inherit(dir); err != nil {
				return nil, err
			}
		}
		if h == groupRoot {
			if err := handDown(outer); err != nil {
				return nil, err
			}
		}
		joins = append(joins, filepath.Join(inner, "cgroup.procs"))
	}
	return joins, nil
}

// handDown gives the controllers of a group of version 2 to the groups below it.
func handDown(dir string) error {
	b, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
	if err != nil {
		return err
	}
	for _, c := range strings.Fields(string(b)) {
		if err := os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+"+c), 0); err != nil {
			return fmt.Errorf("handing down %s: %w", c, err)
		}
	}
	return nil
}

// inherit gives a group of cpuset, version 1, the processors and memory of the group
// above: it has none at first, and no process can join it.
func inherit(dir string) error {
	for _, f := range []string{"cpuset.cpus", "cpuset.mems"} {
		have, err := os.ReadFile(filepath.Join(dir, f))
		if errors.Is(err, fs.ErrNotExist) || strings.TrimSpace(string(have)) != "" {
			continue
		}
		above, err := os.ReadFile(filepath.Join(dir, "..", f))
		if errors.Is(err, fs.ErrNotExist) {
			continue // version 2, where an empty one means all
		}
		if err != nil {
			return err
		}
		if len(strings.TrimSpace(string(above))) == 0 {
			continue
		}
		if err := os.WriteFile(filepath.Join(dir, f), above, 0); err != nil {
			return err
		}
	}
	return nil
}

// removeGroups removes the groups of a cluster, once their processes are gone.
func removeGroups(cluster string) error { return removeNodeGroups(cluster, "") }

// removeNodeGroups removes those of one node.
func removeNodeGroups(cluster, node string) error {
	all, err := hierarchies()
	if err != nil {
		return err
	}
	var errs []error
	for _, h := range all {
		errs = append(errs, removeGroup(filepath.Join(h, groupName(cluster), node)))
	}
	return errors.Join(errs...)
}

// removeGroup removes a group and those below it.
func removeGroup(dir string) error {
	var err error
	for range 200 { // processes may take a moment to be gone
		err = removeDirs(dir)
		if err == nil || errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		time.Sleep(poll)
	}
	return fmt.Errorf("removing a cgroup: %w", err)
}

// removeDirs removes the directories only: the files are the kernel's.
func removeDirs(dir string) error {
	all, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range all {
		if e.IsDir() {
			if err := removeDirs(filepath.Join(dir, e.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
	}
	if err := syscall.Rmdir(dir); err != nil {
		return &fs.PathError{Op: "rmdir", Path: dir, Err: err}
	}
	return nil
}
