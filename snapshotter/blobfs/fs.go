package blobfs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"runtime/debug"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// validity is how long the kernel may believe names and attributes, in seconds.
// Both follow from the content, so a year is as good as for ever.
const validity = 365 * 24 * 3600

// rawFS answers the kernel. What it does not define is ENOSYS, which the kernel
// remembers and does not ask again; so GETXATTR, LISTXATTR and STATX cost one
// request a connection.
type rawFS struct {
	fuse.RawFileSystem
	store Store
	log   *slog.Logger
	quiet *limiter
	// life ends when the server stops; reads under way end with it.
	life context.Context
}

func (f *rawFS) String() string { return "apparate" }

// Lookup finds a blob. A name that is not there is not remembered by the kernel:
// the layer may be prepared a moment later.
func (f *rawFS) Lookup(_ <-chan struct{}, h *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	if h.NodeId != RootID {
		return fuse.ENOTDIR
	}
	id, size, ok := f.store.Lookup(name)
	if !ok {
		return fuse.ENOENT
	}
	if id <= RootID || id == math.MaxUint64 { // the last is go-fuse's
		f.log.Error("blob has a reserved node id", "name", name, "id", id)
		return fuse.EIO
	}
	out.NodeId, out.Generation = id, 1
	out.EntryValid, out.AttrValid = validity, validity
	fileAttr(&out.Attr, id, size)
	return fuse.OK
}

// GetAttr answers for the root and for blobs.
func (f *rawFS) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	out.AttrValid = validity
	if in.NodeId == RootID {
		out.Attr = fuse.Attr{Ino: RootID, Mode: syscall.S_IFDIR | 0o700, Nlink: 2, Blksize: 4096}
		return fuse.OK
	}
	size, ok := f.store.Size(in.NodeId)
	if !ok {
		return fuse.ENOENT
	}
	fileAttr(&out.Attr, in.NodeId, size)
	return fuse.OK
}

func fileAttr(a *fuse.Attr, id uint64, size int64) {
	*a = fuse.Attr{Ino: id, Mode: syscall.S_IFREG | 0o400, Nlink: 1, Blksize: 4096,
		Size: uint64(size), Blocks: (uint64(size) + 511) / 512}
}

// Open has nothing to remember: the node id says everything, and a handle would
// be lost with the daemon.
func (f *rawFS) Open(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	if _, ok := f.store.Size(in.NodeId); !ok {
		return fuse.ENOENT
	}
	// There is nothing to flush, and a close that asked could wait for a daemon
	// that is being restarted.
	out.OpenFlags = fuse.FOPEN_DIRECT_IO | fuse.FOPEN_NOFLUSH
	return fuse.OK
}

func (f *rawFS) Release(<-chan struct{}, *fuse.ReleaseIn) {}

// Forget does nothing: ids are not counted.
func (f *rawFS) Forget(uint64, uint64) {}

// OpenDir, ReadDir and ReadDirPlus show an empty directory. Blobs are reached by
// name; a list would have to lock the store for no one's use.
func (f *rawFS) OpenDir(<-chan struct{}, *fuse.OpenIn, *fuse.OpenOut) fuse.Status { return fuse.OK }

func (f *rawFS) ReadDir(<-chan struct{}, *fuse.ReadIn, *fuse.DirEntryList) fuse.Status {
	return fuse.OK
}

func (f *rawFS) ReadDirPlus(<-chan struct{}, *fuse.ReadIn, *fuse.DirEntryList) fuse.Status {
	return fuse.OK
}

func (f *rawFS) ReleaseDir(*fuse.ReleaseIn) {}

// StatFs shows a full file system, as read-only ones do.
func (f *rawFS) StatFs(_ <-chan struct{}, _ *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	out.Bsize, out.Frsize, out.NameLen = 4096, 4096, 255
	return fuse.OK
}

// Read answers one READ. The kernel takes a short answer for the end of the file
// and EROFS fills the rest with zeros, so an answer is short only at the real end.
func (f *rawFS) Read(cancel <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	size, ok := f.store.Size(in.NodeId)
	if !ok {
		return nil, fuse.ENOENT
	}
	// Compared as unsigned: an offset beyond 2^63 is past every end.
	if in.Offset >= uint64(size) {
		return fuse.ReadResultData(nil), fuse.OK
	}
	off := int64(in.Offset)
	p := buf[:min(int64(len(buf)), size-off)]
	tid := in.Pid
	ctx, done := interruptible(f.life, cancel, func() bool { return dying(tid) })
	err := f.fill(ctx, in.NodeId, p, off)
	done()
	if err == nil {
		return filled(len(p)), fuse.OK
	}
	code := errno(err)
	if code == syscall.EIO {
		if n, ok := f.quiet.allow(in.NodeId); ok {
			f.log.Error("read of a blob failed", "id", in.NodeId, "offset", off, "length", len(p),
				"error", err, "unreported", n)
		}
	}
	return nil, fuse.Status(code)
}

// filled is the result of a read whose bytes are already where the answer is
// built.
type filled int

func (n filled) Size() int { return int(n) }
func (filled) Done()       {}

// Bytes serves callers that do not use Readv; buf is what was filled.
func (n filled) Bytes(buf []byte) ([]byte, fuse.Status) { return buf[:n], fuse.OK }

// Readv has nothing left to copy: dst is what was filled.
func (n filled) Readv([][]byte) (int, fuse.Status) { return int(n), fuse.OK }

// fill reads p whole or says why not. A panic of the store is one failed read,
// not a dead daemon with every container of the node behind it.
func (f *rawFS) fill(ctx context.Context, id uint64, p []byte, off int64) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = errors.Join(err, fmt.Errorf("panic: %v\n%s", r, debug.Stack()))
		}
	}()
	n, err := f.store.ReadAt(ctx, id, p, off)
	if n == len(p) && (err == nil || errors.Is(err, io.EOF)) {
		return nil
	}
	if err == nil {
		return fmt.Errorf("%w: store gave %d of %d bytes", io.ErrUnexpectedEOF, n, len(p))
	}
	return err
}
