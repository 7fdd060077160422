package e2e

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/apparate/apparate/test/node"
	"github.com/apparate/apparate/test/registry"
)

// `apparate mount` needs no containerd: it mounts, fetches what is read, says
// what that was, and leaves nothing; a second mount finds it in the cache.
func TestMountCommand(t *testing.T) {
	h := &host{reg: registry.New(t)}
	img, files := shell(t, 8, 1<<20)
	ref := h.accelerate(t, "app:v1", img)
	scratch := t.TempDir()
	dir, cache := filepath.Join(scratch, "mnt"), filepath.Join(scratch, "cache")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for round, end := range []func(*exec.Cmd) error{
		func(c *exec.Cmd) error { return c.Process.Signal(syscall.SIGINT) },
		func(*exec.Cmd) error { return syscall.Unmount(dir, 0) },
	} {
		h.reg.Forget()
		var out bytes.Buffer
		cmd := exec.Command(commands[apparate], "mount", "--cache", cache, ref, dir)
		cmd.Stdout, cmd.Stderr = &out, &out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		mounted := func() bool { _, err := os.Stat(filepath.Join(dir, "data")); return err == nil }
		eventually(t, "the image is mounted", mounted)
		for _, name := range []string{"f001", "f006"} {
			got, err := os.ReadFile(filepath.Join(dir, "data", name))
			if err != nil || !bytes.Equal(got, files[name]) {
				t.Errorf("round %d: %s is wrong: %v", round, name, err)
			}
		}
		if err := end(cmd); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Wait(); err != nil {
			t.Errorf("round %d: %v\n%s", round, err, &out)
		}
		if !strings.Contains(out.String(), "fetched ") {
			t.Errorf("round %d does not say what was fetched: %s", round, &out)
		}
		if got, most := h.reg.BlobBytes(), int64([]int{5 << 20, 0}[round]); got > most {
			t.Errorf("round %d fetched %d bytes, more than %d: %v", round, got, most, h.reg.BlobLines())
		}
		left, err := node.Left(scratch)
		if err != nil || len(left) > 0 {
			t.Errorf("round %d left %v, %v", round, left, err)
		}
	}
}

// mountAndRead mounts ref, reads every file of it, unmounts, and returns what
// the command printed.
func mountAndRead(t *testing.T, ref string, files map[string][]byte) string {
	t.Helper()
	dir := t.TempDir()
	var out bytes.Buffer
	cmd := exec.Command(commands[apparate], "mount", ref, dir)
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	eventually(t, "the image is mounted", func() bool {
		select {
		case err := <-ended:
			t.Fatalf("apparate mount has ended: %v\n%s", err, &out)
		default:
		}
		_, err := os.Stat(filepath.Join(dir, "data"))
		return err == nil
	})
	for name, want := range files {
		got, err := os.ReadFile(filepath.Join(dir, "data", name))
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s is wrong: %v", name, err)
		}
	}
	if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err != nil {
		t.Errorf("apparate mount: %v\n%s", err, &out)
	}
	return out.String()
}
