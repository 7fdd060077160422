package blobfs_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/apparate/apparate/snapshotter/blobfs"
)

// TestMain lets the test binary be the processes that tests kill.
func TestMain(m *testing.M) {
	switch args := strings.Fields(os.Getenv("BLOBFS_HELPER")); {
	case len(args) == 0:
		os.Exit(m.Run())
	case args[0] == "serve":
		os.Exit(helperServe(args[1]))
	case args[0] == "read":
		os.Exit(helperRead(args[1]))
	default:
		os.Exit(2)
	}
}

// helper is a process that runs one of the cases of TestMain.
func helper(t testing.TB, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe")
	cmd.Env = append(os.Environ(), "BLOBFS_HELPER="+strings.Join(args, " "))
	cmd.Stderr = os.Stderr
	return cmd
}

// helperServe serves descriptor 3, mounted at dir, slowly.
func helperServe(dir string) int {
	m := newModel()
	m.read = func(ctx context.Context, _ uint64, off int64) error {
		time.Sleep(time.Duration(off%7) * time.Millisecond)
		return ctx.Err()
	}
	srv, err := blobfs.Serve(os.NewFile(3, "/dev/fuse"), m, options(dir))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	fmt.Println("ready", srv.Resumed())
	srv.Wait()
	return 0
}

// helperRead reads a file to its end.
func helperRead(path string) int {
	b, err := os.ReadFile(path)
	fmt.Fprintln(os.Stderr, len(b), err)
	return 0
}

// startDaemon starts a helper that serves and waits until it does.
func startDaemon(t testing.TB, dir string, dev *os.File) (cmd *exec.Cmd, resumed bool) {
	t.Helper()
	cmd = helper(t, "serve", dir)
	cmd.ExtraFiles = []*os.File{dev}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatalf("daemon did not start: %v, %v", err, cmd.Wait())
	}
	return cmd, strings.TrimSpace(line) == "ready true"
}

func kill(t testing.TB, cmd *exec.Cmd) {
	t.Helper()
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	var exit *exec.ExitError
	if err := cmd.Wait(); !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Fatalf("daemon ended by itself: %v", err)
	}
}

// readers reads at random until stop and compares every byte.
func readers(t testing.TB, dir string, n int, stop *atomic.Bool, done *atomic.Int64) *errgroup.Group {
	t.Helper()
	g := new(errgroup.Group)
	size := newModel().sizes["a"]
	for w := range n {
		f := open(t, filepath.Join(dir, "a"))
		g.Go(func() error {
			// Closing asks the server, which may end before the test does.
			defer func() { _ = f.Close() }()
			rnd := rand.New(rand.NewPCG(2, uint64(w)))
			for !stop.Load() {
				if err := checkRead(f, "a", size, rnd.Int64N(size), 1+rnd.IntN(200_000)); err != nil {
					return err
				}
				done.Add(1)
			}
			return nil
		})
	}
	return g
}

func TestReadersDoNotNoticeKilledDaemons(t *testing.T) {
	dir, dev := connect(t)
	daemon, resumed := startDaemon(t, dir, dev)
	if resumed {
		t.Error("the first daemon took over from nobody")
	}
	var stop atomic.Bool
	var reads atomic.Int64
	g := readers(t, dir, 8, &stop, &reads)
	for i := range 20 {
		// A few answers first, so that kills fall on reads in flight, not on a start.
		at := reads.Load()
		until(t, "reads go on", func() bool { return reads.Load() >= at+20 })
		kill(t, daemon)
		if daemon, resumed = startDaemon(t, dir, dev); !resumed {
			t.Fatalf("daemon %d did not take over", i)
		}
	}
	at := reads.Load()
	until(t, "reads go on", func() bool { return reads.Load() >= at+20 })
	stop.Store(true)
	if err := g.Wait(); err != nil {
		t.Error(err)
	}
	kill(t, daemon)
}

func TestCloseLeavesReadsToTheNext(t *testing.T) {
	dir, dev := connect(t)
	m := newModel()
	m.read = func(ctx context.Context, _ uint64, off int64) error {
		select {
		case <-ctx.Done():
		case <-time.After(time.Duration(off%5) * time.Millisecond):
		}
		return ctx.Err()
	}
	srv, err := blobfs.Serve(dup(t, dev), m, options(dir))
	if err != nil {
		t.Fatal(err)
	}
	var stop atomic.Bool
	var reads atomic.Int64
	g := readers(t, dir, 8, &stop, &reads)
	for range 30 {
		at := reads.Load()
		until(t, "reads go on", func() bool { return reads.Load() >= at+10 })
		closeServer(t, srv)
		if srv, err = blobfs.Serve(dup(t, dev), m, options(dir)); err != nil || !srv.Resumed() {
			t.Fatalf("take over: %v", err)
		}
	}
	stop.Store(true)
	if err := g.Wait(); err != nil {
		t.Error(err)
	}
	closeServer(t, srv)
	closeServer(t, srv) // once more is no error
}

