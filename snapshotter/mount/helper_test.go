package mount

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/apparate/apparate/snapshotter/blobfs"
	"github.com/apparate/apparate/snapshotter/erofs"
	"github.com/apparate/apparate/snapshotter/toc"
	"github.com/apparate/apparate/snapshotter/tree"
)

// Every test device is blobSize bytes of content(index), and every test image has
// one file for each device, named by its index, that is the whole device.
const blobSize = 4 << 20

// content is the truth about device i.
func content(i int, p []byte, off int64) {
	truth := pattern()
	for at := off + int64(i)*1009; len(p) > 0; {
		n := copy(p, truth[at%int64(len(truth)):])
		p, at = p[n:], at+int64(n)
	}
}

// pattern repeats in contents; its length is a prime, so that bytes that went
// astray by any usual distance show.
var pattern = sync.OnceValue(func() []byte {
	b := make([]byte, 1048573)
	rnd := rand.NewChaCha8([32]byte{1})
	_, _ = rnd.Read(b) // never fails
	return b
})

// blobs is a Store of any number of devices, named by their index.
type blobs struct {
	read func(ctx context.Context, device int, off int64) error
	size func()
}

func (b *blobs) Lookup(name string) (uint64, int64, bool) {
	var i int
	if _, err := fmt.Sscan(name, &i); err != nil {
		return 0, 0, false
	}
	return uint64(i) + 2, blobSize, true
}

func (b *blobs) Size(id uint64) (int64, bool) {
	if b.size != nil {
		b.size()
	}
	return blobSize, true
}

func (b *blobs) ReadAt(ctx context.Context, id uint64, p []byte, off int64) (int, error) {
	if b.read != nil {
		if err := b.read(ctx, int(id-2), off); err != nil {
			return 0, err
		}
	}
	content(int(id-2), p, off)
	return len(p), nil
}

// image writes the metadata image of n devices below dir.
func image(dir string, n int) (string, error) {
	root := &tree.Node{Type: toc.Dir, Mode: 0o755, Nlink: 2}
	var sizes []int64
	for i := range n {
		sizes = append(sizes, blobSize)
		root.Children = append(root.Children, tree.Child{Name: fmt.Sprintf("%04d", i),
			Node: &tree.Node{Type: toc.Reg, Mode: 0o755, Nlink: 1, Size: blobSize, Device: i}})
	}
	img, err := erofs.Build(root, sizes)
	if err != nil {
		return "", err
	}
	name := filepath.Join(dir, "image")
	return name, os.WriteFile(name, img, 0o600)
}

func deviceNames(dir string, n int) []string {
	var names []string
	for i := range n {
		names = append(names, filepath.Join(dir, fmt.Sprint(i)))
	}
	return names
}

// checkCold reads n bytes at off of file i below dir, past the page cache.
func checkCold(dir string, i int, off int64, n int) (err error) {
	f, err := os.Open(filepath.Join(dir, fmt.Sprintf("%04d", i)))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
		return err
	}
	n = int(min(int64(n), blobSize-off))
	got, want := make([]byte, n), make([]byte, n)
	if _, err := f.ReadAt(got, off); err != nil {
		return err
	}
	if content(i, want, off); !bytes.Equal(got, want) {
		return fmt.Errorf("file %d [%d+%d): wrong bytes", i, off, n)
	}
	return nil
}

// checkRandom reads at random places, count times or until stop says so.
func checkRandom(dir string, devices int, seed uint64, stop func(int) bool) error {
	rnd := rand.New(rand.NewPCG(3, seed))
	for i := 0; !stop(i); i++ {
		if err := checkCold(dir, rnd.IntN(devices), rnd.Int64N(blobSize), 1+rnd.IntN(200_000)); err != nil {
			return err
		}
	}
	return nil
}

func times(n int) func(int) bool { return func(i int) bool { return i >= n } }

func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("needs root: it mounts file systems")
	}
}

// guard lets no test hang on FUSE: it aborts what is mounted at dir after a while,
// and at the end takes away everything below root.
func guard(t testing.TB, root, dir string) {
	t.Helper()
	dog := time.AfterFunc(40*time.Second, func() { t.Errorf("hung; aborting: %v", blobfs.Abort(dir)) })
	t.Cleanup(func() {
		dog.Stop()
		_ = blobfs.Abort(dir) // gone already when all went well
		if err := sweep(root, slog.New(slog.DiscardHandler)); err != nil {
			t.Error(err)
		}
	})
}

// serveBlobs serves a store in this process, at a directory below root.
func serveBlobs(t testing.TB, root string, s blobfs.Store) (dir string) {
	t.Helper()
	needRoot(t)
	dir = filepath.Join(root, "blobs")
	dev, err := blobfs.Connect(dir)
	if err != nil {
		t.Fatal(err)
	}
	srv, err := blobfs.Serve(dev, s, blobfs.Options{Dir: dir, StateFile: filepath.Join(root, "fuse.json")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		if err := srv.Close(ctx); err != nil {
			t.Error(err)
		}
	})
	guard(t, root, dir)
	return dir
}

