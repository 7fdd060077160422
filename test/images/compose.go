package images

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"runtime"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// Blob is a layer for Compose.
type Blob struct {
	// Bytes is a tar, or a tar compressed with gzip or zstd that is kept as it is.
	Bytes []byte
	// Annotations are those of the layer's descriptor.
	Annotations map[string]string
}

// Compose makes an image of layers, bottom first, for this machine's platform.
// The same layers give the same image.
func Compose(layers ...Blob) (v1.Image, error) {
	img := mutate.MediaType(empty.Image, types.OCIManifestSchema1)
	img = mutate.ConfigMediaType(img, types.OCIConfigJSON)
	for _, b := range layers {
		mediaType := types.OCILayer
		if bytes.HasPrefix(b.Bytes, []byte{0x28, 0xb5, 0x2f, 0xfd}) {
			mediaType = types.OCILayerZStd
		}
		l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) {
			return io.NopCloser(bytes.NewReader(b.Bytes)), nil
		}, tarball.WithMediaType(mediaType), tarball.WithCompressionLevel(gzip.BestSpeed), tarball.WithCompressedCaching)
		if err != nil {
			return nil, err
		}
		img, err = mutate.Append(img, mutate.Addendum{Layer: l, MediaType: mediaType, Annotations: b.Annotations})
		if err != nil {
			return nil, err
		}
	}
	f, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	f = f.DeepCopy()
	f.OS, f.Architecture, f.Created = "linux", runtime.GOARCH, v1.Time{Time: created()}
	f.Config.Cmd = []string{"/nothing"}
	return mutate.ConfigFile(img, f)
}

const (
	mixedFiles   = 200
	mixedLargest = 3 << 20 // bytes
)

// Mixed returns an image of two layers with 200 files from 0 bytes to 3 MiB, more
// small than large ones, some with sizes at the borders of blocks and chunks:
// random bytes, text and zeros. The upper layer also replaces and removes some of
// the lower one's. It is the same each time.
func Mixed() (v1.Image, error) {
	src := rand.NewChaCha8([32]byte{1})
	rnd := rand.New(src)
	sizes := []int{
		0, 1, 4095, 4096, 4097, 50_000, 128<<10 - 1, 128 << 10, 256 << 10, 256<<10 + 1, 1 << 20,
		mixedLargest - 1, mixedLargest,
	}
	for len(sizes) < mixedFiles {
		x := rnd.Float64()
		sizes = append(sizes, int(math.Exp(x*x*math.Log(mixedLargest))))
	}
	rnd.Shuffle(len(sizes), func(i, j int) { sizes[i], sizes[j] = sizes[j], sizes[i] })
	half := mixedFiles / 2
	below, err := mixedTar(src, 0, sizes[:half], nil)
	if err != nil {
		return nil, err
	}
	above, err := mixedTar(src, 1, sizes[half:], []entry{
		{name: "dir0-0/file3", text: "now a short one"}, {name: "dir0-0/.wh.file4"}, {name: ".wh.dir0-1"},
	})
	if err != nil {
		return nil, err
	}
	return Compose(Blob{Bytes: below}, Blob{Bytes: above})
}

// mixedTar has a file of each size, twenty in a directory, and then more.
func mixedTar(src *rand.ChaCha8, layer int, sizes []int, more []entry) ([]byte, error) {
	when := created().Add(time.Duration(layer) * time.Hour)
	var all []entry
	for i, size := range sizes {
		dir := fmt.Sprintf("dir%d-%d/", layer, i/20)
		if i%20 == 0 {
			all = append(all, entry{name: dir, kind: tar.TypeDir, time: when})
		}
		all = append(all, entry{name: fmt.Sprintf("%sfile%d", dir, i), text: mixedText(src, i, size), uid: i, time: when})
	}
	return weirdTar(append(all, more...))
}

// mixedText is size bytes: random ones, text, or zeros, in turn.
func mixedText(src *rand.ChaCha8, kind, size int) string {
	const line = "the quick brown fox jumps over the lazy dog\n"
	b := make([]byte, size)
	switch kind % 3 {
	case 0:
		_, _ = src.Read(b) // it never fails
	case 1:
		for i := range b {
			b[i] = line[(i+i/977)%len(line)]
		}
	}
	return string(b)
}
