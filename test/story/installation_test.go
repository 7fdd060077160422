package story

import (
	"archive/tar"
	"bytes"
	"os"
	"runtime"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// pushInstallation pushes the image of the installation, made from bin.
func (w *world) pushInstallation(tag string) {
	w.t.Helper()
	var b bytes.Buffer
	out := tar.NewWriter(&b)
	for _, p := range []string{"apparate", "apparate-operator"} {
		text, err := os.ReadFile(w.bin(p))
		if err != nil {
			w.t.Fatal(err)
		}
		if tag != "1.0.0" {
			text = append(text, tag...) // another program, that does the same
		}
		if err := out.WriteHeader(&tar.Header{Name: p, Mode: 0o755, Size: int64(len(text))}); err != nil {
			w.t.Fatal(err)
		}
		if _, err := out.Write(text); err != nil {
			w.t.Fatal(err)
		}
	}
	if err := out.Close(); err != nil {
		w.t.Fatal(err)
	}
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	img, err := mutate.AppendLayers(img, static.NewLayer(b.Bytes(), types.OCIUncompressedLayer))
	if err == nil {
		img, err = mutate.ConfigFile(img, configFile(img))
	}
	if err == nil {
		err = w.Push(w.t.Context(), "apparate/apparate:"+tag, img)
	}
	if err != nil {
		w.t.Fatal(err)
	}
}

// configFile is the configuration of the image. Without a platform CRI unpacks nothing of
// it for another snapshotter.
func configFile(img v1.Image) *v1.ConfigFile {
	c, err := img.ConfigFile()
	if err != nil {
		panic(err) // of an image made here
	}
	c = c.DeepCopy()
	c.OS, c.Architecture, c.Config = "linux", runtime.GOARCH, v1.Config{User: "65532:65532"}
	return c
}
