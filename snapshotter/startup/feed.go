package startup

import (
	"context"
	"time"

	"github.com/apparate/apparate/snapshotter/layer"
)

const (
	// stall is how long no byte comes before readers go on by themselves.
	stall = 300 * time.Millisecond
	// ownRequest is how many bytes a reader's own request takes along.
	ownRequest = 256 << 10
	// slack is what timers and a busy machine cost.
	slack = 10 * time.Millisecond
	// maxDecode is how long a reader waits for a group that is here, and being decoded.
	maxDecode = time.Second
	// unmeasured is the rate in bytes a second until one was measured: 100 Mbit/s.
	unmeasured = 12_500_000
	// minMeasured is how many bytes make a measurement.
	minMeasured = 128 << 10
)

// feed is a stream as one layer sees it.
type feed struct {
	s      *stream
	layer  *layer.Layer
	group  []int32 // of each chunk; -1: the table has it not
	forget func()
}

var _ layer.Supply = (*feed)(nil)

// Coming implements layer.Supply.
func (f *feed) Coming(i int) bool {
	g := f.group[i]
	return g >= 0 && !f.s.closed.Load() && f.s.state[g].Load() != settled && !f.s.stalled()
}

// Knows implements layer.Supply.
func (f *feed) Knows(i int) bool {
	g := f.group[i]
	return g >= 0 && (f.s.state[g].Load() == settled || f.Coming(i))
}

// Await implements layer.Supply.
func (f *feed) Await(ctx context.Context, i int) {
	s, g := f.s, int(f.group[i])
	s.waiting.Add(1)
	defer s.waiting.Add(-1)
	began := time.Now()
	limit := time.Duration(0)
	for {
		var left time.Duration
		switch {
		case s.state[g].Load() == taken:
			left = maxDecode - time.Since(began)
		case s.first.Load() != 0:
			if limit == 0 {
				// Since now: before the first byte a request of its own would
				// have waited as well.
				limit = time.Since(began) + s.patience(g)
			}
			left = limit - time.Since(began)
		default:
			left = stall - time.Since(began)
		}
		if left <= 0 || s.stalled() {
			s.stats.overtaken.Add(1)
			return
		}
		t := time.NewTimer(min(left, stall/10))
		select {
		case <-s.done[g]:
		case <-s.over:
		case <-ctx.Done():
		case <-t.C:
			continue
		}
		t.Stop()
		return
	}
}

// patience is how long a reader waits for a group that is not here yet: as long as its
// own request would plausibly take, beside the stream; 0 when the group is farther away.
func (s *stream) patience(g int) time.Duration {
	rate := s.rate()
	own := time.Duration(s.first.Load()-s.asked.Load()) + time.Duration(ownRequest*float64(time.Second)/rate)
	most := 2*own + slack // the two share the link
	if time.Duration(float64(s.distance(g))*float64(time.Second)/rate) > most {
		return 0
	}
	return most
}

// distance is how many bytes have to come before group g is whole.
func (s *stream) distance(g int) int64 {
	n := -s.within.Load()
	for k := int(s.current.Load()); k <= g; k++ {
		if s.state[k].Load() == ahead {
			n += s.table.Groups[k].Size
		}
	}
	return max(n, 0)
}

// rate is how many bytes a second come while we read.
func (s *stream) rate() float64 {
	n := s.received.Load()
	d := s.latest.Load() - s.first.Load() - s.idle.Load()
	if n < minMeasured || d <= 0 {
		return unmeasured
	}
	return float64(n) / time.Duration(d).Seconds()
}

// stalled says that no byte has come for a while although one is waited for.
func (s *stream) stalled() bool {
	return s.reading.Load() && s.now()-s.latest.Load() >= int64(stall)
}
