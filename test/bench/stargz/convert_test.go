package main

import (
	"slices"
	"testing"
)

// TestAssign proves that a file is put in front in the layer that a container sees
// it in, in order of use, and nowhere when it was removed.
func TestAssign(t *testing.T) {
	layers := []map[string]bool{
		{"bin/sh": true, "etc/a": true, "etc/gone": true, "opt/x/f": true, "usr/lib/l": true},
		{"etc/a": true, "etc/.wh.gone": true, "opt/x/.wh..wh..opq": true, "opt/x/g": true},
	}
	got := assign(layers, []string{"/usr/lib/l", "/etc/a", "/etc/gone", "/opt/x/f", "/opt/x/g", "/bin/sh", "/etc/a", "/proc/self/maps"})
	want := [][]string{{"usr/lib/l", "bin/sh"}, {"etc/a", "opt/x/g"}}
	if !slices.EqualFunc(got, want, slices.Equal) {
		t.Errorf("assigned: %v, not %v", got, want)
	}
}
