package main

import (
	"fmt"
	"slices"
	"strings"
)

// markdown is all tables.
func markdown(r *Results) string {
	v := newView(r)
	var s strings.Builder
	s.WriteString("# Cold starts\n\n")
	s.WriteString(v.header())
	s.WriteString("## Targets\n\n" + v.targets())
	for _, n := range r.Networks {
		if len(r.Runs) > 0 {
			s.WriteString(v.network(n.Name))
		}
	}
	s.WriteString("## Many at once\n\n" + v.burstTable())
	s.WriteString("## Steady state\n\n" + v.steadyTable())
	s.WriteString("## Conversion\n\n" + v.conversions())
	s.WriteString(v.failures())
	return s.String()
}

// network is all of one network.
func (v *view) network(name string) string {
	s := fmt.Sprintf("## %s\n\n%s%s%s", name, v.times(name), v.ratios(name), v.limits(name))
	for _, a := range []string{armOwn, armApparate} {
		s += v.budgets(a, name)
	}
	for _, f := range []struct {
		title  string
		figure func(Run) float64
	}{
		{"MB from the registry at ready", func(r Run) float64 { return mb(r.Traffic.All().Bytes) }},
		{"requests at ready", func(r Run) float64 { return float64(r.Traffic.All().Requests) }},
		{"seconds until the pull had ended", func(r Run) float64 { return r.Pull }},
		{"CPU seconds at ready, daemon and containerd", func(r Run) float64 { return r.CPU.Daemon + r.CPU.Containerd }},
		{"CPU seconds at ready, whole machine", func(r Run) float64 { return r.CPU.Machine }},
		{"peak MB of the daemon", func(r Run) float64 { return mb(r.PeakRSS) }},
		{"layers that are not lazy", func(r Run) float64 { return float64(r.NotLazy) }},
	} {
		s += v.figures(f.title, name, f.figure)
	}
	return s
}

// header says what was measured, on what, and how much it varies.
func (v *view) header() string { return v.source() + v.legend() }

// source says on what and how the figures were measured.
func (v *view) source() string {
	var s strings.Builder
	m := v.Machine
	fmt.Fprintf(&s, "Measured on %d cores of %s with %.0f GB, Linux %s, %s, %s, %s, %s; commit %s, tier %s, %s, %.0f minutes.\n\n",
		m.Cores, m.CPU, float64(m.Memory)/1e9, m.Kernel, m.Disk, m.Go, m.Containerd, m.Runc, m.Commit, v.Tier, v.Began.UTC().Format("2006-01-02"), v.Took/60)
	for _, n := range v.Networks {
		first := ""
		if n.Shape.FirstByte > 0 {
			first = fmt.Sprintf(", %v to the first byte of each blob", n.Shape.FirstByte)
		}
		fmt.Fprintf(&s, "- %s: %.0f Mbit/s, %v round trip (measured: %.0f, %v)%s; plain HTTP, no TCP slow start.\n",
			n.Name, float64(n.Shape.Bits)/1e6, n.Shape.RTT, n.Measured.Bits/1e6, n.Measured.RTT.Round(1000), first)
	}
	rounds := 0
	for _, r := range v.Runs {
		rounds = max(rounds, r.Round)
	}
	fmt.Fprintf(&s, "\nMedians of %d interleaved rounds in random order, each start on a new node with dropped page cache; "+
		"a start that failed counts as %v. Ratios are of paired runs: for each image the median, over all images the geometric mean, "+
		"in brackets the interval of 95 %% of bootstrap draws of the rounds.\n\n", rounds, startLimit)
	return s.String() + v.noise() + v.stolen() + "\n"
}

// stolen says how much of what the starts wanted of the processors others had.
func (v *view) stolen() string {
	var parts []float64
	for _, r := range v.Runs {
		if all := r.CPU.Machine + r.CPU.Stolen; r.Error == "" && all > 0 {
			parts = append(parts, 100*r.CPU.Stolen/all)
		}
	}
	if len(parts) == 0 {
		return ""
	}
	return fmt.Sprintf("- Of the processor time that a start wanted, other machines on the same hardware took %.0f %% (median; %.0f %% in the worst).\n", median(parts), slices.Max(parts))
}

// legend says what the arms are, and what was not measured.
func (v *view) legend() string {
	var s strings.Builder
	var t table
	t.add("arm", "what it is")
	for _, a := range v.arms() {
		about := a.about
		if version := v.Peers[a.name]; version != "" {
			about += ", " + version
		}
		t.add(a.name, about)
	}
	s.WriteString(t.String())
	for _, l := range v.Left {
		fmt.Fprintf(&s, "Not measured: %s.\n", l)
	}
	return s.String()
}

// failures lists what went wrong.
func (v *view) failures() string {
	var s strings.Builder
	for _, r := range v.Runs {
		if r.Error != "" {
			line, _, _ := strings.Cut(r.Error, "\n")
			fmt.Fprintf(&s, "- %s %s %s, round %d: %.200s\n", r.Image, r.Arm, r.Network, r.Round, line)
		}
	}
	for _, b := range v.Bursts {
		if b.Error != "" {
			line, _, _ := strings.Cut(b.Error, "\n")
			fmt.Fprintf(&s, "- %s at once, %s, round %d: %.200s\n", b.Scenario, b.Arm, b.Round, line)
		}
	}
	for _, r := range v.Steady {
		if r.Error != "" {
			line, _, _ := strings.Cut(r.Error, "\n")
			fmt.Fprintf(&s, "- steady state of %s, %s, round %d: %.200s\n", r.Image, r.Arm, r.Round, line)
		}
	}
	if s.Len() == 0 {
		return ""
	}
	return "## Failures\n\n" + s.String()
}
