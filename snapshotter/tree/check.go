package tree

import (
	"strings"

	"github.com/apparate/apparate/snapshotter/toc"
)

// Check says whether a layer can be merged: it returns nil where Merge of this layer
// alone would succeed, else the error of that. Most layers are seen to be good without
// merging them, which takes ten times as long.
func Check(x *toc.Index) error {
	c := checker{parents: make(map[string]struct{}, len(x.Entries)/8)}
	if c.obvious(x.Entries) {
		return nil
	}
	_, err := Merge([]*toc.Index{x}, true)
	return err
}

// checker looks for what could make Merge fail.
type checker struct {
	// parents are all directories that an entry lies in, listed or not.
	parents map[string]struct{}
	// targets are those of hard links, and whether an entry made them so far.
	targets map[string]bool
}

// obvious says that nothing in a layer can make Merge fail. It may be wrong about a
// layer that is good.
func (c *checker) obvious(entries []toc.Entry) bool {
	last := ""
	for i := range entries {
		e := &entries[i]
		if dir := e.Path[:max(0, strings.LastIndexByte(e.Path, '/'))]; dir != last {
			c.parent(dir)
			last = dir
		}
		if e.Type == toc.Hardlink {
			if c.targets == nil {
				c.targets = map[string]bool{}
			}
			c.targets[e.Link] = false
		}
	}
	if len(c.parents) > maxImplicit {
		return false
	}
	for i := range entries {
		if !c.plain(&entries[i]) {
			return false
		}
	}
	return true
}

// parent notes a directory and those it lies in.
func (c *checker) parent(dir string) {
	for dir != "" {
		if _, ok := c.parents[dir]; ok {
			return
		}
		c.parents[dir] = struct{}{}
		dir = dir[:max(0, strings.LastIndexByte(dir, '/'))]
	}
}

// plain says that an entry cannot fail and is in no other's way.
func (c *checker) plain(e *toc.Entry) bool {
	base := e.Path[strings.LastIndexByte(e.Path, '/')+1:]
	rest, whiteout := strings.CutPrefix(base, whiteoutPrefix)
	_, isTarget := c.targets[e.Path]
	switch {
	case whiteout:
		return !isTarget && rest != "" && rest != "." && rest != ".."
	case e.Type == toc.Dir:
		return !isTarget
	}
	if _, isParent := c.parents[e.Path]; isParent {
		return false // a path passes it
	}
	if e.Type == toc.Hardlink && (!c.targets[e.Link] || e.Link == e.Path) {
		return false // no earlier entry makes its target
	}
	if isTarget {
		if e.Type == toc.Char && e.DevMajor == 0 && e.DevMinor == 0 {
			return false // it takes the target away
		}
		c.targets[e.Path] = true
	}
	return true
}
