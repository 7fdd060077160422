package main

import (
	"strings"
	"testing"
)

func TestParseProcessors(t *testing.T) {
	got, err := parseProcessors("cpu  100 200 300 4000 5000 600 700 8000 0 0")
	if want := (processors{worked: 19, stolen: 80}); err != nil || got != want {
		t.Errorf("%+v, %v, want %+v", got, err, want)
	}
	for _, line := range []string{"", "cpu0 1 2 3 4 5 6 7 8 9", "cpu 1 2 3 4 5 6 7", "cpu 1 2 3 4 5 6 7 x 9"} {
		if p, err := parseProcessors(line); err == nil {
			t.Errorf("of %q: %+v", line, p)
		}
	}
}

// TestStolen: the report says which runs others disturbed.
func TestStolen(t *testing.T) {
	r := &Results{Runs: make([]Run, 4)}
	for i := range r.Runs {
		r.Runs[i].CPU.Machine, r.Runs[i].CPU.Stolen = 8, float64(i)
	}
	r.Runs[3].Error = "does not count"
	if got := newView(r).stolen(); !strings.Contains(got, "took 11 % (median; 20 % in the worst)") {
		t.Error(got)
	}
	if got := newView(new(Results)).stolen(); got != "" {
		t.Error(got)
	}
}
