package prefetch_test

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/apparate/apparate/snapshotter/layer"
	"github.com/apparate/apparate/snapshotter/prefetch"
)

var (
	_ prefetch.Layer = (*layer.Layer)(nil)
	_ layer.Gate     = (*prefetch.Gate)(nil)
)

var errNet = errors.New("network is down")

// fake is a layer of members of one byte each.
type fake struct {
	// fetch, when set, decides about a call; took is how many members it got.
	fetch func(ctx context.Context, call, lo, hi int) (took int, err error)

	eager atomic.Bool

	mu     sync.Mutex
	have   []bool
	ranges [][2]int
	times  []time.Time
}

func newFake(n int) *fake { return &fake{have: make([]bool, n)} }

func (f *fake) Missing(from int, bytes int64) (lo, hi int, ok bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	lo = from + slices.Index(f.have[from:], false)
	if lo < from {
		return 0, 0, false
	}
	for hi = lo + 1; hi < len(f.have) && !f.have[hi] && int64(hi-lo) < bytes; hi++ {
	}
	return lo, hi, true
}

func (f *fake) Fetch(ctx context.Context, lo, hi int) error {
	f.mu.Lock()
	call := len(f.ranges)
	f.ranges = append(f.ranges, [2]int{lo, hi})
	f.times = append(f.times, time.Now())
	f.mu.Unlock()
	took, err := hi-lo, error(nil)
	if f.fetch != nil {
		took, err = f.fetch(ctx, call, lo, hi)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for m := lo; m < lo+took; m++ {
		f.have[m] = true
	}
	return err
}

func (f *fake) Eager() bool { return f.eager.Load() }

func (f *fake) calls() [][2]int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.ranges)
}

// start runs a Runner until the test ends. Call it in a synctest bubble.
func start(t *testing.T, o prefetch.Options) *prefetch.Runner {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	r := prefetch.New(o)
	go r.Run(t.Context())
	t.Cleanup(r.Close)
	return r
}

// TestSmallLayersComeAtOnce: what fits into one request is not left alone.
func TestSmallLayersComeAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, prefetch.Options{Delay: 10 * time.Second, Small: 4})
		began := time.Now()
		small, rest, large, apart := newFake(4), newFake(6), newFake(5), newFake(6)
		rest.have[0], rest.have[5] = true, true
		apart.have[2] = true
		layers := map[string]*fake{"small": small, "rest": rest, "large": large, "apart": apart}
		for key, l := range layers {
			r.Add(key, l)
		}
		time.Sleep(time.Minute)
		r.Close()
		for key, l := range layers {
			want := 10 * time.Second
			if l == small || l == rest {
				want = 0
			}
			if len(l.times) == 0 || l.times[0].Sub(began) != want {
				t.Errorf("%s: fetched at %v, want %v after it was added", key, l.times, want)
			}
		}
	})
}

func TestFetchesInOrderAfterTheDelay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var done []string
		r := start(t, prefetch.Options{Delay: 10 * time.Second, Window: 4, Done: func(k string) { done = append(done, k) }})
		f := newFake(10)
		f.have[5] = true
		began := time.Now()
		r.Add("a", f)
		time.Sleep(10*time.Second - 1)
		synctest.Wait()
		if len(f.calls()) != 0 {
			t.Fatalf("fetched before the delay: %v", f.calls())
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if want := [][2]int{{0, 4}, {4, 5}, {6, 10}}; !slices.Equal(f.calls(), want) {
			t.Errorf("fetched %v, want %v", f.calls(), want)
		}
		if d := f.times[0].Sub(began); d != 10*time.Second {
			t.Errorf("began after %v", d)
		}
		if r.Len() != 0 || !slices.Equal(done, []string{"a"}) {
			t.Errorf("%d left, done %v", r.Len(), done)
		}
	})
}

func TestLayersTakeTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var order []string
		r := start(t, prefetch.Options{Window: 1})
		for _, key := range []string{"a", "b"} {
			f := newFake(2)
			f.fetch = func(_ context.Context, _, lo, hi int) (int, error) {
				time.Sleep(time.Second)
				mu.Lock()
				defer mu.Unlock()
				order = append(order, key)
				return hi - lo, nil
			}
			r.Add(key, f)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if !slices.Equal(order, []string{"a", "b", "a", "b"}) {
			t.Errorf("order %v", order)
		}
	})
}

