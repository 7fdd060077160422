package matrix

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	machine "github.com/apparate/apparate/snapshotter/host"
)

// TestMatrix is the life of an installation on each kind of node, all of them at the
// same time.
func TestMatrix(t *testing.T) {
	c, all := start(t)
	for i, k := range kinds {
		t.Run("containerd "+k.containerd, func(t *testing.T) {
			t.Parallel()
			h := newHost(t, c.Node(i+1), k, all)
			old := h.before()
			was := h.state()
			h.install()
			h.ordinary(old)
			r := h.lazy()
			h.figures(r)
			h.restartContainerd(r)
			h.killDaemon(r)
			h.uninstall(r, was)
			h.again(was)
			old.end()
		})
	}
}

// before is a node as it was: a container runs, and images are there.
func (h *host) before() *box {
	h.t.Helper()
	h.ensure(h.plain)
	h.ensure(h.images.before)
	return h.start("old", h.plain, "sleep", "100000")
}

// install makes the machine a node. Nothing is fetched but what is read.
func (h *host) install() {
	h.t.Helper()
	out := h.run("node", "install", "--background-fetch-delay", "-1s")
	if !strings.Contains(out, "mounts images lazily: EROFS") {
		h.t.Errorf("node install says:\n%s", out)
	}
	h.connect()
	if !h.knows() {
		h.t.Fatal("containerd does not know the snapshotter")
	}
}

// knows says whether containerd knows our snapshotter.
func (h *host) knows() bool {
	h.t.Helper()
	s, err := machine.OpenStore(h.Path(socket))
	h.must(err)
	defer func() { _ = s.Close() }() // a connection
	ok, err := s.Loaded(h.t.Context(), machine.Name)
	h.must(err)
	return ok
}

// ordinary images start as ever, the one that was there before, too.
func (h *host) ordinary(old *box) {
	h.t.Helper()
	if _, err := old.Exec(h.t.Context(), "true"); err != nil {
		h.t.Errorf("the container from before: %v", err)
	}
	if pulled := h.ensure(h.images.before); pulled != h.discard {
		h.t.Errorf("an image from before was pulled again: %t, with layers discarded: %t", pulled, h.discard)
	}
	h.ensure(h.cold)
	for _, image := range []string{h.images.before, h.cold} {
		b := h.start("ordinary", image, "sleep", "100000")
		if kind := b.rootIs(); kind != "overlay over disk" {
			h.t.Errorf("the root of %s is %s", image, kind)
		}
		b.end()
	}
}

// lazy starts an accelerated image, and proves that it was not fetched.
func (h *host) lazy() *reader {
	h.t.Helper()
	began := h.received()
	if !h.ensure(h.fast) {
		h.t.Fatal("nothing was pulled")
	}
	r := h.read("reader")
	if kind := r.rootIs(); kind != "overlay over erofs" {
		h.t.Errorf("the root is %s", kind)
	}
	fetched := h.received() - began
	h.t.Logf("%d of %d bytes were fetched when it had read %d of %d files", fetched, h.coldBytes, r.seen, coldFiles)
	if fetched > h.coldBytes/2 {
		h.t.Errorf("%d of %d bytes were fetched", fetched, h.coldBytes)
	}
	return r
}

// figures are those that kubelet takes decisions from.
func (h *host) figures(r *reader) {
	h.t.Helper()
	ctx := h.t.Context()
	const written = 16 << 20
	_, err := r.Exec(ctx, "dd", "if=/dev/zero", "of=/written", "bs=1M", "count=16")
	h.must(err)
	h.eventually("the figures are right", func() error {
		all, err := h.cri.ImageFs(ctx)
		if err != nil || len(all) != 1 {
			return fmt.Errorf("image file systems: %v, %w", all, err)
		}
		if dir := all[0].GetFsId().GetMountpoint(); dir != root {
			return fmt.Errorf("images are at %s", dir)
		}
		// Of the lazy image what was fetched; of all others everything.
		disk := h.size(root)
		if used := int64(all[0].GetUsedBytes().GetValue()); used < disk/2 || used > disk*3/2 {
			return fmt.Errorf("images take %d bytes of %d", used, disk)
		}
		s, err := r.Stats(ctx)
		if err != nil {
			return err
		}
		if used := s.GetWritableLayer().GetUsedBytes().GetValue(); used < written || used > written*5/4 {
			return fmt.Errorf("the container wrote %d bytes, and has %d", written, used)
		}
		return nil
	})
	r.goesOn("with figures")
}

// size is what a directory takes on its disk.
func (h *host) size(dir string) (sum int64) {
	h.t.Helper()
	var top unix.Stat_t
	h.must(unix.Stat(h.Path(dir), &top))
	err := filepath.WalkDir(h.Path(dir), func(path string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // just now
		}
		var st unix.Stat_t
		if err == nil {
			err = unix.Lstat(path, &st)
		}
		switch {
		case err != nil:
			return err
		case st.Dev != top.Dev && e.IsDir():
			return fs.SkipDir // an image that is mounted
		}
		sum += st.Blocks * 512
		return nil
	})
	h.must(err)
	return sum
}

