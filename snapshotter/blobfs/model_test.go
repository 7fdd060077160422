package blobfs_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/apparate/apparate/snapshotter/blobfs"
)

// model is a Store whose bytes follow from id and offset, so that every process
// knows them.
type model struct {
	sizes map[string]int64
	// read, if set, runs before the bytes are given; its error is the answer.
	read func(ctx context.Context, id uint64, off int64) error
	// size, if set, runs before a size is given.
	size func(id uint64)
}

func newModel() *model {
	return &model{sizes: map[string]int64{"a": 9<<20 + 777, "b": 3<<20 + 1, "empty": 0, "one": 1}}
}

// idOf is the fixed id of a name.
func idOf(name string) uint64 {
	id := uint64(14695981039346656037)
	for _, c := range []byte(name) {
		id = (id ^ uint64(c)) * 1099511628211
	}
	return id | 2
}

func (m *model) Lookup(name string) (uint64, int64, bool) {
	size, ok := m.sizes[name]
	return idOf(name), size, ok
}

func (m *model) Size(id uint64) (int64, bool) {
	if m.size != nil {
		m.size(id)
	}
	for name, size := range m.sizes {
		if idOf(name) == id {
			return size, true
		}
	}
	return 0, false
}

func (m *model) ReadAt(ctx context.Context, id uint64, p []byte, off int64) (int, error) {
	if m.read != nil {
		if err := m.read(ctx, id, off); err != nil {
			return 0, err
		}
	}
	content(id, p, off)
	return len(p), nil
}

// content is the truth about a blob.
func content(id uint64, p []byte, off int64) {
	truth := pattern()
	for at := off + int64(id%997)*1009; len(p) > 0; {
		n := copy(p, truth[at%int64(len(truth)):])
		p, at = p[n:], at+int64(n)
	}
}

// pattern repeats in contents; its length is a prime, so that bytes that went
// astray by any usual distance show.
var pattern = sync.OnceValue(func() []byte {
	b := make([]byte, 1048573)
	rnd := rand.NewChaCha8([32]byte{1})
	_, _ = rnd.Read(b) // never fails
	return b
})

// checkRead reads n bytes at off and compares them.
func checkRead(f *os.File, name string, size, off int64, n int) error {
	got := make([]byte, n)
	k, err := f.ReadAt(got, off)
	want := max(0, min(int64(n), size-off))
	if err != nil && (!errors.Is(err, io.EOF) || int64(k) != want) {
		return fmt.Errorf("%s [%d+%d): %w", name, off, n, err)
	}
	if int64(k) != want {
		return fmt.Errorf("%s [%d+%d): %d bytes, want %d", name, off, n, k, want)
	}
	truth := make([]byte, k)
	content(idOf(name), truth, off)
	if !bytes.Equal(got[:k], truth) {
		return fmt.Errorf("%s [%d+%d): wrong bytes", name, off, n)
	}
	return nil
}

// watchdogAfter is when a test that hangs loses its FUSE connection.
const watchdogAfter = 30 * time.Second

// connect mounts a connection that cannot outlive the test.
func connect(t testing.TB) (dir string, dev *os.File) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("needs root: it mounts FUSE")
	}
	dir = filepath.Join(t.TempDir(), "blobs")
	dev, err := blobfs.Connect(dir)
	if err != nil {
		t.Fatal(err)
	}
	dog := time.AfterFunc(watchdogAfter, func() {
		t.Errorf("hung; aborting the connection: %v", blobfs.Abort(dir))
	})
	t.Cleanup(func() {
		dog.Stop()
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount: %v", err)
		}
		_ = dev.Close() // closed by the server where there is one
	})
	return dir, dev
}

func options(dir string) blobfs.Options {
	return blobfs.Options{Dir: dir, StateFile: filepath.Join(filepath.Dir(dir), "fuse.json")}
}

// dup gives Serve a descriptor of its own, as a holder does.
func dup(t testing.TB, f *os.File) *os.File {
	t.Helper()
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		t.Fatal(err)
	}
	return os.NewFile(uintptr(fd), f.Name())
}

// serve serves a store in this process until the test ends.
func serve(t testing.TB, s blobfs.Store) (dir string) {
	t.Helper()
	dir, dev := connect(t)
	srv, err := blobfs.Serve(dup(t, dev), s, options(dir))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeServer(t, srv) })
	return dir
}

func closeServer(t testing.TB, srv *blobfs.Server) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := srv.Close(ctx); err != nil {
		t.Error(err)
	}
}

func open(t testing.TB, path string) *os.File {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}
