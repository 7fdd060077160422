package tree

import (
	"strings"

	"github.com/apparate/apparate/snapshotter/toc"
)

// Whiteouts in layers (OCI image specification, "Whiteouts").
const (
	whiteoutPrefix = ".wh."
	opaqueMarker   = ".wh..wh..opq"
)

const (
	// implicitMode is that of directories that no layer lists.
	implicitMode = 0o755
	// symlinkMode is that of every symlink on Linux.
	symlinkMode = 0o777
	setgid      = 0o2000
	// maxNames bounds the names of a tree, of some 300 bytes of memory each.
	maxNames = 4 << 20
	// maxImplicit bounds the directories that no layer lists. A path of 4096
	// bytes can ask for 2048 of them: without a bound, a small TOC could use up
	// the node's memory.
	maxImplicit = 1 << 18
)

// Merge makes one tree of the layers of an image, the bottom layer first. The
// layers are not changed; the tree shares strings and attributes with them.
//
// keepWhiteouts says that ordinary layers lie below these, so that the tree is
// to be stacked on them by overlayfs: whiteouts then become character devices
// 0:0, and directories that hide lower ones get trusted.overlay.opaque. Without
// it nothing is left to hide and whiteouts vanish. (One thing cannot be right
// with it: the attributes of a directory that only the ordinary layers list.)
//
// Errors name the entry and wrap toc.ErrHostile, toc.ErrUnsupported or
// toc.ErrLimit, so that toc.Reason knows them.
func Merge(layers []*toc.Index, keepWhiteouts bool) (*Node, error) {
	root := &Node{Type: toc.Dir, Mode: implicitMode}
	m := &merger{root: &directory{node: root}}
	for i, x := range layers {
		m.layer = i
		m.lastDir = nil
		for j := range x.Entries {
			if err := m.apply(&x.Entries[j]); err != nil {
				return nil, err
			}
		}
		m.hideBelowOpaque()
	}
	m.finish(keepWhiteouts)
	return root, nil
}

// merger is the state of Merge: the tree so far, in a form that can be changed.
type merger struct {
	root  *directory
	layer int // being applied
	names int // made so far, for maxNames
	// implicit counts the directories made for entries below them.
	implicit int
	// lastPath is the path of lastDir, the last entry's parent; TOCs list the
	// entries of a directory one after the other. nil when not known.
	lastPath string
	lastDir  *directory
	// opaque are the directories in which this layer has an opaque marker.
	opaque []*directory
	slab   slab
}

// apply adds an entry of the current layer.
func (m *merger) apply(e *toc.Entry) error {
	if e.Path == "" {
		setTime(m.root.node, e)
		return nil
	}
	dirPath, base := "", e.Path
	if i := strings.LastIndexByte(e.Path, '/'); i >= 0 {
		dirPath, base = e.Path[:i], e.Path[i+1:]
	}
	d, err := m.parent(dirPath, e)
	if err != nil {
		return err
	}
	if rest, ok := strings.CutPrefix(base, whiteoutPrefix); ok {
		return m.applyWhiteout(d, base, rest, e)
	}
	switch {
	case e.Type == toc.Dir:
		return m.applyDir(d, base, e)
	case e.Type == toc.Hardlink:
		return m.applyHardlink(d, base, e)
	case e.Type == toc.Char && e.DevMajor == 0 && e.DevMinor == 0:
		return m.put(d, base, nil, e)
	}
	n := m.slab.node()
	*n = Node{
		Type: e.Type, Size: e.Size, Addr: e.Addr, Device: m.layer,
		DevMajor: e.DevMajor, DevMinor: e.DevMinor,
	}
	if e.Type == toc.Symlink {
		n.Link = e.Link
	}
	setAttributes(n, e)
	return m.put(d, base, n, e)
}

// applyDir adds a directory: a new one, or new attributes for what is there.
func (m *merger) applyDir(d *directory, base string, e *toc.Entry) error {
	old := d.get(base)
	again := old != nil && old.dir != nil && old.layer == m.layer
	dir, err := m.makeDir(d, base, e)
	if err != nil {
		return err
	}
	earlier := dir.node.Xattrs
	setAttributes(dir.node, e)
	if again {
		dir.node.Xattrs = union(earlier, dir.node.Xattrs)
	}
	return nil
}

// applyWhiteout adds the whiteout base, which is whiteoutPrefix and rest.
func (m *merger) applyWhiteout(d *directory, base, rest string, e *toc.Entry) error {
	if base == opaqueMarker {
		if d != m.root {
			m.opaque = append(m.opaque, d)
		}
		return nil
	}
	if rest == "" || rest == "." || rest == ".." {
		return fail(toc.ErrHostile, e, "a whiteout of nothing, or of a directory that holds it")
	}
	if n := d.get(rest); n != nil && n.layer == m.layer && n.node != nil {
		return nil // the layer has the name itself
	}
	return m.put(d, rest, nil, e)
}

// applyHardlink adds another name of a file.
func (m *merger) applyHardlink(d *directory, base string, e *toc.Entry) error {
	// The name is cleared before the target is looked for: so it is, or holds,
	// no target itself.
	if e.Link == e.Path || strings.HasPrefix(e.Link, e.Path+"/") {
		return fail(toc.ErrHostile, e, "a hard link to itself")
	}
	target, err := m.lookup(e)
	if err != nil {
		return err
	}
	if target.node.Device == m.layer && e.Mode != 0 {
		earlier := target.node.Xattrs
		setAttributes(target.node, e)
		target.node.Xattrs = union(earlier, target.node.Xattrs)
	}
	return m.put(d, base, target.node, e)
}

