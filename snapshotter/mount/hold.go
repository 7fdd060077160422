package mount

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/apparate/apparate/snapshotter/blobfs"
)

// Why Hold cannot begin, where the cause is one of its options; for errors.Is.
var (
	// ErrRoot says that HoldOptions.Root cannot be used.
	ErrRoot = errors.New("the root directory cannot be used")
	// ErrSocket says that HoldOptions.Socket cannot be made.
	ErrSocket = errors.New("the socket cannot be made")
)

// HoldOptions say what [Hold] holds, and for whom.
type HoldOptions struct {
	// Root is the directory of everything on this node. Hold owns the EROFS and
	// FUSE mounts below it, and the file "lock" in it.
	Root string
	// Blobs is where the FUSE file system is mounted, below Root.
	Blobs string
	// Socket is the unix socket on which the daemon is reached, at most 106 bytes.
	// Its directory is made with mode 0711, the socket with 0600.
	Socket string
	// Command makes the daemon's command; Hold adds descriptors and environment.
	// nil runs this program again with the same arguments.
	Command func() *exec.Cmd
	// Ready, if set, is called once, when the first daemon serves.
	Ready func()
	// StopTimeout is how long a daemon may take to end before it is killed; 0
	// means 30 s.
	StopTimeout time.Duration
	// Logger is nil for slog.Default().
	Logger *slog.Logger
}

// Hold keeps what must outlive the daemon, and the daemon running, until ctx ends:
//
//   - the lock of Root, which the daemon shares, so that a second instance is
//     refused even if only the daemon is left of the first;
//   - the listening socket: calls queue while there is no daemon;
//   - the FUSE connection: reads wait while there is no daemon, and are answered by
//     the next.
//
// A daemon that ends, in whatever way, is started again at once; one that keeps
// ending within a second is started less and less often, down to every 5 s. But
// one that exits before any was ever ready is not: its error is Hold's error.
//
// SIGHUP replaces the daemon: it is sent SIGUSR2, on which it stops serving and
// exits without unmounting. When ctx ends it is sent SIGTERM, and everything Hold
// made is taken away. Mounts below Root that an earlier life left are, too, at the
// beginning: nobody will answer for them again.
//
// With systemd, NOTIFY_SOCKET hears READY=1 when the daemon first serves. Where the
// unit has a descriptor store (FileDescriptorStoreMax=3), what Hold keeps is in it
// as well: a holder that is killed or restarted finds it there, and goes on where
// the one before ended. Then the end of ctx takes nothing away, since it may be the
// first half of a restart; [Clear] does, after the service was stopped.
func Hold(ctx context.Context, o HoldOptions) (err error) {
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	if o.StopTimeout == 0 {
		o.StopTimeout = 30 * time.Second
	}
	if o.Command == nil {
		o.Command = again
	}
	// A log that nobody reads any more must not end us.
	pipe := make(chan os.Signal, 1)
	signal.Notify(pipe, syscall.SIGPIPE)
	defer signal.Stop(pipe)

	h, stored, err := restore(o)
	if err != nil {
		return err
	}
	if !stored {
		if h, err = begin(o); err != nil {
			return err
		}
	}
	h.keep, err = h.store()
	if err != nil {
		o.Logger.Warn("descriptors are not kept by the service manager: the end of this process ends the mounts", "error", err)
	}
	if stored {
		o.Logger.Info("going on with what the service manager kept")
	}
	return errors.Join(h.run(ctx), h.end())
}

// begin makes everything anew.
func begin(o HoldOptions) (h *holder, err error) {
	h = &holder{HoldOptions: o}
	defer func() {
		if err != nil {
			err = errors.Join(err, h.end())
		}
	}()
	if h.lock, err = acquire(o.Root); err != nil {
		return h, err
	}
	if err := sweep(o.Root, o.Logger); err != nil {
		return h, err
	}
	if h.listener, err = listen(o.Socket); err != nil {
		return h, fmt.Errorf("%w: %w", ErrSocket, err)
	}
	h.dev, err = blobfs.Connect(o.Blobs)
	return h, err
}

