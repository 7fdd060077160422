package fetch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"time"
)

// progress is how many bytes a stream must have got on since the last failure
// to be granted all attempts anew. Less would let a registry that sends one byte
// per request keep us busy.
const progress = 1 << 20

// errPatience is the cause of a read that took longer than Config.TotalTimeout.
var errPatience = errors.New("out of time")

// retry turns attempts into exactly n bytes. A stream that breaks goes on from
// the byte where it broke, by a new request.
func retry(cfg Config, next opener) opener {
	return func(ctx context.Context, off, n int64) (io.ReadCloser, error) {
		ctx, cancel := context.WithTimeoutCause(ctx, cfg.total(n), errPatience)
		s := &resumed{cfg: cfg, next: next, ctx: ctx, cancel: cancel, off: off, n: n, left: n}
		if err := s.connect(nil); err != nil {
			cancel()
			return nil, err
		}
		return s, nil
	}
}

// resumed is a stream over as many requests as it takes.
type resumed struct {
	cfg    Config
	next   opener
	ctx    context.Context
	cancel context.CancelFunc
	off, n int64 // the range as asked for

	// Owned by the one goroutine that reads.
	left   int64
	tries  int   // attempts since the last progress
	got    int64 // bytes since the last failure
	over   bool  // no more attempts
	broken error // what broke the current body; mended by the next Read

	mu   sync.Mutex // for body, which Close may take from a Read under way
	body io.ReadCloser
}

// connect opens the rest of the range, after the failure last if that is not nil.
// It returns the error of the last attempt when there will be no other.
func (s *resumed) connect(last error) error {
	for {
		if last != nil {
			if err := s.pause(last); err != nil {
				return err
			}
		}
		s.tries++
		r, err := s.next(s.ctx, s.off+s.n-s.left, s.left)
		if err == nil {
			s.mu.Lock()
			s.body = r
			s.mu.Unlock()
			return nil
		}
		last = err
	}
}

// pause waits before the next attempt, or returns why there is none.
func (s *resumed) pause(last error) error {
	e, ok := errors.AsType[*Error](last)
	if !ok || !e.Temporary || s.over {
		return last
	}
	if s.ctx.Err() != nil {
		return s.giveUp(e)
	}
	if s.tries >= s.cfg.Attempts {
		return s.wrap(e, fmt.Errorf("gave up after %d attempts: %w", s.tries, e.Err))
	}
	d := s.cfg.Backoff << min(s.tries-1, 20)
	d = min(d, s.cfg.MaxBackoff)
	d = d/2 + rand.N(d/2+1)
	d = max(d, min(e.RetryAfter, s.cfg.MaxRetryAfter))
	if end, ok := s.ctx.Deadline(); ok && time.Until(end) <= d {
		return s.giveUp(e) // waiting for a certain failure helps nobody
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-s.ctx.Done():
		return s.giveUp(e)
	}
}

// giveUp returns the error for a read whose time is over; last is what it
// waited for.
func (s *resumed) giveUp(last *Error) error {
	return s.wrap(last, fmt.Errorf("gave up after %d attempts within %s: %w", s.tries, s.cfg.total(s.n), last.Err))
}

// wrap returns e with a final cause and with the range that the caller knows.
func (s *resumed) wrap(e *Error, err error) error {
	s.over = true
	w := *e
	w.Range, w.Err = rangeOf(s.off, s.n), err
	return &w
}

func (s *resumed) Read(p []byte) (int, error) {
	for s.left > 0 {
		if s.broken != nil {
			if err := s.connect(s.broken); err != nil {
				s.broken = err // connect gives up at once when it is asked again
				return 0, err
			}
			s.broken = nil
		}
		n, err := s.body.Read(p[:min(int64(len(p)), s.left)])
		s.left -= int64(n)
		if s.got += int64(n); s.got >= progress {
			s.tries = 0
		}
		if err != nil && s.left > 0 {
			s.broke(err)
		}
		// The caller gets what there is; mending the stream can take a while.
		if n > 0 || len(p) == 0 {
			return n, nil
		}
	}
	return 0, io.EOF
}

// broke notes why the stream ended early.
func (s *resumed) broke(err error) {
	if errors.Is(err, io.EOF) {
		err = &Error{Host: s.cfg.Name, Range: rangeOf(s.off, s.n), Temporary: true, Err: io.ErrUnexpectedEOF}
	}
	s.got, s.broken = 0, err
	// The connection is broken: that closing it fails is no news.
	_ = s.body.Close()
}

func (s *resumed) Close() error {
	s.cancel()
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.body.Close()
}
