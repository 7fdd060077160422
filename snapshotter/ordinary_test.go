package snapshotter

import (
	"context"
	"log/slog"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/opencontainers/go-digest"

	"github.com/apparate/apparate/snapshotter/images"
	"github.com/apparate/apparate/snapshotter/source"
)

// silent is a registry that does not answer.
type silent struct{ t *testing.T }

func (s silent) Manifest(ctx context.Context, ref string, _ digest.Digest) ([]source.Layer, error) {
	s.t.Errorf("the registry of %s was asked about an ordinary layer", ref)
	<-ctx.Done()
	return nil, ctx.Err()
}

// TestOrdinaryLayersAskNobody: containerd 2.2.3 and later unpacks the pause image of
// a fresh node through its default snapshotter, with labels. Waiting for a registry
// there would keep every pod of the node from starting.
func TestOrdinaryLayersAskNobody(t *testing.T) {
	f := &fakeImages{root: t.TempDir(), mounted: map[string]images.Chain{}}
	s, err := New(Config{Root: t.TempDir(), Images: f, Manifests: silent{t}, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	ctx := testContext(t)
	m, err := s.Prepare(ctx, "extract", "", snapshots.WithLabels(map[string]string{
		labelTarget:                digest.FromString("chain").String(),
		source.LabelImageRef:       "registry.example.com/pause:3",
		source.LabelLayerDigest:    digest.FromString("layer").String(),
		source.LabelManifestDigest: digest.FromString("manifest").String(),
	}))
	if err != nil || len(m) != 1 {
		t.Errorf("Prepare: %v, %v", m, err)
	}
	if err := s.Close(); err != nil { // waits for what Prepare set off
		t.Error(err)
	}
}
