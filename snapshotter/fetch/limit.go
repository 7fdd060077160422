package fetch

import (
	"context"
	"fmt"
	"io"
	"sync"
)

// Limiter bounds how many requests are in flight at once, over all the blobs
// that share it. A slot is held from the request to the close of its body, and
// freed when the read's context ends even if nobody closes it. A reader that
// opens a second stream while it holds the first may so have to wait for itself,
// up to Config.TotalTimeout: read one range to its end before the next.
type Limiter struct {
	slots chan struct{}
}

// NewLimiter returns a Limiter of n slots, n >= 1.
func NewLimiter(n int) *Limiter {
	return &Limiter{slots: make(chan struct{}, max(n, 1))}
}

// limit takes a slot of cfg.Limit for every request.
func limit(cfg Config, next opener) opener {
	if cfg.Limit == nil {
		return next
	}
	slots := cfg.Limit.slots
	return func(ctx context.Context, off, n int64) (io.ReadCloser, error) {
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			return nil, &Error{Host: cfg.Name, Range: rangeOf(off, n), Temporary: true,
				Err: fmt.Errorf("wait for other requests: %w", context.Cause(ctx))}
		}
		free := sync.OnceFunc(func() { <-slots })
		r, err := next(ctx, off, n)
		if err != nil {
			free()
			return nil, err
		}
		stop := context.AfterFunc(ctx, free)
		return &closer{ReadCloser: r, after: func() { stop(); free() }}, nil
	}
}

// closer runs after once the body is closed.
type closer struct {
	io.ReadCloser
	after func()
}

func (c *closer) Close() error {
	defer c.after()
	return c.ReadCloser.Close()
}
