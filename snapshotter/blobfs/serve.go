package blobfs

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// Options of [Serve].
type Options struct {
	// Dir is where the connection is mounted.
	Dir string
	// StateFile is where the settings of the connection are kept for the daemon
	// that takes over; it outlives the daemon, not the boot. Required.
	StateFile string
	// MaxBackground is how many background requests the kernel gives out at a time;
	// 0 means 1024. EROFS reads in the background, so when so many reads wait for a
	// network, all others wait too, also for what is on the disk. Each takes a
	// buffer of 132 KiB meanwhile.
	MaxBackground int
	// Logger gets failed reads and what the FUSE library has to say; nil means
	// slog.Default().
	Logger *slog.Logger
}

// Server answers one FUSE connection.
type Server struct {
	loop    *loop
	resumed bool
}

// Serve answers the connection behind dev, as [Connect] gave it, from s, until the
// file system is unmounted or aborted or [Server.Close] is called. The first daemon
// negotiates with the kernel; a later one takes the connection over from one that
// has ended, and gets what that one left unanswered.
//
// dev then belongs to the server; a holder keeps a descriptor of its own.
func Serve(dev *os.File, s Store, o Options) (*Server, error) {
	if o.MaxBackground == 0 {
		o.MaxBackground = 1024
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
	file, err := pollable(dev)
	if err != nil {
		return nil, err
	}
	l := &loop{dev: file, log: o.Logger}
	l.life, l.end = context.WithCancel(context.Background())
	l.proto = fuse.NewProtocolServer(&rawFS{RawFileSystem: fuse.NewDefaultRawFileSystem(), store: s,
		log: o.Logger, life: l.life, quiet: &limiter{now: time.Now, seen: map[uint64]*silence{}}}, protocol(o))
	fresh, err := enter(int(file.Fd()), l.proto, o.StateFile, now)
	if err == nil {
		err = l.start()
	}
	if err != nil {
		l.end()
		return nil, errors.Join(err, file.Close())
	}
	if fresh {
		refusePoll(o.Dir)
	}
	return &Server{loop: l, resumed: !fresh}, dev.Close()
}

// pollable makes a copy of dev that waits in the Go runtime's poller, so that
// closing it wakes who reads. Non-blocking is a property of the open file, so a
// holder's descriptor becomes non-blocking too; it never reads.
func pollable(dev *os.File) (*os.File, error) {
	fd, err := unix.FcntlInt(dev.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return nil, fmt.Errorf("FUSE descriptor: %w", err)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		return nil, errors.Join(fmt.Errorf("FUSE descriptor: %w", err), unix.Close(fd))
	}
	f := os.NewFile(uintptr(fd), device)
	if err := f.SetDeadline(time.Time{}); err != nil {
		return nil, errors.Join(fmt.Errorf("FUSE descriptor cannot be polled: %w", err), f.Close())
	}
	return f, nil
}

// protocol tells go-fuse what to negotiate.
func protocol(o Options) *fuse.MountOptions {
	logger := o.Logger
	return &fuse.MountOptions{
		MaxWrite:                 maxRead, // becomes the limit of READ, in pages
		MaxBackground:            o.MaxBackground,
		CongestionThreshold:      o.MaxBackground * 3 / 4,
		DisableReadDirPlus:       true,
		ExplicitDataCacheControl: true,
		ExtraCapabilities:        fuse.CAP_ASYNC_DIO | fuse.CAP_HAS_RESEND,
		// Without OPEN there is nobody to ask for direct I/O. Backing files of
		// passthrough belong to a process, so they would not survive it.
		DisabledCapabilities: fuse.CAP_PASSTHROUGH | fuse.CAP_NO_OPEN_SUPPORT,
		Logger:               log.New(logWriter{logger}, "", 0),
		PanicHandler: func(v any) fuse.Status {
			logger.Error("panic in a FUSE request", "panic", v, "stack", string(debug.Stack()))
			return fuse.EIO
		},
	}
}

// enter brings proto and the kernel together: a FUSE_INIT is answered, or the one
// that an earlier daemon answered is played to proto again. Then the kernel is
// asked for what others left unanswered.
func enter(dev int, proto *fuse.ProtocolServer, file string, now state) (fresh bool, err error) {
	first, fresh, err := opening(dev, file, now)
	if err != nil {
		return false, err
	}
	answer := make([]byte, 4096)
	n, code := proto.HandleRequest([][]byte{first}, [][]byte{answer})
	if !code.Ok() || n < outHeaderSize+initMaxWrite+4 || int32(binary.NativeEndian.Uint32(answer[4:])) != 0 {
		return false, fmt.Errorf("FUSE_INIT: kernel speaks another protocol (%d bytes, %v)", n, code)
	}
	if fresh {
		// Nothing is ever written here. With the default every buffer for requests
		// would have to hold a write of 1 MiB.
		binary.NativeEndian.PutUint32(answer[outHeaderSize+initMaxWrite:], maxWrite)
		if _, err := unix.Write(dev, answer[:n]); err != nil {
			return false, fmt.Errorf("answer FUSE_INIT: %w", err)
		}
	}
	if err := resend(dev); err != nil && !errors.Is(err, errNoResend) {
		return false, err
	}
	return fresh, nil
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

// Resumed reports whether the connection was taken over from an earlier daemon.
func (s *Server) Resumed() bool { return s.resumed }

// Wait returns when nothing is served any more: after Close, an unmount or [Abort].
func (s *Server) Wait() { <-s.loop.done }

// Close stops serving, and neither unmounts nor aborts: while another process has
// the connection's descriptor open, readers wait for the next [Serve] there. What
// was in flight is answered or left for it. ctx bounds the wait for a Store that
// does not end its reads; after its error the process must end before anybody
// takes over.
func (s *Server) Close(ctx context.Context) error {
	// Answers no longer reach the kernel, so a read that fails now is repeated.
	err := s.loop.dev.Close()
	if errors.Is(err, os.ErrClosed) {
		err = nil // once more is no error
	}
	s.loop.end()
	select {
	case <-s.loop.done:
		return err
	case <-ctx.Done():
		return errors.Join(err, fmt.Errorf("close FUSE server: %w", context.Cause(ctx)))
	}
}

// logWriter brings lines of go-fuse's logger to ours.
type logWriter struct{ log *slog.Logger }

func (w logWriter) Write(p []byte) (int, error) {
	w.log.Warn("fuse", "message", string(p))
	return len(p), nil
}