// mounted mounts an image of n devices that are below devices.
func mounted(t testing.TB, e *EROFS, root, devices string, n int) (dir string) {
	t.Helper()
	img, err := image(root, n)
	if err != nil {
		t.Fatal(err)
	}
	dir = filepath.Join(root, "root")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := e.Mount(t.Context(), img, deviceNames(devices, n), dir); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Unmount(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// TestMain lets the test binary be the processes that tests start.
func TestMain(m *testing.M) {
	args := strings.Fields(os.Getenv("MOUNT_HELPER"))
	if len(args) == 0 {
		os.Exit(m.Run())
	}
	var err error
	switch args[0] {
	case "cat": // reads everything below a directory and compares it
		err = checkRandom(args[1], 2, 9, times(50))
	case "probe":
		err = Probe(args[1])
	case "hold":
		err = helperHold(args[1], args[2])
	case "daemon":
		err = helperDaemon(args[1])
	case "serve": // serves descriptor 3, mounted at a directory
		err = helperServe(args[1])
	case "fail":
		err = errors.New("cannot start")
	case "deaf": // becomes ready and ignores all signals
		signal.Ignore(syscall.SIGTERM, syscall.SIGUSR2)
		in, _ := Inherited()
		err = in.Ready()
		time.Sleep(time.Minute)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

func helper(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "/proc/self/exe")
	cmd.Env = append(without(os.Environ(), "MOUNT_HELPER"), "MOUNT_HELPER="+strings.Join(args, " "))
	cmd.Stderr = os.Stderr
	return cmd
}

// helperHold is a holder below root whose daemon is another helper. It says
// "ready" on standard output.
func helperHold(root, daemon string) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	patience := 10 * time.Second
	if daemon == "deaf" {
		patience = 300 * time.Millisecond
	}
	return Hold(ctx, HoldOptions{
		Root: root, Blobs: filepath.Join(root, "blobs"), Socket: filepath.Join(root, "run", "sock"),
		Command:     func() *exec.Cmd { return helper(context.Background(), daemon, root) },
		Ready:       func() { fmt.Println("ready") },
		StopTimeout: patience,
		Logger:      slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError})),
	})
}

// helperDaemon serves blobs slowly, has an image of two mounted at root/root, and
// answers every connection with its pid.
func helperDaemon(root string) error {
	in, ok := Inherited()
	if !ok {
		return errors.New("no holder")
	}
	end := make(chan os.Signal, 1)
	signal.Notify(end, syscall.SIGTERM, syscall.SIGUSR2)
	dir := filepath.Join(root, "blobs")
	srv, err := blobfs.Serve(in.Fuse, slow(), blobfs.Options{Dir: dir, StateFile: filepath.Join(root, "fuse.json")})
	if err != nil {
		return err
	}
	at := filepath.Join(root, "root")
	e := &EROFS{}
	if e.Check(at) != nil {
		img, err := image(root, 2)
		if err != nil {
			return err
		}
		if err := os.MkdirAll(at, 0o755); err != nil {
			return err
		}
		if err := e.Mount(context.Background(), img, deviceNames(dir, 2), at); err != nil {
			return err
		}
	}
	go answer(in.Listener)
	if err := in.Ready(); err != nil {
		return err
	}
	<-end
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	return srv.Close(ctx)
}

// slow is a store whose reads take up to 4 ms.
func slow() *blobs {
	return &blobs{read: func(ctx context.Context, _ int, off int64) error {
		time.Sleep(time.Duration(off%5) * time.Millisecond)
		return ctx.Err()
	}}
}

// helperServe serves descriptor 3 and says "ready".
func helperServe(dir string) error {
	srv, err := blobfs.Serve(os.NewFile(3, "/dev/fuse"), slow(), blobfs.Options{Dir: dir, StateFile: dir + ".json"})
	if err != nil {
		return err
	}
	fmt.Println("ready")
	srv.Wait()
	return nil
}

// answer tells who serves, until the process ends.
func answer(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		_, _ = fmt.Fprintln(c, os.Getpid())
		_ = c.Close()
	}
}

// ask returns the pid that serves a socket; it waits while nobody does.
func ask(t testing.TB, socket string) (pid int) {
	t.Helper()
	// A daemon may be killed between accepting and answering.
	for range 100 {
		c, err := net.Dial("unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		line, err := bufio.NewReader(c).ReadString('\n')
		_ = c.Close()
		if err == nil {
			if _, err := fmt.Sscan(line, &pid); err != nil {
				t.Fatal(err)
			}
			return pid
		}
		if !errors.Is(err, io.EOF) && !errors.Is(err, syscall.ECONNRESET) {
			t.Fatal(err)
		}
	}
	t.Fatal("nobody answers")
	return 0
}
