package e2e

import (
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// status runs `apparate status` for the node's snapshotter.
func (h *host) status(t *testing.T, output string) string {
	t.Helper()
	out, err := run(t, "status", "--status-address", h.statusAddress(), "--output", output)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func (h *host) statusAddress() string {
	return filepath.Join(filepath.Dir(h.SnapshotterSocket()), "status.sock")
}

// TestStatus shows what `apparate status` says of a node that works, also after its
// daemon was killed, and of one that cannot.
func TestStatus(t *testing.T) {
	h := start(t, "--background-fetch-delay", "-1s")
	img, files := shell(t, 2, 300_000)
	ref := h.accelerate(t, "app:v1", img)
	h.pull(t, ref)
	if out := h.sh(t, ref, "reads", "cd /data && sha256sum *"); out != sums(files) {
		t.Errorf("wrong content: %s", out)
	}
	var st struct {
		PID                               int
		DataPath, NotLazy                 string
		Images, Layers                    int
		CacheBytes, FetchedBytes, Unknown int64
		Errors                            []any
	}
	text := h.status(t, "text")
	if err := json.Unmarshal([]byte(h.status(t, "json")), &st); err != nil {
		t.Fatal(err)
	}
	if st.DataPath == "" || st.NotLazy != "" || st.Images != 1 || st.Layers != 2 || st.CacheBytes == 0 || st.FetchedBytes == 0 || len(st.Errors) > 0 {
		t.Errorf("status: %+v", st)
	}
	if !strings.Contains(text, "lazy     yes, by EROFS over FUSE") || !strings.Contains(text, "1 mounted, 2 layers") {
		t.Errorf("status:\n%s", text)
	}
	fi, err := os.Stat(h.statusAddress())
	if err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("the socket: %v, %v", fi.Mode(), err)
	}
	old := st.PID
	if err := syscall.Kill(old, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for st.PID == old {
		out, err := run(t, "status", "--status-address", h.statusAddress(), "--output", "json")
		if err != nil && !strings.Contains(err.Error(), "no snapshotter answers") && !strings.Contains(err.Error(), "asking the snapshotter") {
			t.Fatal(err)
		}
		if err == nil {
			if err := json.Unmarshal([]byte(out), &st); err != nil {
				t.Fatal(err)
			}
		}
	}
	if st.Images != 1 {
		t.Errorf("status of the next daemon: %+v", st)
	}
}

func TestBadStatus(t *testing.T) {
	dir := t.TempDir()
	mute := filepath.Join(dir, "mute.sock")
	l, err := net.Listen("unix", mute)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = c.Write([]byte("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"))
			time.Sleep(10 * time.Millisecond)
			_ = c.Close()
		}
	}()
	for name, c := range map[string]struct {
		args []string
		want string
	}{
		"nobody":  {[]string{"--status-address", filepath.Join(dir, "none.sock")}, "no snapshotter answers"},
		"another": {[]string{"--status-address", mute}, "reading the status"},
		"output":  {[]string{"--output", "xml"}, `--output "xml": use text or json`},
	} {
		out, err := run(t, append([]string{"status"}, c.args...)...)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %q, %v", name, out, err)
		}
	}
}

// TestNodeCheck asks the built program about this machine, with and without a
// containerd.
func TestNodeCheck(t *testing.T) {
	h := start(t)
	args := []string{"node", "check", "--root", t.TempDir(), "--containerd-socket"}
	out, err := run(t, append(args, h.ContainerdSocket())...)
	if err != nil || strings.Contains(out, "failed") {
		t.Errorf("%v:\n%s", err, out)
	}
	out, err = run(t, append(args, h.ContainerdSocket()+"-not", "--min-free", "1TiB", "--output", "json")...)
	if err == nil {
		t.Error("a machine without containerd is well")
	}
	var checks []struct{ Name, State, Advice string }
	if err := json.Unmarshal([]byte(out), &checks); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	bad := map[string]string{}
	for _, c := range checks {
		if c.State == "failed" {
			bad[c.Name] = c.Advice
		}
	}
	if !strings.Contains(bad["containerd"], "--containerd-socket") || !strings.Contains(bad["disk"], "free ") || len(bad) != 2 {
		t.Errorf("failed are %v", bad)
	}
	if out, err := run(t, "node", "chek"); err == nil || !strings.Contains(err.Error(), "unknown command") {
		t.Errorf("%q, %v", out, err)
	}
}
