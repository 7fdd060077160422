// Package boot is the first process of a node of a test cluster: it makes the node's
// root out of a directory, and then keeps the node's services running, as an init
// system would. It runs in mount, pid, net, uts and ipc namespaces of its own.
package boot

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Config is what the first process reads from its standard input, as JSON. All that
// has to be done from outside, cgroups and network, is done when it is complete.
type Config struct {
	// Name is the host name.
	Name string
	// Root is the directory that becomes the node's root. It is on a disk: overlayfs
	// and EROFS do not work on everything else. Image, if not empty, is the path of a
	// file with an ext4 file system which is mounted there.
	Root, Image string
	// Binds are files and directories of the machine that the node sees, read-only.
	Binds []Bind
	// Fuse gives the node /dev/fuse.
	Fuse bool
	// Services are started in this order and restarted for ever.
	Services []Service
}

// Bind shows From, a path of the machine, as To, a path below the node's root, where
// something of the same kind has to be.
type Bind struct{ From, To string }

// Service is a program that is restarted whenever it ends.
type Service struct {
	// Name is that of its log, /var/log/NAME.log, and of its pid file,
	// /run/service/NAME.pid. While /run/service/NAME.down exists it is not started.
	Name string
	// Args is the command, its first word a path.
	Args []string
	// Await is a path that has to exist before the service is started for the first
	// time, or twenty seconds to pass.
	Await string
}

// Run is the first process. It returns only where something goes wrong, and then the
// node is off.
func Run(stdin io.Reader) error {
	// Namespaces are a thread's. Whoever enters the node takes those of this
	// process's first thread, so everything happens on that one.
	runtime.LockOSThread()
	if unix.Gettid() != os.Getpid() {
		return errors.New("not on the first thread: call LockOSThread in an init function")
	}
	var c Config
	if err := json.NewDecoder(stdin).Decode(&c); err != nil {
		return fmt.Errorf("reading the configuration: %w", err)
	}
	// Only now, as the process is in the groups that are to be the roots.
	if err := unix.Unshare(unix.CLONE_NEWCGROUP); err != nil {
		return fmt.Errorf("making a cgroup namespace: %w", err)
	}
	if err := unix.Sethostname([]byte(c.Name)); err != nil {
		return err
	}
	if err := root(c); err != nil {
		return fmt.Errorf("making the root of %s: %w", c.Name, err)
	}
	if err := write("/proc/sys/net/ipv4/ip_forward", "1"); err != nil {
		return err
	}
	return serve(c.Services)
}

// mount is a mount below the new root.
type mount struct {
	kind, to string
	flags    uintptr
	data     string
}

// root makes the root and goes there.
func root(c Config) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	if err := disk(c); err != nil {
		return err
	}
	for _, b := range c.Binds {
		to := filepath.Join(c.Root, b.To)
		if err := unix.Mount(b.From, to, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("binding %s to %s: %w", b.From, to, err)
		}
		if err := unix.Mount("", to, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
			return fmt.Errorf("making %s read-only: %w", to, err)
		}
	}
	for _, m := range []mount{
		{"proc", "proc", 0, ""},
		{"sysfs", "sys", 0, ""},
		{"tmpfs", "run", unix.MS_NOSUID | unix.MS_NODEV, "mode=755"},
		{"tmpfs", "tmp", unix.MS_NOSUID | unix.MS_NODEV, "mode=1777"},
		{"tmpfs", "dev", unix.MS_NOSUID, "mode=755"},
	} {
		if err := unix.Mount(m.kind, filepath.Join(c.Root, m.to), m.kind, m.flags, m.data); err != nil {
			return fmt.Errorf("mounting %s: %w", m.to, err)
		}
	}
	if err := devices(filepath.Join(c.Root, "dev"), c.Fuse); err != nil {
		return err
	}
	// With the old root mounted over the new one, and then taken away, nothing that is
	// mounted on the machine is kept alive by the node.
	if err := os.Chdir(c.Root); err != nil {
		return err
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("pivot_root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return err
	}
	if err := os.Chdir("/"); err != nil {
		return err
	}
	if err := groups(); err != nil {
		return fmt.Errorf("mounting cgroups: %w", err)
	}
	if err := tunables(); err != nil {
		return err
	}
	for _, d := range []string{"/run/service", "/run/netns", "/run/lock"} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
	}
	// The kubelet's volumes reach into containers and out of them.
	return unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, "")
}

