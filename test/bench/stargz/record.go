package main

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"

	"github.com/containerd/containerd/api/types/runc/options"
	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// recording is one start of an image whose opened files are recorded.
type recording struct {
	image, runc, runcRoot string
	env, args             []string
}

// record starts the image on overlayfs in the host's network, with its output on
// ours, until end ends or the container does. It returns the files that were opened
// or read, in order of their first use. That is what ctr-remote's analyzer does,
// which is in no module of a version: here, too, the kernel's fanotify tells,
// but the mark is on the container's root file system, from before its first
// program is run, so that no mount namespace has to be made beforehand.
func (r recording) record(ctx context.Context, c *containerd.Client, end io.Reader) (_ []string, err error) {
	const snapshotter, id = "overlayfs", "recorded"
	image, err := c.Pull(ctx, r.image, containerd.WithResolver(plain()), containerd.WithPullUnpack, containerd.WithPullSnapshotter(snapshotter))
	if err != nil {
		return nil, fmt.Errorf("pulling %s: %w", r.image, err)
	}
	ctr, err := c.NewContainer(ctx, id, containerd.WithImage(image), containerd.WithSnapshotter(snapshotter), containerd.WithNewSnapshot(id, image),
		containerd.WithRuntime("io.containerd.runc.v2", &options.Options{BinaryName: r.runc, Root: r.runcRoot}),
		containerd.WithNewSpec(oci.WithDefaultPathEnv, oci.WithImageConfigArgs(image, r.args), oci.WithEnv(r.env),
			oci.WithHostNamespace(specs.NetworkNamespace), oci.WithHostHostsFile, oci.WithHostResolvconf))
	if err != nil {
		return nil, fmt.Errorf("creating a container: %w", err)
	}
	clean := context.WithoutCancel(ctx)
	defer func() { err = errors.Join(err, ctr.Delete(clean, containerd.WithSnapshotCleanup)) }()
	task, err := ctr.NewTask(ctx, cio.NewCreator(cio.WithStreams(nil, os.Stdout, os.Stderr)))
	if err != nil {
		return nil, fmt.Errorf("creating a task: %w", err)
	}
	defer func() {
		if _, e := task.Delete(clean, containerd.WithProcessKill); e != nil {
			err = errors.Join(err, fmt.Errorf("removing the task: %w", e))
		}
	}()
	ended, err := task.Wait(ctx)
	if err != nil {
		return nil, err
	}
	// runc has entered the new root already, and waits to run the program.
	watch, err := watchOpens(fmt.Sprintf("/proc/%d/root", task.Pid()))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, watch.close()) }()
	if err := task.Start(ctx); err != nil {
		return nil, fmt.Errorf("starting the container: %w", err)
	}
	told := make(chan struct{})
	go func() {
		_, _ = io.Copy(io.Discard, end)
		close(told)
	}()
	select {
	case <-told:
	case <-ended:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	return watch.opened()
}

// watcher collects the paths of files that are opened on one file system.
type watcher struct {
	events *os.File
	done   chan struct{}

	mu    sync.Mutex
	paths []string
	seen  map[string]bool
	err   error
}

// watchOpens watches the file system that dir is on, in whatever mount namespace
// and at whatever place it is used.
func watchOpens(dir string) (*watcher, error) {
	const closeOnExec, kind = unix.FAN_CLOEXEC, unix.FAN_CLASS_NOTIF | unix.FAN_UNLIMITED_QUEUE | unix.FAN_NONBLOCK
	fd, err := unix.FanotifyInit(closeOnExec|kind, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_LARGEFILE)
	if err != nil {
		return nil, fmt.Errorf("fanotify: %w", err)
	}
	w := &watcher{events: os.NewFile(uintptr(fd), "fanotify"), done: make(chan struct{}), seen: map[string]bool{}}
	if err := unix.FanotifyMark(fd, unix.FAN_MARK_ADD|unix.FAN_MARK_FILESYSTEM, unix.FAN_OPEN|unix.FAN_ACCESS, unix.AT_FDCWD, dir); err != nil {
		return nil, errors.Join(fmt.Errorf("watching %s: %w", dir, err), w.events.Close())
	}
	go func() {
		defer close(w.done)
		err := w.read()
		if err != nil && !errors.Is(err, os.ErrClosed) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.err = err
		}
	}()
	return w, nil
}

// read takes events until the file is closed. Each carries an open file, whose path
// is, through /proc, that from the root of the mount namespace where it was opened.
func (w *watcher) read() error {
	r := bufio.NewReader(w.events)
	for {
		var e unix.FanotifyEventMetadata
		if err := binary.Read(r, binary.NativeEndian, &e); err != nil {
			return err
		}
		if e.Vers != unix.FANOTIFY_METADATA_VERSION {
			return fmt.Errorf("fanotify speaks version %d", e.Vers)
		}
		if e.Fd < 0 {
			return errors.New("fanotify lost events")
		}
		p, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", e.Fd))
		if err = errors.Join(err, unix.Close(int(e.Fd))); err != nil {
			return err
		}
		w.mu.Lock()
		if !w.seen[p] {
			w.seen[p] = true
			w.paths = append(w.paths, p)
		}
		w.mu.Unlock()
	}
}

func (w *watcher) opened() ([]string, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.paths), w.err
}

func (w *watcher) close() error {
	err := w.events.Close()
	<-w.done
	return err
}
