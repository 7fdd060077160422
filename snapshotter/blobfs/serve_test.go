package blobfs_test

import (
	"context"
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/apparate/apparate/snapshotter/blobfs"
)

func TestReadsEqualTheStore(t *testing.T) {
	m := newModel()
	dir := serve(t, m)
	for name, size := range m.sizes {
		st, err := os.Stat(filepath.Join(dir, name))
		if err != nil || st.Size() != size || st.Mode() != 0o400 {
			t.Fatalf("stat %s: %v, %v", name, st, err)
		}
		f := open(t, filepath.Join(dir, name))
		for _, off := range []int64{0, 1, size / 2, size - 1, size, size + 1, size + 1<<40} {
			if off < 0 {
				continue
			}
			for _, n := range []int{1, 511, 4096, 1 << 20, 3<<20 + 5} {
				if err := checkRead(f, name, size, off, n); err != nil {
					t.Error(err)
				}
			}
		}
	}
	var g errgroup.Group
	for w := range 8 {
		f := open(t, filepath.Join(dir, "a"))
		g.Go(func() error {
			rnd := rand.New(rand.NewPCG(1, uint64(w)))
			for range 60 {
				if err := checkRead(f, "a", m.sizes["a"], rnd.Int64N(m.sizes["a"]), 1+rnd.IntN(200_000)); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		t.Error(err)
	}
}

func TestNamesAreNotRememberedAsMissing(t *testing.T) {
	m := &model{sizes: map[string]int64{}}
	var mu sync.Mutex
	s := &locked{m, &mu}
	dir := serve(t, s)
	if _, err := os.Stat(filepath.Join(dir, "late")); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("before: %v", err)
	}
	mu.Lock()
	m.sizes["late"] = 10
	mu.Unlock()
	if st, err := os.Stat(filepath.Join(dir, "late")); err != nil || st.Size() != 10 {
		t.Errorf("after: %v, %v", st, err)
	}
	if names, err := os.ReadDir(dir); err != nil || len(names) != 0 {
		t.Errorf("directory: %v, %v", names, err)
	}
	if err := os.WriteFile(filepath.Join(dir, "new"), nil, 0o600); !errors.Is(err, unix.EROFS) {
		t.Errorf("create: %v", err)
	}
	var fst unix.Statfs_t
	if err := unix.Statfs(dir, &fst); err != nil || fst.Bsize != 4096 {
		t.Errorf("statfs: %+v, %v", fst, err)
	}
}

// locked guards a model whose map changes.
type locked struct {
	*model
	mu *sync.Mutex
}

func (l *locked) Lookup(name string) (uint64, int64, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.model.Lookup(name)
}

// stuck is a read hook that waits for release or for its context, and counts.
func stuck(waiting *atomic.Int64, release <-chan struct{}) func(context.Context, uint64, int64) error {
	return func(ctx context.Context, _ uint64, _ int64) error {
		waiting.Add(1)
		defer waiting.Add(-1)
		select {
		case <-release:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// until waits for a condition; the test's own watchdog ends the wait.
func until(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for n := 0; !cond(); n++ {
		if n > 6000 {
			t.Fatalf("never: %s", what)
		}
		_ = unix.Nanosleep(&unix.Timespec{Nsec: 5e6}, nil)
	}
}

func TestStuckReadsDoNotStopTheRest(t *testing.T) {
	m := newModel()
	var waiting atomic.Int64
	release := make(chan struct{})
	wait := stuck(&waiting, release)
	m.read = func(ctx context.Context, id uint64, off int64) error {
		if id == idOf("b") {
			return nil
		}
		return wait(ctx, id, off)
	}
	dir := serve(t, m)
	const readers = 200
	var g errgroup.Group
	for i := range readers {
		f := open(t, filepath.Join(dir, "a"))
		g.Go(func() error { return checkRead(f, "a", m.sizes["a"], int64(i)*4096, 4096) })
	}
	until(t, "all readers stuck", func() bool { return waiting.Load() == readers })
	// Names that the kernel has not asked for yet, so each is a LOOKUP, an OPEN.
	for _, name := range []string{"b", "empty", "one"} {
		f := open(t, filepath.Join(dir, name))
		if st, err := f.Stat(); err != nil || st.Size() != m.sizes[name] {
			t.Errorf("stat %s: %v", name, err)
		}
	}
	if err := checkRead(open(t, filepath.Join(dir, "b")), "b", m.sizes["b"], 5, 1<<20); err != nil {
		t.Error(err)
	}
	close(release)
	if err := g.Wait(); err != nil {
		t.Error(err)
	}
}

func TestHarmlessSignalsDoNotFailReads(t *testing.T) {
	m := newModel()
	var sent, cancelled atomic.Int64
	var tid atomic.Int64
	m.read = func(ctx context.Context, _ uint64, _ int64) error {
		// Each read lives through fifty signals to the thread that waits for it.
		for range 50 {
			if err := unix.Tgkill(os.Getpid(), int(tid.Load()), unix.SIGURG); err != nil {
				return err
			}
			sent.Add(1)
			_ = unix.Nanosleep(&unix.Timespec{Nsec: 5e5}, nil)
		}
		if ctx.Err() != nil {
			cancelled.Add(1)
		}
		return ctx.Err()
	}
	dir := serve(t, m)
	f := open(t, filepath.Join(dir, "a"))
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	tid.Store(int64(unix.Gettid()))
	for i := range 10 {
		if err := checkRead(f, "a", m.sizes["a"], int64(i)*99_999, 4096); err != nil {
			t.Error(err)
		}
	}
	if sent.Load() < 500 || cancelled.Load() != 0 {
		t.Errorf("%d signals, %d reads cancelled", sent.Load(), cancelled.Load())
	}
}

func TestKilledReaderEnds(t *testing.T) {
	m := newModel()
	var waiting, gone atomic.Int64
	wait := stuck(&waiting, nil)
	m.read = func(ctx context.Context, id uint64, off int64) error {
		err := wait(ctx, id, off)
		gone.Add(1)
		return err
	}
	dir := serve(t, m)
	cmd := helper(t, "read", filepath.Join(dir, "a"))
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	until(t, "reader stuck", func() bool { return waiting.Load() > 0 })
	if err := cmd.Process.Signal(syscall.SIGUSR1); err != nil { // handled by the reader
		t.Fatal(err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil {
		t.Error("reader was not killed")
	}
	until(t, "read given up", func() bool { return gone.Load() > 0 && waiting.Load() == 0 })
}

func TestErrorsOfTheStore(t *testing.T) {
	m := newModel()
	var mode atomic.Int64
	m.read = func(context.Context, uint64, int64) error {
		switch mode.Load() {
		case 1:
			return errors.New("registry is down")
		case 2:
			panic("bug")
		case 3:
			return fs.ErrNotExist
		case 4:
			return context.DeadlineExceeded
		}
		return nil
	}
	f := open(t, filepath.Join(serve(t, m), "a"))
	for i, want := range []error{nil, unix.EIO, unix.EIO, unix.ENOENT, unix.EIO, nil} {
		mode.Store(int64(i))
		if err := checkRead(f, "a", m.sizes["a"], 0, 4096); !errors.Is(err, want) {
			t.Errorf("mode %d: %v, want %v", i, err, want)
		}
	}
}

func TestAbortFreesAStuckReader(t *testing.T) {
	m := newModel()
	var waiting atomic.Int64
	m.read = stuck(&waiting, nil)
	dir, dev := connect(t)
	srv, err := blobfs.Serve(dup(t, dev), m, options(dir))
	if err != nil {
		t.Fatal(err)
	}
	f := open(t, filepath.Join(dir, "a"))
	var g errgroup.Group
	g.Go(func() error { return checkRead(f, "a", m.sizes["a"], 0, 4096) })
	until(t, "reader stuck", func() bool { return waiting.Load() > 0 })
	if err := blobfs.Abort(dir); err != nil {
		t.Fatal(err)
	}
	if err := g.Wait(); err == nil {
		t.Error("reader got bytes from nowhere")
	}
	srv.Wait() // the store is told, too
	closeServer(t, srv)
	if err := blobfs.Abort(t.TempDir()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("abort of no mount: %v", err)
	}
}

func TestConnectSaysWhy(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := blobfs.Connect(file); err == nil || !strings.Contains(err.Error(), "mount point") {
		t.Errorf("file as mount point: %v", err)
	}
}
