package e2e

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/apparate/apparate/test/registry"
)

// Machines that cannot mount images, by running the program in namespaces of its
// own: nothing here changes the machine.
var lacking = []struct {
	name   string
	within []string
	says   []string
}{
	{"no /dev/fuse", []string{"unshare", "--mount", "--propagation", "private", "sh", "-ec",
		`mount -t tmpfs tmpfs /dev; mknod -m 666 /dev/null c 1 3; exec "$0" "$@"`},
		[]string{"/dev/fuse", "modprobe fuse"}},
	{"a file as /dev/fuse", []string{"unshare", "--mount", "--propagation", "private", "sh", "-ec",
		`mount -t tmpfs tmpfs /dev; mknod -m 666 /dev/null c 1 3; : >/dev/fuse; exec "$0" "$@"`},
		[]string{"/dev/fuse", "not a character device"}},
	{"no right to mount", []string{"setpriv", "--bounding-set", "-sys_admin", "--inh-caps", "-sys_admin"},
		[]string{"run as root with CAP_SYS_ADMIN"}},
	{"not root", []string{"setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"},
		[]string{"root"}},
	{"user namespace, without EROFS", []string{"unshare", "--user", "--map-root-user", "--mount"},
		[]string{"EROFS", "outside of user namespaces"}},
}

func TestBadMachineMount(t *testing.T) {
	reg := registry.New(t)
	app := push(t, reg, "app:v1", small(t))
	if _, err := run(t, "convert", app); err != nil {
		t.Fatal(err)
	}
	for _, c := range lacking {
		t.Run(c.name, func(t *testing.T) {
			p := newPlace(t)
			for _, d := range []string{filepath.Dir(p.dir), p.dir, p.tmp, p.mnt()} {
				if err := os.Chmod(d, 0o777); err != nil { // for who is not root
					t.Fatal(err)
				}
			}
			p.within = c.within
			p.run(t, "mount", app+"-apparate", p.mnt()).refused(t, c.says...)
		})
	}
}

// daemon is a running "apparate snapshotter".
type daemon struct {
	*mounted
	root, socket string
}

// snapshotter starts one and waits until it serves.
func (p *place) snapshotter(t *testing.T, args ...string) *daemon {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	d := &daemon{root: filepath.Join(p.dir, "root"), socket: filepath.Join(p.dir, "s"),
		mounted: &mounted{out: &buffer{}, errOut: &buffer{}, cancel: cancel, ended: make(chan error, 1)}}
	d.cmd = p.command(ctx, append([]string{"snapshotter", "--root", d.root, "--address", d.socket}, args...)...)
	d.cmd.Stdout, d.cmd.Stderr = d.out, d.errOut
	if err := d.cmd.Start(); err != nil {
		cancel()
		t.Fatal(err)
	}
	go func() { d.ended <- d.cmd.Wait() }()
	t.Cleanup(func() { d.end(t) })
	for !strings.Contains(d.errOut.String(), "msg=serving") {
		select {
		case err := <-d.ended:
			d.ended <- err
			t.Fatalf("snapshotter ended: %v\n%s", err, d.errOut)
		case <-time.After(5 * time.Millisecond):
		}
	}
	return d
}

