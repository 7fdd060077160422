// Package host is what a machine must have to be a node, and what is done to it to
// make it one. It knows nothing of Kubernetes.
package host

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/apparate/apparate/snapshotter/blobfs"
	"github.com/apparate/apparate/snapshotter/mount"
)

// State is how a check went.
type State string

// States of a check: fine; works, but not as it should; lazy images are impossible.
const (
	OK      State = "ok"
	Warning State = "warning"
	Failed  State = "failed"
)

// Check is one thing that was looked at.
type Check struct {
	// Name is one word: root, kernel, fuse, erofs, disk, cgroup, containerd.
	Name  string `json:"name"`
	State State  `json:"state"`
	// Found is what there is, on one line.
	Found string `json:"found"`
	// Advice is what to do, unless all is well.
	Advice string `json:"advice,omitempty"`
}

// Preflight says what to look at.
type Preflight struct {
	// Root is where snapshots and the cache are or will be. It need not exist: then
	// the nearest directory above it is looked at, and nothing is left there.
	Root string
	// Socket is containerd's.
	Socket string
	// MinFree is how many bytes of disk have to be free.
	MinFree uint64
	// Fail makes the check fuse, erofs or disk fail, to see what happens then; empty: none.
	Fail string
}

var errForced = errors.New("forced to fail")

// forced is errForced for the check that is to fail, and else err.
func (p Preflight) forced(name string, err error) error {
	if p.Fail == name {
		return errForced
	}
	return err
}

// Run looks at everything and returns all checks, in a fixed order. It mounts a
// FUSE and an EROFS file system below Root and takes both away.
func (p Preflight) Run(ctx context.Context) []Check {
	checks := []Check{p.root(), p.kernel()}
	dir, remove, err := p.place()
	if err != nil {
		bad := Check{State: Failed, Found: err.Error(), Advice: "choose another directory with --root"}
		for _, name := range []string{"fuse", "erofs", "disk"} {
			bad.Name = name
			checks = append(checks, bad)
		}
	} else {
		checks = append(checks, p.fuse(dir), p.erofs(dir), p.disk(dir))
		if err := remove(); err != nil {
			checks = append(checks, Check{Name: "cleanup", State: Warning, Found: err.Error(), Advice: "remove it by hand"})
		}
	}
	return append(checks, p.cgroup(), p.containerd(ctx))
}

// Failures are the checks that make lazy images impossible.
func Failures(checks []Check) []Check {
	var bad []Check
	for _, c := range checks {
		if c.State == Failed {
			bad = append(bad, c)
		}
	}
	return bad
}

// place makes a directory for trying things in, on the disk that Root is or will be
// on.
func (p Preflight) place() (dir string, remove func() error, err error) {
	at, err := filepath.Abs(p.Root)
	if err != nil {
		return "", nil, err
	}
	for {
		fi, err := os.Stat(at)
		if err == nil && !fi.IsDir() {
			return "", nil, fmt.Errorf("%s is no directory", at)
		}
		if err == nil {
			break
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return "", nil, err
		}
		at = filepath.Dir(at)
	}
	dir, err = os.MkdirTemp(at, ".apparate-check-")
	return dir, func() error { return os.RemoveAll(dir) }, err
}

func (p Preflight) root() Check {
	c := Check{Name: "root", State: OK, Found: "runs as root"}
	if os.Geteuid() != 0 {
		c.State, c.Found, c.Advice = Failed, fmt.Sprintf("runs as user %d", os.Geteuid()), "run it as root: it mounts file systems"
	}
	return c
}

// kernel only tells the version: what it can do is tried.
func (p Preflight) kernel() Check {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return Check{Name: "kernel", State: Warning, Found: err.Error(), Advice: "uname(2) should not fail"}
	}
	c := Check{Name: "kernel", State: OK, Found: "Linux " + unix.ByteSliceToString(u.Release[:])}
	var major, minor int
	if _, err := fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d", &major, &minor); err == nil && (major < 6 || major == 6 && minor < 12) {
		c.State, c.Advice = Warning, "file-backed EROFS came with Linux 6.12: without it images are pulled the ordinary way"
	}
	return c
}

