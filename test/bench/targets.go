package main

import (
	"fmt"
	"math"
	"slices"
)

// goal is one line of the table of targets.
type goal struct {
	what string
	// most is what may not be exceeded, by network; one for all where there is one.
	most []float64
	// value is what was reached on a network, NaN where it was not measured.
	value func(v *view, network string) float64
}

const (
	tinyImage  = 10e6
	largeImage = 100e6
	hugeImage  = 1e9
)

func goals() []goal {
	return []goal{
		{"E with own profile, geometric mean", []float64{1.3, 1.3, 1.15}, func(v *view, n string) float64 { return geoMean(v.distances(armOwn, n)) }},
		{"E with own profile, worst", []float64{1.8, 1.8, 1.5}, func(v *view, n string) float64 {
			if d := v.distances(armOwn, n); len(d) > 0 {
				return slices.Max(d)
			}
			return math.NaN()
		}},
		{"own profile by best lazy peer", []float64{0.5, 0.4, 0.45}, func(v *view, n string) float64 {
			return v.against(n, armOwn, anyImage, lazy, lazyAhead)
		}},
		{"the same, more than 1 GB of which less than a fifth is read", []float64{0.15}, func(v *view, n string) float64 {
			return v.against(n, armOwn, func(i Image, share float64) bool { return i.Size > hugeImage && share < 0.2 }, lazy, lazyAhead)
		}},
		{"no profile by best lazy peer without prefetch", []float64{0.65}, func(v *view, n string) float64 {
			return v.against(n, armApparate, anyImage, lazy)
		}},
		{"own profile by best strong pull, more than 100 MB of which less than 40 % is read", []float64{0.35, 0.35, 0.25}, func(v *view, n string) float64 {
			return v.against(n, armOwn, func(i Image, share float64) bool { return i.Size > largeImage && share < 0.4 }, strong)
		}},
		{"own profile by best strong pull, less than 10 MB or nearly all read", []float64{1.05}, func(v *view, n string) float64 {
			return v.against(n, armOwn, func(i Image, share float64) bool { return i.Size < tinyImage || share > 0.8 }, strong)
		}},
		{"wrong profile by none", []float64{1.05}, func(v *view, n string) float64 { return v.byNone(n, "apparate-wrong") }},
		{"stale profile by none", []float64{1.05}, func(v *view, n string) float64 { return v.byNone(n, "apparate-stale") }},
		{"bytes at ready by those needed, own profile, worst", []float64{1.3}, (*view).worstBytes},
	}
}

func anyImage(Image, float64) bool { return true }

// distances are E of every image: its time by the upper end of the limit.
func (v *view) distances(arm, network string) []float64 {
	var all []float64
	for _, i := range v.Images {
		l, ok := v.limit(i.Name, network)
		if e := v.time(i.Name, arm, network) / l.High; ok && !math.IsNaN(e) {
			all = append(all, e)
		}
	}
	return all
}

// against is an arm's time by that of the best of some kinds, over the images that
// are chosen by themselves and by the share of them that is needed.
func (v *view) against(network, arm string, chosen func(i Image, share float64) bool, kinds ...kind) float64 {
	return ratioOf(v.pairs(network, arm, func(name string) string {
		i := v.Images[slices.IndexFunc(v.Images, func(i Image) bool { return i.Name == name })]
		if !chosen(i, v.needed(name, network)/float64(i.Size)) {
			return ""
		}
		return v.best(name, network, kinds...)
	})).Value
}

func (v *view) byNone(network, arm string) float64 {
	return ratioOf(v.pairs(network, arm, func(string) string { return armApparate })).Value
}

func (v *view) worstBytes(network string) float64 {
	worst := math.NaN()
	for _, i := range v.Images {
		b := v.median(i.Name, armOwn, network, func(r Run) float64 { return float64(r.Traffic.All().Bytes) }) / v.needed(i.Name, network)
		if !math.IsNaN(b) && !(b < worst) {
			worst = b
		}
	}
	return worst
}

// verdict is a figure with what it should be at most, and whether it is.
func verdict(value, most float64) string {
	switch {
	case math.IsNaN(value):
		return "–"
	case value <= most:
		return fmt.Sprintf("%s ≤ %s", number(value), number(most))
	}
	return fmt.Sprintf("**%s > %s**", number(value), number(most))
}

// targets is the table of what was to be reached; what was missed is in bold.
func (v *view) targets() string {
	var t table
	t.add(append([]string{"target (missed in bold)"}, names(v.Networks, networkName)...)...)
	all := names(networks(), networkName)
	for _, g := range goals() {
		row := []string{g.what}
		for _, n := range v.Networks {
			most := g.most[0]
			if i := slices.Index(all, n.Name); i > 0 && i < len(g.most) {
				most = g.most[i]
			}
			row = append(row, verdict(g.value(v, n.Name), most))
		}
		t.add(row...)
	}
	return t.String() + v.otherTargets()
}

// otherTargets are those that do not depend on a network.
func (v *view) otherTargets() string {
	var t table
	t.add("target (missed in bold)", "all networks")
	for _, u := range uses() {
		if u.most > 0 {
			base := v.steadyTime(armOverlay, u.name)
			t.add(u.name+" of a local image, by overlayfs", verdict(v.steadyTime(armLocal, u.name)/base, u.most))
			t.add("the same in a container that was started before", verdict(v.steadyTime(armApparate, u.name)/base, u.most))
		}
	}
	var idle, size, slower []float64
	for _, r := range v.Runs {
		if r.Arm == armApparate && r.Error == "" {
			idle = append(idle, mb(r.IdleRSS))
		}
	}
	for _, i := range v.Images {
		made, theirs := i.Variants[armApparate], i.Variants["stargz"]
		if made.Size > 0 && theirs.Size > 0 {
			size = append(size, float64(made.Size)/float64(theirs.Size))
		}
		if made.Seconds > 0 && theirs.Seconds > 0 {
			slower = append(slower, made.Seconds/theirs.Seconds)
		}
	}
	t.add("MB of the idle daemon, holder included", verdict(median(idle), 30))
	t.add("seconds of conversion by stargz's, which starts a node for it", verdict(geoMean(slower), 0.2))
	t.add("size after conversion by stargz's", verdict(geoMean(size), 1.02))
	return t.String()
}
