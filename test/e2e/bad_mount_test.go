package e2e

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/apparate/apparate/test/registry"
)

// What cannot be mounted.
func TestBadMount(t *testing.T) {
	reg := registry.New(t)
	app := push(t, reg, "app:v1", small(t))
	if _, err := run(t, "convert", app); err != nil {
		t.Fatal(err)
	}
	accelerated := app + "-apparate"
	push(t, reg, "chart:v1", artifact(t))
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "<html><body>It works!</body></html>") // the client may leave
	}))
	t.Cleanup(web.Close)
	closed := registry.New(t, registry.WithBasic("user", "secret-password"))
	whole := proxy(t, reg, func(_ http.ResponseWriter, r *http.Request) bool {
		r.Header.Del("Range")
		return false
	}, nil)
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		args []string // DIR stands for an empty directory
		says []string
	}{
		{"ordinary image", []string{app, "DIR"}, []string{"not accelerated", "apparate convert"}},
		{"unknown tag", []string{app + "-none", "DIR"}, []string{"v1-none", "not found", "check"}},
		{"unknown repository", []string{reg.Host() + "/nothing:v1", "DIR"}, []string{"nothing:v1", "not found", "check"}},
		{"bad reference", []string{"Not An Image", "DIR"}, []string{"Not An Image", "such as"}},
		{"no image", []string{reg.Host() + "/chart:v1", "DIR"}, []string{"not accelerated"}},
		{"bad platform", []string{accelerated, "DIR", "--platform", "a/b/c/d"}, []string{"a/b/c/d", "such as"}},
		{"nobody listens", []string{nobody(t) + "/app:v1", "DIR"}, []string{"cannot be reached", "check"}},
		{"web server", []string{web.Listener.Addr().String() + "/app:v1", "DIR"}, []string{"OCI registry", "check"}},
		{"no pull right", []string{closed.Host() + "/app:v1", "DIR"}, []string{"no permission to pull", "docker login"}},
		{"no ranges", []string{whole + "/app:v1-apparate", "DIR"}, []string{"does not support range requests", "pull"}},
		{"no mount point", []string{accelerated, "/nowhere/at/all"}, []string{"/nowhere/at/all", "make the directory"}},
		{"mount point is a file", []string{accelerated, file}, []string{file, "not a directory"}},
		{"cache is a file", []string{accelerated, "DIR", "--cache", file}, []string{file, "--cache"}},
		{"bad cache size", []string{accelerated, "DIR", "--cache-size", "much"}, []string{"--cache-size", "much", "20GiB", "--help"}},
		{"bad level", []string{accelerated, "DIR", "--log-level", "loud"}, []string{"loud", "debug, info, warn or error", "--help"}},
		{"no directory named", []string{accelerated}, []string{"an image and a directory", "--help"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := newPlace(t)
			args := []string{"mount"}
			for _, a := range c.args {
				if a == "DIR" {
					a = p.mnt()
				}
				args = append(args, a)
			}
			p.run(t, args...).refused(t, c.says...)
		})
	}
}

// mounted is a running "apparate mount".
type mounted struct {
	cmd         *exec.Cmd
	out, errOut *buffer
	cancel      context.CancelFunc
	ended       chan error
	dir         string
}

// buffer may be read while a program writes to it.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// mount mounts an image and waits until it is there.
func (p *place) mount(t *testing.T, ref string, args ...string) *mounted {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	m := &mounted{out: &buffer{}, errOut: &buffer{}, cancel: cancel, ended: make(chan error, 1), dir: p.mnt()}
	m.cmd = p.command(ctx, append([]string{"mount", ref, m.dir}, args...)...)
	m.cmd.Stdout, m.cmd.Stderr = m.out, m.errOut
	if err := m.cmd.Start(); err != nil {
		cancel()
		t.Fatal(err)
	}
	go func() { m.ended <- m.cmd.Wait() }()
	t.Cleanup(func() { m.end(t) })
	for !strings.Contains(m.out.String(), "mounted ") {
		select {
		case err := <-m.ended:
			m.ended <- err
			t.Fatalf("mount ended: %v\n%s", err, m.errOut)
		case <-time.After(5 * time.Millisecond):
		}
	}
	return m
}

// end interrupts the program and waits for its end.
func (m *mounted) end(t *testing.T) outcome {
	t.Helper()
	if m.cmd.ProcessState == nil {
		m.cancel()
		err := <-m.ended
		m.ended <- err
		var exit *exec.ExitError
		if err != nil && !errors.Is(err, context.Canceled) && !errors.As(err, &exit) {
			t.Error(err)
		}
	}
	return result(m.cmd, m.out.String(), m.errOut.String())
}