func TestConcurrency(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, prefetch.Options{Window: 1, Concurrency: 3})
		var fakes []*fake
		began := time.Now()
		for _, key := range []string{"a", "b", "c", "d", "e", "f"} {
			f := newFake(1)
			f.fetch = func(context.Context, int, int, int) (int, error) { time.Sleep(time.Second); return 1, nil }
			fakes = append(fakes, f)
			r.Add(key, f)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		last := time.Duration(0)
		for _, f := range fakes {
			last = max(last, f.times[0].Sub(began))
		}
		if last < time.Second || last > 1200*time.Millisecond {
			t.Errorf("the last of six began after %v with three workers of 1 s", last)
		}
	})
}

func TestWaitsForReaders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gate := new(prefetch.Gate)
		r := start(t, prefetch.Options{Window: 1, Gate: gate})
		f := newFake(2)
		gate.Enter()
		gate.Enter()
		r.Add("a", f)
		time.Sleep(time.Hour)
		gate.Leave()
		time.Sleep(time.Hour)
		synctest.Wait()
		if len(f.calls()) != 0 {
			t.Fatal("fetched beside a reader")
		}
		gate.Leave()
		time.Sleep(49 * time.Millisecond)
		gate.Enter() // the next read of the same program
		time.Sleep(time.Second)
		synctest.Wait()
		if len(f.calls()) != 0 {
			t.Fatal("fetched between two reads")
		}
		gate.Leave()
		left := time.Now()
		time.Sleep(time.Second)
		synctest.Wait()
		if len(f.calls()) != 2 || f.times[0].Sub(left) != 50*time.Millisecond {
			t.Errorf("fetched %v, %v after the last reader", f.calls(), f.times[0].Sub(left))
		}
	})
}

func TestErrorsBackOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, prefetch.Options{Window: 2, FullPause: time.Second})
		f := newFake(4)
		f.fetch = func(context.Context, int, int, int) (int, error) { return 0, errNet }
		r.Add("a", f)
		time.Sleep(time.Hour)
		synctest.Wait()
		if n := len(f.calls()); n < 50 || n > 80 {
			t.Errorf("%d calls in an hour of failures", n)
		}
		if d := f.times[1].Sub(f.times[0]); d != time.Second {
			t.Errorf("first pause %v", d)
		}
		// It finishes when the registry is back.
		f.mu.Lock()
		f.fetch = nil
		f.mu.Unlock()
		time.Sleep(5 * time.Minute)
		synctest.Wait()
		if r.Len() != 0 {
			t.Errorf("not done: %v", f.have)
		}
	})
}

func TestOneBadMemberKeepsNoOtherAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, prefetch.Options{Window: 1})
		f := newFake(6)
		f.fetch = func(_ context.Context, _, lo, _ int) (int, error) {
			if lo == 2 {
				return 0, errNet
			}
			return 1, nil
		}
		r.Add("a", f)
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if !slices.Equal(f.have, []bool{true, true, false, true, true, true}) {
			t.Errorf("have %v", f.have)
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		if n := len(f.calls()); n > 130 {
			t.Errorf("%d calls for one bad member in an hour", n)
		}
	})
}

func TestFullCacheStops(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var full atomic.Bool
		r := start(t, prefetch.Options{Window: 1, Full: func(string) bool { return full.Load() }})
		f := newFake(4)
		f.fetch = func(_ context.Context, call, _, _ int) (int, error) { full.Store(call == 1); return 1, nil }
		r.Add("a", f)
		time.Sleep(time.Hour)
		synctest.Wait()
		if len(f.calls()) != 2 {
			t.Fatalf("fetched %v with a full cache", f.calls())
		}
		full.Store(false)
		time.Sleep(time.Minute)
		synctest.Wait()
		if r.Len() != 0 {
			t.Error("did not go on with room")
		}
	})
}

