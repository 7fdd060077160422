package main

import (
	"fmt"
	"html"
	"math"
	"path/filepath"
	"slices"
	"strings"
)

// bars is a plot of groups of horizontal bars on a logarithmic axis.
type bars struct {
	title, axis string
	series      []string
	groups      []group
}

// group has a value for each series, NaN for none, and the limit's two ends, 0 for none.
type group struct {
	name      string
	values    []float64
	low, high float64
}

// colours are told apart by those who see none, too: their lightness differs.
var colours = []string{"#1b4965", "#62b6cb", "#c1121f", "#f4a261", "#6a994e", "#bc6c25", "#7b2cbf", "#adb5bd", "#2b2d42", "#e9c46a", "#80ed99", "#ff99c8"}

// svg draws the plot.
func (p bars) svg() string {
	const left, width, bar, gap, top = 150, 560, 11, 14, 60
	most, least := 0.0, math.Inf(1)
	for _, g := range p.groups {
		for _, v := range append([]float64{g.high, g.low}, g.values...) {
			if v > 0 && !math.IsInf(v, 0) {
				most, least = max(most, v), min(least, v)
			}
		}
	}
	if most == 0 {
		return ""
	}
	least = math.Pow(10, math.Floor(math.Log10(least)*2)/2)
	x := func(v float64) float64 { return left + width*math.Log(v/least)/math.Log(most*1.15/least) }
	legend := top - 16 + 14*((len(p.series)+3)/4)
	height := legend + 30
	for range p.groups {
		height += len(p.series)*bar + gap
	}
	var s strings.Builder
	fmt.Fprintf(&s, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" font-family="sans-serif" font-size="11">`+"\n", left+width+70, height)
	fmt.Fprintf(&s, `<rect width="100%%" height="100%%" fill="white"/><text x="10" y="20" font-size="14">%s</text>`+"\n", html.EscapeString(p.title))
	for i, name := range p.series {
		lx, ly := 10+180*(i%4), 36+14*(i/4)
		fmt.Fprintf(&s, `<rect x="%d" y="%d" width="9" height="9" fill="%s"/><text x="%d" y="%d">%s</text>`+"\n",
			lx, ly, colours[i%len(colours)], lx+13, ly+9, html.EscapeString(name))
	}
	for e := math.Floor(math.Log10(least)); e <= math.Ceil(math.Log10(most)); e++ {
		for _, m := range []float64{1, 2, 5} {
			if v := m * math.Pow(10, e); v >= least && v <= most*1.15 {
				fmt.Fprintf(&s, `<path d="M%.1f %dV%d" stroke="#ddd"/><text x="%.1f" y="%d" text-anchor="middle">%s</text>`+"\n",
					x(v), legend, height-20, x(v), height-6, strings.TrimSuffix(strings.TrimSuffix(number(v), "0"), ".0"))
			}
		}
	}
	y := legend + 4
	for _, g := range p.groups {
		fmt.Fprintf(&s, `<text x="%d" y="%d" text-anchor="end">%s</text>`+"\n", left-6, y+len(p.series)*bar/2+4, html.EscapeString(g.name))
		if g.high > 0 {
			fmt.Fprintf(&s, `<rect x="%.1f" y="%d" width="%.1f" height="%d" fill="#000" opacity="0.12"/>`+"\n",
				x(g.low), y-3, max(1.5, x(g.high)-x(g.low)), len(p.series)*bar+6)
		}
		for i, v := range g.values {
			if v > 0 && !math.IsInf(v, 0) {
				fmt.Fprintf(&s, `<rect x="%d" y="%d" width="%.1f" height="%d" fill="%s"/><text x="%.1f" y="%d" font-size="9">%s</text>`+"\n",
					left, y, x(v)-left, bar-2, colours[i%len(colours)], x(v)+3, y+bar-3, number(v))
			}
			y += bar
		}
		y += gap
	}
	fmt.Fprintf(&s, `<text x="%d" y="%d" text-anchor="end">%s</text></svg>`+"\n", left-6, height-6, html.EscapeString(p.axis))
	return s.String()
}

// plots are the pictures by the names of their files.
func plots(r *Results) map[string]string {
	v := newView(r)
	arms := slices.DeleteFunc(v.arms(), func(a arm) bool { return a.warm || a.again != "" })
	all := map[string]string{}
	means := bars{title: "Ready after … times the warm start, geometric mean of all images", axis: "× warm", series: names(arms, armName)}
	for _, n := range v.Networks {
		g := group{name: n.Name}
		p := bars{title: "Seconds until ready, " + n.Name + "; shaded: the physical limit", axis: "seconds", series: names(arms, armName)}
		multiples := make([][]float64, len(arms))
		for _, i := range v.Images {
			one := group{name: i.Name}
			warm := v.time(i.Name, armWarm, n.Name)
			for k, a := range arms {
				t := v.time(i.Name, a.name, n.Name)
				one.values = append(one.values, t)
				if m := t / warm; !math.IsNaN(m) {
					multiples[k] = append(multiples[k], m)
				}
			}
			if l, ok := v.limit(i.Name, n.Name); ok {
				one.low, one.high = l.Low, l.High
			}
			p.groups = append(p.groups, one)
		}
		for _, m := range multiples {
			g.values = append(g.values, geoMean(m))
		}
		means.groups = append(means.groups, g)
		all["seconds-"+strings.ToLower(n.Name)+".svg"] = p.svg()
	}
	all["warm.svg"] = means.svg()
	for name, text := range all {
		if text == "" {
			delete(all, name)
		}
	}
	return all
}

// writePlots writes the pictures into a directory.
func writePlots(r *Results, dir string) error {
	for name, text := range plots(r) {
		if err := writeFile(filepath.Join(dir, name), []byte(text)); err != nil {
			return err
		}
	}
	return nil
}
