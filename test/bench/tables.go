package main

import (
	"fmt"
	"math"
	"slices"
	"strings"
)

// table is one of Markdown, its first column aligned left, the others right.
type table struct{ rows [][]string }

func (t *table) add(cells ...string) { t.rows = append(t.rows, cells) }

// String is empty for a table that has nothing below its head.
func (t *table) String() string {
	if len(t.rows) < 2 {
		return ""
	}
	var s strings.Builder
	for i, row := range t.rows {
		s.WriteString("| " + strings.Join(row, " | ") + " |\n")
		if i == 0 {
			s.WriteString("|---|" + strings.Repeat("---:|", len(row)-1) + "\n")
		}
	}
	return s.String() + "\n"
}

// number writes a figure with three digits that count; a dash for none.
func number(f float64) string {
	switch {
	case math.IsNaN(f) || math.IsInf(f, 0):
		return "–"
	case f >= 100:
		return fmt.Sprintf("%.0f", f)
	case f >= 10:
		return fmt.Sprintf("%.1f", f)
	}
	return fmt.Sprintf("%.2f", f)
}

func (i Interval) String() string {
	if math.IsNaN(i.Value) {
		return "–"
	}
	return fmt.Sprintf("%.2f (%.2f–%.2f)", i.Value, i.Low, i.High)
}

// times is the table of seconds until ready on one network.
func (v *view) times(network string) string {
	var t table
	head := []string{"seconds until ready, " + network}
	for _, a := range v.arms() {
		head = append(head, a.name)
	}
	t.add(head...)
	multiples := map[string][]float64{}
	for _, i := range v.Images {
		row := []string{i.Name}
		warm := v.time(i.Name, armWarm, network)
		for _, a := range v.arms() {
			sec := v.time(i.Name, a.name, network)
			cell := number(sec)
			if n := v.failed(i.Name, a.name, network); n > 0 {
				cell += fmt.Sprintf(" (%d failed)", n)
			}
			row = append(row, cell)
			if m := sec / warm; !math.IsNaN(m) {
				multiples[a.name] = append(multiples[a.name], m)
			}
		}
		t.add(row...)
	}
	row := []string{"geometric mean, × warm"}
	for _, a := range v.arms() {
		row = append(row, number(geoMean(multiples[a.name])))
	}
	t.add(row...)
	return t.String()
}

// figures is a table of one figure by image and arm.
func (v *view) figures(title, network string, figure func(Run) float64) string {
	var t table
	arms := slices.DeleteFunc(v.arms(), func(a arm) bool { return a.kind == local })
	t.add(append([]string{title + ", " + network}, names(arms, armName)...)...)
	for _, i := range v.Images {
		row := []string{i.Name}
		for _, a := range arms {
			row = append(row, number(v.median(i.Name, a.name, network, figure)))
		}
		t.add(row...)
	}
	return t.String()
}

// ratios compares our arms with the best of each kind of others.
func (v *view) ratios(network string) string {
	var t table
	t.add("time of … by that of … on "+network, "best lazy peer", "the same, not prefetching", "best strong pull", "overlayfs")
	for _, a := range v.arms() {
		if a.kind != ours || a.again != "" {
			continue
		}
		row := []string{a.name}
		for _, kinds := range [][]kind{{lazy, lazyAhead}, {lazy}, {strong}, {eager}} {
			row = append(row, ratioOf(v.pairs(network, a.name, func(image string) string {
				return v.best(image, network, kinds...)
			})).String())
		}
		t.add(row...)
	}
	return t.String()
}

// limits is the table of how far from the limit our starts are.
func (v *view) limits(network string) string {
	var t table
	head := []string{"limit, " + network, "needed MB", "warm s", "limit s"}
	our := slices.DeleteFunc(v.arms(), func(a arm) bool { return a.kind != ours || a.again != "" })
	for _, a := range our {
		head = append(head, "E "+a.name)
	}
	t.add(head...)
	all := map[string][]float64{}
	for _, i := range v.Images {
		l, ok := v.limit(i.Name, network)
		if !ok {
			continue
		}
		row := []string{i.Name, number(l.Needed / 1e6), number(l.Warm), fmt.Sprintf("%s–%s", number(l.Low), number(l.High))}
		for _, a := range our {
			sec := v.time(i.Name, a.name, network)
			row = append(row, fmt.Sprintf("%s–%s", number(sec/l.High), number(sec/l.Low)))
			if e := sec / l.High; !math.IsNaN(e) {
				all[a.name] = append(all[a.name], e)
			}
		}
		t.add(row...)
	}
	mean, worst := []string{"geometric mean", "", "", ""}, []string{"worst", "", "", ""}
	for _, a := range our {
		mean = append(mean, number(geoMean(all[a.name])))
		w := math.NaN()
		if len(all[a.name]) > 0 {
			w = slices.Max(all[a.name])
		}
		worst = append(worst, number(w))
	}
	t.add(mean...)
	t.add(worst...)
	return t.String()
}

