package main

import (
	"math"
	"slices"
)

// view answers questions about results.
type view struct {
	*Results
	runs     map[string][]Run
	measured []arm
}

func newView(r *Results) *view {
	v := &view{Results: r, runs: map[string][]Run{}}
	for _, run := range r.Runs {
		k := key(run.Image, run.Arm, run.Network)
		v.runs[k] = append(v.runs[k], run)
	}
	v.measured = slices.DeleteFunc(armsOnly(), func(a arm) bool {
		return !slices.ContainsFunc(r.Runs, func(run Run) bool { return run.Arm == a.name })
	})
	return v
}

func key(image, arm, network string) string { return image + "\x00" + arm + "\x00" + network }

// of returns the runs of an arm; those of local arms belong to every network.
func (v *view) of(image, arm, network string) []Run {
	if runs := v.runs[key(image, arm, "")]; len(runs) > 0 {
		return runs
	}
	return v.runs[key(image, arm, network)]
}

// arms are those that were measured, in the order of the tables.
func (v *view) arms() []arm { return slices.Clone(v.measured) }

// seconds is a run's time; a start that failed counts as one that was given up.
func seconds(r Run) float64 {
	if r.Error != "" {
		return startLimit.Seconds()
	}
	return r.Seconds
}

// median of a figure of an arm's runs that did not fail, NaN without any.
func (v *view) median(image, arm, network string, figure func(Run) float64) float64 {
	var all []float64
	for _, r := range v.of(image, arm, network) {
		if r.Error == "" {
			all = append(all, figure(r))
		}
	}
	return median(all)
}

// time is the median of an arm's times, failures included.
func (v *view) time(image, arm, network string) float64 {
	var all []float64
	for _, r := range v.of(image, arm, network) {
		all = append(all, seconds(r))
	}
	return median(all)
}

// failed is how many of an arm's runs failed.
func (v *view) failed(image, arm, network string) int {
	n := 0
	for _, r := range v.of(image, arm, network) {
		if r.Error != "" {
			n++
		}
	}
	return n
}

// pairs are the ratios of two arms' times in the same rounds, for each image. Which
// arm the second is may depend on the image; without one the image is left out.
func (v *view) pairs(network, first string, second func(image string) string) [][]float64 {
	var all [][]float64
	for _, i := range v.Images {
		var ratios []float64
		other := v.of(i.Name, second(i.Name), network)
		for _, a := range v.of(i.Name, first, network) {
			for _, b := range other {
				if a.Round == b.Round {
					ratios = append(ratios, seconds(a)/seconds(b))
				}
			}
		}
		if len(ratios) > 0 {
			all = append(all, ratios)
		}
	}
	return all
}

// best is the arm of the given kinds that starts an image soonest, by its median.
func (v *view) best(image, network string, kinds ...kind) string {
	name, least := "", math.Inf(1)
	for _, a := range v.arms() {
		if t := v.time(image, a.name, network); slices.Contains(kinds, a.kind) && t < least {
			name, least = a.name, t
		}
	}
	return name
}

// Limit is the physical limit of one image's start on one network: the start cannot
// be sooner than Low, where what is fetched and what the program does overlap
// wholly, and need not be later than High, where they do not overlap at all.
type Limit struct {
	// Needed are the compressed bytes that the start cannot do without.
	Needed float64
	// Warm is the start with everything in memory.
	Warm, Low, High float64
}

// trips is how many round trips depend on each other when nothing is known: resolving
// the tag, the manifest, the configuration, what is needed to mount, the first bytes.
const trips = 5

// limit needs a warm start, and a start of ours that says what is needed.
func (v *view) limit(image, network string) (Limit, bool) {
	var l Limit
	l.Warm = v.median(image, armWarm, network, seconds)
	l.Needed = v.needed(image, network)
	i := slices.IndexFunc(v.Networks, func(n Network) bool { return n.Name == network })
	if i < 0 || math.IsNaN(l.Warm) || math.IsNaN(l.Needed) {
		return l, false
	}
	n := v.Networks[i]
	wire := trips*n.Measured.RTT.Seconds() + l.Needed*8/n.Measured.Bits
	l.Low, l.High = max(l.Warm, wire), l.Warm+wire
	return l, true
}

// A profile does not have all that a start reads where its pack is so much less than what
// our arms fetched: it ends with its recording, or at its bounds.
const packShare, packSlack = 1.5, 4e6

// needed are the bytes that a start needs: the least of what our arms had fetched when
// the program was ready, by their medians, and of the image's profile, which has what
// was read until some seconds later.
func (v *view) needed(image, network string) float64 {
	least := math.NaN()
	for _, a := range v.arms() {
		if a.kind != ours {
			continue
		}
		b := v.median(image, a.name, network, func(r Run) float64 { return float64(r.Traffic.All().Bytes) })
		if !math.IsNaN(b) && !(b > least) {
			least = b
		}
	}
	if i := slices.IndexFunc(v.Images, func(i Image) bool { return i.Name == image }); i >= 0 && v.Images[i].Pack > 0 {
		if pack := float64(v.Images[i].Pack); pack < least && least <= packShare*pack+packSlack {
			least = pack
		}
	}
	return least
}
