package mount

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/apparate/apparate/snapshotter/blobfs"
)

// Mounted reports whether something is mounted at dir. It reads the mount table
// and does not touch dir, whose file system may not answer.
func Mounted(dir string) (bool, error) {
	dir, err := blobfs.MountPoint(dir)
	if err != nil {
		return false, err
	}
	m, err := mountinfo.GetMounts(mountinfo.SingleEntryFilter(dir))
	if err != nil {
		return false, fmt.Errorf("read the mount table: %w", err)
	}
	return len(m) > 0, nil
}

// Lower reports whether an overlay of this mount namespace has dir among its lower
// directories. It reads the mount table and does not touch dir.
func (e *EROFS) Lower(dir string) (bool, error) {
	m, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("overlay"))
	if err != nil {
		return false, fmt.Errorf("read the mount table: %w", err)
	}
	short := filepath.Join("/", filepath.Base(filepath.Dir(dir)), filepath.Base(dir))
	for _, x := range m {
		for _, option := range strings.FieldsFunc(x.VFSOptions, func(r rune) bool { return r == ',' || r == ':' || r == '=' }) {
			// containerd shortens long lists by relative names; ours end in the id of an image.
			if option == dir || !filepath.IsAbs(option) && strings.HasSuffix(option, short) {
				return true, nil
			}
		}
	}
	return false, nil
}

// Below returns the mount points below dir, without dir itself, the latest first:
// the order in which they can be taken away. Links in dir are followed; what is
// below it is not touched.
func Below(dir string) ([]string, error) {
	all, err := below(dir)
	if err != nil {
		return nil, err
	}
	points := make([]string, len(all))
	for i, m := range all {
		points[i] = m.Mountpoint
	}
	return points, nil
}

func below(dir string) ([]*mountinfo.Info, error) {
	dir, err := filepath.Abs(dir)
	if err == nil {
		dir, err = filepath.EvalSymlinks(dir)
	}
	if err != nil {
		return nil, fmt.Errorf("mounts below a directory: %w", err)
	}
	prefix := strings.TrimSuffix(dir, "/") + "/"
	m, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) {
		return !strings.HasPrefix(m.Mountpoint, prefix), false
	})
	if err != nil {
		return nil, fmt.Errorf("read the mount table: %w", err)
	}
	slices.Reverse(m)
	return m, nil
}

// Detach takes the topmost mount at dir away at once; who uses it goes on. That
// nothing is mounted there is no error.
func Detach(dir string) error {
	err := unix.Unmount(dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	if err == nil || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
		return nil
	}
	return fmt.Errorf("unmount %s: %w", dir, err)
}
