package node

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
	"unsafe"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"golang.org/x/sys/unix"
)

// TestWarm: all of an image and what refers to it is in memory, and no other image is.
func TestWarm(t *testing.T) {
	r := startRegistry(t)
	image := func() v1.Image {
		img, err := random.Image(100_000, 3)
		if err != nil {
			t.Fatal(err)
		}
		return img
	}
	push := func(tag string, img v1.Image) {
		ref, err := name.ParseReference(r.Addr + "/some/app:" + tag)
		if err != nil {
			t.Fatal(err)
		}
		if err := remote.Write(ref, img); err != nil {
			t.Fatal(err)
		}
	}
	wanted, other := image(), image()
	subject, err := partial.Descriptor(wanted)
	if err != nil {
		t.Fatal(err)
	}
	artifact, ok := mutate.Subject(image(), *subject).(v1.Image)
	if !ok {
		t.Fatal("an image with a subject is none")
	}
	push("wanted", wanted)
	push("other", other)
	push("artifact", artifact)
	files, err := filepath.Glob(filepath.Join(r.Dir, "content/docker/registry/v2/blobs/sha256/*/*/data"))
	if err != nil || len(files) == 0 {
		t.Fatalf("%d blobs, %v", len(files), err)
	}
	for _, f := range files {
		forgetPages(t, f)
	}
	if err := r.Warm("some/app:wanted"); err != nil {
		t.Fatal(err)
	}
	in := 0
	for _, f := range files {
		if resident(t, f) {
			in++
		}
	}
	// Two images of three layers, configuration and manifest, the index that stands in for
	// the referrers, and the other image's manifest, which was looked at.
	if in != 12 || len(files) != 16 {
		t.Errorf("%d of %d blobs are in memory, want 12 of 16", in, len(files))
	}
	// A manifest that was deleted, as profiles are that others replace, leaves its directory.
	d, err := other.Digest()
	if err != nil {
		t.Fatal(err)
	}
	ref, err := name.ParseReference(r.Addr + "/some/app@" + d.String())
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Delete(ref); err != nil {
		t.Fatal(err)
	}
	if err := r.Warm("some/app:wanted"); err != nil {
		t.Errorf("with a deleted manifest beside it: %v", err)
	}
	for _, bad := range []string{"some/app", "some/app:no", "no:wanted"} {
		if err := r.Warm(bad); err == nil {
			t.Errorf("%s: no error", bad)
		}
	}
}

// forgetPages takes a file out of the page cache; the kernel keeps pages that it is busy with.
func forgetPages(t *testing.T, path string) {
	t.Helper()
	for limit := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		err = errors.Join(f.Sync(), unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED), f.Close())
		if err != nil {
			t.Fatal(err)
		}
		if !resident(t, path) {
			return
		}
		if time.Now().After(limit) {
			t.Fatalf("%s stays in memory", path)
		}
	}
}

// resident says whether all of a file is in memory. Asking must not read it, as a read
// that may not wait does.
func resident(t *testing.T, path string) bool {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }() // only read
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	m, err := unix.Mmap(int(f.Fd()), 0, int(info.Size()), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	pages := make([]byte, (len(m)+os.Getpagesize()-1)/os.Getpagesize())
	_, _, errno := unix.Syscall(unix.SYS_MINCORE, uintptr(unsafe.Pointer(&m[0])), uintptr(len(m)), uintptr(unsafe.Pointer(&pages[0])))
	if errno != 0 {
		t.Fatal(errno)
	}
	if err := unix.Munmap(m); err != nil {
		t.Fatal(err)
	}
	return !slices.ContainsFunc(pages, func(p byte) bool { return p&1 == 0 })
}
