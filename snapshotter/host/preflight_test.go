package host

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/apparate/apparate/test/tools"
)

// containerd starts the real one and returns its socket.
func containerd(t *testing.T) string {
	t.Helper()
	paths, err := tools.Ensure(t.Context(), t.Output(), tools.Containerd)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	short, err := os.MkdirTemp("", "c-") // sockets have short names
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(short) }) // empty but for the socket
	socket := filepath.Join(short, "s")
	config := filepath.Join(dir, "config.toml")
	text := "version = 3\nroot = '" + dir + "/root'\nstate = '" + short + "/state'\n[grpc]\n  address = '" + socket + "'\n[ttrpc]\n  address = '" + socket + "t'\n"
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(paths[tools.Containerd], "--config", config)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(unix.SIGTERM) // still runs
		_ = cmd.Wait()                       // ended by us
	})
	for range 600 {
		if _, err = ContainerdVersion(t.Context(), socket); err == nil {
			return socket
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Fatal(err)
	return ""
}

func find(t *testing.T, checks []Check, name string) Check {
	t.Helper()
	for _, c := range checks {
		if c.Name == name {
			return c
		}
	}
	t.Fatalf("no check %s in %v", name, checks)
	return Check{}
}

// TestPreflight looks at this machine, which can do all.
func TestPreflight(t *testing.T) {
	dir := t.TempDir()
	root := filepath.Join(dir, "not", "there")
	checks := Preflight{Root: root, Socket: containerd(t), MinFree: 1}.Run(t.Context())
	if bad := Failures(checks); len(bad) > 0 {
		t.Errorf("failed: %+v", bad)
	}
	if c := find(t, checks, "containerd"); !strings.HasPrefix(c.Found, "v2.") {
		t.Errorf("%+v", c)
	}
	// Not all mounts of the machine: others come and go with other packages' tests.
	if left, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir)); err != nil || len(left) > 0 {
		t.Errorf("mounts are left: %v, %v", left, err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left are %v, %v", left, err)
	}
}

// TestBadPreflight: each thing that is missing is found, with what to do.
func TestBadPreflight(t *testing.T) {
	dir := t.TempDir()
	memory := filepath.Join(dir, "memory")
	file := filepath.Join(dir, "file")
	if err := os.Mkdir(memory, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", memory, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(memory, 0); err != nil {
			t.Error(err)
		}
	})
	nobody := filepath.Join(dir, "nobody.sock")
	for name, c := range map[string]struct {
		p                   Preflight
		check, found, tells string
	}{
		"no containerd": {Preflight{Root: dir, Socket: nobody}, "containerd", "does not answer", "--containerd-socket"},
		"full disk":     {Preflight{Root: dir, Socket: nobody, MinFree: 1 << 60}, "disk", "GB free", "free "},
		"memory":        {Preflight{Root: memory, Socket: nobody}, "disk", memory, "disk with --root"},
		"EROFS":         {Preflight{Root: memory, Socket: nobody}, "erofs", "probe EROFS", "tmpfs"},
		"file":          {Preflight{Root: file, Socket: nobody}, "disk", "no directory", "--root"},
	} {
		got := find(t, c.p.Run(t.Context()), c.check)
		if got.State != Failed || !strings.Contains(got.Found, c.found) || !strings.Contains(got.Advice, c.tells) {
			t.Errorf("%s: %+v", name, got)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if c := (Preflight{Root: dir, Socket: nobody}).containerd(ctx); c.State != Failed {
		t.Errorf("interrupted: %+v", c)
	}
}

func TestOlder(t *testing.T) {
	for v, want := range map[string]bool{
		"1.4.2": true, "v1.3.9": true, "1.4.3": false, "1.4.13~ds1": false, "v1.6.20": false, "v2.0.0": false,
		"0.9.9": true, "": false, "deadbeef": false, "v2.4.2-k3s1": false,
	} {
		if got := older(v, 1, 4, 3); got != want {
			t.Errorf("older(%q) = %v", v, got)
		}
	}
}