// conversions is the table of what making the images took.
func (v *view) conversions() string {
	var t table
	var arms []arm
	for _, a := range v.arms() {
		if a.again == "" && slices.ContainsFunc(v.Images, func(i Image) bool { return i.Variants[a.name].Tag != "" }) {
			arms = append(arms, a)
		}
	}
	t.add(append([]string{"size by that of the plain image; seconds", "plain MB"}, names(arms, armName)...)...)
	for _, i := range v.Images {
		row := []string{i.Name, number(mb(i.Size))}
		for _, a := range arms {
			made := i.Variants[a.name]
			if made.Tag == "" {
				row = append(row, "–")
				continue
			}
			took := "–"
			if made.Seconds > 0 {
				took = fmt.Sprintf("%.1f", made.Seconds)
			}
			row = append(row, fmt.Sprintf("%.3f; %s", float64(made.Size)/float64(i.Size), took))
		}
		t.add(row...)
	}
	return t.String()
}

// noise says how much two arms differ that are the same, and how much two builds do.
func (v *view) noise() string {
	var s strings.Builder
	for _, n := range v.Networks {
		for _, a := range v.arms() {
			if a.again == "" {
				continue
			}
			if a.before {
				if pairs := v.pairs(n.Name, a.again, func(string) string { return a.name }); len(pairs) > 0 {
					fmt.Fprintf(&s, "- %s: %s takes %s of the time of the other build.\n", n.Name, a.again, ratioOf(pairs))
				}
				continue
			}
			pairs := v.pairs(n.Name, a.name, func(string) string { return a.again })
			if len(pairs) == 0 {
				continue
			}
			var single []float64
			for _, p := range pairs {
				for _, ratio := range p {
					single = append(single, math.Abs(math.Log(ratio)))
				}
			}
			fmt.Fprintf(&s, "- %s: the same arm twice (%s) differs by a factor of %s; a single pair by %.0f %% in the median.\n",
				n.Name, a.again, ratioOf(pairs), 100*(math.Exp(median(single))-1))
		}
	}
	return s.String()
}

// burstTable is the table of many starts at once.
func (v *view) burstTable() string {
	var s strings.Builder
	var scenarios []string
	for _, b := range v.Bursts {
		if !slices.Contains(scenarios, b.Scenario) {
			scenarios = append(scenarios, b.Scenario)
		}
	}
	for _, name := range scenarios {
		var t table
		t.add(name+" at once", "last ready s", "first ready s", "MB", "requests", "daemon's peak MB")
		for _, a := range armsOnly() {
			var last, first, bytes, requests, peak []float64
			failed := 0
			for _, b := range v.Bursts {
				if b.Scenario != name || b.Arm != a.name {
					continue
				}
				if b.Error != "" {
					failed++
					continue
				}
				last, first = append(last, b.Seconds), append(first, b.First)
				bytes, requests, peak = append(bytes, mb(b.Bytes)), append(requests, float64(b.Requests)), append(peak, mb(b.PeakRSS))
			}
			if len(last)+failed == 0 {
				continue
			}
			cell := number(median(last))
			if failed > 0 {
				cell += fmt.Sprintf(" (%d failed)", failed)
			}
			t.add(a.name, cell, number(median(first)), number(median(bytes)), number(median(requests)), number(median(peak)))
		}
		s.WriteString(t.String())
	}
	return s.String()
}

// steadyTable is what using a local image takes, by what it takes on overlayfs.
func (v *view) steadyTable() string {
	var t table
	head := []string{"all local, time by that on overlayfs", "overlayfs ms"}
	var arms []string
	for _, a := range steadyArms {
		if a != armOverlay && slices.ContainsFunc(v.Steady, func(r Steady) bool { return r.Arm == a }) {
			arms = append(arms, a)
		}
	}
	t.add(append(head, arms...)...)
	for _, u := range uses() {
		base := v.steadyTime(armOverlay, u.name)
		if math.IsNaN(base) {
			continue
		}
		row := []string{u.name, number(1000 * base)}
		for _, a := range arms {
			row = append(row, number(v.steadyTime(a, u.name)/base))
		}
		t.add(row...)
	}
	return t.String()
}

// steadyTime is the median of a use on an arm.
func (v *view) steadyTime(arm, use string) float64 {
	var all []float64
	for _, r := range v.Steady {
		if sec, ok := r.Seconds[use]; ok && r.Arm == arm && r.Error == "" {
			all = append(all, sec)
		}
	}
	return median(all)
}
