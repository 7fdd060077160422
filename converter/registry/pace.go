package registry

import (
	"context"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"github.com/apparate/apparate/converter/fault"
)

// maxAfter is the longest that a registry may ask to be left alone.
const maxAfter = 24 * time.Hour

// pacer bounds and counts requests, and holds all of them back when one answer
// asks for fewer. It is below everything that repeats them.
type pacer struct {
	next  http.RoundTripper
	rate  *rate.Limiter
	slots chan struct{}
	sent  atomic.Int64
	until atomic.Int64 // no request before, in Unix nanoseconds
}

func newPacer(next http.RoundTripper, l SessionLimit) *pacer {
	if l.QPS <= 0 {
		l.QPS = 50
	}
	if l.Burst <= 0 {
		l.Burst = 100
	}
	if l.Parallel <= 0 {
		l.Parallel = 4
	}
	return &pacer{next: next, rate: rate.NewLimiter(rate.Limit(l.QPS), l.Burst), slots: make(chan struct{}, l.Parallel)}
}

// RoundTrip implements http.RoundTripper. A place is held until the body is
// closed or the request has failed.
func (p *pacer) RoundTrip(r *http.Request) (*http.Response, error) {
	ctx := r.Context()
	select {
	case p.slots <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	free := sync.OnceFunc(func() { <-p.slots })
	if err := p.wait(ctx, r.URL.Host); err != nil {
		free()
		return nil, err
	}
	p.sent.Add(1)
	resp, err := p.next.RoundTrip(r)
	if err != nil {
		free()
		return nil, err
	}
	if resp.StatusCode == http.StatusTooManyRequests || resp.StatusCode == http.StatusServiceUnavailable {
		if after, ok := parseRetryAfter(resp.Header.Get("Retry-After")); ok {
			p.holdBack(min(after, maxAfter))
		}
	}
	resp.Body = &freeing{resp.Body, free}
	return resp, nil
}

// wait waits until a request may be sent.
func (p *pacer) wait(ctx context.Context, host string) error {
	if err := p.rate.Wait(ctx); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		// The limiter does not begin to wait for what comes too late.
		return fault.NewTemporary(fault.Canceled, context.DeadlineExceeded, "asking registry %s took longer than it was allowed to, at the pace that is set", host)
	}
	// While one waits, another may be told to wait longer.
	for {
		d := time.Until(time.Unix(0, p.until.Load()))
		switch {
		case d <= 0:
			return nil
		case d > maxPatience:
			return fault.NewTemporary(fault.RegistryError, nil, "registry %s asks for no requests for %v", host, d.Round(time.Second)).WithAfter(d)
		}
		t := time.NewTimer(d)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return ctx.Err()
		}
	}
}

// holdBack lets no request out for d. It never shortens an earlier wait.
func (p *pacer) holdBack(d time.Duration) {
	until := time.Now().Add(d).UnixNano()
	for {
		now := p.until.Load()
		if now >= until || p.until.CompareAndSwap(now, until) {
			return
		}
	}
}

// left is how long requests are held back from now on, in whole seconds.
func (p *pacer) left() time.Duration {
	d := time.Until(time.Unix(0, p.until.Load()))
	return max(0, (d + time.Second - 1).Truncate(time.Second))
}

// freeing gives a place back when a body is closed.
type freeing struct {
	io.ReadCloser
	free func()
}

// Close implements io.Closer.
func (f *freeing) Close() error {
	defer f.free()
	return f.ReadCloser.Close()
}