// The registry begins to send wrong bytes after the mount: reads fail with EIO,
// and the log says which layer and chunk it was; nothing wrong is kept, so that
// the same file is right once the registry is.
func TestBadBytes(t *testing.T) {
	for _, fault := range []registry.Fault{registry.FlippedByte, registry.WrongRange} {
		t.Run(string(fault), func(t *testing.T) {
			reg := registry.New(t)
			img, body := shellLess(t, 2<<20)
			app := push(t, reg, "app:v1", img)
			if _, err := run(t, "convert", app); err != nil {
				t.Fatal(err)
			}
			man, err := read(t, app+"-apparate").Manifest()
			if err != nil {
				t.Fatal(err)
			}
			p := newPlace(t)
			cache := filepath.Join(p.dir, "cache")
			m := p.mount(t, app+"-apparate", "--cache", cache)
			name := filepath.Join(m.dir, "data", "f000")

			reg.FailEvery(1, fault)
			got, err := os.ReadFile(name)
			if !errors.Is(err, syscall.EIO) {
				t.Errorf("read %d bytes, %v; want EIO", len(got), err)
			}
			if !bytes.HasPrefix(body, got) {
				t.Error("wrong bytes were handed out")
			}
			blame := regexp.MustCompile("layer " + man.Layers[0].Digest.String() + `, chunk \d+.* sha256:[0-9a-f]{64}`)
			if log := m.errOut.String(); !blame.MatchString(log) {
				t.Errorf("the log does not name layer, chunk and digest: %s", log)
			}
			reg.Heal()
			if got, err := os.ReadFile(name); err != nil || !bytes.Equal(got, body) {
				t.Errorf("after the registry was mended: %d bytes, %v", len(got), err)
			}
			if o := m.end(t); o.code != 0 || withoutLog(o.errOut) != "" {
				t.Errorf("exit code %d: %s", o.code, o.errOut)
			}
			// What was kept is right: a mount that cannot fetch reads it.
			reg.FailEvery(1, registry.NotFound)
			again := p.mount(t, app+"-apparate", "--cache", cache)
			if got, err := os.ReadFile(name); err != nil || !bytes.Equal(got, body) {
				t.Errorf("from the cache: %d bytes, %v", len(got), err)
			}
			again.end(t)
		})
	}
}

// The cache's disk is smaller than the image: what is read is right all the same.
func TestBadMountSmallDisk(t *testing.T) {
	reg := registry.New(t)
	img, body := shellLess(t, 6<<20)
	app := push(t, reg, "app:v1", img)
	if _, err := run(t, "convert", app); err != nil {
		t.Fatal(err)
	}
	p := newPlace(t)
	cache := filepath.Join(p.dir, "cache")
	layers := filepath.Join(cache, "layers") // not all of it: EROFS cannot be mounted from a tmpfs
	if err := os.MkdirAll(layers, 0o700); err != nil {
		t.Fatal(err)
	}
	tmpfs(t, layers, "2m")
	name := filepath.Join(p.mnt(), "data", "f000")
	for range 2 { // the second time with what the first one kept
		m := p.mount(t, app+"-apparate", "--cache", cache)
		for range 2 {
			if got, err := os.ReadFile(name); err != nil || !bytes.Equal(got, body) {
				t.Fatalf("read %d bytes, %v", len(got), err)
			}
			if err := dropPages(name); err != nil {
				t.Fatal(err)
			}
		}
		if o := m.end(t); o.code != 0 {
			t.Errorf("exit code %d: %s", o.code, o.errOut)
		}
	}

	// Not even the list of files has room.
	left, err := filepath.Glob(filepath.Join(layers, "*"))
	if err != nil || len(left) == 0 {
		t.Fatalf("nothing was kept: %v", err)
	}
	for _, l := range left {
		if err := os.RemoveAll(l); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.RemoveAll(filepath.Join(cache, "images")); err != nil {
		t.Fatal(err)
	}
	empty := fill(t, layers)
	p.run(t, "mount", app+"-apparate", p.mnt(), "--cache", cache).refused(t, "no space left on device", "free some space", cache, "--cache")
	empty()
	m := p.mount(t, app+"-apparate", "--cache", cache)
	if got, err := os.ReadFile(name); err != nil || !bytes.Equal(got, body) {
		t.Errorf("with room again: %d bytes, %v", len(got), err)
	}
	m.end(t)
	if err := unix.Unmount(layers, 0); err != nil {
		t.Error(err)
	}
}

// EROFS cannot be mounted from a tmpfs: the line says that it is not the kernel.
func TestBadMountInMemory(t *testing.T) {
	reg := registry.New(t)
	app := push(t, reg, "app:v1", small(t))
	if _, err := run(t, "convert", app); err != nil {
		t.Fatal(err)
	}
	p := newPlace(t)
	tmpfs(t, p.tmp, "8m")
	p.run(t, "mount", app+"-apparate", p.mnt()).refused(t, "EROFS", "tmpfs", "--cache")
	if files, err := os.ReadDir(p.tmp); err != nil || len(files) > 0 {
		t.Errorf("left behind: %v %v", files, err)
	}
	if err := unix.Unmount(p.tmp, 0); err != nil {
		t.Error(err)
	}
}

// A cache belongs to one process; one that was killed leaves nothing that the
// next could stumble over.
func TestBadMountTwice(t *testing.T) {
	reg := registry.New(t)
	img, body := shellLess(t, 1<<20)
	app := push(t, reg, "app:v1", img)
	if _, err := run(t, "convert", app); err != nil {
		t.Fatal(err)
	}
	p := newPlace(t)
	cache := filepath.Join(p.dir, "cache")
	first := p.mount(t, app+"-apparate", "--cache", cache)
	p.run(t, "mount", app+"-apparate", p.home, "--cache", cache).refused(t, "already running", "--cache")
	if err := first.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	err := <-first.ended
	first.ended <- err
	m := p.mount(t, app+"-apparate", "--cache", cache)
	if got, err := os.ReadFile(filepath.Join(m.dir, "data", "f000")); err != nil || !bytes.Equal(got, body) {
		t.Errorf("after the kill: %d bytes, %v", len(got), err)
	}
	if o := m.end(t); o.code != 0 {
		t.Errorf("exit code %d: %s", o.code, o.errOut)
	}
}

// dropPages makes the kernel forget what it has of a file.
func dropPages(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	return errors.Join(unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED), f.Close())
}

// fill fills the file system of dir with a file that has no name any more, and
// returns what empties it again.
func fill(t *testing.T, dir string) (empty func()) {
	t.Helper()
	f, err := os.CreateTemp(dir, "")
	if err == nil {
		err = os.Remove(f.Name())
	}
	if err != nil {
		t.Fatal(err)
	}
	block := make([]byte, 4096)
	for err == nil {
		_, err = f.Write(block)
	}
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
	return func() {
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
