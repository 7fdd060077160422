package blobfs

import (
	"context"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// Options of [Serve].
type Options struct {
	// Dir is where the connection is mounted. It is not touched.
	Dir string
	// StateFile is where the settings of the connection are kept for the daemon
	// that takes over; it outlives the daemon, not the boot. Required.
	StateFile string
	// MaxBackground is how many requests the kernel keeps in flight that no thread
	// waits for; 0 means 64. Reads that a thread waits for are not limited.
	MaxBackground int
	// Logger gets failed reads and what the FUSE library has to say; nil means
	// slog.Default().
	Logger *slog.Logger
}

// Server answers one FUSE connection.
type Server struct {
	dev     *os.File
	fuse    *fuse.Server
	fd      int // go-fuse's own descriptor
	resumed bool
	closing *atomic.Bool
	end     context.CancelFunc
	done    chan struct{}
}

// Serve answers the connection behind dev, as [Connect] gave it, from s, until the
// file system is unmounted or aborted or [Server.Close] is called. The first daemon
// negotiates with the kernel; a later one takes the connection over from one that
// has ended, and gets what that one left unanswered. dev then belongs to
// the server, which closes it in Close.
func Serve(dev *os.File, s Store, o Options) (*Server, error) {
	if o.MaxBackground == 0 {
		o.MaxBackground = 64
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	now, err := currentState(o.Dir)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Dir(o.StateFile), 0o700); err != nil {
		return nil, fmt.Errorf("FUSE state: %w", err)
	}
	fd := int(dev.Fd())
	first, fresh, err := opening(fd, o.StateFile, now)
	if err != nil {
		return nil, err
	}
	life, end := context.WithCancel(context.Background())
	srv := &Server{dev: dev, resumed: !fresh, closing: new(atomic.Bool), end: end, done: make(chan struct{})}
	raw := &rawFS{RawFileSystem: fuse.NewDefaultRawFileSystem(), store: s, log: o.Logger, life: life,
		gone: func() bool { return gone(fd) }, quiet: &limiter{now: time.Now, seen: map[uint64]*silence{}}}
	var answer []byte
	srv.fuse, srv.fd, answer, err = handshake(raw, first, mountOptions(o, srv.closing))
	if err == nil {
		err = srv.enter(fd, answer, fresh)
	}
	if err != nil {
		end()
		return nil, err
	}
	go func() {
		defer close(srv.done)
		defer end()
		srv.fuse.Serve()
	}()
	if fresh {
		refusePoll(o.Dir)
	}
	return srv, nil
}

// refusePoll makes the kernel ask once whether files can be polled, to which
// go-fuse says no for the whole connection. Else os.Open of a blob in this very
// process could hang it: the Go runtime registers files with epoll without leaving
// its processor to others, and the kernel would wait for our FUSE_POLL answer.
func refusePoll(dir string) {
	// The name is one that go-fuse itself answers for this purpose.
	fd, err := unix.Open(filepath.Join(dir, ".go-fuse-epoll-hack"), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return // the mount is not visible here, so nobody here opens its files
	}
	_, _ = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
	_ = unix.Close(fd)
}

// mountOptions tells go-fuse what to negotiate. Never DirectMount: with it go-fuse
// takes /dev/fd/N for a directory and mounts over /dev/fuse.
func mountOptions(o Options, closing *atomic.Bool) *fuse.MountOptions {
	logger := o.Logger
	return &fuse.MountOptions{
		Name: "apparate", FsName: "apparate",
		MaxWrite:            maxRead, // also the limit of READ
		MaxBackground:       o.MaxBackground,
		CongestionThreshold: o.MaxBackground * 3 / 4,
		// Answers of 1 MiB and a header do not fit the largest pipe of most hosts.
		DisableSplice:            true,
		DisableReadDirPlus:       true,
		ExplicitDataCacheControl: true,
		ExtraCapabilities:        fuse.CAP_ASYNC_DIO | fuse.CAP_HAS_RESEND,
		// Without OPEN there is nobody to ask for direct I/O. Backing files of
		// passthrough belong to a process, so they would not survive it.
		DisabledCapabilities: fuse.CAP_PASSTHROUGH | fuse.CAP_NO_OPEN_SUPPORT,
		Logger:               log.New(&logWriter{logger, closing}, "", 0),
		PanicHandler: func(v any) fuse.Status {
			logger.Error("panic in a FUSE request", "panic", v, "stack", string(debug.Stack()))
			return fuse.EIO
		},
	}
}

// handshake makes a go-fuse server that believes it has just read first, a
// FUSE_INIT, from its descriptor fd, and returns its answer. The descriptor is a
// socket so far: go-fuse insists on reading INIT, which an open connection never
// sends again, and answers at once, when the state must be saved before.
func handshake(raw fuse.RawFileSystem, first []byte, o *fuse.MountOptions) (s *fuse.Server, fd int, answer []byte, err error) {
	// SEQPACKET keeps messages whole, as /dev/fuse does.
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, -1, nil, fmt.Errorf("FUSE handshake: %w", err)
	}
	defer func() { _ = unix.Close(pair[1]) }()
	if _, err = unix.Write(pair[1], first); err == nil {
		// On success pair[0] belongs to go-fuse.
		s, err = fuse.NewServer(raw, "/dev/fd/"+strconv.Itoa(pair[0]), o)
	}
	if err != nil {
		_ = unix.Close(pair[0])
		return nil, -1, nil, fmt.Errorf("FUSE handshake: %w", err)
	}
	buf := make([]byte, 4096)
	n, err := unix.Read(pair[1], buf)
	if err != nil {
		return nil, -1, nil, fmt.Errorf("FUSE handshake: %w", err)
	}
	return s, pair[0], buf[:n], nil
}

