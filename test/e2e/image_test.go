package e2e

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/opencontainers/go-digest"

	api "github.com/apparate/apparate/api/image"
	"github.com/apparate/apparate/test/debian"
	"github.com/apparate/apparate/test/tools"
)

// busybox is Debian's static busybox: one file that is a whole user land.
var busybox = sync.OnceValues(func() (body []byte, err error) {
	cache, err := tools.CacheDir()
	if err != nil {
		return nil, err
	}
	list, err := debian.Open(filepath.Join(cache, "debian"), os.Stderr).Fetch(context.Background(), "busybox-static")
	if err != nil {
		return nil, err
	}
	for _, p := range list {
		err := p.Files(context.Background(), func(h *tar.Header, content io.Reader) (err error) {
			if strings.HasSuffix(h.Name, "bin/busybox") && h.Typeflag == tar.TypeReg {
				body, err = io.ReadAll(content)
			}
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	if len(body) == 0 {
		return nil, fmt.Errorf("no busybox in busybox-static")
	}
	return body, nil
})

// file is an entry of a layer made by hand; body is a directory's nil.
type file struct {
	name, link string
	mode       int64
	body       []byte
}

// layer makes a layer of files.
func layer(t *testing.T, files ...file) v1.Layer {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range files {
		h := &tar.Header{Name: f.name, Mode: f.mode, Size: int64(len(f.body)), Typeflag: tar.TypeReg}
		switch {
		case f.link != "":
			h.Typeflag, h.Linkname = tar.TypeSymlink, f.link
		case f.body == nil:
			h.Typeflag = tar.TypeDir
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(f.body); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b.Bytes())), nil })
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// shellLayer has a shell and the usual commands.
func shellLayer(t *testing.T) v1.Layer {
	t.Helper()
	body, err := busybox()
	if err != nil {
		t.Fatal(err)
	}
	files := []file{{name: "bin/", mode: 0o755}, {name: "bin/busybox", mode: 0o755, body: body}, {name: "tmp/", mode: 0o1777},
		{name: "proc/", mode: 0o755}, {name: "sys/", mode: 0o755}, {name: "dev/", mode: 0o755}, {name: "etc/", mode: 0o755}}
	for _, c := range []string{"sh", "cat", "echo", "ls", "sha256sum", "sleep", "dd", "find", "stat", "rm", "touch", "test"} {
		files = append(files, file{name: "bin/" + c, link: "busybox"})
	}
	return layer(t, files...)
}

// image puts layers together.
func image(t *testing.T, layers ...v1.Layer) v1.Image {
	t.Helper()
	img, err := mutate.AppendLayers(empty.Image, layers...)
	if err == nil {
		img, err = mutate.Config(img, v1.Config{Env: []string{"PATH=/bin"}, Cmd: []string{"/bin/sh"}})
	}
	if err == nil {
		var cfg *v1.ConfigFile
		if cfg, err = img.ConfigFile(); err == nil {
			cfg = cfg.DeepCopy()
			cfg.OS, cfg.Architecture = "linux", "amd64"
			img, err = mutate.ConfigFile(img, cfg)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// shell is an image with a shell and n files of random content below /data.
func shell(t *testing.T, n, size int) (v1.Image, map[string][]byte) {
	t.Helper()
	random := rand.NewChaCha8([32]byte{1})
	content := map[string][]byte{}
	data := []file{{name: "data/", mode: 0o755}}
	for i := range n {
		b := make([]byte, size)
		_, _ = random.Read(b) // never fails
		name := fmt.Sprintf("f%03d", i)
		content[name] = b
		data = append(data, file{name: "data/" + name, mode: 0o644, body: b})
	}
	return image(t, shellLayer(t), layer(t, data...)), content
}

// blobLayer is a layer of exactly these compressed bytes.
func blobLayer(t *testing.T, z []byte) v1.Layer {
	t.Helper()
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(z)), nil })
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// rebuilt is img with other layers: what layer makes of each, and its TOC digest.
func rebuilt(t *testing.T, img v1.Image, layer func(v1.Layer) ([]byte, digest.Digest)) v1.Image {
	t.Helper()
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	var adds []mutate.Addendum
	for _, l := range layers {
		z, toc := layer(l)
		adds = append(adds, mutate.Addendum{
			Layer: blobLayer(t, z), MediaType: types.OCILayer,
			Annotations: map[string]string{api.AnnotationTOCDigest: toc.String()},
		})
	}
	base := mutate.MediaType(image(t), types.OCIManifestSchema1)
	out, err := mutate.Append(mutate.ConfigMediaType(base, types.OCIConfigJSON), adds...)
	if err == nil {
		out, err = mutate.Config(out, cfg.Config)
	}
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// content is all that open gives.
func content(t *testing.T, open func() (io.ReadCloser, error)) []byte {
	t.Helper()
	r, err := open()
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(r)
	if err := errors.Join(err, r.Close()); err != nil {
		t.Fatal(err)
	}
	return b
}

// diskUsage is what the files below dir take on disk.
func diskUsage(t *testing.T, dir string) (n int64) {
	t.Helper()
	err := filepath.Walk(dir, func(_ string, st os.FileInfo, err error) error {
		if err != nil {
			return err
		}
		if s, ok := st.Sys().(*syscall.Stat_t); ok && st.Mode().IsRegular() {
			n += s.Blocks * 512
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}
