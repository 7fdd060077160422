package fetch

import (
	"context"
	"fmt"
	"io"
	"slices"
	"sync"
)

// Priority says who waits for a read.
type Priority uint8

const (
	// Demand is for a program that stands still; it is what a context without a
	// priority has.
	Demand Priority = iota
	// Background is for later. It waits while a demand read waits for a slot, and
	// never takes more than half of the slots.
	Background
	// Urgent takes no slot: for a read that holds what others with slots wait for.
	Urgent
)

type priorityKey struct{}

// WithPriority returns a context whose reads have this priority.
func WithPriority(ctx context.Context, p Priority) context.Context {
	return context.WithValue(ctx, priorityKey{}, p)
}

func priorityOf(ctx context.Context) Priority {
	p, _ := ctx.Value(priorityKey{}).(Priority)
	return p
}

// Limiter bounds how many requests to one registry (Config.Name) are in flight at
// once, over all the blobs that share it. A slot is held from the request to the close
// of its body, and freed when the read's context ends even if nobody closes it. A reader
// that opens a second stream while it holds the first may so have to wait for itself,
// up to Config.TotalTimeout: read one range to its end before the next.
type Limiter struct {
	most int

	mu     sync.Mutex
	queues map[string]*queue // of registries with requests
}

// queue is one registry's requests; guarded by Limiter.mu.
type queue struct {
	busy    int            // slots that are taken
	later   int            // of them, by background reads
	waiting [2][]chan bool // by priority: told once that a slot is theirs
}

// NewLimiter returns a Limiter of n slots for each registry, n >= 1.
func NewLimiter(n int) *Limiter {
	return &Limiter{most: max(n, 1), queues: map[string]*queue{}}
}

// take waits for a slot.
func (l *Limiter) take(ctx context.Context, name string, p Priority) error {
	l.mu.Lock()
	q := l.queues[name]
	if q == nil {
		q = &queue{}
		l.queues[name] = q
	}
	turn := make(chan bool, 1)
	q.waiting[p] = append(q.waiting[p], turn)
	l.grant(q)
	l.mu.Unlock()
	select {
	case <-turn:
		return nil
	default:
	}
	select {
	case <-turn:
		return nil
	case <-ctx.Done():
	}
	l.mu.Lock()
	i := slices.Index(q.waiting[p], turn)
	if i >= 0 {
		q.waiting[p] = slices.Delete(q.waiting[p], i, i+1)
		l.settle(name, q)
	}
	l.mu.Unlock()
	if i < 0 { // it came at the same moment
		l.free(name, p)
	}
	return context.Cause(ctx)
}

// free gives a slot back.
func (l *Limiter) free(name string, p Priority) {
	l.mu.Lock()
	defer l.mu.Unlock()
	q := l.queues[name]
	q.busy--
	if p == Background {
		q.later--
	}
	l.settle(name, q)
}

// settle hands out what is free, and forgets a registry that is idle. The lock is held.
func (l *Limiter) settle(name string, q *queue) {
	l.grant(q)
	if q.busy == 0 {
		delete(l.queues, name)
	}
}

// grant hands slots out, in order, demand first. The lock is held.
func (l *Limiter) grant(q *queue) {
	for p := range q.waiting {
		for len(q.waiting[p]) > 0 && q.busy < l.most {
			if Priority(p) == Background {
				if q.later >= max(l.most/2, 1) {
					return
				}
				q.later++
			}
			q.busy++
			q.waiting[p][0] <- true
			q.waiting[p] = slices.Delete(q.waiting[p], 0, 1)
		}
	}
}

// limit takes a slot of cfg.Limit for every request.
func limit(cfg Config, next opener) opener {
	if cfg.Limit == nil {
		return next
	}
	return func(ctx context.Context, off, n int64) (io.ReadCloser, error) {
		p := priorityOf(ctx)
		if p == Urgent {
			return next(ctx, off, n)
		}
		if err := cfg.Limit.take(ctx, cfg.Name, p); err != nil {
			return nil, &Error{Host: cfg.Name, Range: rangeOf(off, n), Temporary: true,
				Err: fmt.Errorf("wait for other requests: %w", err)}
		}
		free := sync.OnceFunc(func() { cfg.Limit.free(cfg.Name, p) })
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
