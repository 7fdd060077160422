// Package mount makes, checks and ends the mounts of a node, and keeps them alive.
//
// # EROFS
//
// An image is mounted from its metadata image, an ordinary file, with one data
// device for each layer: a file of package blobfs while the layer is partial, the
// cache's own file where it is complete ([EROFS.MountLocal]). No
// block device is needed (Linux 6.12, CONFIG_EROFS_FS_BACKED_BY_FILE); [Probe]
// says whether this machine can.
//
// A mount whose FUSE server does not answer is dangerous. The kernel opens the
// devices while the superblock is half born, sync(2) of the whole machine waits
// for such superblocks, and no signal ends that. So the devices are opened from
// here first, where waiting harms nobody, and a mount that still hangs is freed by
// aborting the FUSE connection.
//
// # The holder
//
// [Hold] is the small process that has the FUSE connection and the socket, and
// runs the daemon as its child. Either can be replaced or killed on its own; see
// hold.go.
package mount

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// ErrStuck says that the files of a mount did not answer in time.
var ErrStuck = errors.New("the file server does not answer")

// EROFS mounts metadata images with their data devices. The zero value is ready
// for use; it must not be copied, and a process needs only one.
type EROFS struct {
	// Deadline bounds a mount; 0 means 10 s.
	Deadline time.Duration
	// OnStuck frees a mount that hangs in the kernel: it aborts the FUSE connection
	// that the devices are on. It must not wait for that connection.
	OnStuck func()

	// mu makes the bdi of a new mount recognisable.
	mu sync.Mutex
	// old avoids the mount API of Linux 5.2.
	old bool
}

// The stages of an attempt, in their order.
const (
	opening int32 = iota
	mounting
	abandoned
)

// attempt is one call of Mount.
type attempt struct {
	image, dir string
	devices    []string
	local      bool
	stage      atomic.Int32
}

// Mount mounts the EROFS image read-only at the directory dir, with devices in the
// order of the image's device table. Device nodes, set-id bits and programs in it
// work, as a container's root needs. Mounting is short and cannot be interrupted:
// ctx only stops it from beginning. [ErrStuck] when it takes longer than Deadline.
func (e *EROFS) Mount(ctx context.Context, image string, devices []string, dir string) error {
	return e.mount(ctx, &attempt{image: image, dir: dir, devices: devices})
}

// MountLocal mounts as Mount does with devices that are complete files on this machine.
// They are read past the page cache where their file system can, so that a page is in
// memory once and not twice, and far ahead, as nothing has to be fetched.
func (e *EROFS) MountLocal(ctx context.Context, image string, devices []string, dir string) error {
	return e.mount(ctx, &attempt{image: image, dir: dir, devices: devices, local: true})
}

func (e *EROFS) mount(ctx context.Context, a *attempt) error {
	dir := a.dir
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("mount %s: %w", dir, err)
	}
	deadline := e.Deadline
	if deadline == 0 {
		deadline = 10 * time.Second
	}
	done := make(chan error, 1)
	go func() { done <- e.run(a) }()
	t := time.NewTimer(deadline)
	defer t.Stop()
	select {
	case err := <-done:
		return err
	case <-t.C:
	}
	if a.stage.CompareAndSwap(opening, abandoned) {
		// Only a thread of ours waits; it gives up when it is answered.
		return fmt.Errorf("mount %s: open its devices: %w", dir, ErrStuck)
	}
	if e.OnStuck != nil {
		e.OnStuck()
	}
	t.Reset(deadline)
	select {
	case err := <-done:
		if err == nil {
			// A mount whose devices are gone is of no use.
			err = e.Unmount(dir)
		}
		return errors.Join(fmt.Errorf("mount %s: %w", dir, ErrStuck), err)
	case <-t.C:
		return fmt.Errorf("mount %s: %w, not even when aborted", dir, ErrStuck)
	}
}

