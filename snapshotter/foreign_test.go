package snapshotter

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/apparate/apparate/snapshotter/images"
	"github.com/apparate/apparate/snapshotter/source"
)

// slow is a registry that answers after a time, with these layers or an error.
type slow struct {
	after  time.Duration
	layers []source.Layer
}

func (s slow) Manifest(ctx context.Context, _ string, _ digest.Digest) ([]source.Layer, error) {
	select {
	case <-time.After(s.after):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if s.layers == nil {
		return nil, source.ErrNotFound
	}
	return s.layers, nil
}

// TestForeignLayers: the annotations of podman's zstd:chunked images are in the manifest
// only. It is waited for, once for all layers and not long.
func TestForeignLayers(t *testing.T) {
	a, b := digest.FromString("a"), digest.FromString("b")
	toc := digest.FromString("toc")
	lazy := []source.Layer{
		{Ref: "r.example/app:1", Digest: a, TOCDigest: toc, TOCOffset: 900, TOCSize: 50, BlobSize: 1000},
		{Ref: "r.example/app:1", Digest: b, BlobSize: 1000},
	}
	for name, c := range map[string]struct {
		registry slow
		want     []digest.Digest // the lazy layers
		most     time.Duration
	}{
		"foreign":  {slow{time.Second, lazy}, []digest.Digest{a}, time.Second},
		"ordinary": {slow{time.Second, lazy[1:]}, nil, time.Second},
		"fails":    {slow{time.Second, nil}, nil, time.Second},
		"late":     {slow{time.Hour, lazy}, nil, 2 * time.Second},
	} {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			s := &Snapshotter{
				cfg: Config{
					Images: &fakeImages{mounted: map[string]images.Chain{}}, Manifests: c.registry, Starts: noStarts{},
					ForeignWait: 2 * time.Second, PrepareTimeout: time.Minute,
				},
				log: slog.New(slog.DiscardHandler), ctx: ctx,
			}
			s.pulls = newPulls(s)
			begin := time.Now()
			var got []digest.Digest
			for _, layer := range []digest.Digest{a, b} {
				l, err := s.resolve(ctx, map[string]string{
					source.LabelImageRef: "r.example/app:1", source.LabelLayerDigest: layer.String(),
					source.LabelManifestDigest: digest.FromString("manifest").String(), source.LabelDiffID: b.String(),
				})
				if err == nil {
					got = append(got, layer)
					if l.TOCDigest != toc || l.TOCSize != 50 || l.BlobSize != 1000 || l.DiffID != b {
						t.Errorf("%s: %+v", name, l)
					}
				} else if !errors.Is(err, source.ErrNoTOCDigest) {
					t.Errorf("%s: %v", name, err)
				}
			}
			if !slices.Equal(got, c.want) {
				t.Errorf("%s: lazy are %v, want %v", name, got, c.want)
			}
			if took := time.Since(begin); took > c.most {
				t.Errorf("%s: %v, want at most %v", name, took, c.most)
			}
			cancel()
			s.wg.Wait()
		})
	}
}
