package tree

import (
	"slices"
	"strings"

	"github.com/apparate/apparate/snapshotter/toc"
)

// name is a name in a directory that is being merged.
type name struct {
	text string
	node *Node      // nil for a whiteout
	dir  *directory // of a directory's node, else nil
	// layer is the topmost layer that has the name.
	layer int
	// below is what the layers under that one had, if they had the name.
	below *name
}

// claim notes that a layer has the name, too.
func (n *name) claim(layer int) {
	if n.layer == layer {
		return
	}
	below := *n
	below.below = nil
	n.below, n.layer = &below, layer
}

// directory is a directory that is being merged.
type directory struct {
	node *Node
	// names are in the order of their first entries, mostly sorted.
	names []*name
	// unsorted says that they are not: most writers list a directory in order.
	unsorted bool
	// index finds names; nil while they are sorted, or few.
	index map[string]*name
	// opaque says that nothing from below this tree may show in it.
	opaque bool
	// hidden is 1 + the last layer whose hideBelowOpaque was here.
	hidden int
}

// few is how many names are found faster without an index.
const few = 8

// get returns a name, nil if there is none.
func (d *directory) get(text string) *name {
	if d.index != nil {
		return d.index[text]
	}
	if d.unsorted {
		for _, n := range d.names {
			if n.text == text {
				return n
			}
		}
		return nil
	}
	last := len(d.names) - 1
	if last < 0 || text > d.names[last].text {
		return nil // the next one in order, as a rule
	}
	i, found := slices.BinarySearchFunc(d.names, text, func(n *name, text string) int { return strings.Compare(n.text, text) })
	if !found {
		return nil
	}
	return d.names[i]
}

// add adds a name that is not there yet.
func (d *directory) add(n *name) {
	if last := len(d.names) - 1; last >= 0 && n.text < d.names[last].text {
		d.unsorted = true
	}
	d.names = append(d.names, n)
	if d.index != nil {
		d.index[n.text] = n
	} else if d.unsorted && len(d.names) > few {
		d.reindex()
	}
}

// reindex makes the index anew.
func (d *directory) reindex() {
	d.index = make(map[string]*name, 2*len(d.names))
	for _, n := range d.names {
		d.index[n.text] = n
	}
}

// keepOnly removes the names that are not of the given layer.
func (d *directory) keepOnly(layer int) {
	before := len(d.names)
	d.names = slices.DeleteFunc(d.names, func(n *name) bool { return n.layer != layer })
	if d.index != nil && len(d.names) < before {
		d.reindex()
	}
	for _, n := range d.names {
		n.below = nil
	}
}

// finish puts the children and the link counts into the nodes.
func (m *merger) finish(keepWhiteouts bool) {
	var whiteout *Node
	if keepWhiteouts {
		whiteout = &Node{Type: toc.Char}
	}
	m.root.node.Nlink = 2
	todo := []*directory{m.root}
	children := make([]Child, 0, m.names)
	for len(todo) > 0 {
		d := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		// The children of all directories share their memory, as far as it is known.
		if cap(children)-len(children) < len(d.names) {
			children = make([]Child, 0, max(len(d.names), slabSize))
		}
		from := len(children)
		for _, n := range d.names {
			node := n.node
			switch {
			case n.dir != nil:
				node.Nlink = 2
				d.node.Nlink++
				todo = append(todo, n.dir)
			case node != nil: // counted when the names came
			case whiteout != nil:
				node = whiteout
				node.Nlink++
			default:
				continue
			}
			children = append(children, Child{Name: n.text, Node: node})
		}
		if d.unsorted {
			slices.SortFunc(children[from:], func(a, b Child) int { return strings.Compare(a.Name, b.Name) })
		}
		d.node.Children = children[from:len(children):len(children)]
		if d.opaque && keepWhiteouts {
			d.node.Xattrs = union(d.node.Xattrs, map[string][]byte{opaqueXattr: []byte(opaqueValue)})
		}
	}
}

// slab allocates nodes, names and directories many at a time.
type slab struct {
	nodes []Node
	names []name
	dirs  []directory
	lists []*name
}

// slabSize is how many are allocated at a time.
const slabSize = 256

// node returns a node.
func (s *slab) node() *Node { return take(&s.nodes) }

// name returns a name.
func (s *slab) name() *name { return take(&s.names) }

// dir returns a directory with room for few names.
func (s *slab) dir() *directory {
	if len(s.lists) < few {
		s.lists = make([]*name, few*slabSize)
	}
	d := take(&s.dirs)
	d.names, s.lists = s.lists[:0:few], s.lists[few:]
	return d
}

// take returns one of a slab.
func take[T any](from *[]T) *T {
	if len(*from) == 0 {
		*from = make([]T, slabSize)
	}
	one := &(*from)[0]
	*from = (*from)[1:]
	return one
}