// restartContainerd while the container reads.
func (h *host) restartContainerd(r *reader) {
	h.t.Helper()
	ctx := h.t.Context()
	for _, signal := range []string{"-TERM", "-KILL"} {
		pid := h.Service("containerd")
		_, err := h.Exec(ctx, "kill", signal, fmt.Sprint(pid))
		h.must(err)
		h.eventually("containerd is another process", func() error {
			if now := h.Service("containerd"); now == 0 || now == pid {
				return fmt.Errorf("process %d", now)
			}
			return nil
		})
		h.connect()
		r.goesOn("after containerd's end by " + signal)
		if s, err := r.Status(ctx); err != nil || s.GetState().String() != "CONTAINER_RUNNING" {
			h.t.Errorf("the container is %v, %v", s.GetState(), err)
		}
	}
	h.another("containerd was restarted")
}

// another container of the lazy image starts.
func (h *host) another(when string) {
	h.t.Helper()
	if h.ensure(h.fast) {
		h.t.Errorf("%s: the image was pulled again", when)
	}
	b := h.start("another", h.fast, "sleep", "100000")
	if kind := b.rootIs(); kind != "overlay over erofs" {
		h.t.Errorf("%s: the root is %s", when, kind)
	}
	if _, err := b.Exec(h.t.Context(), "sh", "-c", "ls /data | tail -n 1 | (cd /data; xargs sha256sum)"); err != nil {
		h.t.Errorf("%s: %v", when, err)
	}
	b.end()
}

// killDaemon kills what serves the container while it reads.
func (h *host) killDaemon(r *reader) {
	h.t.Helper()
	for i := range 3 {
		pid := h.daemon()
		_, err := h.Exec(h.t.Context(), "kill", "-KILL", fmt.Sprint(pid))
		h.must(err)
		h.eventually("another daemon serves", func() error {
			now, err := h.tryDaemon()
			if err == nil && now == pid {
				err = errors.New("the old one answers")
			}
			return err
		})
		r.goesOn(fmt.Sprintf("after the daemon was killed %d times", i+1))
	}
	h.another("the daemon was killed")
}

func (h *host) daemon() int {
	h.t.Helper()
	pid, err := h.tryDaemon()
	h.must(err)
	return pid
}

// tryDaemon asks the daemon for its process.
func (h *host) tryDaemon() (int, error) {
	out, err := h.Exec(h.t.Context(), program, "status", "--output", "json")
	if err != nil {
		return 0, err
	}
	var st struct {
		PID int `json:"pid"`
	}
	if err := json.Unmarshal([]byte(out), &st); err != nil || st.PID == 0 {
		return 0, fmt.Errorf("%s: %w", out, err)
	}
	return st.PID, nil
}

// uninstall while the container reads, which it goes on to do until it is removed.
func (h *host) uninstall(r *reader, was state) {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(h.t.Context(), 5*time.Minute)
	defer cancel()
	var out bytes.Buffer
	cmd := h.Command(ctx, program, "node", "uninstall")
	cmd.Stdout, cmd.Stderr = &out, &out
	h.must(cmd.Start())
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	h.eventually("containerd's configuration is as before", func() error {
		now, err := os.ReadFile(h.Path(config))
		if err == nil && !bytes.Equal(now, was.config) {
			err = errors.New("it is not")
		}
		return err
	})
	h.connect()
	for i := range 3 {
		r.goesOn(fmt.Sprintf("after the uninstallation began, %d", i))
		time.Sleep(time.Second)
	}
	select {
	case err := <-ended:
		h.t.Fatalf("node uninstall ended under a container: %v: %s", err, &out)
	default:
	}
	h.plainly("while the last lazy container runs")
	r.goesOn("when the same image has started the ordinary way")
	r.end()
	if err := <-ended; err != nil {
		h.t.Fatalf("node uninstall: %v: %s", err, &out)
	}
	h.connect()
	h.gone(was)
	h.plainly("after the uninstallation")
}

// plainly starts all images as on any other node.
func (h *host) plainly(when string) {
	h.t.Helper()
	for _, image := range []string{h.fast, h.images.before} {
		h.ensure(image)
		b := h.start("plainly", image, "sleep", "100000")
		if kind := b.rootIs(); kind != "overlay over disk" {
			h.t.Errorf("%s: the root of %s is %s", when, image, kind)
		}
		b.end()
	}
}

// gone says that nothing is left.
func (h *host) gone(was state) {
	h.t.Helper()
	if h.knows() {
		h.t.Error("containerd still knows the snapshotter")
	}
	h.same(was)
	if _, err := os.Stat(h.Path(hostDir)); err == nil {
		h.t.Errorf("%s is left", hostDir)
	}
}

// again installs and uninstalls once more, now with no container in the way: what the
// first installation left in containerd's memory would show here.
func (h *host) again(was state) {
	h.t.Helper()
	h.must(h.cri.RemoveImage(h.t.Context(), h.fast))
	for range 2 {
		h.install()
		if !h.ensure(h.fast) {
			h.t.Error("the lazy image stayed although its snapshots went")
		}
		r := h.read("again")
		if kind := r.rootIs(); kind != "overlay over erofs" {
			h.t.Errorf("the root is %s", kind)
		}
		r.end()
		h.run("node", "uninstall")
		h.connect()
		h.gone(was)
	}
	h.plainly("at the end")
}
