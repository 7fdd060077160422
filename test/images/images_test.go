package images

import (
	"archive/tar"
	"errors"
	"io"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/apparate/apparate/test/tools"
)

// TestBuild assembles the demo's images and proves that they are well formed,
// share their base and have a merged /usr.
func TestBuild(t *testing.T) {
	cache, err := tools.CacheDir()
	if err != nil {
		t.Fatal(err)
	}
	var bases []string
	for name, kind := range map[string]types.MediaType{"nginx": types.OCIManifestSchema1, "numpy": types.DockerManifestSchema2} {
		img, spec, err := Build(t.Context(), name, cache, t.Output())
		if err != nil {
			t.Fatal(err)
		}
		if name == "nginx" { // hashing is slow under the race detector, one will do
			checkDigests(t, img)
		}
		if got, err := img.MediaType(); err != nil || got != kind {
			t.Errorf("%s is a %s (%v), want %s", name, got, err, kind)
		}
		if (spec.Line == "") == (spec.Path == "") {
			t.Errorf("%s: one kind of readiness is wanted: %+v", name, spec)
		}
		layers, err := img.Layers()
		if err != nil {
			t.Fatal(err)
		}
		d, err := layers[0].Digest()
		if err != nil {
			t.Fatal(err)
		}
		bases = append(bases, d.String())
		if name == "nginx" {
			checkBase(t, layers[0].Uncompressed)
		}
	}
	if bases[0] != bases[1] {
		t.Errorf("images have different bases: %v", bases)
	}
	if _, _, err := Build(t.Context(), "nothing", cache, t.Output()); err == nil {
		t.Error("an unknown image is built")
	}
}

// TestWeird proves that the synthetic images are well formed and stay the same.
func TestWeird(t *testing.T) {
	for i := range WeirdCount {
		var digests [2]v1.Hash
		for j := range digests {
			img, err := Weird(i)
			if err != nil {
				t.Fatal(err)
			}
			checkDigests(t, img)
			if digests[j], err = img.Digest(); err != nil {
				t.Fatal(err)
			}
		}
		if digests[0] != digests[1] {
			t.Errorf("image %d is made in two ways: %v", i, digests)
		}
	}
	if _, err := Weird(WeirdCount); err == nil {
		t.Error("an unknown image is made")
	}
}

// checkDigests proves that every layer is what the manifest says.
func checkDigests(t *testing.T, img v1.Image) {
	t.Helper()
	config, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	for i, l := range layers {
		d, err := l.Digest()
		if err != nil {
			t.Fatal(err)
		}
		if got := hashOf(t, l.Compressed); got != d {
			t.Errorf("layer %d is %s, want %s", i, got, d)
		}
		if got := hashOf(t, l.Uncompressed); got != config.RootFS.DiffIDs[i] {
			t.Errorf("layer %d uncompressed is %s, want %s", i, got, config.RootFS.DiffIDs[i])
		}
	}
}

func hashOf(t *testing.T, open func() (io.ReadCloser, error)) v1.Hash {
	t.Helper()
	r, err := open()
	if err != nil {
		t.Fatal(err)
	}
	h, _, err := v1.SHA256(r)
	if err := errors.Join(err, r.Close()); err != nil {
		t.Fatal(err)
	}
	return h
}

func checkBase(t *testing.T, open func() (io.ReadCloser, error)) {
	t.Helper()
	r, err := open()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	found := map[string]*tar.Header{}
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if found[h.Name] != nil {
			t.Errorf("%s is there twice", h.Name)
		}
		found[h.Name] = h
	}
	for name, link := range map[string]string{"bin": "usr/bin", "lib64": "usr/lib64", "usr/bin/sh": "dash", "usr/lib64/ld-linux-x86-64.so.2": "/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"} {
		if h := found[name]; h == nil || h.Linkname != link {
			t.Errorf("%s is %+v, want a symlink to %s", name, h, link)
		}
	}
	for _, name := range []string{"etc/passwd", "usr/bin/bash", "tmp/"} {
		if found[name] == nil {
			t.Errorf("the base lacks %s", name)
		}
	}
}
