package erofs

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/apparate/apparate/snapshotter/toc"
	"github.com/apparate/apparate/snapshotter/tree"
)

// layered builds a tree through Merge, as the node does.
func layered(t testing.TB, layers ...*toc.Index) (*tree.Node, []int64) {
	t.Helper()
	root, err := tree.Merge(layers, false)
	if err != nil {
		t.Fatal(err)
	}
	var sizes []int64
	for _, x := range layers {
		sizes = append(sizes, max(x.DataSize, blockSize))
	}
	return root, sizes
}

// add appends an entry to a layer and gives a file its place.
func add(x *toc.Index, e toc.Entry) {
	if e.Size > 0 {
		e.Addr = x.DataSize
		x.DataSize += (e.Size + blockSize - 1) / blockSize * blockSize
	}
	x.Entries = append(x.Entries, e)
}

// roundTrip builds, mounts and compares.
func roundTrip(t *testing.T, root *tree.Node, sizes []int64) (dir string) {
	t.Helper()
	img, err := Build(root, sizes)
	if err != nil {
		t.Fatal(err)
	}
	again, err := Build(root, sizes)
	if err != nil || !bytes.Equal(img, again) {
		t.Fatalf("not deterministic: %v", err)
	}
	var devices []string
	for i, n := range sizes {
		devices = append(devices, newDevice(t, i, n, reals(root, i)))
	}
	dir = mountImage(t, img, devices)
	checkMount(t, dir, root)
	checkReader(t, img, devices, root)
	return dir
}

func TestMountSizes(t *testing.T) {
	for _, n := range []int{0, 1, 100, 5000} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			layers := []*toc.Index{{}, {}, {}}
			for i := range n {
				x := layers[i%3]
				add(x, toc.Entry{Path: fmt.Sprintf("dir%d/sub%d/file%d", i/500, i/20, i), Type: toc.Reg, Mode: 0o644, Size: int64(i*37) % 9000, Sec: int64(i)})
			}
			root, sizes := layered(t, layers...)
			roundTrip(t, root, sizes)
		})
	}
}

func TestMountLargeTree(t *testing.T) {
	root, sizes := largeTree(t, 60000)
	dir := roundTrip(t, root, sizes)
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil || st.Bsize != blockSize {
		t.Fatal(st, err)
	}
}

// largeTree is a tree of about n files in 12 layers.
func largeTree(t testing.TB, n int) (*tree.Node, []int64) {
	var layers []*toc.Index
	for l := range 12 {
		x := &toc.Index{}
		for i := range n / 12 {
			add(x, toc.Entry{Type: toc.Reg, Path: fmt.Sprintf("usr/lib/python3.13/site-packages/package%03d/module_%05d.so", i/12+l*100, i), Mode: 0o644, Size: int64(i % 7)})
		}
		layers = append(layers, x)
	}
	return layered(t, layers...)
}