// What the snapshotter cannot be started with.
func TestBadSnapshotter(t *testing.T) {
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = busy.Close() }) // only listens
	for _, c := range []struct {
		name string
		args []string // ROOT and SOCKET stand for good ones
		says []string
	}{
		{"root is a file", []string{"--root", "/dev/null", "--address", "SOCKET"}, []string{"/dev/null", "--root"}},
		{"root cannot be written", []string{"--root", "/proc/apparate", "--address", "SOCKET"}, []string{"/proc/apparate", "--root"}},
		{"root on a tmpfs that is full", []string{"--root", "FULL", "--address", "SOCKET"}, []string{"no space left on device", "--root"}},
		{"long socket path", []string{"--root", "ROOT", "--address", "/tmp/" + strings.Repeat("s", 120)}, []string{"too long", "--address"}},
		{"socket cannot be made", []string{"--root", "ROOT", "--address", "/proc/s"}, []string{"/proc/s", "--address"}},
		{"socket's directory is a file", []string{"--root", "ROOT", "--address", "/dev/null/s"}, []string{"/dev/null", "--address"}},
		{"metrics address is taken", []string{"--root", "ROOT", "--address", "SOCKET", "--metrics-address", busy.Addr().String()}, []string{"--metrics-address", "address already in use"}},
		{"metrics address is none", []string{"--root", "ROOT", "--address", "SOCKET", "--metrics-address", "nine"}, []string{"--metrics-address", "nine"}},
		{"bad duration", []string{"--root", "ROOT", "--prepare-timeout", "soon"}, []string{"--prepare-timeout", "soon", "--help"}},
		{"bad size", []string{"--root", "ROOT", "--cache-size", "-1GiB"}, []string{"--cache-size", "-1GiB", "--help"}},
		{"bad level", []string{"--root", "ROOT", "--log-level", "loud"}, []string{"--log-level", "loud", "--help"}},
		{"an argument", []string{"now"}, []string{"no arguments", "--help"}},
		{"unknown command", nil, nil}, // filled in below
	} {
		t.Run(c.name, func(t *testing.T) {
			p := newPlace(t)
			args := []string{"snapshotter"}
			if c.args == nil {
				p.run(t, "snapshoter").refused(t, "snapshoter", "--help")
				return
			}
			for _, a := range c.args {
				switch a {
				case "ROOT":
					a = filepath.Join(p.dir, "root")
				case "SOCKET":
					a = filepath.Join(p.dir, "s")
				case "FULL":
					a = p.mnt()
					tmpfs(t, a, "64k")
					t.Cleanup(fill(t, a))
				}
				args = append(args, a)
			}
			o := p.run(t, args...)
			o.errOut = withoutLog(o.errOut)
			o.refused(t, c.says...)
			if c.name == "root on a tmpfs that is full" {
				if err := syscall.Unmount(p.mnt(), syscall.MNT_DETACH); err != nil {
					t.Error(err)
				}
			}
			for _, n := range []string{"s", "s~", "root/blobs/x"} {
				if _, err := os.Lstat(filepath.Join(p.dir, n)); err == nil {
					t.Errorf("%s was left", n)
				}
			}
		})
	}
}

// A second snapshotter with the same root or the same socket is refused, and the
// first goes on.
func TestBadSnapshotterTwice(t *testing.T) {
	p := newPlace(t)
	d := p.snapshotter(t)
	for _, c := range []struct {
		args []string
		says []string
	}{
		{[]string{"--root", d.root, "--address", d.socket}, []string{"already running", fmt.Sprint(d.cmd.Process.Pid)}},
		{[]string{"--root", d.root, "--address", d.socket + "2"}, []string{"already running", fmt.Sprint(d.cmd.Process.Pid)}},
		{[]string{"--root", d.root + "2", "--address", d.socket}, []string{"somebody else listens", d.socket, "--address"}},
	} {
		o := p.run(t, append([]string{"snapshotter"}, c.args...)...)
		o.errOut = withoutLog(o.errOut)
		o.refused(t, c.says...)
	}
	conn, err := net.Dial("unix", d.socket)
	if err != nil {
		t.Fatalf("the first does not answer any more: %v", err)
	}
	if err := conn.Close(); err != nil {
		t.Error(err)
	}
	if o := d.end(t); o.code != 0 || withoutLog(o.errOut) != "" {
		t.Errorf("exit code %d: %s", o.code, o.errOut)
	}
}

// Machines on which the snapshotter cannot serve lazily: without FUSE it does
// not start; without EROFS it starts, and says that layers are pulled the
// ordinary way.
func TestBadMachineSnapshotter(t *testing.T) {
	for _, c := range lacking {
		t.Run(c.name, func(t *testing.T) {
			p := newPlace(t)
			if err := os.Chmod(filepath.Dir(p.dir), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(p.dir, 0o777); err != nil { // for who is not root
				t.Fatal(err)
			}
			p.within = c.within
			if c.says[0] == "EROFS" {
				d := p.snapshotter(t)
				if o := d.end(t); o.code != 0 || !strings.Contains(o.errOut, "pulled the ordinary way") || !strings.Contains(o.errOut, c.says[1]) {
					t.Errorf("exit code %d: %s", o.code, o.errOut)
				}
				return
			}
			o := p.run(t, "snapshotter", "--root", filepath.Join(p.dir, "root"), "--address", filepath.Join(p.dir, "s"))
			o.errOut = withoutLog(o.errOut)
			o.refused(t, c.says...)
		})
	}
}
