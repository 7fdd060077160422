package erofs

import (
	"fmt"
	"math/bits"
	"slices"
	"strings"

	"github.com/apparate/apparate/snapshotter/toc"
	"github.com/apparate/apparate/snapshotter/tree"
)

// inode is an inode of the image and where it goes.
type inode struct {
	node   *tree.Node
	parent int32  // number of the parent of a directory
	kids   int32  // where the children's numbers begin in builder.kids
	layout uint16 // layoutPlain, layoutInline or layoutChunked
	xattrs int32  // bytes of extended attributes
	tail   int32  // bytes behind these: inline data or chunk indexes
	blocks int32  // data blocks
	block  uint32 // the first of them
	size   int64  // i_size
	at     int64  // offset in the image
}

// builder makes an image: collect numbers the inodes, place gives each its
// place, write fills the bytes.
type builder struct {
	devices []int64
	inodes  []inode
	kids    []int32
	// numbers finds inodes that are met again: files with several names, and
	// directories, which must not be.
	numbers map[*tree.Node]int32
	dirents []dirent // scratch of list
	meta    int64    // where nids count from, in bytes
	end     int64    // of the image, in bytes
}

// dirent is a name in a directory and its inode's number.
type dirent struct {
	name string
	to   int32
}

// collect numbers the inodes directory by directory, so that the inodes of a
// directory are neighbours: to list it with attributes reads few blocks.
func (b *builder) collect(root *tree.Node) error {
	if root.Type != toc.Dir {
		return fail(toc.ErrHostile, "/", "the root is not a directory")
	}
	names, dirs := count(root)
	b.inodes = make([]inode, 0, names)
	b.kids = make([]int32, 0, names)
	b.numbers = make(map[*tree.Node]int32, dirs)
	if err := b.number("/", root, 0); err != nil {
		return err
	}
	for i := 0; i < len(b.inodes); i++ {
		n := b.inodes[i].node
		if n.Type != toc.Dir {
			continue
		}
		b.inodes[i].kids = int32(len(b.kids))
		for j, c := range n.Children {
			if what := checkName(n.Children, j); what != "" {
				return fail(toc.ErrHostile, c.Name, what)
			}
			if err := b.child(c, int32(i)); err != nil {
				return err
			}
		}
	}
	return nil
}

// count returns how many names are in a tree, its root included, and how many of them
// are directories, or more. It is a guess: a tree that is no tree is found out later.
func count(root *tree.Node) (names, dirs int) {
	const most = 1 << 22 // that a hostile graph of directories cannot keep us
	names, dirs = 1, 1
	todo := []*tree.Node{root}
	for len(todo) > 0 && names < most {
		n := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		names += len(n.Children)
		for i := range n.Children {
			if c := n.Children[i].Node; c.Type == toc.Dir {
				dirs++
				todo = append(todo, c)
			}
		}
	}
	return names, dirs
}

// child adds a child of directory parent to kids, and to inodes when it is new.
func (b *builder) child(c tree.Child, parent int32) error {
	if c.Node.Nlink > 1 { // directories too
		if k, ok := b.numbers[c.Node]; ok {
			if c.Node.Type == toc.Dir {
				return fail(toc.ErrHostile, c.Name, "a directory with two names")
			}
			b.kids = append(b.kids, k)
			return nil
		}
	}
	b.kids = append(b.kids, int32(len(b.inodes)))
	return b.number(c.Name, c.Node, parent)
}

// number adds an inode.
func (b *builder) number(name string, n *tree.Node, parent int32) error {
	if what := checkNode(n); what != "" {
		return fail(toc.ErrHostile, name, what)
	}
	if n.Nlink > 1 {
		b.numbers[n] = int32(len(b.inodes))
	}
	in := inode{node: n, parent: parent}
	size, err := xattrSize(n.Xattrs)
	if err != nil {
		return fmt.Errorf("%.64q: %w", name, err)
	}
	in.xattrs = int32(size)
	if n.Type == toc.Reg && n.Size > 0 {
		if n.Device < 0 || n.Device >= len(b.devices) || n.Addr < 0 || n.Addr%blockSize != 0 || n.Size > b.devices[n.Device]-n.Addr {
			return fail(toc.ErrHostile, name, "its content is not on a device")
		}
	}
	b.inodes = append(b.inodes, in)
	return nil
}

// checkName says what is wrong with the name of a directory's child i.
func checkName(children []tree.Child, i int) string {
	name := children[i].Name
	switch {
	case name == "" || name == "." || name == ".." || strings.IndexByte(name, '/') >= 0 || strings.IndexByte(name, 0) >= 0:
		return "not a name"
	case len(name) > maxNameLen:
		return "the name is too long"
	case i > 0 && children[i-1].Name >= name:
		return "the names are not sorted"
	}
	return ""
}

