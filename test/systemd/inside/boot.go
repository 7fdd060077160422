package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// config is systemd.Config.
type config struct {
	Root    string
	Binds   map[string]string
	Unified bool
}

type target struct {
	kind, to string
	flags    uintptr
	data     string
}

const hidden = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC

// boot makes the root, goes there, and becomes systemd.
func boot() error {
	var c config
	if err := json.NewDecoder(os.Stdin).Decode(&c); err != nil {
		return fmt.Errorf("reading the configuration: %w", err)
	}
	// Only now, as the process is in the groups that are to be the roots.
	if err := unix.Unshare(unix.CLONE_NEWCGROUP); err != nil {
		return fmt.Errorf("making a cgroup namespace: %w", err)
	}
	if err := root(c); err != nil {
		return err
	}
	if err := groups(c.Unified); err != nil {
		return fmt.Errorf("mounting cgroups: %w", err)
	}
	null, err := unix.Open(os.DevNull, unix.O_RDWR, 0)
	if err != nil {
		return err
	}
	if err := unix.Dup2(null, 0); err != nil {
		return err
	}
	// It is in no container for what it does with cgroups and processes, and in one for
	// what it does with the kernel.
	return fmt.Errorf("becoming systemd: %w", unix.Exec("/lib/systemd/systemd", []string{"/lib/systemd/systemd"},
		[]string{"container=apparate", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}))
}

// root mounts everything but cgroups below the new root and makes that the root.
func root(c config) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	if err := unix.Mount(c.Root, c.Root, "", unix.MS_BIND, ""); err != nil {
		return err
	}
	for _, to := range slices.Sorted(maps.Keys(c.Binds)) { // what is above comes first
		if err := bind(c.Binds[to], filepath.Join(c.Root, to)); err != nil {
			return err
		}
	}
	for _, m := range []target{
		{"proc", "proc", hidden, ""},
		{"sysfs", "sys", hidden | unix.MS_RDONLY, ""},
		{"tmpfs", "run", unix.MS_NOSUID | unix.MS_NODEV, "mode=755"},
		{"tmpfs", "dev", unix.MS_NOSUID, "mode=755"},
	} {
		if err := unix.Mount(m.kind, filepath.Join(c.Root, m.to), m.kind, m.flags, m.data); err != nil {
			return fmt.Errorf("mounting %s: %w", m.to, err)
		}
	}
	// The kernel's variables are everybody's.
	if err := bind(filepath.Join(c.Root, "proc/sys"), filepath.Join(c.Root, "proc/sys")); err != nil {
		return err
	}
	if err := devices(filepath.Join(c.Root, "dev")); err != nil {
		return err
	}
	if err := os.Chdir(c.Root); err != nil {
		return err
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("pivot_root: %w", err)
	}
	return errors.Join(unix.Unmount(".", unix.MNT_DETACH), os.Chdir("/"))
}

// bind shows from, read-only, as to, which it makes.
func bind(from, to string) error {
	fi, err := os.Stat(from)
	if err != nil {
		return err
	}
	if _, err := os.Stat(to); err != nil {
		if fi.IsDir() {
			err = os.MkdirAll(to, 0o755)
		} else {
			err = os.WriteFile(to, nil, 0o755)
		}
		if err != nil {
			return err
		}
	}
	if err := unix.Mount(from, to, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("binding %s to %s: %w", from, to, err)
	}
	if err := unix.Mount("", to, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		return fmt.Errorf("making %s read-only: %w", to, err)
	}
	return nil
}

// devices fills /dev as far as systemd leaves that to who starts it.
func devices(dev string) error {
	for _, m := range []target{
		{"devpts", "pts", unix.MS_NOSUID | unix.MS_NOEXEC, "newinstance,ptmxmode=0666,mode=620,gid=5"},
		{"tmpfs", "shm", unix.MS_NOSUID | unix.MS_NODEV, "mode=1777"},
	} {
		to := filepath.Join(dev, m.to)
		if err := os.Mkdir(to, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.kind, to, m.kind, m.flags, m.data); err != nil {
			return fmt.Errorf("mounting /dev/%s: %w", m.to, err)
		}
	}
	old := unix.Umask(0)
	defer unix.Umask(old)
	for name, n := range map[string][2]uint32{"null": {1, 3}, "zero": {1, 5}, "full": {1, 7}, "random": {1, 8}, "urandom": {1, 9}, "tty": {5, 0}, "fuse": {10, 229}} {
		if err := unix.Mknod(filepath.Join(dev, name), unix.S_IFCHR|0o666, int(unix.Mkdev(n[0], n[1]))); err != nil {
			return fmt.Errorf("making /dev/%s: %w", name, err)
		}
	}
	for name, to := range map[string]string{"ptmx": "pts/ptmx", "fd": "/proc/self/fd", "stdin": "fd/0", "stdout": "fd/1", "stderr": "fd/2"} {
		if err := os.Symlink(to, filepath.Join(dev, name)); err != nil {
			return err
		}
	}
	return nil
}

// groups mounts cgroups as a booted machine has them: version 2 alone, or version 1
// with version 2 beside it.
func groups(unified bool) error {
	const dir = "/sys/fs/cgroup"
	text, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return err
	}
	var all []target
	for line := range strings.Lines(string(text)) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(f) != 3 {
			return fmt.Errorf("/proc/self/cgroup: %q", line)
		}
		switch name, named := strings.CutPrefix(f[1], "name="); {
		case f[1] == "":
			all = append(all, target{"cgroup2", "unified", hidden, ""})
		case named:
			all = append(all, target{"cgroup", name, hidden, "none," + f[1]})
		default:
			all = append(all, target{"cgroup", f[1], hidden, f[1]})
		}
	}
	if unified || len(all) == 1 && all[0].kind == "cgroup2" {
		return unix.Mount("cgroup2", dir, "cgroup2", hidden, "")
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", hidden, "mode=755"); err != nil {
		return err
	}
	for _, m := range all {
		to := filepath.Join(dir, m.to)
		if err := os.Mkdir(to, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.kind, to, m.kind, m.flags, m.data); err != nil {
			return fmt.Errorf("%s: %w", m.to, err)
		}
	}
	return nil
}
