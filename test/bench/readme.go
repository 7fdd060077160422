package main

import (
	"fmt"
	"os"
	"strings"
)

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
	for _, n := range r.Networks {
		s.WriteString(v.times(n.Name))
		s.WriteString(v.ratios(n.Name))
		s.WriteString(v.limits(n.Name))
	}
	s.WriteString(v.legend())
	s.WriteString(v.failures())
	return s.String()
}
