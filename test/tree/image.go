package tree

import (
	"context"
	"errors"
	"io"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"golang.org/x/sys/unix"

	"github.com/apparate/apparate/api/image"
	"github.com/apparate/apparate/converter"
	"github.com/apparate/apparate/converter/encode"
	"github.com/apparate/apparate/test/registry"
)

// Push puts img into reg as repo, "name:tag", and returns its reference.
func Push(t testing.TB, reg *registry.Registry, repo string, img v1.Image) string {
	t.Helper()
	ref, err := name.ParseReference(reg.Host() + "/" + repo)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(ref, img); err != nil {
		t.Fatal(err)
	}
	return ref.String()
}

// Accelerate pushes img as repo, "name:tag", converts it and returns the
// reference of the accelerated image.
func Accelerate(t testing.TB, reg *registry.Registry, repo string, img v1.Image) string {
	t.Helper()
	return AccelerateAs(t, reg, repo, img, encode.EStargz)
}

// AccelerateAs is Accelerate to a format.
func AccelerateAs(t testing.TB, reg *registry.Registry, repo string, img v1.Image, format encode.Format) string {
	t.Helper()
	ref := Push(t, reg, repo, img)
	if _, err := converter.New(converter.Options{}).Convert(t.Context(), converter.Request{Source: ref, Format: format}); err != nil {
		t.Fatal(err)
	}
	return ref + image.Suffix
}

// Unpacked walks img as containerd unpacks it: as a read-only view, or as a
// container has it.
func Unpacked(t testing.TB, img v1.Image, writable bool) map[string]Inode {
	t.Helper()
	ctx := namespaces.WithNamespace(context.Background(), "test")
	m, closer, err := Unpack(ctx, t.TempDir(), tars(t, img), writable)
	if err != nil {
		t.Fatal(err)
	}
	var tree map[string]Inode
	err = mount.WithTempMount(ctx, m, func(dir string) (err error) {
		tree, err = Walk(dir)
		return err
	})
	if err := errors.Join(err, closer()); err != nil {
		t.Fatal(err)
	}
	return tree
}

// tars are the uncompressed layers of img.
func tars(t testing.TB, img v1.Image) []io.Reader {
	t.Helper()
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	var out []io.Reader
	for _, l := range layers {
		r, err := l.Uncompressed()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = r.Close() }) // read to its end by then
		out = append(out, r)
	}
	return out
}

// UnpackTimes names, for Diff to skip, the times that an unpack took from its
// clock: those of directories into which a layer put something without listing
// them. began is when the unpack began.
func UnpackTimes(want, got map[string]Inode, began time.Time) []string {
	var skip []string
	for p, w := range want {
		g, ok := got[p]
		if ok && w.Mode == g.Mode && w.Mode&unix.S_IFMT == unix.S_IFDIR && !w.MTime.Before(began) {
			skip = append(skip, p+" mtime")
		}
	}
	return skip
}
