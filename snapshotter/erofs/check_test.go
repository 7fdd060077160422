package erofs

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	reader "github.com/erofs/go-erofs"
	"golang.org/x/sys/unix"

	"github.com/apparate/apparate/snapshotter/toc"
	"github.com/apparate/apparate/snapshotter/tree"
)

// content is what a byte range of a test device holds: the device and the
// address, again and again, so that any mistake in an address shows.
func content(device int, addr, n int64) []byte {
	out := make([]byte, 0, n+16)
	for at := addr / 8 * 8; int64(len(out)) < n+8; at += 8 {
		out = binary.LittleEndian.AppendUint64(out, uint64(device)<<56|uint64(at))
	}
	return out[addr%8 : addr%8+n]
}

// newDevice makes a sparse device file with content at the given ranges.
func newDevice(t *testing.T, device int, length int64, ranges [][2]int64) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), fmt.Sprintf("device%d", device))
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range ranges {
		if _, err := f.WriteAt(content(device, r[0], r[1]), r[0]); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Truncate(length); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	return name
}

// mountImage mounts an image with its devices, by the kernel.
func mountImage(t *testing.T, img []byte, devices []string) (dir string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("this test mounts an EROFS image and has to run as root")
	}
	meta := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(meta, img, 0o600); err != nil {
		t.Fatal(err)
	}
	dir = t.TempDir()
	var options []string
	for _, d := range devices {
		options = append(options, "device="+d)
	}
	if err := unix.Mount(meta, dir, "erofs", unix.MS_RDONLY, strings.Join(options, ",")); err != nil {
		t.Fatalf("mount the image; this needs a kernel that mounts EROFS from files (6.12, CONFIG_EROFS_FS_BACKED_BY_FILE): %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("unmount: %v", err)
			_ = unix.Unmount(dir, unix.MNT_DETACH)
		}
	})
	return dir
}

// reals are the ranges of devices that the test files use; at most some bytes
// at the start and the end of each file, so that huge files stay sparse.
func reals(root *tree.Node, device int) (out [][2]int64) {
	seen := map[*tree.Node]bool{}
	var walk func(n *tree.Node)
	walk = func(n *tree.Node) {
		if seen[n] {
			return
		}
		seen[n] = true
		if n.Size > 0 && n.Device == device {
			for _, r := range probes(n.Size) {
				out = append(out, [2]int64{n.Addr + r[0], r[1]})
			}
		}
		for _, c := range n.Children {
			walk(c.Node)
		}
	}
	walk(root)
	return out
}

// probes are the ranges of a file of n bytes that a test reads.
func probes(n int64) [][2]int64 {
	const some = 9000
	if n <= 2*some {
		return [][2]int64{{0, n}}
	}
	return [][2]int64{{0, some}, {n/2 - some/2, some}, {n - some, some}}
}

// checkMount compares a mounted tree with the nodes that it was made from.
func checkMount(t *testing.T, dir string, root *tree.Node) {
	t.Helper()
	inodes := map[*tree.Node]uint64{}
	nodes := map[uint64]*tree.Node{}
	files := 0
	var walk func(path string, n *tree.Node)
	walk = func(path string, n *tree.Node) {
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			t.Fatal(err)
		}
		if ino, ok := inodes[n]; ok && ino != st.Ino {
			t.Fatalf("%s: two inodes for one node", path)
		} else if ok {
			return
		}
		if nodes[st.Ino] != nil || st.Ino == 0 {
			t.Fatalf("%s: inode %d for two nodes", path, st.Ino)
		}
		inodes[n], nodes[st.Ino] = st.Ino, n
		checkStat(t, path, n, &st)
		checkXattrs(t, path, n)
		switch n.Type {
		case toc.Reg:
			// In large trees, to read the content of some is enough.
			if files++; files < 5000 || files%20 == 0 {
				checkFile(t, path, n)
			}
		case toc.Symlink:
			if target, err := os.Readlink(path); err != nil || target != n.Link {
				t.Fatalf("%s: link to %d bytes, want %d: %v", path, len(target), len(n.Link), err)
			}
		case toc.Dir:
			checkDir(t, path, n)
			for _, c := range n.Children {
				walk(path+"/"+c.Name, c.Node)
			}
		default:
		}
	}
	walk(dir, root)
}

func checkStat(t *testing.T, path string, n *tree.Node, st *unix.Stat_t) {
	t.Helper()
	types := map[toc.Type]uint32{toc.Reg: unix.S_IFREG, toc.Dir: unix.S_IFDIR, toc.Symlink: unix.S_IFLNK, toc.Char: unix.S_IFCHR, toc.Block: unix.S_IFBLK, toc.Fifo: unix.S_IFIFO}
	got := fmt.Sprint(st.Mode, st.Uid, st.Gid, st.Nlink, st.Mtim, unix.Major(st.Rdev), unix.Minor(st.Rdev))
	want := fmt.Sprint(types[n.Type]|n.Mode, n.UID, n.GID, n.Nlink, unix.Timespec{Sec: n.Sec, Nsec: int64(n.Nsec)}, n.DevMajor, n.DevMinor)
	if got != want {
		t.Fatalf("%.200s: %s, want %s", path, got, want)
	}
	size := n.Size
	if n.Type == toc.Symlink {
		size = int64(len(n.Link))
	}
	if n.Type != toc.Dir && st.Size != size {
		t.Fatalf("%.200s: %d bytes, want %d", path, st.Size, size)
	}
}

