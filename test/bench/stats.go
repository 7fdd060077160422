package main

import (
	"math"
	"math/rand/v2"
	"slices"
)

// median returns the middle of values, NaN of none.
func median(values []float64) float64 {
	if len(values) == 0 {
		return math.NaN()
	}
	s := slices.Sorted(slices.Values(values))
	if m := len(s) / 2; len(s)%2 == 1 {
		return s[m]
	}
	return (s[len(s)/2-1] + s[len(s)/2]) / 2
}

// geoMean returns the geometric mean of values that are above zero, NaN of none.
func geoMean(values []float64) float64 {
	var sum float64
	for _, v := range values {
		sum += math.Log(v)
	}
	return math.Exp(sum / float64(len(values)))
}

// Interval is an estimate with the bounds between which 95 of 100 resamplings fall.
type Interval struct{ Value, Low, High float64 }

// ratioOf estimates how much longer one arm takes than another from paired runs:
// pairs holds, for each image, the ratios of runs of the same round. An image counts
// by the median of its ratios, all images by their geometric mean. The bounds come
// from drawing rounds anew within each image (a bootstrap); the images are those of
// the table and are not drawn.
func ratioOf(pairs [][]float64) Interval {
	const draws = 2000
	rng := rand.New(rand.NewPCG(1, 2)) // the same bounds each time
	estimate := func(draw func([]float64) []float64) float64 {
		var medians []float64
		for _, p := range pairs {
			if len(p) > 0 {
				medians = append(medians, median(draw(p)))
			}
		}
		return geoMean(medians)
	}
	all := make([]float64, draws)
	for i := range all {
		all[i] = estimate(func(p []float64) []float64 {
			d := make([]float64, len(p))
			for j := range d {
				d[j] = p[rng.IntN(len(p))]
			}
			return d
		})
	}
	slices.Sort(all)
	return Interval{
		Value: estimate(func(p []float64) []float64 { return p }),
		Low:   all[draws*25/1000], High: all[draws*975/1000-1],
	}
}
