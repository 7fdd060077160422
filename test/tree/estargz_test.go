package tree

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"testing"
	"time"

	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/containerd/stargz-snapshotter/estargz/zstdchunked"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/klauspost/compress/zstd"

	"github.com/apparate/apparate/test/images"
	"github.com/apparate/apparate/test/registry"
)

// Images that stargz-snapshotter's estargz package built, with no annotation but
// the TOC digest, are mounted as the tree that containerd unpacks. (The other
// direction is in test/interop.)
func TestMountsWhatEstargzBuilds(t *testing.T) {
	variants := map[string][]estargz.Option{
		"default": nil,                                  // and a landmark that says: prefetch nothing
		"grouped": {estargz.WithMinChunkSize(64 << 10)}, // files share members
		"chunked": {estargz.WithChunkSize(500_001)},     // chunks that are not made of blocks
		"ordered": {estargz.WithPrioritizedFiles(startOrder()), // and a landmark behind them
			estargz.WithAllowPrioritizeNotFound(new([]string))},
		"zstd":         {estargz.WithCompression(newZstd())}, // zstd:chunked
		"zstd grouped": {estargz.WithCompression(newZstd()), estargz.WithMinChunkSize(64 << 10)},
	}
	for name, img := range lazyImages(t) {
		began := time.Now().Add(-time.Second)
		want := Unpacked(t, img, false)
		if in, ok := want["time/fraction"]; ok {
			// The package writes times in whole seconds, which eStargz does not demand.
			in.MTime = in.MTime.Truncate(time.Second)
			want["time/fraction"] = in
		}
		for variant, options := range variants {
			t.Run(name+"/"+variant, func(t *testing.T) {
				reg := registry.New(t)
				dir := StartLazy(t, timeout, nil).Mount(t, Push(t, reg, name+":v1", buildEstargz(t, img, options)))
				got, err := Walk(dir)
				if err != nil {
					t.Fatal(err)
				}
				report(t, Diff(want, got, UnpackTimes(want, got, began)...))
			})
		}
	}
}

// TestMountsWhatStorageWrites: a zstd:chunked layer of containers/storage, with the
// annotations that it gave the layer, is mounted as the tree that containerd unpacks.
func TestMountsWhatStorageWrites(t *testing.T) {
	blob, err := os.ReadFile("../../snapshotter/toc/testdata/storage.zst")
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile("../../snapshotter/toc/testdata/storage.json")
	if err != nil {
		t.Fatal(err)
	}
	l := images.Blob{Bytes: blob}
	if err := json.Unmarshal(text, &l.Annotations); err != nil {
		t.Fatal(err)
	}
	img, err := images.Compose(l)
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now().Add(-time.Second)
	want := Unpacked(t, img, false)
	got, err := Walk(StartLazy(t, timeout, nil).Mount(t, Push(t, registry.New(t), "storage:v1", img)))
	if err != nil {
		t.Fatal(err)
	}
	report(t, Diff(want, got, UnpackTimes(want, got, began)...))
}

// zstdCompression is what estargz.WithCompression takes.
type zstdCompression struct {
	*zstdchunked.Compressor
	*zstdchunked.Decompressor
}

func newZstd() zstdCompression {
	return zstdCompression{&zstdchunked.Compressor{CompressionLevel: zstd.SpeedFastest}, &zstdchunked.Decompressor{}}
}

// startOrder is files of several layers in another order than theirs.
func startOrder() []string {
	return []string{
		"dir1-2/file45", "dir0-0/file2", "dir0-3/file66", "size/big", "hard/deeper/third", "xattr/many",
		"many/file-with-a-rather-long-name-0300", "gone/stays", "opaque/both",
	}
}

// lazyImages are the images that can be mounted lazily, by name.
func lazyImages(t testing.TB) map[string]v1.Image {
	t.Helper()
	mixed, err := images.Mixed()
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]v1.Image{"mixed": mixed}
	for i := range 2 { // the names in number 2 cannot be in a TOC
		if all[fmt.Sprintf("weird%d", i)], err = images.Weird(i); err != nil {
			t.Fatal(err)
		}
	}
	return all
}

// buildEstargz rewrites the layers of img with the estargz package alone.
func buildEstargz(t testing.TB, img v1.Image, options []estargz.Option) v1.Image {
	t.Helper()
	var layers []images.Blob
	for _, r := range tars(t, img) {
		text, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		b, err := estargz.Build(io.NewSectionReader(bytes.NewReader(text), 0, int64(len(text))),
			append([]estargz.Option{estargz.WithCompressionLevel(gzip.BestSpeed)}, options...)...)
		if err != nil {
			t.Fatal(err)
		}
		blob, err := io.ReadAll(b)
		if err != nil {
			t.Fatal(err)
		}
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
		layers = append(layers, images.Blob{
			Bytes: blob, Annotations: map[string]string{estargz.TOCJSONDigestAnnotation: b.TOCDigest().String()},
		})
	}
	out, err := images.Compose(layers...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}
