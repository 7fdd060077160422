package profile_test

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/klauspost/compress/zstd"

	api "github.com/apparate/apparate/api/profile"
	"github.com/apparate/apparate/converter"
	"github.com/apparate/apparate/converter/profile"
	"github.com/apparate/apparate/test/images"
	"github.com/apparate/apparate/test/tools"
)

// benchImages are real images, small enough to be packed again and again.
var benchImages = []string{"nginx", "python"}

// bench is a converted image and a plan of up to 64 MiB of its content.
func bench(b *testing.B, image string) (*profile.Image, profile.Plan) {
	b.Helper()
	l := newRealLab(b)
	ctx, cancel := context.WithTimeout(b.Context(), 9*time.Minute)
	defer cancel()
	cache, err := tools.CacheDir()
	if err != nil {
		b.Fatal(err)
	}
	img, spec, err := images.Build(ctx, image, cache, os.Stderr)
	if err != nil {
		b.Fatal(err)
	}
	tag, err := name.NewTag(l.host + "/" + spec.Repository + ":v1")
	if err != nil {
		b.Fatal(err)
	}
	if err := remote.Write(tag, img, remote.WithContext(ctx)); err != nil {
		b.Fatal(err)
	}
	r, err := converter.New(converter.Options{TempDir: b.TempDir()}).Convert(ctx, converter.Request{Source: tag.String()})
	if err != nil {
		b.Fatal(err)
	}
	im, all := l.load(tag.Digest(r.TargetDigest))
	s := api.Sample{Image: tag.Context().String(), Manifest: r.TargetDigest, Layers: []api.SampleLayer{{}}}
	// Programs and what they load: documentation and locales are of no start.
	size := int64(0)
	for sum := range all {
		p, ok := im.Place(sum)
		if ok && len(s.Layers[0].At) < api.MaxChunks && size < 64<<20 && !strings.Contains(p.Name, "share/") {
			s.Layers[0].Add(sum, 0)
			size += p.Size
		}
	}
	plan, _ := profile.Merge([]api.Sample{s}, im, profile.MergeOptions{})
	if len(plan) == 0 {
		b.Fatal("nothing to pack")
	}
	return im, plan
}

// BenchmarkLevels packs real content at each level and size of a group. "ratio"
// is the pack against the gzip members with the same chunks; "decode-MB/s" is of content, on one processor.
func BenchmarkLevels(b *testing.B) {
	for _, image := range benchImages {
		b.Run(image, func(b *testing.B) {
			im, plan := bench(b, image)
			for _, level := range []zstd.EncoderLevel{zstd.SpeedFastest, zstd.SpeedDefault, zstd.SpeedBetterCompression, zstd.SpeedBestCompression} {
				for _, group := range []int64{256 << 10, 512 << 10, 1 << 20} {
					b.Run(fmt.Sprintf("%s/%dKiB", level, group>>10), func(b *testing.B) {
						benchLevel(b, im, plan, profile.BuildOptions{TempDir: b.TempDir(), Level: level, Group: group, Budget: api.MaxPack})
					})
				}
			}
		})
	}
}

func benchLevel(b *testing.B, im *profile.Image, plan profile.Plan, o profile.BuildOptions) {
	b.SetBytes(plan.ContentBytes())
	var pack *profile.Pack
	for range b.N {
		var err error
		if pack, err = profile.Build(b.Context(), im, plan, o); err != nil {
			b.Fatal(err)
		}
		defer func() { _ = pack.Close() }() // it is only read
	}
	b.StopTimer()
	b.ReportMetric(float64(pack.Table.Size)/1e6, "pack-MB")
	b.ReportMetric(float64(pack.Table.Size)/float64(pack.MemberBytes), "ratio")
	b.ReportMetric(decodeSpeed(b, pack), "decode-MB/s")
}

// decodeSpeed is how many million bytes of content a processor unpacks in a second.
func decodeSpeed(b *testing.B, pack *profile.Pack) float64 {
	r, err := pack.Open()
	if err != nil {
		b.Fatal(err)
	}
	raw, err := io.ReadAll(r)
	if err != nil {
		b.Fatal(err)
	}
	dec, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1))
	if err != nil {
		b.Fatal(err)
	}
	defer dec.Close()
	var buf []byte
	start := time.Now()
	for i := range pack.Table.Groups {
		n := pack.Table.Groups[i].Size
		if buf, err = dec.DecodeAll(raw[:n], buf[:0]); err != nil {
			b.Fatal(err)
		}
		raw = raw[n:]
	}
	return float64(pack.Table.ContentBytes()) / 1e6 / time.Since(start).Seconds()
}
