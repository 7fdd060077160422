package mount

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Names in the service manager's descriptor store.
const (
	storedFuse   = "apparate-fuse"
	storedSocket = "apparate-socket"
	storedLock   = "apparate-lock"
)

// restore takes over what systemd kept of an earlier holder (sd_listen_fds(3),
// FileDescriptorStoreMax in systemd.service(5)). ok is false when there is nothing,
// or not all: then everything is closed, and made anew.
func restore(o HoldOptions) (h *holder, ok bool, err error) {
	files := inheritedStore()
	defer func() {
		if !ok {
			for _, f := range files {
				err = errors.Join(err, f.Close())
			}
		}
	}()
	fuse, socket, lock := files[storedFuse], files[storedSocket], files[storedLock]
	if fuse == nil || socket == nil || lock == nil {
		return nil, false, nil
	}
	l, err := net.FileListener(socket)
	if err != nil {
		return nil, false, fmt.Errorf("the stored socket: %w", err)
	}
	listener, isUnix := l.(*net.UnixListener)
	if !isUnix {
		return nil, false, errors.Join(fmt.Errorf("the stored socket is a %T", l), l.Close())
	}
	listener.SetUnlinkOnClose(false)
	// The lock is of the open file, which we share now with the store: having it
	// is owning it. Of the daemon before us systemd made an end, as of everything
	// in the unit's cgroup, before it started us.
	return &holder{HoldOptions: o, lock: lock, listener: listener, dev: fuse, served: true}, true, socket.Close()
}

// inheritedStore are the descriptors that systemd passes, by name. It works once:
// what this process starts inherits nothing of it.
func inheritedStore() map[string]*os.File {
	const first = 3
	n, _ := strconv.Atoi(os.Getenv("LISTEN_FDS")) // 0 when there is none
	names := strings.Split(os.Getenv("LISTEN_FDNAMES"), ":")
	pid := os.Getenv("LISTEN_PID")
	for _, v := range []string{"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"} {
		_ = os.Unsetenv(v) // fails only for bad names
	}
	if pid != strconv.Itoa(os.Getpid()) {
		return nil
	}
	files := map[string]*os.File{}
	for i := range n {
		unix.CloseOnExec(first + i)
		name := "unknown"
		if i < len(names) {
			name = names[i]
		}
		f := os.NewFile(uintptr(first+i), name)
		if files[name] != nil {
			_ = f.Close() // the same one again
			continue
		}
		files[name] = f
	}
	return files
}

// store hands what the holder keeps to systemd (sd_pid_notify_with_fds(3)). kept is
// false without systemd, and when its unit has no store: there is no answer, so the
// unit says so in the environment.
func (h *holder) store() (kept bool, err error) {
	if os.Getenv(storeEnv) == "" || os.Getenv("NOTIFY_SOCKET") == "" {
		return false, nil
	}
	socket, err := h.listener.File()
	if err != nil {
		return false, err
	}
	defer func() { _ = socket.Close() }() // a copy
	for name, f := range map[string]*os.File{storedFuse: h.dev, storedSocket: socket, storedLock: h.lock} {
		// FDPOLL=0: the connection polls as broken once it is unmounted, and must
		// not be dropped behind our back before.
		if err := notify("FDSTOREREMOVE=1\nFDNAME="+name, nil); err != nil {
			return false, err
		}
		if err := notify("FDSTORE=1\nFDPOLL=0\nFDNAME="+name, f); err != nil {
			return false, err
		}
	}
	return true, nil
}

// notifySystemd tells the service manager that we are ready (sd_notify(3)).
func notifySystemd() error { return notify("READY=1", nil) }

// notify sends a message to the service manager, with a descriptor if there is one.
func notify(message string, f *os.File) (err error) {
	name := os.Getenv("NOTIFY_SOCKET")
	if name == "" {
		return nil
	}
	// Not by package net, which sends no descriptors over a connected datagram socket.
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unix.Close(fd)) }()
	var rights []byte
	if f != nil {
		rights = unix.UnixRights(int(f.Fd()))
	}
	if err := unix.Sendmsg(fd, []byte(message), rights, &unix.SockaddrUnix{Name: name}, 0); err != nil {
		return fmt.Errorf("tell the service manager at %s: %w", name, err)
	}
	return nil
}
