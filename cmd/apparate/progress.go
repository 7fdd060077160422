package main

import (
	"fmt"
	"io"
	"time"

	"github.com/apparate/apparate/converter"
)

// progress shows a conversion to a person: on a terminal one line that changes,
// with what is worth keeping above it; elsewhere only lines that stay.
type progress struct {
	w     io.Writer
	width int // 0: no terminal
	start time.Time
	total int64            // compressed bytes of all layers
	in    map[string]int64 // by layer, what is done of them
	fresh map[string]int64 // the part of in that was downloaded now
	done  int
	count int
	shown bool // the changing line is on the screen
}

func newProgress(w io.Writer, width int) *progress {
	return &progress{w: w, width: width, in: make(map[string]int64), fresh: make(map[string]int64)}
}

// event shows one event. Writing to a terminal that is gone must not end the
// conversion, so its errors are dropped.
func (p *progress) event(e converter.Event) {
	switch e.Type {
	case converter.Started:
		p.start, p.total, p.count = e.Time, e.BytesInTotal, e.Layers
		p.line("%s to %s: %d layers, %s", e.Image, e.Target, e.Layers, bytesText(e.BytesInTotal))
	case converter.LayerProgress:
		p.in[e.Layer], p.fresh[e.Layer] = e.BytesIn, e.BytesIn
	case converter.LayerDone:
		p.layer(e, "converted")
		p.fresh[e.Layer] = e.BytesInTotal
	case converter.LayerReused:
		p.layer(e, "reused")
	case converter.LayerCopied:
		p.layer(e, "copied, and will not start lazily: "+e.Reason)
	case converter.LayerRetried:
		p.line("layer %d of %d: trying again: %s", e.LayerIndex, p.count, e.Error)
		p.in[e.Layer], p.fresh[e.Layer] = 0, 0
	case converter.ProfileCarried:
		p.line("the start-up profile was carried over: %s", e.Reason)
	case converter.ProfilePredicted:
		p.line("a start-up profile was told from what the image starts: %s", e.Reason)
	case converter.ProfileLost:
		p.line("the image has no start-up profile yet: %s", e.Error)
	default: // the result says the rest
	}
	p.update(e.Time)
}

// layer says how a layer was finished.
func (p *progress) layer(e converter.Event, how string) {
	p.done++
	p.in[e.Layer] = e.BytesInTotal
	p.line("layer %d of %d: %s, %s", e.LayerIndex, p.count, bytesText(e.BytesInTotal), how)
}

// line prints a line that stays.
func (p *progress) line(format string, args ...any) {
	p.clear()
	_, _ = fmt.Fprintf(p.w, format+"\n", args...) // see event
}

// clear removes the changing line.
func (p *progress) clear() {
	if p.shown {
		_, _ = fmt.Fprint(p.w, "\r\x1b[K") // see event
		p.shown = false
	}
}

// update draws the changing line: what is done, how fast, how long to go.
func (p *progress) update(now time.Time) {
	if p.width == 0 || p.start.IsZero() {
		return
	}
	var in, fresh int64
	for _, n := range p.in {
		in += n
	}
	for _, n := range p.fresh {
		fresh += n
	}
	s := fmt.Sprintf("%d/%d layers  %s / %s", p.done, p.count, bytesText(in), bytesText(p.total))
	// Reused layers take no time and say nothing about the speed.
	if t := now.Sub(p.start).Seconds(); t > 0.5 && fresh > 0 {
		speed := float64(fresh) / t
		left := time.Duration(float64(p.total-in) / speed * float64(time.Second))
		s += fmt.Sprintf("  %s/s  %s left", bytesText(int64(speed)), left.Round(time.Second))
	}
	p.clear()
	_, _ = fmt.Fprint(p.w, s[:min(len(s), p.width-1)]) // see event
	p.shown = true
}