// Every kind of inode at the edges of what it can be.
func TestMountEdges(t *testing.T) {
	x, y := &toc.Index{}, &toc.Index{}
	long := strings.Repeat("n", 255)
	when := time.Date(2024, 2, 29, 1, 2, 3, 123456789, time.UTC)
	add(x, toc.Entry{Path: long + "/" + long, Type: toc.Reg, Mode: 0o7777, Size: 1, UID: 4000000000, GID: 4294967294, Sec: when.Unix(), Nsec: 123456789})
	add(x, toc.Entry{Path: "!before the dots", Type: toc.Reg, Size: blockSize})
	add(x, toc.Entry{Path: "-", Type: toc.Dir, Mode: 0o1777, Nsec: 999999999})
	add(x, toc.Entry{Path: "...", Type: toc.Reg, Size: blockSize + 1})
	add(x, toc.Entry{Path: "\xff\xfe", Type: toc.Dir, Mode: 0})
	add(x, toc.Entry{Path: "empty", Type: toc.Reg, Mode: 0o400})
	add(x, toc.Entry{Path: "pipe", Type: toc.Fifo, Mode: 0o622})
	for i, dev := range [][2]uint32{{1, 3}, {259, 300}, {4095, 1048575}, {0, 256}, {5, 0}} {
		add(x, toc.Entry{Path: fmt.Sprintf("dev/c%d", i), Type: toc.Char, Mode: 0o666, DevMajor: dev[0], DevMinor: dev[1]})
		add(x, toc.Entry{Path: fmt.Sprintf("dev/b%d", i), Type: toc.Block, Mode: 0o660, DevMajor: dev[0], DevMinor: dev[1]})
	}
	for _, n := range []int{1, 63, 64, 1000, 4000, 4031, 4032, 4033, 4095} {
		add(x, toc.Entry{Path: fmt.Sprintf("links/%d", n), Type: toc.Symlink, Link: strings.Repeat("t", n)})
		add(x, toc.Entry{Path: fmt.Sprintf("links/%d+", n), Type: toc.Symlink, Link: strings.Repeat("t", n), Xattrs: map[string][]byte{"security.selinux": []byte("label")}})
	}
	add(y, toc.Entry{Path: "before", Type: toc.Reg, Size: 3})
	add(y, toc.Entry{Path: "5 GiB", Type: toc.Reg, Size: 5<<30 + 7})
	add(y, toc.Entry{Path: "after", Type: toc.Reg, Mode: 0o600, Size: 3})
	add(y, toc.Entry{Path: "links/hard", Type: toc.Hardlink, Link: "after", Mode: 0o600})
	add(y, toc.Entry{Path: "links/hard2", Type: toc.Hardlink, Link: "5 GiB"})
	// Directories whose last block just fits behind the inode, or just not.
	for i := range 60 {
		for j := range 14 {
			add(y, toc.Entry{Path: fmt.Sprintf("fit/%02d/%s%02d", i, strings.Repeat("f", 265-12+i%3), j)[:7+253], Type: toc.Reg})
			add(y, toc.Entry{Path: fmt.Sprintf("fit/%02d/%s%02d", i, strings.Repeat("f", i), j), Type: toc.Reg})
		}
		for j := range i {
			add(y, toc.Entry{Path: fmt.Sprintf("fit/%02d/pad%s%02d", i, strings.Repeat("g", 130+i), j), Type: toc.Reg})
		}
	}
	root, sizes := layered(t, x, y)
	for i, c := range root.Children { // Merge has no times before 1970
		if c.Name == "-" {
			root.Children[i].Node.Sec = -1
		}
	}
	roundTrip(t, root, sizes)
}

func TestMountXattrs(t *testing.T) {
	x := &toc.Index{}
	value := func(n int) []byte { return bytes.Repeat([]byte{0, 1, 2, 255, 4}, n/5+1)[:n] }
	for _, n := range []int{0, 1, 3, 4, 5, 300, 3900, 4000, 4010, 4020, 4030, 4040, 4096, 40000, 65535} {
		add(x, toc.Entry{Path: fmt.Sprintf("f%d", n), Type: toc.Reg, Size: 5000, Xattrs: map[string][]byte{"user.x": value(n)}})
		add(x, toc.Entry{Path: fmt.Sprintf("d%d/x", n), Type: toc.Reg})
		add(x, toc.Entry{Path: fmt.Sprintf("d%d", n), Type: toc.Dir, Mode: 0o755, Xattrs: map[string][]byte{"user.x": value(n), "security.y": value(n / 2)}})
		add(x, toc.Entry{Path: fmt.Sprintf("l%d", n), Type: toc.Symlink, Link: "target", Xattrs: map[string][]byte{"security.x": value(n)}})
		add(x, toc.Entry{Path: fmt.Sprintf("p%d", n), Type: toc.Fifo, Xattrs: map[string][]byte{"security.x": value(n)}})
	}
	many := map[string][]byte{"user." + strings.Repeat("n", 250): []byte("longest name")}
	for i := range 200 {
		many[fmt.Sprintf("user.%03d", i)] = value(i)
	}
	add(x, toc.Entry{Path: "many", Type: toc.Reg, Size: 1, Xattrs: many})
	add(x, toc.Entry{Path: "most", Type: toc.Reg, Size: 1, Xattrs: map[string][]byte{"user.a": value(65535), "user.b": value(65535), "user.c": value(65000), "user.d": value(65000)}})
	// ACLs: version 2; the owner, the group, others, and for access user 1000 and a mask.
	entry := func(tag, perm uint16, id uint32) []byte {
		p := binary.LittleEndian.AppendUint16(nil, tag)
		return binary.LittleEndian.AppendUint32(binary.LittleEndian.AppendUint16(p, perm), id)
	}
	const none = 1<<32 - 1
	acl := slices.Concat([]byte{2, 0, 0, 0}, entry(1, 6, none), entry(2, 4, 1000), entry(4, 4, none), entry(16, 4, none), entry(32, 4, none))
	add(x, toc.Entry{Path: "acl", Type: toc.Dir, Mode: 0o644, Xattrs: map[string][]byte{"system.posix_acl_access": acl, "system.posix_acl_default": acl}})
	root, sizes := layered(t, x)
	root.Xattrs = map[string][]byte{"trusted.overlay.opaque": []byte("y")}
	roundTrip(t, root, sizes)
}

