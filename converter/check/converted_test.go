package check

import (
	"context"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/apparate/apparate/converter"
	"github.com/apparate/apparate/converter/encode"
)

// TestConverted: what the converter makes passes, and another image does not
// pass for its source.
func TestConverted(t *testing.T) {
	s := newStore(t)
	src := makeTar(t, entries(nil))
	s.push("v1", nil, configOf(digest.FromBytes(src).String()), s.blob(gz(t, src)))
	other := makeTar(t, entries(func(a []*ent) []*ent { a[7].body = "LAST"; return a }))
	s.push("v2", nil, configOf(digest.FromBytes(other).String()), s.blob(gz(t, other)))
	c := converter.New(converter.Options{TempDir: t.TempDir(), RetryWait: time.Millisecond})
	for _, format := range []encode.Format{encode.ZstdChunked, encode.EStargz} {
		if _, err := c.Convert(context.Background(), converter.Request{Source: s.host + "/app:v1", Format: format}); err != nil {
			t.Fatal(err)
		}
		testConverted(t, s)
	}
}

func testConverted(t *testing.T, s *store) {
	t.Helper()
	var seen []Compared
	r, err := Check(context.Background(), Options{Image: s.host + "/app:v1-apparate", Progress: func(c Compared) { seen = append(seen, c) }})
	if err != nil || !r.Equal() || len(seen) != 1 {
		t.Errorf("%v, %v, %v", err, r.Differences, seen)
	}
	r, err = Check(context.Background(), Options{Image: s.host + "/app:v1-apparate", Source: s.host + "/app:v2"})
	if err != nil {
		t.Fatal(err)
	}
	wantDifference(t, r, "last", "tar: content")
}