// devices fills /dev.
func devices(dev string, fuse bool) error {
	for _, d := range []string{"pts", "shm", "mqueue", "net"} {
		if err := os.Mkdir(filepath.Join(dev, d), 0o755); err != nil {
			return err
		}
	}
	for _, m := range []mount{
		{"devpts", "pts", unix.MS_NOSUID | unix.MS_NOEXEC, "newinstance,ptmxmode=0666,mode=620,gid=5"},
		{"tmpfs", "shm", unix.MS_NOSUID | unix.MS_NODEV, "mode=1777"},
		{"mqueue", "mqueue", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
	} {
		if err := unix.Mount(m.kind, filepath.Join(dev, m.to), m.kind, m.flags, m.data); err != nil {
			return fmt.Errorf("mounting /dev/%s: %w", m.to, err)
		}
	}
	type device struct {
		name         string
		kind         uint32
		major, minor uint32
	}
	all := []device{
		{"null", unix.S_IFCHR, 1, 3}, {"zero", unix.S_IFCHR, 1, 5}, {"full", unix.S_IFCHR, 1, 7}, {"random", unix.S_IFCHR, 1, 8},
		{"urandom", unix.S_IFCHR, 1, 9}, {"tty", unix.S_IFCHR, 5, 0}, {"kmsg", unix.S_IFCHR, 1, 11}, {"net/tun", unix.S_IFCHR, 10, 200},
		{"loop-control", unix.S_IFCHR, 10, 237},
	}
	if fuse {
		all = append(all, device{"fuse", unix.S_IFCHR, 10, 229})
	}
	for i := range uint32(16) {
		all = append(all, device{fmt.Sprintf("loop%d", i), unix.S_IFBLK, 7, i})
	}
	old := unix.Umask(0)
	defer unix.Umask(old)
	for _, d := range all {
		if err := unix.Mknod(filepath.Join(dev, d.name), d.kind|0o666, int(unix.Mkdev(d.major, d.minor))); err != nil {
			return fmt.Errorf("making /dev/%s: %w", d.name, err)
		}
	}
	for name, to := range map[string]string{"ptmx": "pts/ptmx", "fd": "/proc/self/fd", "stdin": "fd/0", "stdout": "fd/1", "stderr": "fd/2"} {
		if err := os.Symlink(to, filepath.Join(dev, name)); err != nil {
			return err
		}
	}
	return nil
}

// groups mounts the cgroups, whose roots are those that this process is in.
func groups() error {
	b, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return err
	}
	const dir = "/sys/fs/cgroup"
	controllers := Hierarchies(string(b))
	if len(controllers) == 0 {
		return unified(dir)
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=755"); err != nil {
		return err
	}
	for _, c := range controllers {
		to := filepath.Join(dir, strings.TrimPrefix(c, "name="))
		if err := os.Mkdir(to, 0o755); err != nil {
			return err
		}
		data := c
		if strings.HasPrefix(c, "name=") {
			data = "none," + c
		}
		if err := unix.Mount("cgroup", to, "cgroup", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, data); err != nil {
			return fmt.Errorf("%s: %w", c, err)
		}
	}
	return nil
}

// Hierarchies returns the options of the mounts of cgroups version 1, out of the text
// of /proc/self/cgroup; none means that the machine has version 2 alone.
func Hierarchies(text string) (all []string) {
	for line := range strings.Lines(text) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(f) == 3 && f[1] != "" {
			all = append(all, f[1])
		}
	}
	return all
}

// unified mounts cgroups of version 2 and hands its controllers down, which needs the
// root to be without processes.
func unified(dir string) error {
	if err := unix.Mount("cgroup2", dir, "cgroup2", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return err
	}
	if err := os.Mkdir(filepath.Join(dir, "init"), 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	if err := write(filepath.Join(dir, "init", "cgroup.procs"), "0"); err != nil {
		return err
	}
	have, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
	if err != nil {
		return err
	}
	for _, c := range strings.Fields(string(have)) {
		if err := write(filepath.Join(dir, "cgroup.subtree_control"), "+"+c); err != nil {
			return err
		}
	}
	return nil
}

// tunables shows the kubelet what it would otherwise write, for the whole machine. A
// user namespace may mount /proc only where one is seen whole: there is another.
func tunables() error {
	const whole, files = "/run/proc", "/run/tunables"
	for _, d := range []string{whole, files} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
	}
	if err := unix.Mount("proc", whole, "proc", 0, ""); err != nil {
		return err
	}
	for name, value := range map[string]string{"vm/overcommit_memory": "1", "kernel/panic": "10", "kernel/panic_on_oops": "1"} {
		f := filepath.Join(files, filepath.Base(name))
		if err := write(f, value+"\n"); err != nil {
			return err
		}
		if err := unix.Mount(f, filepath.Join("/proc/sys", name), "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("binding the tunable %s: %w", name, err)
		}
	}
	return nil
}

func write(path, text string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Close())
}

// disk mounts the file or the directory that the root is in.
func disk(c Config) error {
	if c.Image == "" {
		return unix.Mount(c.Root, c.Root, "", unix.MS_BIND, "")
	}
	loop, err := attach(c.Image)
	if err != nil {
		return fmt.Errorf("attaching %s to a loop device: %w", c.Image, err)
	}
	err = unix.Mount(loop.Name(), c.Root, "ext4", 0, "")
	return errors.Join(err, loop.Close()) // the mount keeps it, and its end detaches it
}

// attach makes a loop device of the file that ends with its last user.
func attach(image string) (*os.File, error) {
	file, err := os.OpenFile(image, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = file.Close() }() // the device has it
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = control.Close() }() // nothing was written
	for range 20 {                         // somebody else may take the free one
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, err
		}
		loop, err := os.OpenFile(fmt.Sprintf("/dev/loop%d", n), os.O_RDWR, 0)
		if err != nil {
			return nil, err
		}
		config := unix.LoopConfig{Fd: uint32(file.Fd()), Info: unix.LoopInfo64{Flags: unix.LO_FLAGS_AUTOCLEAR}}
		if err = unix.IoctlLoopConfigure(int(loop.Fd()), &config); err == nil {
			return loop, nil
		}
		_ = loop.Close() // not ours
		if !errors.Is(err, syscall.EBUSY) {
			return nil, err
		}
	}
	return nil, errors.New("no loop device stays free")
}
