package mount

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	// maxValue is the longest string in bytes that fsconfig(2) takes.
	maxValue = 255
	// maxData is the longest option string in bytes that mount(2) takes: a page,
	// with its NUL.
	maxData = 4095
)

// mountNew mounts with the API of Linux 5.2. It takes any number of devices, and
// says in words what went wrong.
func mountNew(source string, devices []string, dir string, flags []string) error {
	fs, err := unix.Fsopen("erofs", unix.FSOPEN_CLOEXEC)
	if errors.Is(err, unix.EPERM) {
		// Some sandboxes refuse what they do not know.
		return unix.ENOSYS
	}
	if err != nil {
		return fmt.Errorf("fsopen: %w", err)
	}
	defer func() { _ = unix.Close(fs) }()
	if err := configure(fs, source, devices, append(flags, "ro")); err != nil {
		return withMessages(fs, err)
	}
	m, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_RDONLY)
	if err != nil {
		return withMessages(fs, fmt.Errorf("fsmount: %w", err))
	}
	defer func() { _ = unix.Close(m) }()
	if err := unix.MoveMount(m, "", unix.AT_FDCWD, dir, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("move_mount: %w", err)
	}
	return nil
}

func configure(fs int, source string, devices, flags []string) error {
	if err := unix.FsconfigSetString(fs, "source", source); err != nil {
		return fmt.Errorf("fsconfig source=%s: %w", source, err)
	}
	for i, d := range devices {
		if err := unix.FsconfigSetString(fs, "device", d); err != nil {
			return fmt.Errorf("fsconfig device %d: %w", i, err)
		}
	}
	for _, f := range flags {
		if err := unix.FsconfigSetFlag(fs, f); err != nil {
			return fmt.Errorf("fsconfig %s: %w", f, err)
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return fmt.Errorf("fsconfig create: %w", err)
	}
	return nil
}

// withMessages adds what the file system said to err: lines such as "e erofs: bad
// magic" that the context's descriptor gives out one a read.
func withMessages(fs int, err error) error {
	var said []string
	buf := make([]byte, 1024)
	for range 32 {
		n, rerr := unix.Read(fs, buf)
		if rerr != nil || n == 0 {
			break
		}
		said = append(said, strings.TrimSpace(strings.TrimPrefix(string(buf[:n]), "e ")))
	}
	if len(said) == 0 {
		return err
	}
	return fmt.Errorf("%w (%s)", err, strings.Join(said, "; "))
}

// mountOld mounts with mount(2).
func mountOld(source string, devices []string, dir string, flags []string) error {
	data := slices.Clone(flags)
	for _, d := range devices {
		data = append(data, "device="+d)
	}
	options := strings.Join(data, ",")
	if len(options) > maxData {
		return fmt.Errorf("%d devices are too many for mount(2), and this kernel has no fsopen(2)", len(devices))
	}
	return unix.Mount(source, dir, "erofs", unix.MS_RDONLY, options)
}
