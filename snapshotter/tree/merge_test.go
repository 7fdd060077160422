package tree

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/apparate/apparate/snapshotter/toc"
)

// layer makes an index of lines, each "type path [field=value...]". The types
// are d, f, l (symlink), h (hard link), c, b, p; the fields m (octal mode), u, g,
// t (time), s (size), to (target), x (name:value of an extended attribute), dev.
func layer(lines ...string) *toc.Index {
	x := &toc.Index{}
	for _, line := range lines {
		words := strings.Fields(line)
		types := map[string]toc.Type{"d": toc.Dir, "f": toc.Reg, "l": toc.Symlink, "h": toc.Hardlink, "c": toc.Char, "b": toc.Block, "p": toc.Fifo}
		e := toc.Entry{Type: types[words[0]], Path: strings.TrimPrefix(words[1], "/"), Mode: 0o644}
		if e.Type == toc.Dir {
			e.Mode = 0o755
		}
		for _, w := range words[2:] {
			k, v, _ := strings.Cut(w, "=")
			n, _ := strconv.ParseInt(v, 0, 64)
			switch k {
			case "m":
				mode, _ := strconv.ParseUint(v, 8, 32)
				e.Mode = uint32(mode)
			case "u":
				e.UID = uint32(n)
			case "g":
				e.GID = uint32(n)
			case "t":
				e.Sec = n
			case "s":
				e.Size, e.Addr = n, x.DataSize
				x.DataSize += (n + toc.BlockSize - 1) / toc.BlockSize * toc.BlockSize
			case "to":
				e.Link = v
			case "x":
				name, value, _ := strings.Cut(v, ":")
				if e.Xattrs == nil {
					e.Xattrs = map[string][]byte{}
				}
				e.Xattrs[name] = []byte(value)
			case "dev":
				if _, err := fmt.Sscanf(v, "%d:%d", &e.DevMajor, &e.DevMinor); err != nil {
					panic(err)
				}
			}
		}
		x.Entries = append(x.Entries, e)
	}
	return x
}

// describe lists a tree, a line for each name, without what has its usual value.
func describe(root *Node) []string {
	var out []string
	first := map[*Node]string{}
	var walk func(path string, n *Node)
	walk = func(path string, n *Node) {
		if p, ok := first[n]; ok {
			out = append(out, path+" = "+p)
			return
		}
		first[n] = path
		s := path + " " + string("?dflhcbp"[n.Type])
		if n.Type == toc.Dir && n.Mode != 0o755 || n.Type == toc.Reg && n.Mode != 0o644 {
			s += fmt.Sprintf(" m=%o", n.Mode)
		}
		if n.UID != 0 || n.GID != 0 {
			s += fmt.Sprintf(" %d:%d", n.UID, n.GID)
		}
		if n.Sec != 0 {
			s += fmt.Sprintf(" t=%d", n.Sec)
		}
		if n.Size != 0 {
			s += fmt.Sprintf(" %d@%d/%d", n.Size, n.Device, n.Addr)
		}
		if n.Type != toc.Dir && n.Nlink != 1 {
			s += fmt.Sprintf(" n=%d", n.Nlink)
		}
		if n.Link != "" {
			s += " to=" + n.Link
		}
		if n.Type == toc.Char || n.Type == toc.Block {
			s += fmt.Sprintf(" %d:%d", n.DevMajor, n.DevMinor)
		}
		var names []string
		for k, v := range n.Xattrs {
			names = append(names, " "+k+"="+string(v))
		}
		slices.Sort(names)
		out = append(out, s+strings.Join(names, ""))
		for _, c := range n.Children {
			walk(strings.TrimPrefix(path+"/"+c.Name, "//"), c.Node)
		}
	}
	walk("/", root)
	return out[1:]
}

