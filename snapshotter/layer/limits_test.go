package layer

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// queue lets named members wait for workers and notes the order of their turns.
type queue struct {
	t *testing.T
	x *Limits

	mu    sync.Mutex
	order []string
}

// wait puts a member in line; it takes the time that it works for.
func (q *queue) wait(ctx context.Context, name string, h haste, work time.Duration) *place {
	p := q.x.line(h)
	go func() {
		if err := q.x.await(ctx, p); err != nil {
			if !errors.Is(err, context.Canceled) {
				q.t.Error(err)
			}
			return
		}
		q.mu.Lock()
		q.order = append(q.order, name)
		q.mu.Unlock()
		time.Sleep(work)
		q.x.done(p)
	}()
	synctest.Wait()
	return p
}

func (q *queue) want(names ...string) {
	q.t.Helper()
	synctest.Wait()
	q.mu.Lock()
	defer q.mu.Unlock()
	if !slices.Equal(q.order, names) {
		q.t.Errorf("order %v, want %v", q.order, names)
	}
	q.order = nil
}

// idle says that everything was given back.
func (q *queue) idle() {
	q.t.Helper()
	synctest.Wait()
	x := q.x
	if x.free != x.workers || x.sparing != 0 || len(x.lines[now])+len(x.lines[soon])+len(x.lines[spare]) != 0 {
		q.t.Errorf("%d of %d workers are free, %d spare; in line %v", x.free, x.workers, x.sparing, x.lines)
	}
}

// TestWorkOrder: what readers wait for is decompressed before what is fetched along with
// it, and who gives up loses nobody's turn.
func TestWorkOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := &queue{t: t, x: NewLimits(1, 0)}
		ctx, cancel := context.WithCancel(t.Context())
		q.wait(t.Context(), "working", soon, time.Second)
		q.wait(t.Context(), "first", soon, 0)
		q.wait(ctx, "gives up", now, 0)
		q.wait(t.Context(), "second", soon, 0)
		q.wait(t.Context(), "reader", now, 0)
		q.wait(t.Context(), "reader too", now, 0)
		cancel()
		time.Sleep(2 * time.Second)
		q.want("working", "reader", "reader too", "first", "second")
		q.idle()
	})
}

// TestSpare: members that perhaps nobody reads wait until no reader has needed a worker
// for a while, leave one worker free then, and go at once when a reader comes or memory
// is short.
func TestSpare(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := &queue{t: t, x: NewLimits(2, 1000)}
		q.wait(t.Context(), "reader", now, 20*time.Millisecond)
		a := q.wait(t.Context(), "a", spare, 5*time.Millisecond)
		q.wait(t.Context(), "b", spare, 5*time.Millisecond)
		q.wait(t.Context(), "c", spare, 5*time.Millisecond)
		q.wait(t.Context(), "d", spare, 5*time.Millisecond)
		time.Sleep(20*time.Millisecond + quiet - time.Millisecond)
		q.want("reader")
		q.x.hurry(q.x.lines[spare][2], now) // c
		q.want("c")
		time.Sleep(quiet)
		q.want() // c was one that a reader waited for
		time.Sleep(6 * time.Millisecond)
		q.want("a")
		q.x.hurry(a, now) // too late, and harmless
		time.Sleep(5 * time.Millisecond)
		q.want("b")
		time.Sleep(5 * time.Millisecond)
		q.want("d")
		time.Sleep(5 * time.Millisecond)
		q.idle()

		// Who waits for memory gets what spare members hold.
		q.wait(t.Context(), "reader", now, 0)
		release, err := q.x.hold(t.Context(), 900)
		if err != nil {
			t.Fatal(err)
		}
		q.wait(t.Context(), "e", spare, 0)
		q.want("reader")
		go func() {
			free, err := q.x.hold(t.Context(), 900)
			if err != nil {
				t.Error(err)
				return
			}
			free()
		}()
		q.want("e")
		release()
		q.idle()

		// Who gives up leaves the line.
		ctx, cancel := context.WithCancel(t.Context())
		q.wait(t.Context(), "reader", now, 0)
		q.wait(ctx, "f", spare, 0)
		cancel()
		time.Sleep(2 * quiet)
		q.want("reader")
		q.idle()
	})
}
