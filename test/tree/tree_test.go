package tree

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/apparate/apparate/converter/encode"
	"github.com/apparate/apparate/snapshotter/toc"
	"github.com/apparate/apparate/test/images"
	"github.com/apparate/apparate/test/registry"
)

const timeout = 2 * time.Minute

// The mounted tree is the unpacked one, as a view and through a container's
// overlay, read by many at once.
func TestMountedEqualsUnpacked(t *testing.T) {
	for name, img := range lazyImages(t) {
		t.Run(name, func(t *testing.T) { mountedEqualsUnpacked(t, name, img, encode.EStargz) })
		t.Run(name+" in zstd:chunked", func(t *testing.T) { mountedEqualsUnpacked(t, name, img, encode.ZstdChunked) })
	}
}

func mountedEqualsUnpacked(t *testing.T, name string, img v1.Image, format encode.Format) {
	t.Helper()
	reg := registry.New(t)
	lazy := StartLazy(t, timeout, nil)
	dir := lazy.Mount(t, AccelerateAs(t, reg, name+":v1", img, format))

	began := time.Now().Add(-time.Second)
	want := Unpacked(t, img, false)
	got, err := Walk(dir)
	if err != nil {
		t.Fatal(err)
	}
	report(t, Diff(want, got, UnpackTimes(want, got, began)...))

	want = Unpacked(t, img, true)
	over := Overlay(t, dir)
	var wg sync.WaitGroup
	for range 4 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			got, err := Walk(over)
			if err != nil {
				t.Error(err)
				return
			}
			// The root of a container is its own, new directory.
			report(t, Diff(want, got, append(UnpackTimes(want, got, began), ". mtime")...))
		}()
	}
	wg.Wait()
}

// Names that are not UTF-8 have no place in a TOC: the layer stays an ordinary
// one, and is refused where only lazy layers will do.
func TestNamesThatAreNotUTF8(t *testing.T) {
	img, err := images.Weird(2)
	if err != nil {
		t.Fatal(err)
	}
	reg := registry.New(t)
	lazy := StartLazy(t, timeout, nil)
	_, layers, err := lazy.Sources.Resolve(t.Context(), Accelerate(t, reg, "weird:v1", img), "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := lazy.Images.Mount(t.Context(), layers, false); !errors.Is(err, toc.ErrNoDigest) {
		t.Errorf("Mount = %v, want %v", err, toc.ErrNoDigest)
	}
}

func report(t *testing.T, diffs []string) {
	t.Helper()
	if len(diffs) > 0 {
		t.Errorf("%d differences to the unpacked tree:\n%s", len(diffs), strings.Join(diffs[:min(20, len(diffs))], "\n"))
	}
}

// Every fault that a registry can make, at every blob request in turn, ends in
// the right bytes or an error, never in wrong bytes, and within a time limit.
func TestEveryFaultEverywhere(t *testing.T) {
	img, err := images.Weird(0)
	if err != nil {
		t.Fatal(err)
	}
	reg := registry.New(t)
	ref := Accelerate(t, reg, "weird:v1", img)
	reg.Heal()
	whole := readAll(t, reg, ref)
	if whole.err != nil {
		t.Fatal(whole.err)
	}
	requests := reg.Count()
	if requests < 2 {
		t.Fatalf("%d blob requests: too few to tell anything", requests)
	}
	for _, f := range registry.Faults() {
		t.Run(string(f), func(t *testing.T) {
			for i := range requests {
				reg.Heal()
				reg.FailAt(i, f)
				got := readAll(t, reg, ref)
				for p, in := range got.tree {
					if w, ok := whole.tree[p]; !ok || w.Sum != in.Sum {
						t.Errorf("fault at request %d: %s has wrong content", i, p)
					}
				}
				if got.err == nil && len(got.tree) != len(whole.tree) {
					t.Errorf("fault at request %d: %d of %d files, and no error", i, len(got.tree), len(whole.tree))
				}
				if got.err != nil && f != registry.NotFound && f != registry.WholeBody200 {
					t.Logf("fault at request %d: %v", i, got.err)
				}
			}
		})
	}
}

type read struct {
	tree map[string]Inode
	err  error
}

// readAll mounts ref in a data path of its own and reads every file; the
// files that could be read are in the result, with the first error.
func readAll(t *testing.T, reg *registry.Registry, ref string) (out read) {
	t.Helper()
	t.Run("read", func(t *testing.T) { // its own cleanup
		lazy := StartLazy(t, timeout, Quick)
		_, layers, err := lazy.Sources.Resolve(t.Context(), ref, "")
		if err != nil {
			out.err = err
			return
		}
		dir, err := lazy.Images.Mount(t.Context(), layers, false)
		if err != nil {
			out.err = err
			return
		}
		out.tree = map[string]Inode{}
		out.err = filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
			if err != nil {
				return err
			}
			in, _, err := inode(path)
			if err != nil {
				if out.err == nil {
					out.err = err
				}
				return nil
			}
			out.tree[strings.TrimPrefix(path, dir)] = in
			return nil
		})
	})
	return out
}

func TestDiffSeesEverything(t *testing.T) {
	base := Inode{Mode: 0o100644, UID: 1, GID: 2, Size: 3, Nlink: 1, MTime: time.Unix(4, 5), Xattrs: map[string]string{"user.a": "b"}}
	for field, change := range map[string]func(*Inode){
		"mode": func(i *Inode) { i.Mode |= 0o4000 }, "uid": func(i *Inode) { i.UID++ }, "gid": func(i *Inode) { i.GID++ },
		"size": func(i *Inode) { i.Size++ }, "nlink": func(i *Inode) { i.Nlink++ }, "mtime": func(i *Inode) { i.MTime = i.MTime.Add(1) },
		"link": func(i *Inode) { i.Link = "x" }, "rdev": func(i *Inode) { i.Rdev = 9 }, "content": func(i *Inode) { i.Sum[0] = 1 },
		"xattrs": func(i *Inode) { i.Xattrs = nil }, "hard link": func(i *Inode) { i.Same = "y" },
	} {
		other := base
		change(&other)
		d := Diff(map[string]Inode{"f": base}, map[string]Inode{"f": other})
		if len(d) != 1 || !strings.HasPrefix(d[0], "f: "+field+" is ") {
			t.Errorf("changed %s: %v", field, d)
		}
	}
	if d := Diff(map[string]Inode{"a": base}, map[string]Inode{"b": base}); len(d) != 2 {
		t.Errorf("missing and unexpected: %v", d)
	}
}
