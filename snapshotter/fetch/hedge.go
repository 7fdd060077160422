package fetch

import (
	"context"
	"io"
	"sync"
	"time"
)

const (
	// slowAnswers is how many medians make an answer late, minLate the least.
	slowAnswers = 4
	minLate     = 100 * time.Millisecond
	// Every demand request earns extraShare of a second try, up to maxCredit; a
	// registry begins with firstCredit. So a registry that is slow as a whole gets
	// 5 % more requests from us, not twice as many.
	extraShare  = 0.05
	maxCredit   = 4
	firstCredit = 1
)

// hedge measures the answers, and asks a second time when one that a reader waits for
// is late by the measure of the registry's others: a lost packet, a dying connection or
// one bad server behind a load balancer would else cost the reader a time-out. The first
// answer wins, the other request is cancelled. An error before that is the caller's.
func hedge(cfg Config, next opener) opener {
	if cfg.Meter == nil {
		return next
	}
	return func(ctx context.Context, off, n int64) (io.ReadCloser, error) {
		g := cfg.Meter.host(cfg.Name)
		race := &race{ctx: ctx, next: next, off: off, n: n, gauge: g, answers: make(chan answer, 2)}
		race.ask()
		late := g.late(priorityOf(ctx))
		if late == 0 {
			return race.result(<-race.answers)
		}
		t := time.NewTimer(late)
		defer t.Stop()
		select {
		case a := <-race.answers:
			return race.result(a)
		case <-t.C:
		}
		if !g.spend() {
			return race.result(<-race.answers)
		}
		race.ask()
		a := <-race.answers
		if a.err != nil && ctx.Err() == nil {
			a = <-race.answers // the other one may be good
			return race.result(a)
		}
		go race.drop()
		return race.result(a)
	}
}

// late is after which time without an answer a request is sent once more; 0 is never.
func (g *gauge) late(p Priority) time.Duration {
	if p != Demand {
		return 0
	}
	median, ok := g.answer(2)
	g.mu.Lock()
	defer g.mu.Unlock()
	g.credit = min(g.credit+extraShare, maxCredit)
	if !ok {
		return 0
	}
	return max(slowAnswers*median, minLate)
}

// spend takes one second try, if there is one.
func (g *gauge) spend() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.credit < 1 {
		return false
	}
	g.credit--
	return true
}

// race is one range that was asked for once or twice.
type race struct {
	ctx     context.Context
	next    opener
	off, n  int64
	gauge   *gauge
	answers chan answer // has room for both
	stops   []context.CancelFunc
}

// answer is that of one request of a race.
type answer struct {
	which int
	r     io.ReadCloser
	err   error
	began time.Time
}

// ask sends the request.
func (r *race) ask() {
	ctx, stop := context.WithCancel(r.ctx)
	which, began := len(r.stops), time.Now()
	r.stops = append(r.stops, stop)
	go func() {
		body, err := r.next(ctx, r.off, r.n)
		r.answers <- answer{which, body, err, began}
	}()
}

// result ends the race with an answer.
func (r *race) result(a answer) (io.ReadCloser, error) {
	for i, stop := range r.stops {
		if i != a.which || a.err != nil {
			stop()
		}
	}
	if a.err != nil {
		return nil, a.err
	}
	now := time.Now()
	r.gauge.answered(now.Sub(a.began))
	return &timed{ReadCloser: a.r, priority: priorityOf(r.ctx), gauge: r.gauge, first: now, stop: r.stops[a.which]}, nil
}

// drop closes what the loser still brings.
func (r *race) drop() {
	if a := <-r.answers; a.err == nil {
		_ = a.r.Close() // nobody reads it
	}
}

// timed is the body of an answer, whose speed is measured.
type timed struct {
	io.ReadCloser
	priority Priority
	gauge    *gauge
	first    time.Time
	stop     context.CancelFunc

	mu    sync.Mutex // Close may come while another goroutine reads
	bytes int64
	last  time.Time
}

func (t *timed) Read(p []byte) (int, error) {
	n, err := t.ReadCloser.Read(p)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.bytes += int64(n)
	t.last = time.Now()
	if t.priority == Demand {
		t.gauge.use(n, t.last)
	}
	return n, err
}

func (t *timed) Close() error {
	err := t.ReadCloser.Close()
	t.stop()
	t.mu.Lock()
	defer t.mu.Unlock()
	t.gauge.came(t.bytes, t.last.Sub(t.first), t.priority)
	t.bytes = 0
	return err
}