// end takes away what the holder made, or only lets go of it when the service
// manager keeps it for the next.
func (h *holder) end() error {
	var errs []error
	if h.dev != nil {
		// First the connection: what still waits in it fails, and frees the mounts.
		errs = append(errs, h.dev.Close())
		if !h.keep {
			errs = append(errs, sweep(h.Root, h.Logger))
		}
	}
	if h.listener != nil {
		errs = append(errs, h.listener.Close())
		if !h.keep {
			errs = append(errs, os.Remove(h.Socket))
		}
	}
	if h.lock != nil {
		errs = append(errs, h.lock.Close())
	}
	return errors.Join(errs...)
}

// Clear takes the mounts below root away that a holder left, once that and its
// daemon have ended.
func Clear(root string, log *slog.Logger) error {
	lock, err := acquire(root)
	if err != nil {
		return err
	}
	return errors.Join(sweep(root, log), lock.Close())
}

// again runs this program with the same arguments. By its name rather than as
// /proc/self/exe, so that the daemon of after an upgrade is the new one.
func again() *exec.Cmd {
	name, err := os.Executable()
	if err == nil {
		_, err = os.Stat(name)
	}
	if err != nil {
		name = "/proc/self/exe"
	}
	cmd := exec.Command(name, os.Args[1:]...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	return cmd
}

// acquire takes the lock of root, which belongs to whoever has the file open, and
// writes who that is.
func acquire(root string) (*os.File, error) {
	if err := os.MkdirAll(root, 0o700); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrRoot, err)
	}
	f, err := os.OpenFile(filepath.Join(root, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrRoot, err)
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil, errors.Join(owner(f, root), f.Close())
	}
	if err == nil {
		err = record(f, 0)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%w: lock it: %w", ErrRoot, err), f.Close())
	}
	return f, nil
}

// record writes the pids of the holder and of the daemon (0: none) into the lock.
func record(lock *os.File, daemon int) error {
	if err := lock.Truncate(0); err != nil {
		return err
	}
	_, err := lock.WriteAt(fmt.Appendf(nil, "%d %d\n", os.Getpid(), daemon), 0)
	return err
}

// owner says who has the lock.
func owner(lock *os.File, root string) error {
	var holder, daemon int
	if _, err := fmt.Fscan(lock, &holder, &daemon); err != nil {
		return fmt.Errorf("already running: another process has %s", lock.Name())
	}
	if unix.Kill(holder, 0) == nil || daemon == 0 {
		return fmt.Errorf("already running as pid %d with root %s", holder, root)
	}
	return fmt.Errorf("already running with root %s: pid %d was killed, but its daemon, pid %d, lives: end it first", root, holder, daemon)
}

// sweep takes our kinds of mounts below root away: EROFS first, which has files of
// FUSE open.
func sweep(root string, log *slog.Logger) error {
	all, err := below(root)
	if err != nil {
		return err
	}
	var failed []error
	for _, kind := range []string{"erofs", "fuse.apparate"} {
		for _, m := range all {
			if m.FSType != kind {
				continue
			}
			log.Info("unmounting", "dir", m.Mountpoint, "type", kind)
			failed = append(failed, Detach(m.Mountpoint))
		}
	}
	return errors.Join(failed...)
}

// listen makes the socket under another name and renames it: it is never there
// with wrong permissions, and never away when an old one is replaced.
func listen(path string) (*net.UnixListener, error) {
	temporary := path + "~"
	if len(temporary) > 107 { // sun_path, with its NUL
		return nil, fmt.Errorf("name of the socket is too long (%d bytes, 106 are possible): %s", len(path), path)
	}
	if c, err := net.Dial("unix", path); err == nil {
		return nil, errors.Join(fmt.Errorf("somebody else listens on %s", path), c.Close())
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o711); err != nil {
		return nil, err
	}
	if err := os.Remove(temporary); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: temporary, Net: "unix"})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false)
	err = os.Chmod(temporary, 0o600)
	if err == nil {
		err = os.Rename(temporary, path)
	}
	if err != nil {
		return nil, errors.Join(err, l.Close(), os.Remove(temporary))
	}
	return l, nil
}
