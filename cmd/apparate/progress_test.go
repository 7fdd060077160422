package main

import (
	"strings"
	"testing"
	"time"

	"github.com/apparate/apparate/converter"
)

// screen is what a terminal shows in the end: a return begins the line anew.
func screen(s string) []string {
	var lines []string
	for l := range strings.SplitSeq(s, "\n") {
		if i := strings.LastIndex(l, "\x1b[K"); i >= 0 {
			l = l[i+len("\x1b[K"):]
		}
		lines = append(lines, l)
	}
	return lines
}

func TestProgress(t *testing.T) {
	began := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	at := func(s int) time.Time { return began.Add(time.Duration(s) * time.Second) }
	events := []converter.Event{
		{Time: at(0), Type: converter.Started, Image: "r/app:v1", Target: "r/app:v1-apparate", Layers: 2, BytesInTotal: 30_000_000},
		{Time: at(1), Type: converter.LayerReused, Layer: "sha256:a", LayerIndex: 1, BytesInTotal: 10_000_000},
		{Time: at(2), Type: converter.LayerProgress, Layer: "sha256:b", LayerIndex: 2, BytesIn: 10_000_000, BytesInTotal: 20_000_000},
	}
	for _, c := range []struct {
		width int
		last  string
	}{
		// 10 MB in two seconds, and 10 MB to go: reused layers say nothing of the speed.
		{120, "1/2 layers  20 MB / 30 MB  5 MB/s  2s left"},
		{20, "1/2 layers  20 MB /"},
		{0, ""},
	} {
		var out strings.Builder
		p := newProgress(&out, c.width)
		for _, e := range events {
			p.event(e)
		}
		lines := screen(out.String())
		if got := lines[len(lines)-1]; got != c.last {
			t.Errorf("width %d: the changing line is %q, want %q", c.width, got, c.last)
		}
		if !strings.Contains(out.String(), "layer 1 of 2: 10 MB, reused\n") {
			t.Errorf("width %d: the reused layer is not named:\n%s", c.width, out.String())
		}
		if c.width == 0 && strings.Contains(out.String(), "\x1b") {
			t.Error("escape sequences without a terminal")
		}
	}
}
