package blobfs

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// maxRead is the longest READ in bytes that the kernel may send.
const maxRead = 1 << 20

// device is where the kernel hands out FUSE connections.
const device = "/dev/fuse"

// Connect mounts a FUSE file system read-only at dir, which it creates with mode
// 0700, and returns the descriptor that answers for it. Nothing answers yet: until
// [Serve] runs, whoever looks into dir waits. The file system ends when the last
// copy of the descriptor is closed.
//
// It is mounted nosuid, nodev and noexec: only the kernel's EROFS reads here, and
// what the images may do is decided by the EROFS mount.
func Connect(dir string) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make FUSE mount point: %w", err)
	}
	fd, err := unix.Open(device, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, openError(err)
	}
	dev := os.NewFile(uintptr(fd), device)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFCHR {
		return nil, errors.Join(fmt.Errorf("%s is not a character device: something is mounted over it", device), err, dev.Close())
	}
	data := fmt.Sprintf("fd=%d,rootmode=%o,user_id=0,group_id=0,max_read=%d,default_permissions", fd, unix.S_IFDIR, maxRead)
	const flags = unix.MS_RDONLY | unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	if err := unix.Mount("apparate", dir, "fuse.apparate", flags, data); err != nil {
		return nil, errors.Join(mountError(dir, err), dev.Close())
	}
	return dev, nil
}

func openError(err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENXIO), errors.Is(err, unix.ENODEV):
		return fmt.Errorf("open %s: %w: load the fuse module (modprobe fuse), or give the container this device", device, err)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("open %s: %w: run as root, with this device allowed in the container", device, err)
	default:
		return fmt.Errorf("open %s: %w", device, err)
	}
}

func mountError(dir string, err error) error {
	switch {
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("mount FUSE at %s: %w: run as root with CAP_SYS_ADMIN", dir, err)
	case errors.Is(err, unix.ENODEV):
		return fmt.Errorf("mount FUSE at %s: %w: this kernel has no FUSE (modprobe fuse)", dir, err)
	default:
		return fmt.Errorf("mount FUSE at %s: %w", dir, err)
	}
}

// Abort ends the FUSE connection of the mount at dir: every request fails at once,
// those that wait included, and so do all later ones. It is the last resort for a
// mount whose server is stuck; it never waits for that server.
func Abort(dir string) error {
	info, err := mountAt(dir)
	if err != nil {
		return err
	}
	name := strconv.Itoa(info.Minor)
	err = os.WriteFile(filepath.Join("/sys/fs/fuse/connections", name, "abort"), []byte("1"), 0)
	if errors.Is(err, fs.ErrNotExist) {
		// Containers get a sysfs without the control file system on it.
		err = withControl(func(control string) error {
			return os.WriteFile(filepath.Join(control, name, "abort"), []byte("1"), 0)
		})
	}
	if err != nil {
		return fmt.Errorf("abort FUSE connection %s of %s: %w", name, dir, err)
	}
	return nil
}

// withControl mounts FUSE's control file system in a private place while do runs.
func withControl(do func(dir string) error) error {
	dir, err := os.MkdirTemp("", "apparate-fusectl-")
	if err != nil {
		return err
	}
	if err := unix.Mount("fusectl", dir, "fusectl", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return errors.Join(fmt.Errorf("mount fusectl: %w", err), os.Remove(dir))
	}
	err = do(dir)
	return errors.Join(err, unix.Unmount(dir, unix.MNT_DETACH), os.Remove(dir))
}

// mountAt finds the topmost FUSE mount at dir. It asks the mount table and not
// dir, which may wait for ever.
func mountAt(dir string) (*mountinfo.Info, error) {
	dir, err := MountPoint(dir)
	if err != nil {
		return nil, err
	}
	all, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) { return m.Mountpoint != dir, false })
	if err != nil {
		return nil, fmt.Errorf("read the mount table: %w", err)
	}
	if len(all) == 0 || all[len(all)-1].FSType != "fuse.apparate" {
		return nil, fmt.Errorf("%s is no mount of ours: %w", dir, fs.ErrNotExist)
	}
	return all[len(all)-1], nil
}

// MountPoint makes dir comparable with the mount table: absolute, without links.
// The last element is not touched, since it may be a mount that does not answer.
func MountPoint(dir string) (string, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", fmt.Errorf("mount point: %w", err)
	}
	parent, err := filepath.EvalSymlinks(filepath.Dir(dir))
	if err != nil {
		return "", fmt.Errorf("mount point: %w", err)
	}
	return filepath.Join(parent, filepath.Base(dir)), nil
}
