package profile

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"

	"github.com/apparate/apparate/api/profile"
)

// known is an image that has the chunks a to z, 100 bytes each, in that order.
func known(t *testing.T) *Image {
	t.Helper()
	ref, err := name.NewDigest("localhost:5000/app@sha256:" + strings.Repeat("a", 64))
	if err != nil {
		t.Fatal(err)
	}
	im := &Image{Ref: ref, Layers: []Layer{{Digest: "sha256:l0"}}, places: map[[32]byte]Place{}}
	for c := byte('a'); c <= 'z'; c++ {
		im.places[[32]byte{c}] = Place{Size: 100, offset: int64(c) * 1000}
	}
	return im
}

// start1 is a sample, age old: "a5 b7" reads chunk a at 5 ms and b at 7.
func start1(im *Image, age int, workload, reads string) profile.Sample {
	s := profile.Sample{Image: "localhost:5000/app", Manifest: im.Ref.DigestStr(), Workload: workload, Started: time.Unix(1e9, 0).Add(-time.Duration(age) * time.Hour),
		Layers: []profile.SampleLayer{{}}}
	for _, r := range strings.Fields(reads) {
		var at uint32
		if _, err := fmt.Sscan(r[1:], &at); err != nil {
			panic(err)
		}
		s.Layers[0].Add([32]byte{r[0]}, at)
	}
	return s
}

// text writes a plan as start1 reads it.
func (p Plan) text() string {
	var list []string
	for _, c := range p {
		list = append(list, fmt.Sprintf("%c%d", c.Sum[0], c.At))
	}
	return strings.Join(list, " ")
}

func TestMerge(t *testing.T) {
	im := known(t)
	one := func(reads ...string) (list []profile.Sample) {
		for i, r := range reads {
			list = append(list, start1(im, i, "w", r))
		}
		return list
	}
	for name, c := range map[string]struct {
		samples []profile.Sample
		o       MergeOptions
		want    string
		check   func(r Report, coverage, waste float64) bool
	}{
		"none": {nil, MergeOptions{}, "", func(r Report, cov, w float64) bool { return r.Used == 0 && r.HeldOut == 0 && cov == 0 && w == 0 }},
		"one: all of it, by time and then place": {one("c9 b2 a2 d1"), MergeOptions{}, "d1 a2 b2 c9",
			func(r Report, _, _ float64) bool { return r.Used == 1 && r.HeldOut == 0 && r.Similarity == 1 }},
		"two: the newest is held out": {one("a1 b2 x3", "a1 b2 c3 d4"), MergeOptions{}, "a1 b2 c3 d4",
			func(r Report, cov, w float64) bool {
				return r.Used == 1 && r.HeldOut == 1 && near(cov, 2./3) && near(w, 0.5)
			}},
		"half of them must have it": {one("a1", "a1 b1", "a2 b3", "a9 c1", "a3 d1"), MergeOptions{}, "b1 a2",
			func(r Report, _, _ float64) bool { return r.Used == 4 && r.Rare == 2 }},
		"all of them must have it": {one("a1", "a1 b1", "a2 b3", "a9 c1"), MergeOptions{Share: 1}, "a2",
			func(r Report, cov, w float64) bool { return near(cov, 1) && near(w, 0) }},
		"the same chunk twice counts once, the first time": {one("a9 a3", "a9 a3 a7"), MergeOptions{}, "a3", nil},
		"unknown chunks":    {one("a1", "a1 A2 B3"), MergeOptions{}, "a1", func(r Report, _, _ float64) bool { return r.Unknown == 2 }},
		"old ones are left": {one("a1", "a1", "z1", "z1"), MergeOptions{Samples: 2}, "a1", func(r Report, _, _ float64) bool { return r.Other == 2 }},
		"nothing known":     {one("A1", "B1"), MergeOptions{}, "", func(r Report, _, _ float64) bool { return r.Used == 0 && r.Unknown == 2 && r.Other == 2 }},
		"alike workloads vote together": {[]profile.Sample{
			start1(im, 0, "w", "a1"), start1(im, 1, "w", "a1 b1 c1"), start1(im, 2, "w", "a1 b1 c1"), start1(im, 3, "v", "a1 b1 c1 d1"),
		}, MergeOptions{}, "a1 b1 c1", func(r Report, _, _ float64) bool { return r.Workloads == 2 && !r.Differ && near(r.Similarity, .75) }},
		"different workloads each bring what they share": {[]profile.Sample{
			start1(im, 0, "w", "a1"), start1(im, 1, "w", "a1 b1"), start1(im, 2, "w", "a1 b1"), start1(im, 3, "w", "a1 b1 c1"), start1(im, 4, "v", "a1 x1 y2 z3"),
		}, MergeOptions{}, "a1 b1 x1 y2 z3", func(r Report, _, _ float64) bool { return r.Differ && r.Used == 4 && r.Rare == 1 }},
	} {
		plan, r := Merge(c.samples, im, c.o)
		coverage, waste := r.Measure(plan)
		if plan.text() != c.want || c.check != nil && !c.check(r, coverage, waste) {
			t.Errorf("%s: %q, want %q; %+v, coverage %v, waste %v", name, plan.text(), c.want, r, coverage, waste)
		}
	}
}

func near(a, b float64) bool { return a-b < 1e-9 && b-a < 1e-9 }

// Samples of other images and broken ones change nothing.
func TestMergeRefuses(t *testing.T) {
	im := known(t)
	other := start1(im, 0, "w", "x1")
	other.Manifest = "sha256:" + strings.Repeat("b", 64)
	broken := start1(im, 0, "w", "y1")
	broken.Layers[0].At = nil
	nameless := start1(im, 0, "w", "z1")
	nameless.Image = ""
	plan, r := Merge([]profile.Sample{other, broken, nameless, start1(im, 5, "w", "a1")}, im, MergeOptions{})
	if plan.text() != "a1" || r.Used != 1 || r.Other != 3 || r.HeldOut != 0 {
		t.Errorf("%q, %+v", plan.text(), r)
	}
	// Many workloads cannot each bring their own.
	var many []profile.Sample
	for c := byte('a'); c <= 'z'; c++ {
		many = append(many, start1(im, int(c), string(c), string(c)+"1"))
	}
	if plan, r := Merge(many, im, MergeOptions{}); len(plan) > maxWorkloads || r.Used != maxWorkloads {
		t.Errorf("%q, %+v", plan.text(), r)
	}
}

func TestDefaultBudget(t *testing.T) {
	for size, want := range map[int64]int64{0: 4 << 20, 10 << 20: 6 << 20, 1 << 40: 256 << 20} {
		if got := DefaultBudget(size); got != want {
			t.Errorf("an image of %d bytes: %d, want %d", size, got, want)
		}
	}
}
