package main

import (
	"math"
	"testing"
)

func TestMedian(t *testing.T) {
	if m := median([]float64{9, 1, 5}); m != 5 {
		t.Errorf("of three: %v", m)
	}
	values := []float64{4, 1, 3, 2}
	if m := median(values); m != 2.5 || values[0] != 4 {
		t.Errorf("of four: %v, and the values are now %v", m, values)
	}
	if !math.IsNaN(median(nil)) || !math.IsNaN(geoMean(nil)) {
		t.Error("of nothing comes something")
	}
	if g := geoMean([]float64{2, 8}); math.Abs(g-4) > 1e-9 {
		t.Errorf("geometric mean of 2 and 8: %v", g)
	}
}

// TestRatio proves that the bounds hold the estimate, that an image without runs is
// left out, and that they are the same each time.
func TestRatio(t *testing.T) {
	pairs := [][]float64{{0.5, 0.6, 0.4}, {}, {2, 2, 2}}
	r := ratioOf(pairs)
	if math.Abs(r.Value-1) > 1e-9 {
		t.Errorf("0.5 and 2: %v", r.Value)
	}
	if want := math.Sqrt(0.4 * 2); math.Abs(r.Low-want) > 1e-9 || r.High <= 1 {
		t.Errorf("bounds %v and %v", r.Low, r.High)
	}
	if again := ratioOf(pairs); again != r {
		t.Errorf("first %v, then %v", r, again)
	}
	if none := ratioOf(nil); !math.IsNaN(none.Value) || none.String() != "–" {
		t.Errorf("of nothing: %v", none)
	}
}
