package mount

import (
	"bufio"
	"context"
	"fmt"
	"net"
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

// held is a running holder.
type held struct {
	root, socket string
	cmd          *exec.Cmd
}

// hold starts a holder and waits until its daemon is ready.
func hold(t testing.TB, root, daemon string) *held {
	t.Helper()
	needRoot(t)
	h := &held{root: root, socket: filepath.Join(root, "run", "sock"), cmd: helper(t.Context(), "hold", root, daemon)}
	guard(t, root, filepath.Join(root, "blobs"))
	out, err := h.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := h.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
		t.Fatalf("holder: %q, %v, %v", line, err, h.cmd.Wait())
	}
	return h
}

// end sends SIGTERM and checks that nothing is left.
func (h *held) end(t testing.TB) {
	t.Helper()
	daemon := h.daemon(t)
	if err := h.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := h.cmd.Wait(); err != nil {
		t.Errorf("holder: %v", err)
	}
	if err := unix.Kill(daemon, 0); err == nil {
		t.Errorf("daemon %d lives", daemon)
	}
	if left, err := Below(h.root); err != nil || len(left) != 0 {
		t.Errorf("mounts left: %v, %v", left, err)
	}
	if _, err := os.Lstat(h.socket); !os.IsNotExist(err) {
		t.Errorf("socket left: %v", err)
	}
}

// daemon is the pid that the lock file names.
func (h *held) daemon(t testing.TB) (pid int) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(h.root, "lock"))
	if err != nil {
		t.Fatal(err)
	}
	var holder int
	if _, err := fmt.Sscan(string(b), &holder, &pid); err != nil {
		t.Fatalf("lock file %q: %v", b, err)
	}
	return pid
}

// readers reads cold pages with several threads; stop ends them and reports. more
// waits until a number of reads more were answered.
func readers(dir string) (more func(int64), stop func() error) {
	var ended atomic.Bool
	var reads atomic.Int64
	g := new(errgroup.Group)
	for i := range 6 {
		g.Go(func() error {
			return checkRandom(dir, 2, uint64(i), func(int) bool { reads.Add(1); return ended.Load() })
		})
	}
	more = func(n int64) {
		for at := reads.Load(); reads.Load() < at+n; {
			time.Sleep(time.Millisecond)
		}
	}
	return more, func() error { ended.Store(true); return g.Wait() }
}

func TestKilledServersAreNotNoticed(t *testing.T) {
	needRoot(t)
	root := t.TempDir()
	blobs := filepath.Join(root, "blobs")
	dev, err := blobfs.Connect(blobs)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = dev.Close() }) // only shared with helpers
	guard(t, root, blobs)
	start := func() *exec.Cmd {
		// t.Context() ends before the cleanups that need a server.
		cmd := helper(context.Background(), "serve", blobs)
		cmd.ExtraFiles = []*os.File{dev}
		out, err := cmd.StdoutPipe()
		if err == nil {
			err = cmd.Start()
		}
		if err != nil {
			t.Fatal(err)
		}
		if line, err := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
			t.Fatalf("server: %q, %v", line, err)
		}
		return cmd
	}
	server := start()
	end := func() {
		if err := server.Process.Kill(); err != nil {
			t.Error(err)
		}
		_ = server.Wait() // killed
	}
	t.Cleanup(func() { end() }) // after unmounting, which waits for pages under way
	more, stop := readers(mounted(t, &EROFS{}, root, blobs, 2))
	for range 20 {
		more(10)
		end()
		server = start()
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
}

