package profile

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	api "github.com/apparate/apparate/api/profile"
)

// studio is a keeper whose works the test does.
type studio struct {
	*Keeper
	registry *prometheus.Registry
	t        *testing.T
	clock    time.Time
	ids      []uint64 // of the profile that samples would make now
	found    *Published
	err      error // of the works
	foreign  bool  // no Registry is for it

	asked, published int
	samples          []*api.Sample // of the last profile
}

func newStudio(t *testing.T) *studio {
	s := &studio{t: t, clock: time.Unix(1_700_000_000, 0), ids: []uint64{1, 2, 3}}
	s.Keeper = &Keeper{Works: s, Now: func() time.Time { return s.clock }}
	s.registry = prometheus.NewRegistry()
	s.Metrics = NewMetrics(s.registry, s.Held)
	s.init()
	return s
}

func (s *studio) Wanted(context.Context, Image) (bool, error) { return !s.foreign, nil }

func (s *studio) Find(context.Context, Image) (*Published, error) {
	s.asked++
	return s.found, s.err
}

func (s *studio) Inherit(context.Context, Heir) (int, error) { return 1, s.err }

func (s *studio) Publish(_ context.Context, _ Image, samples []*api.Sample, keep func([]uint64) bool) (*Published, error) {
	if s.err != nil {
		return nil, s.err
	}
	if keep(s.ids) {
		return nil, nil
	}
	s.published++
	s.samples = samples
	return &Published{IDs: s.ids, Samples: len(samples), Bytes: 100}, nil
}

// take hands over the sample number n of a node's start of an image.
func (s *studio) take(node, image string, n int) Verdict {
	s.t.Helper()
	v, err := s.Take(s.t.Context(), node, &api.Sample{Image: "r.example/" + image, Manifest: "sha256:1", Started: time.Unix(int64(n), 0)}, 100)
	if err != nil && v != Foreign {
		s.t.Fatal(err)
	}
	return v
}

// settle does what is due.
func (s *studio) settle() {
	for {
		r, _ := s.next()
		if r == nil {
			return
		}
		s.work(s.t.Context(), r)
	}
}

// counted is the count with a label.
func counted(t *testing.T, r *prometheus.Registry, label string) (sum float64) {
	t.Helper()
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			for _, l := range m.GetLabel() {
				if l.GetValue() == label {
					sum += m.GetCounter().GetValue()
				}
			}
		}
	}
	return sum
}

// expect compares how many profiles were published, and that the bytes are counted.
func (s *studio) expect(published int, when string) {
	s.t.Helper()
	if s.published != published {
		s.t.Errorf("%s: %d profiles are published, want %d", when, s.published, published)
	}
	var sum int64
	for _, r := range s.images {
		sum += r.size()
	}
	if _, held := s.Held(); sum != held {
		s.t.Errorf("%s: %d bytes are held, counted are %d", when, sum, held)
	}
}

// TestKeeper: the first sample makes a profile; another one is made only when it would
// be another one, a minute later at the earliest, and four times a day.
func TestKeeper(t *testing.T) {
	s := newStudio(t)
	if v := s.take("a", "app", 1); v != Taken {
		t.Fatal(v)
	}
	s.settle()
	s.expect(1, "after the first sample")
	if v := s.take("a", "app", 1); v != Known {
		t.Errorf("the same sample is %s", v)
	}
	s.take("b", "app", 1)
	s.settle()
	s.expect(1, "within the minute")
	s.clock = s.clock.Add(minPause)
	s.settle()
	s.expect(1, "after samples that say the same")
	if n := counted(t, s.registry, "unchanged"); n != 1 {
		t.Errorf("unchanged: %v", n)
	}
	s.ids = []uint64{4, 5}
	s.take("b", "app", 2)
	s.settle()
	s.expect(2, "after a sample that says something else, and a minute")
	for i := range 10 {
		s.ids = []uint64{uint64(10 * i), uint64(10*i + 1)}
		s.take("b", "app", 3+i)
		s.settle()
		s.expect(min(2+i, maxProfiles), "at once")
		s.clock = s.clock.Add(minPause)
		s.settle()
		s.expect(min(3+i, maxProfiles), "later")
	}
	if len(s.samples) != 5 || s.asked != 1 {
		t.Errorf("the last profile is of %d samples; the registry was asked %d times", len(s.samples), s.asked)
	}
	s.clock = s.clock.Add(day)
	s.take("b", "app", 100)
	s.settle()
	s.expect(maxProfiles+1, "the next day")
	if len(s.samples) != maxSamples || s.samples[0].Started.Unix() != 1 {
		t.Errorf("the last profile is of %d samples; that of the other node is gone", len(s.samples))
	}
}