// lookup finds the target of the hard link e.
func (m *merger) lookup(e *toc.Entry) (*name, error) {
	d, rest := m.root, e.Link
	for {
		element, after, more := strings.Cut(rest, "/")
		n := d.get(element)
		switch {
		case n == nil || n.node == nil:
			return nil, fail(toc.ErrHostile, e, "a hard link to a file that no earlier entry makes")
		case !more && n.dir != nil:
			return nil, fail(toc.ErrHostile, e, "a hard link to a directory")
		case !more:
			return n, nil
		case n.dir == nil:
			return nil, failThrough(n, e)
		}
		d, rest = n.dir, after
	}
}

// parent returns the directory of a path, and makes what is missing of it.
func (m *merger) parent(path string, e *toc.Entry) (*directory, error) {
	if m.lastDir != nil && m.lastPath == path {
		return m.lastDir, nil
	}
	d := m.root
	for rest := path; rest != ""; {
		element, after, _ := strings.Cut(rest, "/")
		var err error
		if d, err = m.step(d, element, e); err != nil {
			return nil, err
		}
		rest = after
	}
	m.lastPath, m.lastDir = path, d
	return d, nil
}

// step goes from d into its directory of a name, on the way to e.
func (m *merger) step(d *directory, element string, e *toc.Entry) (*directory, error) {
	n := d.get(element)
	if n != nil && n.dir != nil {
		n.claim(m.layer) // the layer has it too, with the attributes it had
		return n.dir, nil
	}
	if n != nil && n.node != nil && n.layer == m.layer {
		return nil, failThrough(n, e)
	}
	if m.implicit++; m.implicit > maxImplicit {
		return nil, fail(toc.ErrLimit, e, "the tree has too many directories that are not listed")
	}
	return m.makeDir(d, element, e)
}

// makeDir returns the directory of a name in d, on behalf of the current layer.
func (m *merger) makeDir(d *directory, element string, e *toc.Entry) (*directory, error) {
	n := d.get(element)
	if n == nil {
		var err error
		if n, err = m.add(d, element, e); err != nil {
			return nil, err
		}
		n.dir = m.newDir(d)
		n.node = n.dir.node
		return n.dir, nil
	}
	if n.dir != nil {
		n.claim(m.layer)
		return n.dir, nil
	}
	// Something else is there. What counts is what lies below this layer.
	m.unlink(n)
	n.claim(m.layer)
	if below := n.below; below != nil && below.dir != nil {
		n.dir = below.dir
	} else {
		n.dir = m.newDir(d)
		n.dir.opaque = below != nil // a file or a whiteout hides what is farther below
	}
	n.node = n.dir.node
	return n.dir, nil
}

// newDir returns a directory in d that no layer has listed yet.
func (m *merger) newDir(d *directory) *directory {
	n := m.slab.node()
	*n = Node{Type: toc.Dir, Mode: implicitMode, Device: m.layer}
	if d.node.Mode&setgid != 0 {
		n.GID = d.node.GID // mkdir(2) does so
	}
	dir := m.slab.dir()
	dir.node = n
	return dir
}

// put makes a name in d that of node, nil for a whiteout.
func (m *merger) put(d *directory, element string, node *Node, e *toc.Entry) error {
	n := d.get(element)
	if n == nil {
		var err error
		if n, err = m.add(d, element, e); err != nil {
			return err
		}
	}
	if n.dir != nil {
		m.lastDir = nil // it may be the one, or lie in it
	}
	m.unlink(n)
	n.claim(m.layer)
	n.node, n.dir = node, nil
	if node != nil {
		node.Nlink++
	}
	return nil
}

// unlink takes back the links that a name of the current layer counts for,
// because the same layer replaces it. A name of a lower layer goes on counting:
// overlayfs hides it, and shows the link count that the file has down there.
func (m *merger) unlink(n *name) {
	todo := []*name{n}
	for len(todo) > 0 {
		n := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		switch {
		case n.layer != m.layer:
		case n.dir != nil:
			todo = append(todo, n.dir.names...)
		case n.node != nil:
			n.node.Nlink--
		}
	}
}

// add makes a name in d.
func (m *merger) add(d *directory, element string, e *toc.Entry) (*name, error) {
	if m.names++; m.names > maxNames {
		return nil, fail(toc.ErrLimit, e, "the tree has too many names")
	}
	n := m.slab.name()
	*n = name{text: element, layer: m.layer}
	d.add(n)
	return n, nil
}

// hideBelowOpaque removes what lower layers have in the directories that the
// current layer declared opaque. It comes last, as a marker concerns lower
// layers wherever in its own layer it stands.
func (m *merger) hideBelowOpaque() {
	todo := m.opaque
	for _, d := range todo {
		d.opaque = true
	}
	for len(todo) > 0 {
		d := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		if d.hidden == m.layer+1 {
			continue // nested markers must not make this quadratic
		}
		d.hidden = m.layer + 1
		d.keepOnly(m.layer)
		for _, n := range d.names {
			if n.dir != nil {
				todo = append(todo, n.dir)
			}
		}
	}
	m.opaque = m.opaque[:0]
}

// fail makes an error about an entry.
func fail(kind error, e *toc.Entry, what string) error {
	return &toc.Error{Kind: kind, Entry: e.Path, What: what}
}

// failThrough is the error for a path of e that passes n, no directory.
func failThrough(n *name, e *toc.Entry) error {
	if n.node.Type == toc.Symlink {
		return fail(toc.ErrUnsupported, e, "its path passes a symlink of the same layer")
	}
	return fail(toc.ErrHostile, e, "its path passes a file")
}
