package fetch

import (
	"context"
	"errors"
	"runtime"
	"testing"
)

// TestLimitOrder: readers overtake what is for later, which never has more than half of
// the slots, and registries do not wait for each other.
func TestLimitOrder(t *testing.T) {
	const slots = 4
	l := NewLimiter(slots)
	take := func(name string, p Priority) chan error {
		l.mu.Lock()
		waiting := 0
		if q := l.queues[name]; q != nil {
			waiting = q.busy + len(q.waiting[0]) + len(q.waiting[1])
		}
		l.mu.Unlock()
		got := make(chan error, 1)
		go func() { got <- l.take(t.Context(), name, p) }()
		for { // until it is in the queue: the order is what is tested
			l.mu.Lock()
			q := l.queues[name]
			in := q != nil && q.busy+len(q.waiting[0])+len(q.waiting[1]) > waiting
			l.mu.Unlock()
			if in {
				return got
			}
			runtime.Gosched()
		}
	}
	must := func(got chan error) {
		t.Helper()
		if err := <-got; err != nil {
			t.Fatal(err)
		}
	}
	none := func(got chan error) {
		t.Helper()
		select {
		case err := <-got:
			t.Fatalf("it has a slot: %v", err)
		default:
		}
	}
	must(take("a", Background))
	must(take("a", Background))
	later := take("a", Background)
	none(later) // two slots are free, but not for it
	must(take("a", Demand))
	must(take("a", Demand))
	reader := take("a", Demand)
	none(reader)
	must(take("b", Background))
	l.free("a", Background)
	must(reader) // who came after it
	none(later)
	l.free("a", Demand)
	must(later)

	ctx, cancel := context.WithCancel(t.Context())
	left := make(chan error, 1)
	go func() { left <- l.take(ctx, "a", Background) }()
	cancel()
	if err := <-left; !errors.Is(err, context.Canceled) {
		t.Errorf("a read that was cancelled: %v", err)
	}
	for _, p := range []Priority{Demand, Demand, Background, Background} {
		l.free("a", p)
	}
	l.free("b", Background)
	if len(l.queues) != 0 {
		t.Errorf("registries %v are remembered, and nobody reads", l.queues)
	}
}