// checkNode says what about a node an inode cannot express.
func checkNode(n *tree.Node) string {
	mode, _ := typeOf(n.Type)
	switch {
	case mode == 0:
		return "its type is not known"
	case n.Mode > maxMode:
		return "its mode has other bits than permissions"
	case n.Nsec >= maxNsec:
		return "its time has too many nanoseconds"
	case n.Size < 0 || n.Type != toc.Reg && n.Size != 0:
		return "its size is wrong"
	case n.Type == toc.Symlink && (n.Link == "" || len(n.Link) > maxSymlinkLength):
		return "the symlink's target is empty or too long"
	case n.DevMajor > maxDevMajor || n.DevMinor > maxDevMinor:
		return "Linux has no such device"
	case n.Type == toc.Dir && n.Nlink < 2:
		return "a directory has at least two links"
	}
	return ""
}

// place lays the image out: superblock, device table, inodes with what follows
// them, then the data blocks of large directories and symlinks.
func (b *builder) place() error {
	table := int64(firstDeviceSlot+len(b.devices)) * deviceSlotSize
	b.meta = table / blockSize * blockSize
	at := table
	if at == b.meta {
		at += slotSize // nid 0 would be inode number 0, which means "none"
	}
	var blocks int64
	for i := range b.inodes {
		in := &b.inodes[i]
		b.shape(in)
		body := int64(inodeSize) + int64(in.xattrs)
		need := int64(inodeSize) // what has to be in one block
		length := body + int64(in.tail)
		switch in.layout {
		case layoutInline:
			need = length
		case layoutChunked:
			length = align(body, chunkIndexSize) + int64(in.tail)
		}
		if at%blockSize+need > blockSize {
			at = align(at, blockSize)
		}
		in.at = at
		at = align(at+length, slotSize)
		blocks += int64(in.blocks)
	}
	first := align(at, blockSize) / blockSize
	if first+blocks > maxImageBlocks {
		return &toc.Error{Kind: toc.ErrLimit, What: fmt.Sprintf("the metadata needs %d blocks, the limit is %d", first+blocks, maxImageBlocks)}
	}
	b.end = (first + blocks) * blockSize
	for i := range b.inodes {
		in := &b.inodes[i]
		in.block = noBlock
		if in.blocks > 0 {
			in.block = uint32(first)
			first += int64(in.blocks)
		}
	}
	return nil
}

// shape chooses the layout of an inode and computes its sizes.
func (b *builder) shape(in *inode) {
	switch in.node.Type {
	case toc.Reg:
		in.size = in.node.Size
		if in.size > 0 {
			in.layout = layoutChunked
			in.tail = int32(chunks(in.size) * chunkIndexSize)
		}
	case toc.Dir:
		full, last := b.dirSize(in)
		in.size = int64(full)*blockSize + int64(last)
		b.inline(in, full, last)
	case toc.Symlink:
		in.size = int64(len(in.node.Link))
		b.inline(in, 0, len(in.node.Link))
	default: // nothing but an inode
	}
}

// inline lets the last block's bytes of an inode follow the inode, unless both
// do not fit into one block; then that is a data block as those before it.
func (b *builder) inline(in *inode, full, last int) {
	in.blocks = int32(full)
	if inodeSize+int(in.xattrs)+last <= blockSize {
		in.layout, in.tail = layoutInline, int32(last)
	} else {
		in.layout, in.blocks = layoutPlain, int32(full)+1
	}
}

// dirSize returns how many blocks of a directory are followed by another one,
// and the bytes in the last one.
func (b *builder) dirSize(in *inode) (full, last int) {
	for list := b.list(in); ; full++ {
		n, used := fill(list)
		if n == len(list) {
			return full, used
		}
		list = list[n:]
	}
}

// list returns the names of a directory with "." and "..", sorted. It is valid
// until the next call.
func (b *builder) list(in *inode) []dirent {
	children := in.node.Children
	// A directory is the parent's child: find its own number by its address.
	self := b.numbers[in.node]
	out := slices.Grow(b.dirents[:0], len(children)+2)
	dots := []dirent{{".", self}, {"..", in.parent}}
	for i, c := range children {
		for len(dots) > 0 && dots[0].name < c.Name {
			out, dots = append(out, dots[0]), dots[1:]
		}
		out = append(out, dirent{c.Name, b.kids[int(in.kids)+i]})
	}
	b.dirents = append(out, dots...)
	return b.dirents
}

// fill returns how many names of a list go into its first block, and the bytes
// they take there.
func fill(list []dirent) (n, used int) {
	for n < len(list) && used+direntSize+len(list[n].name) <= blockSize {
		used += direntSize + len(list[n].name)
		n++
	}
	return n, used
}

// chunkBits is the size of a file's chunks as a power of two, in blocks: as
// large as the file if that is possible, so that one index is enough.
func chunkBits(size int64) int {
	return min(bits.Len64(uint64((size-1)/blockSize)), maxChunkBits)
}

// chunks returns how many chunks a file has.
func chunks(size int64) int64 {
	return (size-1)>>(blockBits+chunkBits(size)) + 1
}

// align rounds n up to a multiple of unit.
func align[T int | int64](n, unit T) T {
	return (n + unit - 1) / unit * unit
}

// fail makes an error about a name of the tree.
func fail(kind error, name, what string) error {
	return &toc.Error{Kind: kind, Entry: name, What: what}
}