// TestRestart: an operator that has just started does not replace a profile, which is of
// many samples, by one of fewer.
func TestRestart(t *testing.T) {
	s := newStudio(t)
	s.found = &Published{IDs: []uint64{7, 8, 9}, Samples: 3}
	for i := range 2 {
		s.take("a", "app", i)
		s.settle()
		s.expect(0, "with fewer samples than the registry's is of")
	}
	s.take("b", "app", 1)
	s.settle()
	s.expect(1, "with as many")
}

// TestUnwanted: what is no image of ours costs one question an hour, and no memory.
func TestUnwanted(t *testing.T) {
	s := newStudio(t)
	s.err = fmt.Errorf("%w: plain", errUnwanted)
	s.take("a", "app", 1)
	s.settle()
	if v := s.take("a", "app", 2); v != NotAccelerated {
		t.Errorf("the sample is %s", v)
	}
	s.settle()
	if s.asked != 1 || s.bytes > 2<<10 {
		t.Errorf("asked %d times, %d bytes", s.asked, s.bytes)
	}
	s.clock = s.clock.Add(keepUnwanted)
	s.err = nil
	s.take("a", "app", 3)
	s.settle()
	s.expect(1, "an hour later")
	s.foreign = true
	if v := s.take("a", "other", 1); v != Foreign || len(s.images) != 1 {
		t.Errorf("the sample of a foreign image is %s, of %d images something is kept", v, len(s.images))
	}
}

// TestTroubles: what fails is tried again, ever later and not for ever.
func TestTroubles(t *testing.T) {
	s := newStudio(t)
	s.err = errors.New("the registry is away")
	s.take("a", "app", 1)
	for i := range maxTries + 2 {
		s.settle()
		if want := min(i+1, maxTries); s.asked != want {
			t.Fatalf("asked %d times, want %d", s.asked, want)
		}
		s.take("a", "app", 2) // not sooner because of that
		s.settle()
		if i < maxTries-1 && s.asked != i+1 {
			t.Fatalf("asked %d times at once", s.asked)
		}
		if i >= maxTries-1 {
			break
		}
		s.clock = s.clock.Add(firstRetry << i)
	}
	s.err = nil
	s.take("a", "app", 3)
	s.settle()
	s.expect(1, "when the registry is back")
}

// TestBounds: however much is sent, memory is bounded, and what is new is kept.
func TestBounds(t *testing.T) {
	s := newStudio(t)
	for i := range maxImages + 500 {
		s.take("a", fmt.Sprint("app", i), 1)
	}
	if n, _ := s.Held(); n != maxImages {
		t.Errorf("of %d images something is kept", n)
	}
	if s.images[Image{"r.example", fmt.Sprint("app", maxImages+499), "sha256:1"}] == nil {
		t.Error("the newest is not kept")
	}
	for i := range 100 {
		if _, err := s.Take(t.Context(), "a", &api.Sample{Image: fmt.Sprint("r.example/large", i), Manifest: "sha256:1"}, 2<<20); err != nil {
			t.Fatal(err)
		}
	}
	if n, bytes := s.Held(); bytes > maxBytes || n < 20 {
		t.Errorf("%d bytes of %d images are kept", bytes, n)
	}
	s.expect(0, "nothing was done")
}

func TestJaccard(t *testing.T) {
	for _, c := range []struct {
		a, b []uint64
		want float64
	}{
		{nil, nil, 1}, {[]uint64{1}, nil, 0}, {[]uint64{1, 2, 3}, []uint64{1, 2, 3}, 1},
		{[]uint64{1, 2, 3}, []uint64{2, 3, 4}, 0.5}, {[]uint64{1, 3}, []uint64{2, 4}, 0},
	} {
		if got := jaccard(c.a, c.b); got != c.want {
			t.Errorf("%v and %v have %v in common, want %v", c.a, c.b, got, c.want)
		}
	}
}