// TestDeathInTheHandshake leaves INIT read and unanswered, before and after the
// state was saved.
func TestDeathInTheHandshake(t *testing.T) {
	for _, saved := range []bool{false, true} {
		t.Run(fmt.Sprint("saved=", saved), func(t *testing.T) {
			dir, dev := connect(t)
			if saved {
				// A first life that ends within Serve leaves this file.
				old, other := connect(t)
				srv, err := blobfs.Serve(dup(t, other), newModel(), options(old))
				if err != nil {
					t.Fatal(err)
				}
				closeServer(t, srv)
				b, err := os.ReadFile(options(old).StateFile)
				if err != nil {
					t.Fatal(err)
				}
				b = []byte(strings.Replace(string(b), device(t, old), device(t, dir), 1))
				if err := os.WriteFile(options(dir).StateFile, b, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := unix.Read(int(dev.Fd()), make([]byte, 2<<20)); err != nil {
				t.Fatal(err)
			}
			srv, err := blobfs.Serve(dup(t, dev), newModel(), options(dir))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { closeServer(t, srv) })
			if srv.Resumed() {
				t.Error("took over a connection that was never opened")
			}
			if err := checkRead(open(t, filepath.Join(dir, "b")), "b", newModel().sizes["b"], 7, 9999); err != nil {
				t.Error(err)
			}
		})
	}
}

// device is the device number of the mount at dir, as the state names it.
func device(t *testing.T, dir string) string {
	t.Helper()
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range strings.Split(string(b), "\n") {
		if f := strings.Fields(line); len(f) > 4 && f[4] == dir {
			return f[2]
		}
	}
	t.Fatalf("%s is not mounted", dir)
	return ""
}

func TestStateOfAnotherConnection(t *testing.T) {
	dir, dev := connect(t)
	for _, junk := range []string{"", "{", `{"boot":"x","device":"0:1","init":"AAAA"}`} {
		if err := os.WriteFile(options(dir).StateFile, []byte(junk), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	srv, err := blobfs.Serve(dup(t, dev), newModel(), options(dir))
	if err != nil {
		t.Fatal(err)
	}
	if srv.Resumed() {
		t.Error("believed junk")
	}
	// A request is waiting, so the one that comes is not INIT.
	closeServer(t, srv)
	if err := os.Remove(options(dir).StateFile); err != nil {
		t.Fatal(err)
	}
	var g errgroup.Group
	g.Go(func() error { _, err := os.Stat(filepath.Join(dir, "b")); return err })
	if _, err := blobfs.Serve(dup(t, dev), newModel(), options(dir)); err == nil || !strings.Contains(err.Error(), "restart") {
		t.Errorf("open connection without its state: %v", err)
	}
	if err := blobfs.Abort(dir); err != nil {
		t.Fatal(err)
	}
	if err := g.Wait(); err == nil {
		t.Error("answered by nobody")
	}
	if _, err := blobfs.Serve(dup(t, dev), newModel(), options(dir)); err == nil || !strings.Contains(err.Error(), "gone") {
		t.Errorf("dead connection: %v", err)
	}
}

// BenchmarkTakeOver is from the kill of a daemon to the next answered read.
func BenchmarkTakeOver(b *testing.B) {
	dir, dev := connect(b)
	daemon, _ := startDaemon(b, dir, dev)
	b.Cleanup(func() { kill(b, daemon) })
	f := open(b, filepath.Join(dir, "a"))
	for b.Loop() {
		kill(b, daemon)
		daemon, _ = startDaemon(b, dir, dev)
		if err := checkRead(f, "a", newModel().sizes["a"], 0, 4096); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkHandOver is Close and Serve within one process.
func BenchmarkHandOver(b *testing.B) {
	dir, dev := connect(b)
	for b.Loop() {
		srv, err := blobfs.Serve(dup(b, dev), newModel(), options(dir))
		if err != nil {
			b.Fatal(err)
		}
		closeServer(b, srv)
	}
}

func BenchmarkRead128K(b *testing.B) {
	m := &zeros{}
	f := open(b, filepath.Join(serve(b, m), "z"))
	p := make([]byte, 128<<10)
	b.SetBytes(int64(len(p)))
	for b.Loop() {
		if _, err := f.ReadAt(p, 0); err != nil && !errors.Is(err, io.EOF) {
			b.Fatal(err)
		}
	}
}

// zeros costs nothing, so that a benchmark sees the way and not the store.
type zeros struct{}

func (zeros) Lookup(string) (uint64, int64, bool) { return 2, 1 << 30, true }
func (zeros) Size(uint64) (int64, bool)           { return 1 << 30, true }
func (zeros) ReadAt(_ context.Context, _ uint64, p []byte, _ int64) (int, error) {
	return len(p), nil
}
