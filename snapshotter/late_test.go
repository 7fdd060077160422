package snapshotter

import (
	"context"
	"errors"
	"log/slog"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/apparate/apparate/api/image"
	"github.com/apparate/apparate/snapshotter/fetch"
	"github.com/apparate/apparate/snapshotter/images"
	"github.com/apparate/apparate/snapshotter/source"
)

// lateImages wants credentials until a time.
type lateImages struct {
	*fakeImages
	from time.Time
	adds atomic.Int32
}

func (l *lateImages) Add(context.Context, source.Layer) (images.Key, error) {
	l.adds.Add(1)
	if time.Now().Before(l.from) {
		return "", &fetch.Error{Host: "registry", Status: 401, Err: errors.New("who are you?")}
	}
	return "", nil
}

// TestLateCredentials: those of a pod may come after its image was asked for, but an
// image without any is not waited for with each of its layers.
func TestLateCredentials(t *testing.T) {
	for name, c := range map[string]struct {
		wait, late time.Duration
		lazy       bool
		most       time.Duration // for two layers
	}{
		"in time":  {3 * time.Second, time.Second, true, 2 * time.Second},
		"too late": {3 * time.Second, time.Hour, false, 4 * time.Second},
		"no wait":  {0, time.Second, false, 0},
	} {
		synctest.Test(t, func(t *testing.T) {
			f := &lateImages{fakeImages: &fakeImages{}, from: time.Now().Add(c.late)}
			s := &Snapshotter{cfg: Config{Images: f, CredentialsWait: c.wait, PrepareTimeout: time.Minute}, log: slog.New(slog.DiscardHandler)}
			s.pulls = newPulls(s)
			begin := time.Now()
			for _, layer := range []string{"a", "b"} {
				_, err := s.resolve(t.Context(), map[string]string{
					source.LabelImageRef: "registry.example.com/app:1", source.LabelLayerDigest: digest.FromString(layer).String(),
					source.LabelManifestDigest: digest.FromString("manifest").String(), image.AnnotationTOCDigest: digest.FromString("toc").String(),
				})
				if (err == nil) != c.lazy {
					t.Errorf("%s, layer %s: %v", name, layer, err)
				}
			}
			if took := time.Since(begin); took > c.most {
				t.Errorf("%s: %v, want at most %v", name, took, c.most)
			}
		})
	}
}
