package erofs

import (
	"errors"
	"strings"
	"testing"

	"github.com/apparate/apparate/snapshotter/toc"
	"github.com/apparate/apparate/snapshotter/tree"
)

func file(size, addr int64, device int) *tree.Node {
	return &tree.Node{Type: toc.Reg, Nlink: 1, Size: size, Addr: addr, Device: device}
}

func dir(children ...tree.Child) *tree.Node {
	n := &tree.Node{Type: toc.Dir, Nlink: 2, Children: children}
	for _, c := range children {
		if c.Node.Type == toc.Dir {
			n.Nlink++
		}
	}
	return n
}

func TestBuildRefuses(t *testing.T) {
	with := func(change func(*tree.Node)) *tree.Node {
		n := file(0, 0, 0)
		change(n)
		return dir(tree.Child{Name: "x", Node: n})
	}
	twice := dir()
	loop := dir()
	loop.Children = []tree.Child{{Name: "x", Node: loop}}
	for _, c := range []struct {
		name    string
		root    *tree.Node
		devices []int64
		kind    error
	}{
		{"root is a file", file(0, 0, 0), nil, toc.ErrHostile},
		{"no such device", with(func(n *tree.Node) { n.Size, n.Device = 1, 1 }), []int64{4096}, toc.ErrHostile},
		{"behind the device", with(func(n *tree.Node) { n.Size, n.Addr = 4097, 4096 }), []int64{8192}, toc.ErrHostile},
		{"far behind the device", with(func(n *tree.Node) { n.Size, n.Addr = 1<<63-1, 4096 }), []int64{8192}, toc.ErrHostile},
		{"unaligned", with(func(n *tree.Node) { n.Size, n.Addr = 1, 1 }), []int64{8192}, toc.ErrHostile},
		{"negative address", with(func(n *tree.Node) { n.Size, n.Addr = 1, -4096 }), []int64{8192}, toc.ErrHostile},
		{"negative size", with(func(n *tree.Node) { n.Size = -1 }), []int64{8192}, toc.ErrHostile},
		{"unaligned device", dir(), []int64{1}, toc.ErrLimit},
		{"negative device", dir(), []int64{-4096}, toc.ErrLimit},
		{"huge device", dir(), []int64{(1<<32 - 1) * 4096}, toc.ErrLimit},
		{"too many devices", dir(), make([]int64, 1<<16), toc.ErrLimit},
		{"type", with(func(n *tree.Node) { n.Type = toc.Hardlink }), nil, toc.ErrHostile},
		{"mode", with(func(n *tree.Node) { n.Mode = 0o100644 }), nil, toc.ErrHostile},
		{"nanoseconds", with(func(n *tree.Node) { n.Nsec = 1e9 }), nil, toc.ErrHostile},
		{"device number", with(func(n *tree.Node) { n.Type, n.DevMajor = toc.Char, 4096 }), nil, toc.ErrHostile},
		{"empty symlink", with(func(n *tree.Node) { n.Type = toc.Symlink }), nil, toc.ErrHostile},
		{"long symlink", with(func(n *tree.Node) { n.Type, n.Link = toc.Symlink, strings.Repeat("x", 4096) }), nil, toc.ErrHostile},
		{"unknown attribute", with(func(n *tree.Node) { n.Xattrs = map[string][]byte{"system.x": nil} }), nil, toc.ErrUnsupported},
		{"nameless attribute", with(func(n *tree.Node) { n.Xattrs = map[string][]byte{"user.": nil} }), nil, toc.ErrUnsupported},
		{"long attribute name", with(func(n *tree.Node) { n.Xattrs = map[string][]byte{"user." + strings.Repeat("x", 256): nil} }), nil, toc.ErrLimit},
		{"large attribute", with(func(n *tree.Node) { n.Xattrs = map[string][]byte{"user.x": make([]byte, 65536)} }), nil, toc.ErrLimit},
		{"large attributes", with(func(n *tree.Node) {
			n.Xattrs = map[string][]byte{}
			for i := range 5 {
				n.Xattrs["user."+string(rune('a'+i))] = make([]byte, 65535)
			}
		}), nil, toc.ErrLimit},
		{"dot", dir(tree.Child{Name: ".", Node: file(0, 0, 0)}), nil, toc.ErrHostile},
		{"slash", dir(tree.Child{Name: "a/b", Node: file(0, 0, 0)}), nil, toc.ErrHostile},
		{"NUL", dir(tree.Child{Name: "a\x00", Node: file(0, 0, 0)}), nil, toc.ErrHostile},
		{"no name", dir(tree.Child{Name: "", Node: file(0, 0, 0)}), nil, toc.ErrHostile},
		{"long name", dir(tree.Child{Name: strings.Repeat("x", 256), Node: file(0, 0, 0)}), nil, toc.ErrHostile},
		{"unsorted", dir(tree.Child{Name: "b", Node: file(0, 0, 0)}, tree.Child{Name: "a", Node: file(0, 0, 0)}), nil, toc.ErrHostile},
		{"same name", dir(tree.Child{Name: "a", Node: file(0, 0, 0)}, tree.Child{Name: "a", Node: file(0, 0, 0)}), nil, toc.ErrHostile},
		{"directory twice", dir(tree.Child{Name: "a", Node: twice}, tree.Child{Name: "b", Node: twice}), nil, toc.ErrHostile},
		{"loop", loop, nil, toc.ErrHostile},
		{"lonely directory", with(func(n *tree.Node) { n.Type = toc.Dir }), nil, toc.ErrHostile},
	} {
		if img, err := Build(c.root, c.devices); img != nil || !errors.Is(err, c.kind) || toc.Reason(err) == "other" {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

// A file needs one chunk up to 8 TiB.
func TestChunks(t *testing.T) {
	for size, want := range map[int64][2]int64{1: {0, 1}, 4096: {0, 1}, 4097: {1, 1}, 3 * 4096: {2, 1}, 8 << 40: {31, 1}, 8<<40 + 1: {31, 2}, 13 << 40: {31, 2}} {
		if chunkBits(size) != int(want[0]) || chunks(size) != want[1] {
			t.Errorf("%d: %d chunks of 1<<%d blocks", size, chunks(size), chunkBits(size))
		}
	}
}

func BenchmarkBuild(b *testing.B) {
	root, sizes := largeTree(b, 62000)
	b.ReportAllocs()
	for b.Loop() {
		img, err := Build(root, sizes)
		if err != nil {
			b.Fatal(err)
		}
		b.SetBytes(int64(len(img)))
	}
}
