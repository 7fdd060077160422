package blobfs

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

const (
	// maxWrite is the longest WRITE we negotiate, in bytes: the least there is.
	maxWrite = 4096
	// requestSize is the room for one request; the kernel demands 8 KiB, and room
	// for a WRITE with its headers.
	requestSize = 16 << 10
	// page is where the payload of an answer begins in its buffer, so that it is
	// aligned; the header goes right before it.
	page = 4096
	// usualAnswer is the payload that pooled buffers have room for: a READ of
	// the kernel's usual read-ahead.
	usualAnswer = 128 << 10
	// maxIdle is how many workers wait for requests at most.
	maxIdle = 4
)

// loop moves requests from the kernel to the protocol and answers back. A worker
// handles what it has read itself and makes sure before that somebody else reads
// on, so a request that waits for a network holds up no other.
//
// go-fuse has such a loop. This one is ours for the sake of a daemon that is
// killed: when a thread is killed while the kernel copies a request into memory
// that is not present, the kernel fails the request with EIO instead of keeping it
// for the next daemon. Here requests go to memory that is.
type loop struct {
	dev   *os.File
	conn  syscall.RawConn
	proto *fuse.ProtocolServer
	log   *slog.Logger
	// life is the parent of every read; end ends it, when nobody waits for
	// answers any more.
	life context.Context
	end  context.CancelFunc
	done chan struct{}

	answers sync.Pool // *[]byte of page+usualAnswer
	workers sync.WaitGroup
	mu      sync.Mutex
	idle    int
}

// start starts the first worker.
func (l *loop) start() error {
	conn, err := l.dev.SyscallConn()
	if err != nil {
		return fmt.Errorf("FUSE descriptor: %w", err)
	}
	l.conn, l.done = conn, make(chan struct{})
	l.answers.New = func() any { b := make([]byte, page+usualAnswer); return &b }
	l.idle = 1
	l.workers.Go(l.work)
	go func() {
		l.workers.Wait()
		// The descriptor may keep the connection alive for nobody.
		_ = l.dev.Close()
		close(l.done)
	}()
	return nil
}

// work reads and answers until the connection or the descriptor is closed, or
// enough others are idle. It counts as idle when it begins.
func (l *loop) work() {
	buf, err := present(requestSize)
	if err != nil {
		l.log.Error("no memory for FUSE requests", "error", err)
		l.end()
		return
	}
	defer func() { _ = unix.Munmap(buf) }()
	for {
		n, err := l.read(buf)
		if err != nil {
			// Nobody waits any more, or somebody else will answer.
			l.end()
			if !errors.Is(err, os.ErrClosed) && !errors.Is(err, unix.ENODEV) {
				l.log.Error("read of the FUSE device failed", "error", err)
			}
			return
		}
		l.mu.Lock()
		if l.idle--; l.idle == 0 {
			l.idle++
			l.workers.Go(l.work)
		}
		l.mu.Unlock()
		l.handle(buf[:n])
		l.mu.Lock()
		enough := l.idle >= maxIdle
		if !enough {
			l.idle++
		}
		l.mu.Unlock()
		if enough {
			return
		}
	}
}

// present is memory that has pages, and keeps them as far as we may lock them.
func present(size int) ([]byte, error) {
	b, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE|unix.MAP_POPULATE)
	if err != nil {
		return nil, err
	}
	_ = unix.Mlock(b) // a matter of luck under memory pressure, not of right or wrong
	return b, nil
}

// read waits for one request.
func (l *loop) read(buf []byte) (n int, err error) {
	for {
		cerr := l.conn.Read(func(fd uintptr) bool {
			n, err = unix.Read(int(fd), buf)
			return !errors.Is(err, unix.EAGAIN)
		})
		switch {
		case cerr != nil:
			// Closed here, or by the kernel: the poller reports an aborted
			// connection by itself.
			return 0, os.ErrClosed
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.ENOENT): // withdrawn meanwhile
		case err == nil && n < inHeaderSize:
			return 0, fmt.Errorf("request of %d bytes", n)
		default:
			return n, err
		}
	}
}

// handle answers one request.
func (l *loop) handle(req []byte) {
	size := answerSize(req)
	buf := l.buffer(size)
	// A READ's payload begins at the page, its header ends there.
	out := (*buf)[page-outHeaderSize:]
	if opcode(req) == opRead {
		out = out[:outHeaderSize+size]
	}
	n, code := l.proto.HandleRequest([][]byte{req}, [][]byte{out})
	if !code.Ok() {
		// The library could not even begin; its caller still waits.
		binary.NativeEndian.PutUint32(out[0:], outHeaderSize)
		binary.NativeEndian.PutUint32(out[4:], uint32(-int32(code)))
		copy(out[8:16], req[8:16])
		n = outHeaderSize
	}
	if n > 0 {
		l.write(out[:n], req)
	}
	if len(*buf) == page+usualAnswer {
		l.answers.Put(buf)
	}
}

// answerSize is how long the payload of an answer may be.
func answerSize(req []byte) int {
	if opcode(req) == opRead && len(req) >= inHeaderSize+readSize+4 {
		return int(binary.NativeEndian.Uint32(req[inHeaderSize+readSize:]))
	}
	return usualAnswer - page // lists and attributes
}

func (l *loop) buffer(size int) *[]byte {
	if size > usualAnswer {
		b := make([]byte, page+min(size, 2*maxRead))
		return &b
	}
	return l.answers.Get().(*[]byte)
}

// write gives an answer to the kernel. Control, unlike File.Write, lets answers be
// copied on all processors at once.
func (l *loop) write(answer, req []byte) {
	var err error
	cerr := l.conn.Control(func(fd uintptr) {
		for {
			_, err = unix.Write(int(fd), answer)
			if !errors.Is(err, unix.EINTR) {
				return
			}
		}
	})
	// ENOENT: the request was withdrawn. A closed descriptor: the next daemon's.
	if cerr == nil && err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENODEV) {
		l.log.Warn("FUSE answer was refused", "opcode", opcode(req), "error", err)
	}
}
