package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"time"

	"golang.org/x/sys/unix"
)

// DropCaches empties the page cache after the file system of dir was written out,
// and reads the given files back: the programs that every start runs, which a real
// node has in memory.
func DropCaches(ctx context.Context, dir string, files ...string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	// Only clean pages are dropped. syncfs, because sync waits for every file
	// system of the machine.
	if err := errors.Join(unix.Syncfs(int(d.Fd())), d.Close()); err != nil {
		return err
	}
	if err := dropPages(ctx); err != nil {
		return err
	}
	for _, path := range files {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		if _, err := io.Copy(io.Discard, f); err != nil {
			return errors.Join(err, f.Close())
		}
		if err := f.Close(); err != nil {
			return err
		}
	}
	return nil
}

// dropPages tells the kernel to drop its caches, in a process of its own: the
// kernel waits for every superblock, and one that is being mounted from a dead
// FUSE server keeps the writer unkillable. The process is then left behind; its
// waiter ends with it.
func dropPages(ctx context.Context) error {
	const limit = 30 * time.Second
	cmd := exec.Command("sh", "-c", "echo 3 > /proc/sys/vm/drop_caches")
	dropped := make(chan error, 1)
	go func() { dropped <- cmd.Run() }()
	select {
	case err := <-dropped:
		if err != nil {
			return fmt.Errorf("dropping the page cache: %w", err)
		}
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(limit):
		return fmt.Errorf("the page cache could not be dropped within %v: some mount on this machine hangs; "+
			"a FUSE connection with a dead server is ended by writing 1 to its /sys/fs/fuse/connections/N/abort", limit)
	}
}