func TestContainersDoNotNoticeNewDaemons(t *testing.T) {
	h := hold(t, t.TempDir(), "daemon")
	more, stop := readers(filepath.Join(h.root, "root"))
	// The socket answers in between, from one daemon after the other.
	for _, sig := range []syscall.Signal{unix.SIGKILL, unix.SIGHUP, unix.SIGKILL, unix.SIGKILL, unix.SIGHUP, unix.SIGHUP} {
		pid := ask(t, h.socket)
		more(10)
		to := pid
		if sig == unix.SIGHUP {
			to = h.cmd.Process.Pid
		}
		if err := unix.Kill(to, sig); err != nil {
			t.Fatal(err)
		}
		for next := pid; next == pid; next = ask(t, h.socket) {
			time.Sleep(time.Millisecond)
		}
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
	h.end(t)
}

func TestSecondInstanceIsRefused(t *testing.T) {
	h := hold(t, t.TempDir(), "daemon")
	second := func() string {
		var said strings.Builder
		cmd := helper(t.Context(), "hold", h.root, "daemon")
		cmd.Stderr = &said
		if err := cmd.Run(); err == nil {
			t.Error("two instances run")
		}
		return said.String()
	}
	if said, want := second(), fmt.Sprintf("already running as pid %d", h.cmd.Process.Pid); !strings.Contains(said, want) {
		t.Errorf("said %q, want %q", said, want)
	}
	// The daemon survives its holder, and is seen.
	daemon := ask(t, h.socket)
	if err := h.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = h.cmd.Wait() // killed
	if said, want := second(), fmt.Sprintf("daemon, pid %d, lives", daemon); !strings.Contains(said, want) {
		t.Errorf("said %q, want %q", said, want)
	}
	if err := checkCold(filepath.Join(h.root, "root"), 1, 77, 9999); err != nil {
		t.Errorf("without a holder: %v", err)
	}
	if err := unix.Kill(daemon, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	// What they left is taken away by the next holder, the stale socket included.
	for range 1000 {
		if unix.Kill(daemon, 0) != nil {
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	h = hold(t, h.root, "daemon")
	if err := checkCold(filepath.Join(h.root, "root"), 1, 77, 9999); err != nil {
		t.Error(err)
	}
	if st, err := os.Stat(h.socket); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("socket: %v, %v", st.Mode(), err)
	}
	h.end(t)
}

func TestDeafDaemonIsKilled(t *testing.T) {
	hold(t, t.TempDir(), "deaf").end(t)
}

func TestDaemonThatCannotStart(t *testing.T) {
	needRoot(t)
	root := t.TempDir()
	var said strings.Builder
	cmd := helper(t.Context(), "hold", root, "fail")
	cmd.Stderr = &said
	if err := cmd.Run(); err == nil || !strings.Contains(said.String(), "exit status 1") {
		t.Errorf("%v, %q", err, said.String())
	}
	if left, err := Below(root); err != nil || len(left) != 0 {
		t.Errorf("mounts left: %v, %v", left, err)
	}
}

func TestDelay(t *testing.T) {
	for short, want := range map[int]time.Duration{
		0: 0, 1: 0, patience: 0, patience + 1: firstDelay, patience + 2: 2 * firstDelay,
		patience + 6: 32 * firstDelay, patience + 7: lastDelay, 1000: lastDelay,
	} {
		if got := delay(short); got != want {
			t.Errorf("after %d short lives: %v, want %v", short, got, want)
		}
	}
}

func TestListen(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "s")
	l, err := listen(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := listen(path); err == nil || !strings.Contains(err.Error(), "listens") {
		t.Errorf("took a socket that is in use: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if l, err = listen(path); err != nil { // stale now
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := listen(filepath.Join(dir, strings.Repeat("x", 100))); err == nil || !strings.Contains(err.Error(), "too long") {
		t.Errorf("long name: %v", err)
	}
}

func TestNotifySystemd(t *testing.T) {
	name := filepath.Join(t.TempDir(), "notify")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	t.Setenv("NOTIFY_SOCKET", name)
	if err := notifySystemd(); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 64)
	if n, err := l.Read(b); err != nil || string(b[:n]) != "READY=1" {
		t.Errorf("%q, %v", b[:n], err)
	}
}
