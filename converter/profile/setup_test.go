package profile_test

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/klauspost/compress/zstd"

	api "github.com/apparate/apparate/api/profile"
	"github.com/apparate/apparate/converter"
	"github.com/apparate/apparate/converter/encode"
	"github.com/apparate/apparate/converter/profile"
	"github.com/apparate/apparate/converter/registry"
	"github.com/apparate/apparate/test/images"
	"github.com/apparate/apparate/test/node"
	testregistry "github.com/apparate/apparate/test/registry"
	"github.com/apparate/apparate/test/tools"
)

// lab is a registry and a client for it.
type lab struct {
	t      testing.TB
	host   string
	client *registry.Client
	format encode.Format // of converted images
	start  []string      // their entrypoint
}

func newLabAt(t testing.TB, host string) *lab {
	t.Helper()
	c, err := registry.New(registry.Options{RetryWait: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	return &lab{t: t, host: host, client: c}
}

// newLab has a registry that lists referrers.
func newLab(t testing.TB) *lab {
	return newLabAt(t, testregistry.New(t).Host())
}

// newRealLab has Distribution, which lists none and has an index under a tag instead.
func newRealLab(t testing.TB) *lab {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 9*time.Minute)
	defer cancel()
	paths, err := tools.Ensure(ctx, os.Stderr, tools.Registry)
	if err != nil {
		t.Fatal(err)
	}
	r, err := node.StartRegistry(ctx, paths[tools.Registry], t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return newLabAt(t, r.Addr)
}

// file is a file of an image.
type file struct {
	name string
	body []byte
}

// text is content of n bytes that compresses somewhat, another for each seed.
func text(seed uint64, n int) []byte {
	r := rand.New(rand.NewPCG(seed, 1))
	var b bytes.Buffer
	for b.Len() < n {
		fmt.Fprintf(&b, "%d %s\n", r.Uint64(), strings.Repeat("a", r.IntN(20)))
	}
	return b.Bytes()[:n]
}

func tarOf(t testing.TB, files []file) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range files {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: f.name, Mode: 0o644, Size: int64(len(f.body))}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(f.body); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// convert pushes an image of these layers under app:v1, converts it, and returns
// the accelerated manifest.
func (l *lab) convert(layers ...[]file) (name.Digest, []converter.Event) {
	l.t.Helper()
	var blobs []images.Blob
	for _, files := range layers {
		blobs = append(blobs, images.Blob{Bytes: tarOf(l.t, files)})
	}
	img, err := images.Compose(blobs...)
	if err != nil {
		l.t.Fatal(err)
	}
	if len(l.start) > 0 {
		if img, err = mutate.Config(img, v1.Config{Entrypoint: l.start}); err != nil {
			l.t.Fatal(err)
		}
	}
	tag, err := name.NewTag(l.host + "/app:v1")
	if err != nil {
		l.t.Fatal(err)
	}
	if err := remote.Write(tag, img); err != nil {
		l.t.Fatal(err)
	}
	var mu sync.Mutex
	var events []converter.Event
	res, err := converter.New(converter.Options{TempDir: l.t.TempDir(), RetryWait: time.Millisecond}).Convert(l.t.Context(), converter.Request{
		Source: tag.String(), Format: l.format, Predict: len(l.start) > 0, Progress: func(e converter.Event) {
			mu.Lock()
			defer mu.Unlock()
			events = append(events, e)
		},
	})
	if err != nil {
		l.t.Fatal(err)
	}
	return tag.Digest(res.TargetDigest), events
}

// load loads an image with all of its chunks located.
func (l *lab) load(ref name.Digest) (*profile.Image, map[[32]byte]bool) {
	l.t.Helper()
	im, err := profile.Load(l.t.Context(), l.client, ref)
	if err != nil {
		l.t.Fatal(err)
	}
	var mu sync.Mutex
	all := make(map[[32]byte]bool)
	if err := im.Locate(l.t.Context(), func(sum [32]byte) bool {
		mu.Lock()
		defer mu.Unlock()
		all[sum] = true
		return true
	}, true); err != nil {
		l.t.Fatal(err)
	}
	return im, all
}

// chunks cuts content as the encoder does, and returns the digests.
func chunks(body []byte) (list [][32]byte) {
	const size = 256 << 10
	for len(body) > 0 {
		n := min(size, len(body))
		list = append(list, sha256.Sum256(body[:n]))
		body = body[n:]
	}
	return list
}

// sample is a start that reads these files in this order, a millisecond each.
func sample(ref name.Digest, age time.Duration, files ...file) api.Sample {
	s := api.Sample{
		Image: ref.Context().String(), Manifest: ref.DigestStr(), Platform: "linux/amd64", Workload: "ns/Deployment/app",
		Started: time.Unix(1700000000, 0).Add(-age).UTC(), DurationMillis: 1000, ReadyMillis: 100,
		Layers:  []api.SampleLayer{{Digest: "sha256:whichever"}},
		Outcome: api.Outcome{Requests: 10, FetchedBytes: 1 << 20, WaitedReads: 5, WaitMillis: 50},
	}
	at := uint32(0)
	for _, f := range files {
		for _, sum := range chunks(f.body) {
			s.Layers[0].Add(sum, at)
			at++
		}
	}
	return s
}

// unpack decodes a pack as a node does, and returns the chunks' digests in order.
func unpack(t testing.TB, table *api.Table, r io.Reader) [][32]byte {
	t.Helper()
	raw, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	whole := sha256.Sum256(raw)
	if got := fmt.Sprintf("sha256:%x", whole); got != table.Pack || int64(len(raw)) != table.Size {
		t.Fatalf("the pack is %s with %d bytes, the table says %s and %d", got, len(raw), table.Pack, table.Size)
	}
	dec, err := zstd.NewReader(nil, zstd.WithDecoderMaxMemory(api.MaxGroup))
	if err != nil {
		t.Fatal(err)
	}
	defer dec.Close()
	var list [][32]byte
	for i := range table.Groups {
		g := &table.Groups[i]
		content, err := dec.DecodeAll(raw[:g.Size], nil)
		if err != nil {
			t.Fatal(err)
		}
		raw = raw[g.Size:]
		if int64(len(content)) != g.ContentBytes() {
			t.Fatalf("group %d has %d bytes, the table says %d", i, len(content), g.ContentBytes())
		}
		for _, c := range g.Chunks {
			sum := sha256.Sum256(content[:c.Size])
			if api.ID(sum) != c.ID {
				t.Fatalf("a chunk of group %d is another than the table says", i)
			}
			list = append(list, sum)
			content = content[c.Size:]
		}
	}
	return list
}
