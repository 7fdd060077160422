package prefetch

import (
	"context"
	"sync"
	"time"
)

// Gate counts the demand reads of all layers that wait for the registry. The
// zero value is ready; all methods may be called in parallel.
type Gate struct {
	mu      sync.Mutex
	waiting int
	idle    chan struct{} // not nil while waiting > 0 and somebody asked
	last    time.Time     // when waiting last became 0
}

// closedChan is what a gate that is idle gives out.
func closedChan() <-chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}

// Enter says that a demand read waits; Leave must follow.
func (g *Gate) Enter() {
	g.mu.Lock()
	g.waiting++
	g.mu.Unlock()
}

// Leave says that a demand read waits no more.
func (g *Gate) Leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.waiting--; g.waiting > 0 {
		return
	}
	g.last = time.Now()
	if g.idle != nil {
		close(g.idle)
		g.idle = nil
	}
}

// Waiting is how many demand reads wait now.
func (g *Gate) Waiting() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.waiting
}

// Idle returns a channel that is closed once no demand read waits; now, when
// none does.
func (g *Gate) Idle() <-chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.waiting == 0 {
		return closedChan()
	}
	if g.idle == nil {
		g.idle = make(chan struct{})
	}
	return g.idle
}

// Wait returns when no demand read has waited for the time quiet, as the next
// one of a starting program mostly follows at once; or with the error of ctx.
func (g *Gate) Wait(ctx context.Context, quiet time.Duration) error {
	for {
		select {
		case <-g.Idle():
		case <-ctx.Done():
			return ctx.Err()
		}
		rest := g.rest(quiet)
		if rest <= 0 {
			return ctx.Err()
		}
		if err := sleep(ctx, rest); err != nil {
			return err
		}
	}
}

// rest is how much of the time quiet is still to come; positive when a demand
// read waits again.
func (g *Gate) rest(quiet time.Duration) time.Duration {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.waiting > 0 {
		return time.Nanosecond
	}
	return quiet - time.Since(g.last)
}

// sleep waits for d or the end of ctx.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
