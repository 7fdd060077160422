package main

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
)

// plotsDir is where the plots are that the README shows, from the top of the repository.
const plotsDir = "test/bench/plots"

// The lines between which the README's tables are.
const (
	readmeBegin = "<!-- bench: what follows is written by `make bench` -->\n"
	readmeEnd   = "<!-- bench: until here -->\n"
)

// updateReadme puts text between the markers of a file.
func updateReadme(file, text string) error {
	b, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	changed, err := between(string(b), text)
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	return writeFile(file, []byte(changed))
}

// between replaces what is between the markers.
func between(whole, text string) (string, error) {
	before, rest, ok := strings.Cut(whole, readmeBegin)
	if !ok {
		return "", fmt.Errorf("there is no line %q", strings.TrimSpace(readmeBegin))
	}
	_, after, ok := strings.Cut(rest, readmeEnd)
	if !ok {
		return "", fmt.Errorf("there is no line %q", strings.TrimSpace(readmeEnd))
	}
	return before + readmeBegin + text + readmeEnd + after, nil
}

// summary is what the README shows: where the figures are from, and how soon images
// are ready.
func summary(r *Results) string {
	v := newView(r)
	var s strings.Builder
	s.WriteString(v.source())
	s.WriteString(v.targets())
	for _, name := range slices.Sorted(maps.Keys(plots(r))) {
		fmt.Fprintf(&s, "![%s](%s/%s)\n\n", strings.TrimSuffix(name, ".svg"), plotsDir, name)
	}
	for _, n := range r.Networks {
		s.WriteString(v.times(n.Name) + v.ratios(n.Name) + v.limits(n.Name) + v.budgets(armOwn, n.Name))
	}
	s.WriteString(v.burstTable() + v.steadyTable() + v.conversions())
	s.WriteString(v.legend())
	s.WriteString(v.failures())
	return s.String()
}