func TestMerge(t *testing.T) {
	for _, c := range []struct {
		name   string
		keep   bool
		layers []*toc.Index
		want   string
	}{
		{"nothing", false, nil, ``},
		{"one layer", false, []*toc.Index{layer("d b u=1 g=2 t=5 m=1777", "f b/x s=5", "f a s=5000", "l c to=/b/x m=644", "c d dev=1:3", "p e")},
			`a f 5000@0/4096;b d m=1777 1:2 t=5;b/x f 5@0/0;c l to=/b/x;d c 1:3;e p`},
		{"later entry wins", false, []*toc.Index{layer("f a s=1", "f a s=2 m=600", "d b m=700", "f b/x", "d b m=711", "d c", "f c/x", "f c", "f d", "d d")},
			`a f m=600 2@0/4096;b d m=711;b/x f;c f;d d`},
		{"directories merge", false, []*toc.Index{layer("d a m=700 u=5 x=user.l:1", "f a/low"), layer("d a m=711 x=user.u:2", "f a/up")},
			`a d m=711 user.u=2;a/low f;a/up f`},
		{"unlisted parents", false, []*toc.Index{layer("d a m=700 u=5 g=6 t=9 x=user.l:1"), layer("f a/b/c")},
			`a d m=700 5:6 t=9 user.l=1;a/b d;a/b/c f`},
		{"set-group-id parent", false, []*toc.Index{layer("d a m=2755 g=6", "f a/b/c")}, `a d m=2755 0:6;a/b d 0:6;a/b/c f`},
		{"listed after its content", false, []*toc.Index{layer("d a x=user.l:1 x=user.m:1"), layer("f a/b", "d a m=700 x=user.m:2")},
			`a d m=700 user.l=1 user.m=2;a/b f`},
		{"replaced", false, []*toc.Index{layer("f a/x", "f b", "l c to=d", "d d"), layer("f a", "d b", "f b/y", "f c/z")},
			`a f;b d;b/y f;c d;c/z f;d d`},
		{"whiteout", false, []*toc.Index{layer("f a/x", "f a/y", "f b/z"), layer("f a/.wh.x", "f .wh.b", "f .wh.none")}, `a d;a/y f`},
		{"whiteout and back", false, []*toc.Index{layer("d a m=700 u=1", "f a/x"), layer("f .wh.a"), layer("f a/y")}, `a d;a/y f`},
		{"whiteout beside the name", false, []*toc.Index{layer("f a s=1", "f b s=1", "f c/x", "f d/x"),
			layer("f .wh.a", "f a s=2", "f b s=2", "f .wh.b", "f .wh.c", "f c/y", "f d/y", "f .wh.d")},
			`a f 2@1/0;b f 2@1/4096;c d;c/x f;c/y f;d d;d/x f;d/y f`},
		{"whiteout in its own layer only", false, []*toc.Index{layer("f .wh.a", "f .wh.b"), layer("f a", "f b")}, `a f;b f`},
		{"opaque", false, []*toc.Index{layer("d a m=700", "f a/x", "f a/s/low", "f b/x"), layer("f a/y", "f a/.wh..wh..opq", "f a/s/up", "f a/z")},
			`a d m=700;a/s d;a/s/up f;a/y f;a/z f;b d;b/x f`},
		{"opaque twice", false, []*toc.Index{layer("f a/b/c/x", "f a/b/y"), layer("f a/.wh..wh..opq", "f a/b/.wh..wh..opq", "f a/b/c/z")},
			`a d;a/b d;a/b/c d;a/b/c/z f`},
		{"opaque root", false, []*toc.Index{layer("f a"), layer("f .wh..wh..opq", "f b")}, `a f;b f`},
		{"char 0:0", false, []*toc.Index{layer("f a", "f b/x", "f c/x"), layer("c a dev=0:0", "f b/y", "c b dev=0:0", "c c dev=0:0", "d c")}, `c d;c/x f`},
		{"aufs leftovers", false, []*toc.Index{layer("f .wh..wh.plnk", "f .wh..wh.aufs", "f a")}, `a f`},
		{"file, then directory again", false, []*toc.Index{layer("f a/low"), layer("f a", "d a m=700")}, `a d m=700;a/low f`},

		{"hard links", false, []*toc.Index{layer("f a s=1 m=600", "h b to=a m=600", "h c to=b m=600", "f d", "h d to=a m=600")},
			`a f m=600 1@0/0 n=4;b = a;c = a;d = a`},
		{"hard link's attributes", false, []*toc.Index{layer("f a m=600 x=user.a:1", "h b to=a m=640 u=3 x=user.b:2", "f c m=600", "h d to=c m=0")},
			`a f m=640 3:0 n=2 user.a=1 user.b=2;b = a;c f m=600 n=2;d = c`},
		{"hard link to a symlink", false, []*toc.Index{layer("l a to=x", "h b to=a m=644")}, `a l n=2 to=x;b = a`},
		{"hard link to a lower layer", false, []*toc.Index{layer("f a s=1 m=600"), layer("h b to=a m=640")}, `a f m=600 1@0/0 n=2;b = a`},
		{"one name removed", false, []*toc.Index{layer("f a", "h b to=a", "h c to=a"), layer("f .wh.a"), layer("f c s=1")}, `b f n=3;c f 1@2/0`},
		{"target replaced later", false, []*toc.Index{layer("f a s=1", "h b to=a", "f a s=2")}, `a f 2@0/4096;b f 1@0/0`},

		{"kept whiteouts", true, []*toc.Index{layer("f .wh.a", "f b/.wh.x", "f c"), layer("f .wh.c", "f .wh.d")},
			`a c n=4 0:0;b d;b/x = a;c = a;d = a`},
		{"kept opaque", true, []*toc.Index{layer("f a/.wh..wh..opq", "f a/x")}, `a d trusted.overlay.opaque=y;a/x f`},
		{"kept: directory over file", true, []*toc.Index{layer("f a", "f b"), layer("d a", "f b/x")},
			`a d trusted.overlay.opaque=y;b d trusted.overlay.opaque=y;b/x f`},
		{"kept: directory over whiteout", true, []*toc.Index{layer("f .wh.a"), layer("d a")}, `a d trusted.overlay.opaque=y`},
		{"kept: directory beside whiteout", true, []*toc.Index{layer("f .wh.a", "d a")}, `a d`},
		{"kept: file, then directory", true, []*toc.Index{layer("f a", "d a")}, `a d`},

		{"foreign attributes", false, []*toc.Index{layer("d a x=trusted.overlay.opaque:y x=trusted.x:1", "f b x=trusted.overlay.redirect:/x x=user.overlay.opaque:y x=security.capability:c x=system.posix_acl_access:1 x=system.posix_acl_default:1 x=system.x:1 x=user.:1",
			"l c to=x x=user.a:1 x=security.selinux:s x=system.posix_acl_access:1", "d d x=system.posix_acl_default:1")},
			`a d;b f security.capability=c system.posix_acl_access=1 user.overlay.opaque=y;c l to=x security.selinux=s;d d system.posix_acl_default=1`},
		{"times", false, []*toc.Index{layer("f a t=-1", "f b t=9223372036", "f c t=9223372037", "f d t=253402300799")}, `a f;b f t=9223372036;c f;d f`},
	} {
		root, err := Merge(c.layers, c.keep)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		check(t, root, c.layers, c.keep)
		if got := strings.Join(describe(root), ";"); got != c.want {
			t.Errorf("%s:\n got %s\nwant %s", c.name, got, c.want)
		}
	}
}