// fuse mounts a file system that nobody serves, and takes it away again.
func (p Preflight) fuse(dir string) Check {
	c := Check{Name: "fuse", State: OK, Found: "mounted and unmounted"}
	at := filepath.Join(dir, "fuse")
	dev, err := blobfs.Connect(at)
	if err == nil {
		// Closing the connection first: then unmounting waits for no answer.
		err = errors.Join(dev.Close(), mount.Detach(at))
	}
	if err := p.forced("fuse", err); err != nil {
		c.State, c.Found = Failed, err.Error()
		c.Advice = "load the module (modprobe fuse), on CentOS install it (yum install -y fuse), and give the pod /dev/fuse"
	}
	return c
}

func (p Preflight) erofs(dir string) Check {
	c := Check{Name: "erofs", State: OK, Found: "an image of two files was mounted and read"}
	if err := p.forced("erofs", mount.Probe(dir)); err != nil {
		c.State, c.Found, c.Advice = Failed, err.Error(), "use Linux 6.12 or newer with CONFIG_EROFS_FS, and a disk instead of a tmpfs; until then images are pulled the ordinary way"
	}
	return c
}

func (p Preflight) disk(dir string) Check {
	c := Check{Name: "disk", State: OK}
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return Check{Name: "disk", State: Failed, Found: err.Error(), Advice: "choose another directory with --root"}
	}
	free, total := st.Bavail*uint64(st.Bsize), st.Blocks*uint64(st.Bsize)
	c.Found = fmt.Sprintf("%.1f of %.1f GB free at %s", float64(free)/1e9, float64(total)/1e9, filepath.Dir(dir))
	if st.Files > 0 {
		c.Found += fmt.Sprintf(", %d inodes", st.Ffree)
	}
	switch {
	case st.Type == unix.TMPFS_MAGIC || st.Type == unix.RAMFS_MAGIC:
		c.State, c.Advice = Failed, "it is memory and no disk: choose a directory on a disk with --root"
	case p.Fail == "disk":
		c.State, c.Advice = Failed, errForced.Error()
	case free < p.MinFree:
		c.State, c.Advice = Failed, fmt.Sprintf("free %.1f GB there, or move the directory to another disk", float64(p.MinFree-free)/1e9)
	case st.Files > 0 && st.Ffree < 10_000:
		c.State, c.Advice = Failed, "the file system is out of inodes: remove small files, or choose another disk with --root"
	}
	return c
}

// cgroup says where a daemon can live that outlives the pod which starts it.
func (p Preflight) cgroup() Check {
	c := Check{Name: "cgroup", State: OK}
	var st unix.Statfs_t
	err := unix.Statfs("/sys/fs/cgroup", &st)
	switch {
	case err == nil && st.Type == unix.CGROUP2_SUPER_MAGIC:
		c.Found = "version 2"
	case err == nil && strings.Contains(mounts(), " cgroup "):
		c.Found = "version 1"
	case err == nil && strings.Contains(mounts(), " cgroup2 "):
		c.Found = "version 2, beside version 1"
	default:
		c.State, c.Found, c.Advice = Failed, "no cgroups at /sys/fs/cgroup", "mount them: containerd needs them as well"
	}
	return c
}

func mounts() string {
	b, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return ""
	}
	return string(b)
}

// containerd asks the runtime for its version.
func (p Preflight) containerd(ctx context.Context) Check {
	const limit = 10 * time.Second
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	c := Check{Name: "containerd", State: OK}
	v, err := ContainerdVersion(ctx, p.Socket)
	if err != nil {
		c.State, c.Found, c.Advice = Failed, err.Error(), "start containerd, or say where it listens with --containerd-socket"
		return c
	}
	c.Found = v + " at " + p.Socket
	if older(v, 1, 4, 3) {
		c.State, c.Advice = Failed, "use containerd 1.4.3 or newer"
	}
	return c
}
