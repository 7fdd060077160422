// Package tree compares file trees to the last attribute: what a container
// would see of an image that is mounted lazily, against the same image
// unpacked by containerd.
package tree

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Inode is what can be seen of one file.
type Inode struct {
	// Mode has the type and permission bits as in st_mode.
	Mode     uint32
	UID, GID uint32
	// Rdev is the device number of device nodes.
	Rdev uint64
	// Size is 0 for directories, whose size depends on the file system.
	Size int64
	// Nlink is 0 for directories, whose count depends on the file system.
	Nlink uint64
	MTime time.Time
	// Link is the target of a symlink.
	Link string
	// Same is the first path, in lexical order, of the hard-linked file.
	Same   string
	Xattrs map[string]string
	// Sum is the SHA-256 of a regular file's content.
	Sum [32]byte
}

// Walk describes every inode below root by its path from there, root itself as ".".
func Walk(root string) (map[string]Inode, error) {
	out := map[string]Inode{}
	first := map[[2]uint64]string{}
	err := filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		in, id, err := inode(path)
		if err != nil {
			return fmt.Errorf("%s: %w", rel, err)
		}
		if in.Nlink > 1 {
			if _, ok := first[id]; !ok {
				first[id] = rel
			}
			in.Same = first[id]
		}
		out[rel] = in
		return nil
	})
	return out, err
}

func inode(path string) (Inode, [2]uint64, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return Inode{}, [2]uint64{}, err
	}
	in := Inode{Mode: st.Mode, UID: st.Uid, GID: st.Gid, Size: st.Size, Nlink: st.Nlink, MTime: time.Unix(st.Mtim.Unix())}
	var err error
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		in.Size, in.Nlink = 0, 0
	case unix.S_IFLNK:
		in.Link, err = os.Readlink(path)
	case unix.S_IFREG:
		in.Sum, err = sum(path)
	case unix.S_IFCHR, unix.S_IFBLK:
		in.Rdev = st.Rdev
	}
	if err != nil {
		return in, [2]uint64{}, err
	}
	in.Xattrs, err = xattrs(path)
	return in, [2]uint64{st.Dev, st.Ino}, err
}

func sum(path string) (out [32]byte, err error) {
	f, err := os.Open(path)
	if err != nil {
		return out, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return out, err
	}
	copy(out[:], h.Sum(nil))
	return out, nil
}

func xattrs(path string) (map[string]string, error) {
	buf := make([]byte, 64<<10)
	n, err := unix.Llistxattr(path, buf)
	if err != nil || n == 0 {
		return nil, err
	}
	out := map[string]string{}
	val := make([]byte, 64<<10)
	for name := range bytes.SplitSeq(bytes.TrimRight(buf[:n], "\x00"), []byte{0}) {
		m, err := unix.Lgetxattr(path, string(name), val)
		if err != nil {
			return nil, fmt.Errorf("xattr %s: %w", name, err)
		}
		out[string(name)] = string(val[:m])
	}
	return out, nil
}

// Diff lists every difference between two trees, sorted by path. Names in
// skip are left out, as "path" or as "path field".
func Diff(want, got map[string]Inode, skip ...string) []string {
	paths := map[string]bool{}
	for p := range want {
		paths[p] = true
	}
	for p := range got {
		paths[p] = true
	}
	var out []string
	for _, p := range slices.Sorted(maps.Keys(paths)) {
		w, inWant := want[p]
		g, inGot := got[p]
		switch {
		case slices.Contains(skip, p):
		case !inGot:
			out = append(out, p+": missing")
		case !inWant:
			out = append(out, p+": unexpected")
		default:
			for _, d := range fields(w, g) {
				if !slices.Contains(skip, p+" "+d.name) {
					out = append(out, fmt.Sprintf("%s: %s is %s, want %s", p, d.name, d.got, d.want))
				}
			}
		}
	}
	return out
}

type fieldDiff struct{ name, want, got string }

func fields(w, g Inode) []fieldDiff {
	var out []fieldDiff
	add := func(name string, want, got any) {
		if a, b := fmt.Sprint(want), fmt.Sprint(got); a != b {
			out = append(out, fieldDiff{name, a, b})
		}
	}
	add("mode", fmt.Sprintf("%o", w.Mode), fmt.Sprintf("%o", g.Mode))
	add("uid", w.UID, g.UID)
	add("gid", w.GID, g.GID)
	add("rdev", w.Rdev, g.Rdev)
	add("size", w.Size, g.Size)
	add("nlink", w.Nlink, g.Nlink)
	add("mtime", w.MTime.UTC().Format(time.RFC3339Nano), g.MTime.UTC().Format(time.RFC3339Nano))
	add("link", w.Link, g.Link)
	add("hard link", w.Same, g.Same)
	add("xattrs", attrs(w.Xattrs), attrs(g.Xattrs))
	add("content", fmt.Sprintf("%x", w.Sum), fmt.Sprintf("%x", g.Sum))
	return out
}

func attrs(m map[string]string) string {
	var b strings.Builder
	for _, k := range slices.Sorted(maps.Keys(m)) {
		fmt.Fprintf(&b, "%s=%q ", k, m[k])
	}
	return b.String()
}
