package fetch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
)

// mirrors asks the endpoints in turn, beginning with the one that worked last.
type mirrors struct {
	cfg  Config
	busy chan struct{} // held while Endpoints runs: a lock that a context can leave

	mu   sync.Mutex
	webs []*web
	best int // index into webs of the one to ask first
}

func newMirrors(cfg Config) *mirrors {
	return &mirrors{cfg: cfg, busy: make(chan struct{}, 1)}
}

// open returns the first good answer. If every endpoint failed and one of them
// refused us, the endpoints are found anew, once: credentials rotate.
func (m *mirrors) open(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	for again := false; ; again = true {
		webs, best, err := m.endpoints(ctx)
		if err != nil {
			// A context that ends here is the read's own: retry tells it apart.
			return nil, &Error{Host: m.cfg.Name, Range: rangeOf(off, n), Temporary: ctx.Err() != nil, Err: Redact(err)}
		}
		r, err := m.try(ctx, webs, best, off, n)
		if err == nil {
			return r, nil
		}
		if _, refused := errors.AsType[refusal](err); !refused || again || m.cfg.Stale == nil || ctx.Err() != nil {
			return nil, err
		}
		if m.forget(webs) {
			m.cfg.Stale()
		}
	}
}

// try asks webs in a ring from index first.
func (m *mirrors) try(ctx context.Context, webs []*web, first int, off, n int64) (io.ReadCloser, error) {
	var errs []error
	for i := range webs {
		at := (first + i) % len(webs)
		r, err := webs[at].open(ctx, off, n)
		if err == nil {
			m.prefer(webs, at)
			return &watched{ReadCloser: r, failed: func() { m.avoid(webs, at) }}, nil
		}
		errs = append(errs, err)
		if ctx.Err() != nil {
			break
		}
	}
	return nil, combine(errs)
}

// combine makes one *Error of those of all endpoints: that of the last one asked,
// with the others in its text. It is temporary if one of them is.
func combine(errs []error) error {
	last := errs[len(errs)-1]
	e, ok := errors.AsType[*Error](last)
	if len(errs) == 1 || !ok {
		return last
	}
	all := *e
	for _, err := range errs[:len(errs)-1] {
		if o, ok := errors.AsType[*Error](err); ok && o.Temporary {
			all.Temporary = true
			all.RetryAfter = max(all.RetryAfter, o.RetryAfter)
		}
		all.Err = fmt.Errorf("%w; before that: %w", all.Err, err)
	}
	return &all
}

// endpoints returns the endpoints and which to ask first, finding them if need be.
func (m *mirrors) endpoints(ctx context.Context) ([]*web, int, error) {
	if webs, best := m.known(); webs != nil {
		return webs, best, nil
	}
	select {
	case m.busy <- struct{}{}:
	case <-ctx.Done():
		return nil, 0, context.Cause(ctx)
	}
	defer func() { <-m.busy }()
	// Another read may have found them while this one waited.
	if webs, best := m.known(); webs != nil {
		return webs, best, nil
	}
	eps, err := m.cfg.Endpoints(ctx)
	if err != nil {
		return nil, 0, fmt.Errorf("find the hosts of the registry: %w", err)
	}
	if len(eps) == 0 {
		return nil, 0, errors.New("no host is configured to pull from")
	}
	webs := make([]*web, len(eps))
	for i, ep := range eps {
		if webs[i], err = newWeb(m.cfg, ep); err != nil {
			return nil, 0, err
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.webs, m.best = webs, 0
	return webs, 0, nil
}

func (m *mirrors) known() ([]*web, int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.webs, m.best
}

// forget drops webs unless another read has done so, and says whether it did.
func (m *mirrors) forget(webs []*web) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.webs) == 0 || m.webs[0] != webs[0] {
		return false
	}
	m.webs = nil
	return true
}

// prefer remembers that webs[at] works.
func (m *mirrors) prefer(webs []*web, at int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.webs) > 0 && m.webs[0] == webs[0] {
		m.best = at
	}
}

// avoid makes the next attempt begin after webs[at], whose stream broke.
func (m *mirrors) avoid(webs []*web, at int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.webs) > 0 && m.webs[0] == webs[0] && m.best == at {
		m.best = (at + 1) % len(webs)
	}
}

// watched reports a stream that broke.
type watched struct {
	io.ReadCloser
	failed func()
}

func (w *watched) Read(p []byte) (int, error) {
	n, err := w.ReadCloser.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		w.failed()
	}
	return n, err
}
