package profile

import (
	"context"
	"fmt"
	"io"
	"maps"
	"path"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/apparate/apparate/converter/predict"
)

// maxPredicted is how many entries the tables of an image may have for its files to be
// looked at: what is kept of each takes some 300 bytes.
const maxPredicted = 500_000

// files is the merged tree of an image, as predict looks at it.
type files struct {
	im    *Image
	nodes map[string]*file
	// dirs has the names in each directory.
	dirs map[string]map[string]bool
	read *contents
	err  error // the first of reading
}

// file is one file of the tree.
type file struct {
	predict.Info
	chunks []chunkOf
}

// chunkOf is a part of a file's content.
type chunkOf struct {
	off, size int64
	sum       [32]byte
}

// change is one entry of a layer.
type change struct {
	name   string
	file   *file
	linked string // of a hard link
}

// files reads all tables of contents and merges them. ok is false where the image has
// too many files.
func (im *Image) files(ctx context.Context) (t *files, ok bool, err error) {
	layers := make([][]change, len(im.Layers))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(parallel)
	for i := range im.Layers {
		if !im.Layers[i].Lazy() {
			continue
		}
		g.Go(func() (err error) {
			layers[i], err = im.changes(gctx, i)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, false, err
	}
	n := 0
	for _, l := range layers {
		n += len(l)
	}
	if n > maxPredicted {
		return nil, false, nil
	}
	t = &files{im: im, nodes: map[string]*file{}, dirs: map[string]map[string]bool{}, read: newContents(im)}
	for _, l := range layers {
		t.apply(l)
	}
	return t, true, nil
}

// changes are the entries of one layer; more than maxPredicted of them are not kept.
func (im *Image) changes(ctx context.Context, layer int) ([]change, error) {
	var all []change
	each := func(e *tocEntry, c *chunkOf) {
		if e.Type != "chunk" && len(all) <= maxPredicted {
			all = append(all, newChange(e))
		}
		if n := len(all); c != nil && n > 0 && n <= maxPredicted {
			f := all[n-1].file
			f.chunks = append(f.chunks, *c)
		}
	}
	found, err := im.readTOC(ctx, layer, func() tocReader {
		all = nil
		return tocReader{wanted: func([32]byte) bool { return len(all) <= maxPredicted }, each: each}
	})
	if err != nil {
		return nil, err
	}
	im.keep(found)
	return all, nil
}

func newChange(e *tocEntry) change {
	c := change{name: path.Clean("/" + e.Name), file: &file{Info: predict.Info{Size: e.Size}}}
	switch e.Type {
	case "reg":
		c.file.Type = predict.Regular
	case "dir":
		c.file.Type = predict.Directory
	case "symlink":
		c.file.Type, c.file.Link = predict.Symlink, e.LinkName
	case "hardlink":
		c.linked = path.Clean("/" + e.LinkName)
	}
	return c
}

// apply puts a layer on top of the tree (OCI image specification, "Whiteouts").
func (t *files) apply(layer []change) {
	const whiteout, opaque = ".wh.", ".wh..wh..opq"
	for _, c := range layer {
		dir, base := path.Split(c.name)
		switch {
		case base == opaque:
			for name := range t.dirs[path.Clean(dir)] {
				t.remove(path.Join(dir, name))
			}
		case strings.HasPrefix(base, whiteout):
			t.remove(path.Join(dir, strings.TrimPrefix(base, whiteout)))
		}
	}
	for _, c := range layer {
		if strings.HasPrefix(path.Base(c.name), whiteout) || c.name == "/" {
			continue
		}
		f := c.file
		if c.linked != "" {
			if f = t.nodes[c.linked]; f == nil {
				continue
			}
		}
		if old := t.nodes[c.name]; old != nil && (old.Type != predict.Directory || f.Type != predict.Directory) {
			t.remove(c.name)
		}
		t.put(c.name, f)
	}
}

// put notes a file and the directories that it is in.
func (t *files) put(name string, f *file) {
	t.nodes[name] = f
	for name != "/" {
		dir := path.Dir(name)
		names := t.dirs[dir]
		if names == nil {
			names = map[string]bool{}
			t.dirs[dir] = names
		}
		names[path.Base(name)] = true
		if name = dir; name != "/" && t.nodes[name] == nil {
			t.nodes[name] = &file{Info: predict.Info{Type: predict.Directory}}
		}
	}
}

// remove takes a file away, with all that is in it.
func (t *files) remove(name string) {
	for child := range t.dirs[name] {
		t.remove(path.Join(name, child))
	}
	delete(t.dirs, name)
	delete(t.nodes, name)
	delete(t.dirs[path.Dir(name)], path.Base(name))
}

// Lstat implements predict.Tree.
func (t *files) Lstat(name string) (predict.Info, bool) {
	f := t.nodes[name]
	if f == nil {
		return predict.Info{}, false
	}
	return f.Info, true
}

// List implements predict.Tree.
func (t *files) List(dir string) []string {
	return slices.Sorted(maps.Keys(t.dirs[path.Clean(dir)]))
}

// plan turns parts of files into the chunks that they are in, each once.
func (t *files) plan(ranges []predict.Range) Plan {
	var plan Plan
	seen := map[[32]byte]bool{}
	for _, r := range ranges {
		f := t.nodes[r.Name]
		if f == nil {
			continue
		}
		for _, c := range f.chunks {
			if seen[c.sum] || c.off >= r.Offset+r.Size || c.off+c.size <= r.Offset {
				continue
			}
			place, ok := t.im.Place(c.sum)
			if !ok {
				continue
			}
			seen[c.sum] = true
			plan = append(plan, Planned{Layer: t.im.Layers[place.Layer].Digest, Sum: c.sum, Size: c.size})
		}
	}
	return plan
}

// Open implements predict.Tree.
func (t *files) Open(ctx context.Context, name string) (io.ReaderAt, error) {
	f := t.nodes[name]
	if f == nil || f.Type != predict.Regular {
		return nil, fmt.Errorf("the image has no file %s", name)
	}
	return &reader{ctx, f, t.read, &t.err}, nil
}
