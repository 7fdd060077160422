package mount

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/apparate/apparate/snapshotter/blobfs"
)

// localDevices writes n devices as plain files.
func localDevices(t testing.TB, n int) (dir string) {
	t.Helper()
	dir = t.TempDir()
	b := make([]byte, blobSize)
	for i, name := range deviceNames(dir, n) {
		content(i, b, 0)
		if err := os.WriteFile(name, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestMountLocalDevices(t *testing.T) {
	needRoot(t)
	devices := localDevices(t, 3)
	for _, old := range []bool{false, true} {
		t.Run(fmt.Sprint("old=", old), func(t *testing.T) {
			e := &EROFS{old: old}
			before := readAheads()
			dir := mounted(t, e, t.TempDir(), devices, 3)
			if err := checkRandom(dir, 3, 1, times(30)); err != nil {
				t.Error(err)
			}
			if err := e.Check(dir); err != nil {
				t.Error(err)
			}
			for name := range readAheads() {
				if b, err := os.ReadFile(name); !before[name] && (err != nil || strings.TrimSpace(string(b)) != readAheadKiB) {
					t.Errorf("%s: %q, %v", name, b, err)
				}
			}
			var st unix.Statfs_t
			if err := unix.Statfs(dir, &st); err != nil || st.Flags&unix.ST_RDONLY == 0 || st.Flags&(unix.ST_NOSUID|unix.ST_NODEV|unix.ST_NOEXEC) != 0 {
				t.Errorf("flags %#x, %v", st.Flags, err)
			}
			for range 2 {
				if err := e.Unmount(dir); err != nil {
					t.Error(err)
				}
			}
			if err := e.Check(dir); err == nil || !strings.Contains(err.Error(), "not mounted") {
				t.Errorf("check: %v", err)
			}
		})
	}
	if err := (&EROFS{}).Check("/proc"); err == nil || !strings.Contains(err.Error(), "not with EROFS") {
		t.Errorf("check of another file system: %v", err)
	}
}

func TestManyDevices(t *testing.T) {
	needRoot(t)
	const n = 300
	// The same file stands for all: only the names count.
	one := filepath.Join(localDevices(t, 1), "0")
	img, err := image(t.TempDir(), n)
	if err != nil {
		t.Fatal(err)
	}
	var devices []string
	for range n {
		devices = append(devices, one)
	}
	dir := t.TempDir()
	e := &EROFS{}
	if err := e.Mount(t.Context(), img, devices, dir); err != nil {
		t.Fatal(err)
	}
	if err := checkCold(dir, 0, 12345, 99999); err != nil {
		t.Error(err)
	}
	if names, err := os.ReadDir(dir); err != nil || len(names) != n {
		t.Errorf("%d names, %v", len(names), err)
	}
	if err := e.Unmount(dir); err != nil {
		t.Fatal(err)
	}
	e.old = true
	if err := e.Mount(t.Context(), img, devices, dir); err == nil || !strings.Contains(err.Error(), "too many") {
		t.Errorf("mount(2) took %d devices: %v", n, err)
	}
}

func TestLongNames(t *testing.T) {
	needRoot(t)
	root := filepath.Join(t.TempDir(), strings.Repeat("a", 200), strings.Repeat("comma,space ", 10))
	if err := os.MkdirAll(root, 0o700); err != nil {
		t.Fatal(err)
	}
	devices := filepath.Join(root, "devices")
	if err := os.Rename(localDevices(t, 1), devices); err != nil {
		t.Fatal(err)
	}
	if err := checkCold(mounted(t, &EROFS{}, root, devices, 1), 0, 1, 9999); err != nil {
		t.Error(err)
	}
}

func TestMountErrors(t *testing.T) {
	needRoot(t)
	devices, root := localDevices(t, 2), t.TempDir()
	img, err := image(root, 2)
	if err != nil {
		t.Fatal(err)
	}
	junk := filepath.Join(root, "junk")
	if err := os.WriteFile(junk, make([]byte, 8192), 0o600); err != nil {
		t.Fatal(err)
	}
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	names := deviceNames(devices, 2)
	for _, c := range []struct {
		name    string
		ctx     context.Context
		image   string
		devices []string
		dir     string
		want    error
	}{
		{"no image", t.Context(), img + "x", names, root, fs.ErrNotExist},
		{"no device", t.Context(), img, []string{names[0], names[1] + "x"}, root, fs.ErrNotExist},
		{"no directory", t.Context(), img, names, filepath.Join(root, "none"), fs.ErrNotExist},
		{"not EROFS", t.Context(), junk, nil, root, unix.EINVAL},
		{"device missing", t.Context(), img, names[:1], root, unix.EINVAL},
		{"cancelled", cancelled, img, names, root, context.Canceled},
	} {
		for _, old := range []bool{false, true} {
			if err := (&EROFS{old: old}).Mount(c.ctx, c.image, c.devices, c.dir); !errors.Is(err, c.want) {
				t.Errorf("%s, old=%v: %v", c.name, old, err)
			}
		}
	}
	for _, e := range []error{unix.ENODEV, unix.ENOTBLK, unix.EPERM} {
		if got := explain(e); !errors.Is(got, e) || got.Error() == e.Error() {
			t.Errorf("no way out of %v", e)
		}
	}
	if left, err := Below(root); err != nil || len(left) != 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

func TestColdReadsOverFUSE(t *testing.T) {
	root := t.TempDir()
	devices := serveBlobs(t, root, &blobs{})
	dir := mounted(t, &EROFS{}, root, devices, 3)
	var g errgroup.Group
	for i := range 6 {
		g.Go(func() error { return checkRandom(dir, 3, uint64(i), times(40)) })
	}
	if err := g.Wait(); err != nil {
		t.Error(err)
	}
	// Containers read as anybody; the FUSE mount itself is root's alone.
	if err := errors.Join(os.Chmod(root, 0o755), os.Chmod(filepath.Dir(root), 0o755)); err != nil {
		t.Fatal(err)
	}
	cmd := helper(t.Context(), "cat", dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	if err := cmd.Run(); err != nil {
		t.Errorf("as nobody: %v", err)
	}
}

// TestSignalsDoNotFailPages: a FUSE read that fails would be EIO here, whatever
// its error was.
func TestSignalsDoNotFailPages(t *testing.T) {
	root := t.TempDir()
	var tid, sent atomic.Int64
	s := &blobs{read: func(ctx context.Context, _ int, _ int64) error {
		for range 20 {
			if id := int(tid.Load()); id != 0 {
				sent.Add(1)
				if err := unix.Tgkill(os.Getpid(), id, unix.SIGURG); err != nil {
					return err
				}
			}
			time.Sleep(time.Millisecond)
		}
		return ctx.Err()
	}}
	dir := mounted(t, &EROFS{}, root, serveBlobs(t, root, s), 1)
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	tid.Store(int64(unix.Gettid()))
	for i := range 10 {
		if err := checkCold(dir, 0, int64(i)*400_000, 4096); err != nil {
			t.Error(err)
		}
	}
	if sent.Load() == 0 {
		t.Error("no signal was sent")
	}
}

// TestStuckPagesDoNotStopTheRest: the kernel reads for EROFS in the background, and
// of such requests it gives the daemon no more than was agreed.
func TestStuckPagesDoNotStopTheRest(t *testing.T) {
	const readers = 200
	root := t.TempDir()
	var waiting atomic.Int64
	release := make(chan struct{})
	s := &blobs{read: func(ctx context.Context, device int, _ int64) error {
		if device == readers {
			return nil
		}
		waiting.Add(1)
		defer waiting.Add(-1)
		select {
		case <-release:
		case <-ctx.Done():
		}
		return ctx.Err()
	}}
	dir := mounted(t, &EROFS{}, root, serveBlobs(t, root, s), readers+1)
	var g errgroup.Group
	for i := range readers {
		g.Go(func() error { return checkCold(dir, i, 0, 4096) })
	}
	if err := checkCold(dir, readers, 0, 1<<20); err != nil {
		t.Error(err)
	}
	for waiting.Load() < readers {
		time.Sleep(time.Millisecond)
	}
	if err := checkCold(dir, readers, 1<<20, 1<<20); err != nil {
		t.Error(err)
	}
	close(release)
	if err := g.Wait(); err != nil {
		t.Error(err)
	}
}

func TestStuckDevices(t *testing.T) {
	for _, c := range []struct {
		name   string
		stuck  int64 // which OPEN is not answered: the first is ours, the second the kernel's
		aborts int64
	}{{"before mounting", 1, 0}, {"while mounting", 2, 1}} {
		t.Run(c.name, func(t *testing.T) {
			root := t.TempDir()
			var opens, aborts atomic.Int64
			release := make(chan struct{})
			s := &blobs{size: func() {
				if opens.Add(1) == c.stuck {
					<-release
				}
			}}
			devices := serveBlobs(t, root, s)
			t.Cleanup(func() { close(release) }) // before the server is closed
			img, err := image(root, 1)
			if err != nil {
				t.Fatal(err)
			}
			dir := t.TempDir()
			e := &EROFS{Deadline: 300 * time.Millisecond, OnStuck: func() {
				aborts.Add(1)
				if err := blobfs.Abort(devices); err != nil {
					t.Error(err)
				}
			}}
			if err := e.Mount(t.Context(), img, deviceNames(devices, 1), dir); !errors.Is(err, ErrStuck) {
				t.Errorf("mount: %v", err)
			}
			if aborts.Load() != c.aborts {
				t.Errorf("%d aborts, want %d", aborts.Load(), c.aborts)
			}
			if ok, err := Mounted(dir); ok || err != nil {
				t.Errorf("mounted: %v, %v", ok, err)
			}
		})
	}
}

func TestProbe(t *testing.T) {
	needRoot(t)
	dir := filepath.Join(t.TempDir(), "probe")
	if err := Probe(dir); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("left: %v, %v", left, err)
	}
	var said strings.Builder
	cmd := helper(t.Context(), "probe", dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	cmd.Stderr = &said
	if err := cmd.Run(); err == nil || !strings.Contains(said.String(), "root") {
		t.Errorf("as nobody: %v, %q", err, said.String())
	}
}

func TestMountTable(t *testing.T) {
	needRoot(t)
	root := t.TempDir()
	points := []string{filepath.Join(root, "with space"), filepath.Join(root, "with space", "x\ty"), filepath.Join(root, "z")}
	for _, p := range points {
		if err := os.Mkdir(p, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount("none", p, "tmpfs", 0, ""); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = unix.Unmount(p, unix.MNT_DETACH) }) // gone when all went well
	}
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(root, link); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, dir := range []string{link, root} {
		var err error
		got, err = Below(dir)
		if want := []string{points[2], points[1], points[0]}; err != nil || strings.Join(got, "|") != strings.Join(want, "|") {
			t.Errorf("below %s: %q, %v", dir, got, err)
		}
	}
	if ok, err := Mounted(filepath.Join(link, "z")); !ok || err != nil {
		t.Errorf("mounted through a link: %v, %v", ok, err)
	}
	for _, p := range append(got, got...) {
		if err := Detach(p); err != nil {
			t.Error(err)
		}
	}
	if ok, err := Mounted(points[0]); ok || err != nil {
		t.Errorf("mounted: %v, %v", ok, err)
	}
}

func BenchmarkMount(b *testing.B) {
	needRoot(b)
	for _, n := range []int{1, 12} {
		b.Run(fmt.Sprint("devices=", n), func(b *testing.B) {
			root := b.TempDir()
			devices := serveBlobs(b, root, &blobs{})
			img, err := image(root, n)
			if err != nil {
				b.Fatal(err)
			}
			dir, e := b.TempDir(), &EROFS{}
			for b.Loop() {
				if err := e.Mount(b.Context(), img, deviceNames(devices, n), dir); err != nil {
					b.Fatal(err)
				}
				if err := e.Unmount(dir); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// TestMountLocal: complete files are read past the page cache and far ahead, where this
// kernel can, and right in any case.
func TestMountLocal(t *testing.T) {
	needRoot(t)
	devices := localDevices(t, 3)
	img, err := image(t.TempDir(), 3)
	if err != nil {
		t.Fatal(err)
	}
	for _, old := range []bool{false, true} {
		t.Run(fmt.Sprint("old=", old), func(t *testing.T) {
			e := &EROFS{old: old}
			before, dir := readAheads(), t.TempDir()
			if err := e.MountLocal(t.Context(), img, deviceNames(devices, 3), dir); err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := e.Unmount(dir); err != nil {
					t.Error(err)
				}
			}()
			found := 0
			for name := range readAheads() {
				if before[name] {
					continue
				}
				found++
				if b, err := os.ReadFile(name); err != nil || strings.TrimSpace(string(b)) != localReadAheadKiB {
					t.Errorf("%s: %q, %v", name, b, err)
				}
			}
			if found != 1 {
				t.Errorf("%d new settings of read-ahead", found)
			}
			if err := checkRandom(dir, 3, 1, times(30)); err != nil {
				t.Error(err)
			}
			for i := range 3 {
				if err := checkCold(dir, i, 12345, 99999); err != nil {
					t.Error(err)
				}
			}
			mounts, err := os.ReadFile("/proc/self/mounts")
			if err != nil {
				t.Fatal(err)
			}
			for line := range strings.Lines(string(mounts)) {
				if f := strings.Fields(line); f[1] == dir {
					t.Logf("options: %s", f[3])
				}
			}
		})
	}
}

// TestLower: overlays say which of our mounts they stand on.
func TestLower(t *testing.T) {
	needRoot(t)
	devices := localDevices(t, 1)
	e := &EROFS{}
	dir := mounted(t, e, t.TempDir(), devices, 1)
	over, work, root := t.TempDir(), t.TempDir(), t.TempDir()
	lower := func(want bool, when string) {
		t.Helper()
		if got, err := e.Lower(dir); err != nil || got != want {
			t.Errorf("%s: %v, %v", when, got, err)
		}
		if got, err := e.Lower(dir + "x"); err != nil || got {
			t.Errorf("%s, another one: %v, %v", when, got, err)
		}
	}
	lower(false, "nobody uses it")
	if err := unix.Mount("overlay", root, "overlay", 0, "lowerdir="+t.TempDir()+":"+dir+",upperdir="+over+",workdir="+work); err != nil {
		t.Fatal(err)
	}
	lower(true, "an overlay stands on it")
	if err := unix.Unmount(root, 0); err != nil {
		t.Fatal(err)
	}
	lower(false, "that is gone")
	for what, c := range map[string]struct {
		dir string
		ok  bool
	}{"a mount": {dir, true}, "no files": {t.TempDir(), true}, "nothing": {filepath.Join(root, "x"), false}} {
		if err := readable(c.dir); (err == nil) != c.ok {
			t.Errorf("%s: %v", what, err)
		}
	}
}