func TestMergeRefuses(t *testing.T) {
	for _, c := range []struct {
		name   string
		layers []*toc.Index
		kind   error
		entry  string
	}{
		{"missing target", []*toc.Index{layer("h a to=b")}, toc.ErrHostile, "a"},
		{"target comes later", []*toc.Index{layer("h a to=b", "f b")}, toc.ErrHostile, "a"},
		{"loop", []*toc.Index{layer("h a to=b", "h b to=a")}, toc.ErrHostile, "a"},
		{"itself", []*toc.Index{layer("f a", "h a to=a")}, toc.ErrHostile, "a"},
		{"in itself", []*toc.Index{layer("f a/b", "h a to=a/b")}, toc.ErrHostile, "a"},
		{"directory", []*toc.Index{layer("d a", "h b to=a")}, toc.ErrHostile, "b"},
		{"root", []*toc.Index{layer("h b to=")}, toc.ErrHostile, "b"},
		{"removed target", []*toc.Index{layer("f a"), layer("f .wh.a"), layer("h b to=a")}, toc.ErrHostile, "b"},
		{"target behind a symlink", []*toc.Index{layer("d a", "f a/f", "l s to=a", "h b to=s/f")}, toc.ErrUnsupported, "b"},
		{"target behind a file", []*toc.Index{layer("f a", "h b to=a/f")}, toc.ErrHostile, "b"},
		{"parent is a file", []*toc.Index{layer("f a", "f a/b")}, toc.ErrHostile, "a/b"},
		{"parent is a symlink", []*toc.Index{layer("d x", "l a to=x", "f a/b")}, toc.ErrUnsupported, "a/b"},
		{"parent of a whiteout is a file", []*toc.Index{layer("f a", "f a/.wh.b")}, toc.ErrHostile, "a/.wh.b"},
		{"whiteout of nothing", []*toc.Index{layer("f a/.wh.")}, toc.ErrHostile, "a/.wh."},
		{"whiteout of the directory", []*toc.Index{layer("f a/.wh..")}, toc.ErrHostile, "a/.wh.."},
		{"whiteout of the parent", []*toc.Index{layer("f a/.wh...")}, toc.ErrHostile, "a/.wh..."},
	} {
		root, err := Merge(c.layers, false)
		var e *toc.Error
		if root != nil || !errors.Is(err, c.kind) || !errors.As(err, &e) || e.Entry != c.entry {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

// The root has the attributes that the snapshotter's own directory has.
func TestMergeRoot(t *testing.T) {
	root, err := Merge([]*toc.Index{layer("d / m=700 u=5 t=7 x=user.a:1"), layer("d a", "d / m=711 t=8"), layer("f b")}, true)
	if err != nil {
		t.Fatal(err)
	}
	if root.Mode != 0o755 || root.UID != 0 || root.Sec != 8 || root.Xattrs != nil || root.Nlink != 3 {
		t.Errorf("%+v", root)
	}
}

// Memory is bounded even where each path asks for thousands of directories.
func TestMergeTooManyNames(t *testing.T) {
	m := &merger{root: &directory{node: &Node{Type: toc.Dir}}, names: maxNames - 5}
	err := m.apply(&toc.Entry{Type: toc.Reg, Path: "a/b/c/d/e/f"})
	if !errors.Is(err, toc.ErrLimit) {
		t.Fatal(err)
	}
}

// A layer is shared between images: Merge must not change it.
func TestMergeLeavesLayersAlone(t *testing.T) {
	make2 := func() []*toc.Index {
		return []*toc.Index{
			layer("d a x=user.a:1", "f a/f x=user.f:1 x=trusted.t:1"),
			layer("f a/.wh..wh..opq", "d a x=user.a:2 x=user.b:2", "f a/f x=user.f:2", "h a/g to=a/f x=user.g:1"),
		}
	}
	layers := make2()
	for range 2 {
		if _, err := Merge(layers, true); err != nil {
			t.Fatal(err)
		}
	}
	if fmt.Sprint(layers[0], layers[1]) != fmt.Sprint(make2()[0], make2()[1]) {
		t.Error("a layer was changed")
	}
}

// check checks the promises of Node.
func check(t *testing.T, root *Node, layers []*toc.Index, keep bool) {
	t.Helper()
	names := map[*Node]uint32{}
	subdirs := map[*Node]uint32{}
	var walk func(n *Node)
	walk = func(n *Node) {
		if n.Type == toc.Dir && names[n] > 1 {
			t.Fatalf("a directory has two names")
		}
		if n.Type != toc.Dir && n.Children != nil || n.Type != toc.Reg && n.Size != 0 || n.Type == toc.Hardlink || n.Type == 0 {
			t.Fatalf("%+v", n)
		}
		if n.Size > 0 && (n.Device >= len(layers) || n.Addr%toc.BlockSize != 0 || n.Addr+n.Size > layers[n.Device].DataSize) {
			t.Fatalf("the content of %+v is not in its layer", n)
		}
		if !keep && n.Type == toc.Char && n.DevMajor == 0 && n.DevMinor == 0 {
			t.Fatalf("a whiteout is left")
		}
		for name := range n.Xattrs {
			if strings.HasPrefix(name, "trusted.") && (name != opaqueXattr || !keep || n.Type != toc.Dir) {
				t.Fatalf("attribute %s", name)
			}
		}
		for i, c := range n.Children {
			if i > 0 && n.Children[i-1].Name >= c.Name || c.Name == "" || c.Name == "." || c.Name == ".." || strings.ContainsAny(c.Name, "/\x00") {
				t.Fatalf("child %q", c.Name)
			}
			names[c.Node]++
			if c.Node.Type == toc.Dir {
				subdirs[n]++
			}
			if names[c.Node] == 1 || c.Node.Type == toc.Dir {
				walk(c.Node)
			}
		}
	}
	walk(root)
	for n, count := range names {
		if n.Type != toc.Dir && n.Nlink < count || n.Type == toc.Dir && n.Nlink != 2+subdirs[n] {
			t.Fatalf("%+v has %d links", n, n.Nlink)
		}
	}
}

// randomLayers makes layers out of bytes: few names, so that they meet.
func randomLayers(data []byte) []*toc.Index {
	names := []string{"a", "b", "c", ".wh.a", ".wh.b", opaqueMarker, ".wh."}
	path := func(b byte) string {
		p := names[b&7%7]
		for b >>= 3; b > 0; b >>= 2 {
			p = names[b&3%3] + "/" + p
		}
		return p
	}
	layers := []*toc.Index{{}}
	for len(data) >= 3 {
		op, p, arg := data[0], data[1], data[2]
		data = data[3:]
		x := layers[len(layers)-1]
		if op&0xf0 == 0xf0 && len(layers) < 4 {
			layers = append(layers, &toc.Index{})
			continue
		}
		e := toc.Entry{Path: path(p), Type: toc.Type(op%7) + 1, Mode: uint32(arg) + 1, DevMinor: uint32(arg & 1)}
		switch e.Type {
		case toc.Hardlink, toc.Symlink:
			e.Link = path(arg)
		case toc.Reg:
			e.Size = int64(arg&3) * 3000
			if e.Size > 0 {
				e.Addr = x.DataSize
			}
			x.DataSize += (e.Size + toc.BlockSize - 1) / toc.BlockSize * toc.BlockSize
		default:
		}
		x.Entries = append(x.Entries, e)
	}
	return layers
}

func FuzzMerge(f *testing.F) {
	f.Add([]byte("\x00\x00\x00\x01\x08\x02\xf0\x00\x00\x01\x03\x00\x00\x08\x01"), false)
	f.Add([]byte("\x00\x00\x00\x01\x48\x02\xf0\x00\x00\x01\x0d\x00\x00\x08\x01\x03\x01\x48"), true)
	f.Fuzz(func(t *testing.T, data []byte, keep bool) {
		layers := randomLayers(data)
		root, err := Merge(layers, keep)
		if err != nil {
			if toc.Reason(err) == "other" {
				t.Fatal(err)
			}
			return
		}
		check(t, root, layers, keep)
		again, err := Merge(layers, keep)
		if err != nil || !slices.Equal(describe(root), describe(again)) {
			t.Fatalf("not deterministic: %v", err)
		}
	})
}

// Paths may be as deep as PATH_MAX allows.
func TestMergeDeep(t *testing.T) {
	path := strings.TrimSuffix(strings.Repeat("x/", 2048), "/")
	root, err := Merge([]*toc.Index{layer("f " + path), layer("f x/.wh..wh..opq", "f "+path), layer("f .wh.x")}, true)
	if err != nil || len(root.Children) != 1 || root.Children[0].Node.Type != toc.Char {
		t.Fatal(err)
	}
}

// BenchmarkMerge merges 62000 entries in 12 layers, some of which meet.
func BenchmarkMerge(b *testing.B) {
	var layers []*toc.Index
	for l := range 12 {
		x := &toc.Index{}
		for i := range 62000 / 12 {
			dir := fmt.Sprintf("usr/lib/python3.13/site-packages/package%03d", i/12+l*100)
			if i%12 == 0 {
				x.Entries = append(x.Entries, toc.Entry{Type: toc.Dir, Path: dir, Mode: 0o755})
				continue
			}
			x.Entries = append(x.Entries, toc.Entry{Type: toc.Reg, Path: fmt.Sprintf("%s/module_%05d.so", dir, i), Mode: 0o644, Size: 1})
		}
		layers = append(layers, x)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Merge(layers, false); err != nil {
			b.Fatal(err)
		}
	}
}