// TestNothingStays is a cache that evicts what it is given.
func TestNothingStays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, prefetch.Options{Window: 1})
		f := newFake(10)
		f.fetch = func(context.Context, int, int, int) (int, error) { return 0, nil }
		r.Add("a", f)
		time.Sleep(time.Hour)
		synctest.Wait()
		if n := len(f.calls()); n > 130*10*5 {
			t.Errorf("%d fetches in an hour", n)
		}
	})
}

func TestRemoveAndClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, prefetch.Options{Window: 1})
		f := newFake(3)
		f.fetch = func(ctx context.Context, _, _, _ int) (int, error) { <-ctx.Done(); return 0, ctx.Err() }
		r.Add("a", f)
		waiting := newFake(1)
		r.Add("b", waiting)
		synctest.Wait()
		r.Remove("a")
		r.Remove("a")
		time.Sleep(time.Minute)
		synctest.Wait()
		if len(f.calls()) != 1 || len(waiting.calls()) != 1 || r.Len() != 0 {
			t.Errorf("removed %v, other %v, %d left", f.calls(), waiting.calls(), r.Len())
		}
		again := newFake(2)
		r.Add("a", f)
		synctest.Wait()
		r.Add("a", again) // replaces what is under way
		time.Sleep(time.Second)
		synctest.Wait()
		if len(again.calls()) != 2 || r.Len() != 0 {
			t.Errorf("replacement %v, %d left", again.calls(), r.Len())
		}
		r.Add("c", f)
		synctest.Wait()
		r.Close() // while a fetch is under way
		r.Close()
		r.Add("d", newFake(1))
		r.Run(t.Context()) // returns at once
	})
}

func TestRunEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gate := new(prefetch.Gate)
		gate.Enter()
		r := prefetch.New(prefetch.Options{Gate: gate})
		r.Add("a", newFake(1))
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() { r.Run(ctx); close(ended) }()
		synctest.Wait()
		cancel()
		<-ended
		r.Close()
	})
}

func TestGate(t *testing.T) {
	g := new(prefetch.Gate)
	<-g.Idle()
	g.Enter()
	idle := g.Idle()
	g.Enter()
	g.Leave()
	select {
	case <-idle:
		t.Fatal("idle with a reader")
	default:
	}
	g.Leave()
	<-idle
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	g.Enter()
	if err := g.Wait(ctx, 0); !errors.Is(err, context.Canceled) {
		t.Errorf("Wait: %v", err)
	}
}

// TestEager: a layer whose readers wait for answers all the time comes beside them, before
// its delay is over, before others, in larger windows; those give way as ever.
func TestEager(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gate := &prefetch.Gate{}
		gate.Enter() // and never leaves
		r := start(t, prefetch.Options{Delay: 10 * time.Second, Window: 4, Gate: gate})
		first, slow, rest := newFake(8), newFake(32), newFake(8)
		slow.fetch = func(_ context.Context, _, lo, hi int) (int, error) {
			time.Sleep(100 * time.Millisecond)
			return hi - lo, nil
		}
		for i, l := range []*fake{first, slow, rest} {
			r.Add(string(rune('a'+i)), l)
		}
		time.Sleep(5 * time.Second)
		slow.eager.Store(true)
		time.Sleep(time.Second)
		if want := [][2]int{{0, 16}, {16, 32}}; !slices.Equal(slow.calls(), want) {
			t.Errorf("the eager layer was fetched as %v, want %v", slow.calls(), want)
		}
		time.Sleep(time.Minute)
		if n := len(first.calls()) + len(rest.calls()); n != 0 {
			t.Errorf("%d windows of others although readers wait", n)
		}
		rest.eager.Store(true) // while it waits in turn
		time.Sleep(time.Second)
		if len(rest.calls()) == 0 || len(first.calls()) != 0 {
			t.Errorf("fetched %v of the one that became eager, %v of the other", rest.calls(), first.calls())
		}
		gate.Leave()
		time.Sleep(time.Second)
		if len(first.calls()) != 2 || r.Len() != 0 {
			t.Errorf("fetched %v when nobody waits any more; %d left", first.calls(), r.Len())
		}
	})
}
