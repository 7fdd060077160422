package e2e

import (
	"errors"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/apparate/apparate/test/node"
	"github.com/apparate/apparate/test/registry"
)

// An image that is all here is given to the kernel as plain files: containers that start
// then need no daemon, neither a killed one nor the next.
func TestLocalImage(t *testing.T) {
	h := start(t, "--background-fetch-delay", "100ms")
	img, files := shell(t, 8, 700_000)
	ref := h.accelerate(t, "app:v1", img)
	h.pull(t, ref)
	first := h.sleeper(t, ref, "first")
	if first.dir != "fs" {
		t.Errorf("the first container's root is %s: is the image all here already?", first.dir)
	}
	h.local(t)
	h.reg.FailEvery(1, registry.NotFound)
	const read = "cd /data && sha256sum *"
	check := func(when string, cs ...sleeper) {
		t.Helper()
		for _, c := range cs {
			if got, err := c.Exec(t.Context(), "/bin/sh", "-c", read); err != nil || string(got) != sums(files) {
				t.Errorf("%s, %s read the wrong bytes: %v\n%s", when, c.ID, err, got)
			}
		}
	}
	beside := h.sleeper(t, ref, "beside")
	if beside.dir != "fs" {
		t.Errorf("a container beside the first one stands on %s: they share no memory", beside.dir)
	}
	check("without a registry", first, beside)
	for _, c := range []sleeper{first, beside} {
		if err := c.Stop(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	second := h.sleeper(t, ref, "second")
	if second.dir != "local" {
		t.Errorf("the second container's root is %s, want the local files", second.dir)
	}

	daemon, err := h.daemon()
	if err != nil {
		t.Fatal(err)
	}
	if err := h.KillSnapshotter(); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(daemon, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "holder and daemon end", func() bool { return errors.Is(syscall.Kill(daemon, 0), syscall.ESRCH) })
	if out, err := exec.Command("sh", "-c", "echo 3 > /proc/sys/vm/drop_caches").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	check("without a daemon", second)
	if err := h.StartSnapshotter(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "containerd has found the next one", func() bool {
		_, err := h.Ctr(t.Context(), "snapshots", "--snapshotter", node.Apparate, "ls")
		return err == nil
	})
	// The next one has taken away what stands on dead files, and believes nothing that lies
	// on the disk: it hashes all of it first.
	third := h.sleeper(t, ref, "third")
	check("with the next daemon", second, third)
	h.local(t)
	if err := third.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	fourth := h.sleeper(t, ref, "fourth")
	if fourth.dir != "local" {
		t.Errorf("the fourth container's root is %s, want the local files", fourth.dir)
	}
	check("from local files again", second, fourth)
	for _, c := range []sleeper{second, fourth} {
		if err := c.Stop(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if err := h.RemoveImage(t.Context(), ref); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the image is unmounted", func() bool { return len(erofsMounts(t, h.SnapshotterRoot())) == 0 })
}

// local waits until the image is mounted from local files.
func (h *host) local(t *testing.T) {
	t.Helper()
	eventually(t, "the image is mounted from local files", func() bool {
		return slices.ContainsFunc(erofsMounts(t, h.SnapshotterRoot()), func(m string) bool { return filepath.Base(m) == "local" })
	})
}

// sleeper is a container that only waits, and on which of an image's mounts it stands.
type sleeper struct {
	*node.Container
	dir string
}

func (h *host) sleeper(t *testing.T, ref, id string) sleeper {
	t.Helper()
	c, err := h.Run(t.Context(), ref, node.Apparate, id, nil, "/bin/sh", "-c", "echo up; sleep 300")
	if err != nil {
		t.Fatal(err)
	}
	if err := c.WaitLine(t.Context(), "up"); err != nil {
		t.Fatal(err)
	}
	m, err := c.RootMount(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if m.String() != "overlay on erofs" || len(m.Lowers) != 1 {
		t.Fatalf("%s stands on %s, %s", id, m, strings.Join(m.Lowers, " "))
	}
	return sleeper{c, filepath.Base(m.Lowers[0])}
}