// run opens all files and mounts.
func (e *EROFS) run(a *attempt) error {
	files, err := openAll(append([]string{a.image}, a.devices...))
	defer closeAll(files)
	if err != nil {
		return fmt.Errorf("mount %s: %w", a.dir, err)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if !a.stage.CompareAndSwap(opening, mounting) {
		return ErrStuck
	}
	before := readAheads()
	// The descriptors name the devices: such a name is short, needs no lookup and
	// has no comma.
	source, devices := a.image, make([]string, len(a.devices))
	if len(source) > maxValue {
		source = fdName(files[0])
	}
	for i := range devices {
		devices[i] = fdName(files[i+1])
	}
	readAhead := readAheadKiB
	if a.local {
		readAhead = localReadAheadKiB
		err = e.mountWith(source, devices, a.dir, "directio")
		if err == nil && readable(a.dir) != nil {
			err = errors.Join(unix.EINVAL, e.Unmount(a.dir))
		}
	}
	if !a.local || errors.Is(err, unix.EINVAL) { // of kernel or file system
		err = e.mountWith(source, devices, a.dir)
	}
	if err != nil {
		return fmt.Errorf("mount %s: %w", a.dir, explain(err))
	}
	setReadAhead(before, readAhead)
	return nil
}

// mountWith mounts with whichever interface the kernel has.
func (e *EROFS) mountWith(source string, devices []string, dir string, flags ...string) error {
	err := error(unix.ENOSYS)
	if !e.old {
		err = mountNew(source, devices, dir, flags)
	}
	if errors.Is(err, unix.ENOSYS) {
		err = mountOld(source, devices, dir, flags)
	}
	return err
}

// openAll opens files for reading. It does not use os.Open, which may ask the FUSE
// server of this process while it holds up the Go scheduler.
func openAll(names []string) (fds []int, err error) {
	for _, name := range names {
		fd, err := unix.Open(name, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err != nil {
			return fds, &os.PathError{Op: "open", Path: name, Err: err}
		}
		fds = append(fds, fd)
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			return fds, &os.PathError{Op: "stat", Path: name, Err: err}
		}
	}
	return fds, nil
}

func closeAll(fds []int) {
	for _, fd := range fds {
		_ = unix.Close(fd) // only read
	}
}

func fdName(fd int) string { return fmt.Sprintf("/proc/self/fd/%d", fd) }

// explain says what to do about an error of mounting EROFS.
func explain(err error) error {
	switch {
	case errors.Is(err, unix.ENODEV):
		return fmt.Errorf("%w: this kernel has no EROFS (modprobe erofs)", err)
	case errors.Is(err, unix.ENOTBLK):
		return fmt.Errorf("%w: EROFS cannot be mounted from files here (needs Linux 6.12 with CONFIG_EROFS_FS_BACKED_BY_FILE, and files that are not on a tmpfs)", err)
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("%w: run as root with CAP_SYS_ADMIN, outside of user namespaces", err)
	}
	return err
}

// Check returns nil when an EROFS is mounted at dir. It asks nobody but the kernel.
func (e *EROFS) Check(dir string) error {
	ok, err := Mounted(dir)
	if err != nil {
		return err
	}
	if !ok {
		return fmt.Errorf("%s is not mounted", dir)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return fmt.Errorf("check mount %s: %w", dir, err)
	}
	if st.Type != unix.EROFS_SUPER_MAGIC_V1 {
		return fmt.Errorf("%s is mounted, but not with EROFS (type %#x)", dir, st.Type)
	}
	return nil
}

// Unmount takes the mount at dir away. Who still uses it, overlay mounts included,
// goes on; the last user frees it. That nothing is mounted there is no error.
//
// When nobody uses it, Unmount frees it itself and waits for the pages that are
// being read, so for their servers: stop serving after unmounting, not before.
func (e *EROFS) Unmount(dir string) error { return Detach(dir) }