// A directory of a million names: bisection over thousands of blocks.
func TestMountMillion(t *testing.T) {
	const n = 1000000
	root := &tree.Node{Type: toc.Dir, Mode: 0o755, Nlink: 2}
	for i := range n {
		root.Children = append(root.Children, tree.Child{Name: fmt.Sprintf("f%07d", i*3), Node: &tree.Node{Type: toc.Reg, Mode: 0o644, Nlink: 1, UID: uint32(i)}})
	}
	img, err := Build(root, nil)
	if err != nil {
		t.Fatal(err)
	}
	dir := mountImage(t, img, nil)
	checkDir(t, dir, root)
	var st unix.Stat_t
	for i := 0; i < n; i += 4999 {
		if err := unix.Lstat(fmt.Sprintf("%s/f%07d", dir, i*3), &st); err != nil || st.Uid != uint32(i) {
			t.Fatal(i, st.Uid, err)
		}
		if err := unix.Lstat(fmt.Sprintf("%s/f%07d", dir, i*3+1), &st); err != unix.ENOENT {
			t.Fatal(i, err)
		}
	}
}

// Many layers: the device table outgrows the first block.
func TestMountManyDevices(t *testing.T) {
	var layers []*toc.Index
	for i := range 50 {
		x := &toc.Index{}
		add(x, toc.Entry{Path: fmt.Sprintf("f%d", i), Type: toc.Reg, Mode: 0o644, Size: int64(100 * i)})
		layers = append(layers, x)
	}
	root, sizes := layered(t, layers...)
	roundTrip(t, root, sizes)
}

// A file of more than 8 TiB has more than one chunk.
func TestMountHugeFile(t *testing.T) {
	root, sizes := layered(t, &toc.Index{
		Entries: []toc.Entry{
			{Path: "a", Type: toc.Reg, Size: 1},
			{Path: "huge", Type: toc.Reg, Size: 13<<40 + 5, Addr: blockSize},
		}, DataSize: 13<<40 + 2*blockSize,
	})
	roundTrip(t, root, sizes)
}

// Overlayfs honours what Merge keeps for it: whiteouts and opaque directories.
func TestMountUnderOverlay(t *testing.T) {
	x := &toc.Index{}
	add(x, toc.Entry{Path: ".wh.gone", Type: toc.Reg})
	add(x, toc.Entry{Path: "opaque/.wh..wh..opq", Type: toc.Reg})
	add(x, toc.Entry{Path: "opaque/new", Type: toc.Reg, Mode: 0o644})
	add(x, toc.Entry{Path: "merged/new", Type: toc.Reg, Mode: 0o644})
	root, err := tree.Merge([]*toc.Index{x}, true)
	if err != nil {
		t.Fatal(err)
	}
	img, err := Build(root, nil)
	if err != nil {
		t.Fatal(err)
	}
	upper := mountImage(t, img, nil)
	lower, merged := t.TempDir(), t.TempDir()
	for _, name := range []string{"gone/x", "opaque/old", "merged/old"} {
		if err := os.MkdirAll(filepath.Join(lower, filepath.Dir(name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(lower, name), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mount("overlay", merged, "overlay", unix.MS_RDONLY, "lowerdir="+upper+":"+lower); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(merged, 0); err != nil {
			t.Error(err)
		}
	})
	got, err := filepath.Glob(merged + "/*/*")
	if err != nil {
		t.Fatal(err)
	}
	for i := range got {
		got[i] = strings.TrimPrefix(got[i], merged+"/")
	}
	if strings.Join(got, " ") != "merged/new merged/old opaque/new" {
		t.Errorf("overlay shows %q", got)
	}
	if _, err := os.Lstat(merged + "/gone"); !os.IsNotExist(err) {
		t.Errorf("gone is there: %v", err)
	}
}
