// Package blobfs is the one FUSE file system of a node: every lazily loaded
// layer is one file in its flat root directory, and EROFS mounts use these files
// as data devices.
//
// # Why so little of a file system
//
// Names, attributes and directories of images live in EROFS, so the only request
// that matters here is READ. LOOKUP, GETATTR and OPEN of a blob are answered from
// memory at once: while the kernel mounts an EROFS, a request that waits for a
// network would leave a half-born superblock, on which sync(2) of the whole
// machine waits. Files are opened with FOPEN_DIRECT_IO, because EROFS caches what
// it reads; a second copy of each page in the FUSE inode would only cost memory.
//
// # Who owns the connection
//
// [Connect] mounts and returns the descriptor of /dev/fuse. The connection lives
// as long as any process has that descriptor open. A holder keeps it, so the
// daemon that calls [Serve] may die at any moment: readers wait, the next daemon
// calls Serve on the same descriptor, the kernel is asked to send every
// unanswered request again (FUSE_NOTIFY_RESEND, Linux 6.9), and no reader notices.
// Node ids are therefore chosen by the [Store] from the content, never counted.
//
// # Interrupts
//
// When the thread that waits for a read gets any signal at all, also one that it
// handles and forgets, such as SIGCHLD or the Go runtime's preemption, or when its
// cgroup is frozen, the kernel sends FUSE_INTERRUPT. Answering EINTR would fail a
// page for no reason, and what fails a page of EROFS is EIO or SIGBUS to the
// program. So a read is given up only when its thread is being killed; see
// interrupt.go. (Linux 6.18 reads for EROFS in the background, where nobody
// interrupts and a killed program does not wait for the end.)
package blobfs

import (
	"context"
	"errors"
	"io/fs"
	"syscall"
)

// RootID is the node id of the root directory; no blob may have it.
const RootID = 1

// Store is what the file system shows. All methods may be called in parallel.
//
// Lookup and Size answer from memory: they never wait for a network or a lock
// that is held over one. Ids are derived from content, so that they are the same
// after a restart; they are never 0, RootID or math.MaxUint64.
type Store interface {
	// Lookup finds a blob by its name in the root directory: its id and its length
	// in bytes.
	Lookup(name string) (id uint64, size int64, ok bool)
	// Size is the length in bytes of blob id; ok is false when there is none. A
	// blob's length never changes.
	Size(id uint64) (size int64, ok bool)
	// ReadAt fills p with the bytes of blob id from off; [off, off+len(p)) lies
	// within the blob. It returns len(p), or an error: fs.ErrNotExist when the blob
	// is gone, ctx.Err() when ctx ended first. Anything else, a short count
	// included, makes the read fail with EIO. p must not be used after it returns.
	ReadAt(ctx context.Context, id uint64, p []byte, off int64) (int, error)
}

// errno is the one border between our errors and the kernel's.
func errno(err error) syscall.Errno {
	switch {
	case err == nil:
		return 0
	case errors.Is(err, context.Canceled):
		return syscall.EINTR
	case errors.Is(err, fs.ErrNotExist):
		return syscall.ENOENT
	default:
		return syscall.EIO
	}
}