// enter answers INIT if the kernel waits for it, puts the connection in the place
// of the socket and asks for what others left unanswered.
func (s *Server) enter(dev int, answer []byte, fresh bool) error {
	if fresh {
		if _, err := unix.Write(dev, answer); err != nil {
			return fmt.Errorf("answer FUSE_INIT: %w", err)
		}
	}
	if err := unix.Dup3(dev, s.fd, unix.O_CLOEXEC); err != nil {
		return fmt.Errorf("FUSE descriptor: %w", err)
	}
	if err := resend(dev); err != nil && !errors.Is(err, errNoResend) {
		return err
	}
	return nil
}

// gone reports whether the connection has ended. When it has, poll(2) says
// POLLERR.
func gone(dev int) bool {
	p := []unix.PollFd{{Fd: int32(dev)}}
	n, err := unix.Poll(p, 0)
	return err == nil && n > 0 && p[0].Revents&(unix.POLLERR|unix.POLLNVAL) != 0
}

// Resumed reports whether the connection was taken over from an earlier daemon.
func (s *Server) Resumed() bool { return s.resumed }

// Wait returns when nothing is served any more: after Close, an unmount or [Abort].
func (s *Server) Wait() { <-s.done }

// Close stops serving, and neither unmounts nor aborts: while another process has
// the connection's descriptor open, readers wait for the next [Serve] there. What
// was in flight is answered or left for it. ctx bounds the wait for a Store that
// does not end its reads; after its error the process must end before anybody
// takes over.
func (s *Server) Close(ctx context.Context) error {
	if s.closing.Swap(true) {
		return s.wait(ctx)
	}
	// From here on go-fuse reads and writes a descriptor that refuses reads and
	// swallows answers.
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("close FUSE server: %w", err)
	}
	select {
	case <-s.done: // unmounted before; fd may be another file's by now
	default:
		err = unix.Dup3(int(null.Fd()), s.fd, unix.O_CLOEXEC)
	}
	err = errors.Join(err, null.Close())
	s.end()
	return errors.Join(err, s.wait(ctx), s.dev.Close())
}

// wait nudges the threads that still wait in a read of the connection until
// serving has ended. A signal makes the kernel restart the read, which then finds
// the other descriptor. The Go runtime ignores a SIGURG that it did not send.
func (s *Server) wait(ctx context.Context) error {
	t := time.NewTicker(5 * time.Millisecond)
	defer t.Stop()
	for {
		nudge()
		select {
		case <-s.done:
			return nil
		case <-ctx.Done():
			return fmt.Errorf("close FUSE server: %w", context.Cause(ctx))
		case <-t.C:
		}
	}
}

// nudge sends SIGURG to every thread of this process.
func nudge() {
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return // tried again in a moment
	}
	pid := os.Getpid()
	for _, t := range tasks {
		if tid, err := strconv.Atoi(t.Name()); err == nil {
			// The thread may have ended since.
			_ = unix.Tgkill(pid, tid, unix.SIGURG)
		}
	}
}

// logWriter brings lines of go-fuse's logger to ours. While closing there is only
// noise about the descriptor that was taken away.
type logWriter struct {
	log     *slog.Logger
	closing *atomic.Bool
}

func (w *logWriter) Write(p []byte) (int, error) {
	if !w.closing.Load() {
		w.log.Warn("fuse", "message", string(p))
	}
	return len(p), nil
}