func checkXattrs(t *testing.T, path string, n *tree.Node) {
	t.Helper()
	buf := make([]byte, 1<<16)
	size, err := unix.Llistxattr(path, buf)
	if err != nil {
		t.Fatalf("%.200s: %v", path, err)
	}
	names := strings.FieldsFunc(string(buf[:size]), func(r rune) bool { return r == 0 })
	if len(names) != len(n.Xattrs) {
		t.Fatalf("%.200s: attributes %.500q, want %d", path, names, len(n.Xattrs))
	}
	for name, want := range n.Xattrs {
		size, err := unix.Lgetxattr(path, name, buf)
		if err != nil || !bytes.Equal(buf[:size], want) {
			t.Fatalf("%.200s: attribute %.100s has %d bytes, want %d: %v", path, name, size, len(want), err)
		}
		if !slices.Contains(names, name) {
			t.Fatalf("%.200s: attribute %.100s is not listed", path, name)
		}
	}
}

func checkFile(t *testing.T, path string, n *tree.Node) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	for _, r := range probes(n.Size) {
		got := make([]byte, r[1])
		if _, err := f.ReadAt(got, r[0]); err != nil || !bytes.Equal(got, content(n.Device, n.Addr+r[0], r[1])) {
			t.Fatalf("%s at %d: wrong content, %v", path, r[0], err)
		}
	}
	if k, err := f.ReadAt(make([]byte, 1), n.Size); k != 0 || err != io.EOF {
		t.Fatalf("%s does not end at %d", path, n.Size)
	}
}

func checkDir(t *testing.T, path string, n *tree.Node) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	names, err := f.Readdirnames(-1)
	if cerr := f.Close(); err != nil || cerr != nil {
		t.Fatal(err, cerr)
	}
	if !slices.EqualFunc(names, n.Children, func(name string, c tree.Child) bool { return name == c.Name }) {
		t.Fatalf("%.200s: %d names, want %d", path, len(names), len(n.Children))
	}
	var st unix.Stat_t
	for _, missing := range []string{"missing", "\x01", "~~~", "m", strings.Repeat("x", 254)} {
		if err := unix.Lstat(path+"/"+missing, &st); err != unix.ENOENT && len(path) < 3000 {
			t.Fatalf("%s/%s: %v", path, missing, err)
		}
	}
}

// checkReader compares the image with the nodes through an independent reader.
func checkReader(t *testing.T, img []byte, devices []string, root *tree.Node) {
	t.Helper()
	var extra []io.ReaderAt
	for _, d := range devices {
		f, err := os.Open(d)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = f.Close() })
		extra = append(extra, f)
	}
	fsys, err := reader.Open(bytes.NewReader(img), reader.WithExtraDevices(extra...))
	if err != nil {
		t.Fatal(err)
	}
	for path, n := range flatten(root, 500) {
		f, err := fsys.Open(path)
		if err != nil {
			if n.Type == toc.Symlink {
				continue // it follows symlinks, ours lead nowhere
			}
			t.Fatalf("%s: %v", path, err)
		}
		fi, err := f.Stat()
		if err != nil {
			t.Fatal(err)
		}
		st, ok := fi.Sys().(*reader.Stat)
		if !ok {
			t.Fatalf("the reader returns %T", fi.Sys())
		}
		if st.UID != n.UID || st.GID != n.GID || int64(st.Mtime) != n.Sec || st.MtimeNs != n.Nsec || st.Nlink != int(n.Nlink) || len(st.Xattrs) != len(n.Xattrs) ||
			fi.Mode().Perm() != os.FileMode(n.Mode&0o777) || n.Type == toc.Reg && fi.Size() != n.Size {
			t.Fatalf("%s: %+v, want %+v", path, st, n)
		}
		for name, value := range n.Xattrs {
			if strings.HasPrefix(name, "system.") {
				name += "." // that is how the reader spells ACLs
			}
			if st.Xattrs[name] != string(value) {
				t.Fatalf("%s: attribute %s", path, name)
			}
		}
		if n.Type == toc.Reg && n.Size < 1<<20 {
			got, err := io.ReadAll(f)
			if err != nil || !bytes.Equal(got, content(n.Device, n.Addr, n.Size)) && n.Size <= 18000 {
				t.Fatalf("%s: wrong content, %v", path, err)
			}
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// flatten lists at most limit nodes by path, without the root.
func flatten(root *tree.Node, limit int) map[string]*tree.Node {
	out := map[string]*tree.Node{}
	var walk func(path string, n *tree.Node)
	walk = func(path string, n *tree.Node) {
		for _, c := range n.Children {
			if len(out) >= limit {
				return
			}
			p := strings.TrimPrefix(path+"/"+c.Name, "/")
			out[p] = c.Node
			walk(p, c.Node)
		}
	}
	walk("", root)
	return out
}
