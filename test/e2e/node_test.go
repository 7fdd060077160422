package e2e

import (
	"crypto/sha256"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/apparate/apparate/test/node"
)

// A container's root is an overlay on one EROFS mount, and only what it reads
// is fetched.
func TestLazyStart(t *testing.T) {
	h := start(t, "--background-fetch-delay", "-1s")
	img, files := shell(t, 16, 1<<20)
	ref := h.accelerate(t, "app:v1", img)
	h.pull(t, ref)
	c, err := h.Run(t.Context(), ref, node.Apparate, "one", nil, "/bin/sh", "-c", "echo up; sleep 60")
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
	if got := m.String(); got != "overlay on erofs" || len(m.Lowers) != 1 {
		t.Errorf("root is %s with lowers %v, want one overlay on erofs", got, m.Lowers)
	}
	var whole int64
	for _, b := range files {
		whole += int64(len(b))
	}
	if got := h.reg.BlobBytes(); got > whole/2 {
		t.Errorf("%d bytes were fetched of an image with %d in files that nobody read", got, whole)
	}
	if err := c.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// Twelve containers at once cost one mount and one fetch of each byte; with the
// image and the containers gone nothing stays mounted.
func TestTwelveContainersShare(t *testing.T) {
	h := start(t, "--background-fetch-delay", "-1s")
	img, files := shell(t, 8, 700_000)
	ref := h.accelerate(t, "app:v1", img)
	h.pull(t, ref)
	want := sums(files)
	var wg sync.WaitGroup
	cs := make([]*node.Container, 12)
	for i := range cs {
		wg.Add(1)
		go func() {
			defer wg.Done()
			id := "c" + strconv.Itoa(i)
			c, err := h.Run(t.Context(), ref, node.Apparate, id, nil, "/bin/sh", "-c", "cd /data && sha256sum * && echo done && sleep 300")
			if err == nil {
				cs[i] = c
				err = c.WaitLine(t.Context(), "done")
			}
			if err != nil {
				t.Errorf("%s: %v", id, err)
				return
			}
			if got := strings.TrimSuffix(c.Output(), "done\n"); got != want {
				t.Errorf("%s read\n%swant\n%s", id, got, want)
			}
		}()
	}
	wg.Wait()
	if m := erofsMounts(t, h.SnapshotterRoot()); len(m) != 1 {
		t.Errorf("twelve containers have %d mounts, want 1: %v", len(m), m)
	}
	if twice := fetchedTwice(h.reg.BlobLines()); len(twice) > 0 {
		t.Errorf("fetched more than once: %v", twice)
	}
	if t.Failed() {
		return
	}
	for _, c := range cs {
		if err := c.Stop(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if err := h.RemoveImage(t.Context(), ref); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the image is unmounted", func() bool { return len(erofsMounts(t, h.SnapshotterRoot())) == 0 })
}

// The daemon is killed twenty times while containers read cold files: every
// read succeeds and every byte is right.
func TestKillWhileReading(t *testing.T) {
	h := start(t, "--background-fetch-delay", "-1s")
	const readers, each = 3, 130
	img, files := shell(t, readers*each, 260_000)
	ref := h.accelerate(t, "app:v1", img)
	h.pull(t, ref)
	var cs []*node.Container
	for i := range readers {
		// Each reads files of its own, with pauses that spread them over all kills.
		script := fmt.Sprintf("cd /data; echo up; i=0; for f in *; do i=$((i+1)); [ $i -gt %d ] && [ $i -le %d ] || continue; sha256sum $f || exit 1; sleep 0.2; done",
			i*each, (i+1)*each)
		c, err := h.Run(t.Context(), ref, node.Apparate, "r"+strconv.Itoa(i), nil, "/bin/sh", "-c", script)
		if err != nil {
			t.Fatal(err)
		}
		if err := c.WaitLine(t.Context(), "up"); err != nil {
			t.Fatal(err)
		}
		cs = append(cs, c)
	}
	for i := range 20 {
		pid, err := h.daemon()
		if err != nil {
			t.Fatalf("kill %d: %v", i, err)
		}
		p, err := os.FindProcess(pid)
		if err == nil {
			err = p.Kill()
		}
		if err != nil {
			t.Fatalf("kill %d: %v", i, err)
		}
		eventually(t, "another daemon serves", func() bool {
			next, err := h.daemon()
			return err == nil && next != pid
		})
		// One that lives for a second is started anew without a pause.
		time.Sleep(1100 * time.Millisecond)
	}
	all := strings.SplitAfter(sums(files), "\n")
	for i, c := range cs {
		wait(t, c)
		if want := "up\n" + strings.Join(all[i*each:(i+1)*each], ""); c.Output() != want {
			t.Errorf("%s read wrong bytes", c.ID)
		}
	}
	// A container that starts afterwards is served as well.
	if out := h.sh(t, ref, "after", "cd /data && sha256sum *"); out != sums(files) {
		t.Error("a container started after the kills read wrong bytes")
	}
}

// sums is what `sha256sum *` prints for files.
func sums(files map[string][]byte) string {
	var names []string
	for n := range files {
		names = append(names, n)
	}
	slices.Sort(names)
	var b strings.Builder
	for _, n := range names {
		fmt.Fprintf(&b, "%x  %s\n", sha256.Sum256(files[n]), n)
	}
	return b.String()
}

// fetchedTwice returns the ranges of blobs that overlap one fetched before.
func fetchedTwice(lines []string) []string {
	type span struct{ lo, hi int64 }
	seen := map[string][]span{}
	var twice []string
	for _, l := range lines {
		f := strings.Fields(l)
		i := slices.IndexFunc(f, func(s string) bool { return strings.HasPrefix(s, "bytes=") })
		if i < 0 {
			continue
		}
		a, b, _ := strings.Cut(strings.TrimPrefix(f[i], "bytes="), "-")
		lo, err1 := strconv.ParseInt(a, 10, 64)
		hi, err2 := strconv.ParseInt(b, 10, 64)
		if err1 != nil || err2 != nil {
			continue
		}
		blob := strings.Join(f[:i], " ")
		for _, s := range seen[blob] {
			if lo <= s.hi && s.lo <= hi {
				twice = append(twice, l)
			}
		}
		seen[blob] = append(seen[blob], span{lo, hi})
	}
	return twice
}
