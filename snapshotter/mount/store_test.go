package mount

import (
	"bufio"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// manager keeps descriptors as systemd does. The real one is in test/systemd.
type manager struct {
	socket string

	mu    sync.Mutex
	files map[string]*os.File
	ready chan bool
}

func newManager(t *testing.T) *manager {
	t.Helper()
	m := &manager{socket: filepath.Join(t.TempDir(), "notify"), files: map[string]*os.File{}, ready: make(chan bool, 10)}
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: m.socket, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close(); m.drop() })
	go m.serve(c)
	return m
}

func (m *manager) serve(c *net.UnixConn) {
	text, rights := make([]byte, 4096), make([]byte, 4096)
	for {
		n, rn, _, _, err := c.ReadMsgUnix(text, rights)
		if err != nil {
			return
		}
		vars := map[string]string{}
		for line := range strings.SplitSeq(string(text[:n]), "\n") {
			k, v, _ := strings.Cut(line, "=")
			vars[k] = v
		}
		m.mu.Lock()
		switch {
		case vars["READY"] == "1":
			m.ready <- true
		case vars["FDSTOREREMOVE"] == "1":
			if f := m.files[vars["FDNAME"]]; f != nil {
				_ = f.Close()
				delete(m.files, vars["FDNAME"])
			}
		case vars["FDSTORE"] == "1":
			messages, _ := syscall.ParseSocketControlMessage(rights[:rn])
			fds, err := syscall.ParseUnixRights(&messages[0])
			if err == nil && len(fds) == 1 {
				m.files[vars["FDNAME"]] = os.NewFile(uintptr(fds[0]), vars["FDNAME"])
			}
		}
		m.mu.Unlock()
	}
}

func (m *manager) drop() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, f := range m.files {
		_ = f.Close()
	}
	clear(m.files)
}

// copies are those of what is stored: the new holder replaces them while it starts.
func (m *manager) copies(t *testing.T) (names []string, files []*os.File) {
	t.Helper()
	m.mu.Lock()
	defer m.mu.Unlock()
	for n, f := range m.files {
		fd, err := unix.Dup(int(f.Fd()))
		if err != nil {
			t.Fatal(err)
		}
		names, files = append(names, n), append(files, os.NewFile(uintptr(fd), n))
	}
	return names, files
}

// start starts a holder as systemd does, with what is stored.
func (m *manager) start(t *testing.T, root string) *held {
	t.Helper()
	h := &held{root: root, socket: filepath.Join(root, "run", "sock"), cmd: helper(t.Context(), "hold", root, "daemon")}
	names, files := m.copies(t)
	h.cmd.ExtraFiles = files
	defer func() {
		for _, f := range files {
			_ = f.Close()
		}
	}()
	h.cmd.Env = append(h.cmd.Env, "NOTIFY_SOCKET="+m.socket, storeEnv+"=1")
	if len(names) > 0 {
		// The pid is known only to the process: a shell puts it in and becomes it.
		h.cmd.Env = append(h.cmd.Env, fmt.Sprintf("LISTEN_FDS=%d", len(names)), "LISTEN_FDNAMES="+strings.Join(names, ":"))
		self, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		h.cmd.Path, h.cmd.Args = "/bin/sh", []string{"sh", "-c", "LISTEN_PID=$$ exec " + self}
	}
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
	select {
	case <-m.ready:
	case <-time.After(10 * time.Second):
		t.Fatal("the manager is not told of readiness")
	}
	return h
}

// TestContainersDoNotNoticeNewHolders kills and restarts both processes while
// programs read: what the service manager keeps is enough.
func TestContainersDoNotNoticeNewHolders(t *testing.T) {
	needRoot(t)
	root := t.TempDir()
	guard(t, root, filepath.Join(root, "blobs"))
	m := newManager(t)
	h := m.start(t, root)
	more, stop := readers(filepath.Join(root, "root"))
	for _, sig := range []syscall.Signal{unix.SIGKILL, unix.SIGTERM, unix.SIGKILL} {
		more(10)
		daemon := ask(t, h.socket)
		if err := h.cmd.Process.Signal(sig); err != nil {
			t.Fatal(err)
		}
		err := h.cmd.Wait()
		if (err == nil) != (sig == unix.SIGTERM) {
			t.Errorf("after %v the holder ended with %v", sig, err)
		}
		if err := unix.Kill(daemon, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) { // as systemd does
			t.Fatal(err)
		}
		h = m.start(t, root)
		if got := ask(t, h.socket); got == daemon {
			t.Errorf("daemon %d serves still", got)
		}
	}
	more(10)
	if err := stop(); err != nil {
		t.Error(err)
	}
	if err := h.cmd.Process.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := h.cmd.Wait(); err != nil {
		t.Errorf("holder: %v", err)
	}
	if left, err := Below(root); err != nil || len(left) == 0 {
		t.Errorf("the end of the holder took the mounts away: %v, %v", left, err)
	}
	if err := Clear(root, slog.New(slog.DiscardHandler)); err == nil {
		t.Error("mounts were taken away from under those who have the lock")
	}
	m.drop() // the service was stopped
	if err := Clear(root, slog.New(slog.DiscardHandler)); err != nil {
		t.Error(err)
	}
	if left, err := Below(root); err != nil || len(left) > 0 {
		t.Errorf("left are %v, %v", left, err)
	}
}

func TestStoreOfOthersIsIgnored(t *testing.T) {
	t.Setenv("LISTEN_PID", "1")
	t.Setenv("LISTEN_FDS", "3")
	t.Setenv("LISTEN_FDNAMES", "a:b:c")
	if got := inheritedStore(); got != nil {
		t.Errorf("took %v", got)
	}
	if slices.ContainsFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "LISTEN_") }) {
		t.Error("what is started from here inherits it")
	}
}
