package conversion

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/types"
)

// yard is a pool whose tasks end when the test says so.
type yard struct {
	*Pool
	mu      sync.Mutex
	begun   []string
	running map[string]chan error
	most    int
	wake    chan struct{}
}

func newYard(t *testing.T, workers, perRegistry int) *yard {
	t.Helper()
	y := &yard{running: map[string]chan error{}, wake: make(chan struct{}, 1000)}
	y.Pool = &Pool{Workers: workers, PerRegistry: perRegistry, Moved: func(context.Context, Task) {}, Run: func(ctx context.Context, task Task) Outcome {
		end := make(chan error, 1)
		y.mu.Lock()
		y.begun = append(y.begun, task.Key.Name)
		y.running[task.Key.Name] = end
		y.most = max(y.most, len(y.running))
		y.mu.Unlock()
		y.wake <- struct{}{}
		defer func() {
			y.mu.Lock()
			delete(y.running, task.Key.Name)
			y.mu.Unlock()
		}()
		select {
		case err := <-end:
			return Outcome{Err: err}
		case <-ctx.Done():
			return Outcome{Err: ctx.Err()}
		}
	}}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- y.Start(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return y
}

func task(registry, name string, urgent bool) Task {
	return Task{
		Key: types.NamespacedName{Name: name}, UID: types.UID(name), Urgent: urgent,
		Registry: types.NamespacedName{Name: registry}, Tag: registry + "/" + name,
	}
}

// next waits until another task begins and returns its name.
func (y *yard) next(t *testing.T) string {
	t.Helper()
	select {
	case <-y.wake:
	case <-time.After(10 * time.Second):
		t.Fatal("no task begins")
	}
	y.mu.Lock()
	defer y.mu.Unlock()
	return y.begun[len(y.begun)-len(y.wake)-1]
}

func (y *yard) end(name string) {
	y.mu.Lock()
	defer y.mu.Unlock()
	y.running[name] <- nil
}

// settled waits until a task is in a state.
func (y *yard) settled(t *testing.T, name string, want State) {
	t.Helper()
	for range 1000 {
		if y.State(types.UID(name)) == want {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Fatalf("%s is in state %d, not %d", name, y.State(types.UID(name)), want)
}

// TestPoolTurns proves that registries take turns, and that what is urgent goes
// before what a scan found.
func TestPoolTurns(t *testing.T) {
	y := newYard(t, 1, 1)
	y.Submit(task("busy", "first", false))
	if got := y.next(t); got != "first" {
		t.Fatal(got)
	}
	for i := range 3 {
		y.Submit(task("busy", fmt.Sprintf("scanned-%d", i), false))
	}
	y.Submit(task("quiet", "quiet", false))
	y.Submit(task("busy", "pushed", true))
	if s := y.Submit(task("busy", "pushed", true)); s != Waiting {
		t.Errorf("submitted twice it is in state %d", s)
	}
	var got []string
	for name := "first"; len(got) < 5; got = append(got, name) {
		y.end(name)
		name = y.next(t)
	}
	if want := []string{"pushed", "quiet", "scanned-0", "scanned-1", "scanned-2"}; !slices.Equal(got, want) {
		t.Errorf("the order is %v, want %v", got, want)
	}
}

// TestPoolBounds proves the bounds: of all, of a registry, and one at a time for a tag.
func TestPoolBounds(t *testing.T) {
	y := newYard(t, 3, 2)
	for i := range 4 {
		y.Submit(task("a", fmt.Sprintf("a%d", i), false))
	}
	y.next(t)
	y.next(t)
	if waiting, running := y.Counts(); waiting != 2 || running != 2 {
		t.Errorf("%d wait, %d run", waiting, running)
	}
	again := task("b", "again", false)
	again.Tag = "b/one"
	one := task("b", "one", false)
	y.Submit(one)
	if got := y.next(t); got != "one" {
		t.Error(got)
	}
	y.end("a0")
	y.next(t)
	y.Submit(again) // the same tag as one
	y.end("a1")
	y.next(t)
	if s := y.State("again"); s != Waiting {
		t.Errorf("two tasks of a tag run")
	}
	y.end("one")
	if got := y.next(t); got != "again" {
		t.Error(got)
	}
	if y.most > 3 {
		t.Errorf("%d ran at once", y.most)
	}
}

// TestPoolCancel cancels a task that waits, one that runs, and one that is done.
func TestPoolCancel(t *testing.T) {
	y := newYard(t, 1, 1)
	y.Submit(task("a", "runs", false))
	y.next(t)
	y.Submit(task("a", "waits", false))
	y.Cancel("waits", nil)
	if s := y.State("waits"); s != Absent {
		t.Errorf("it is in state %d", s)
	}
	cause := errors.New("on purpose")
	y.Cancel("runs", cause)
	y.settled(t, "runs", Done)
	if s, out := y.Take("runs"); s != Done || !errors.Is(out.Cause, cause) || !errors.Is(out.Err, context.Canceled) {
		t.Errorf("%d, %+v", s, out)
	}
	if s, _ := y.Take("runs"); s != Absent {
		t.Error("an outcome is there twice")
	}
	y.Submit(task("a", "next", false))
	if got := y.next(t); got != "next" {
		t.Error(got)
	}
	y.end("next")
	y.settled(t, "next", Done)
	y.Cancel("next", nil)
	if s := y.State("next"); s != Absent {
		t.Error("what is done stays")
	}
	if len(y.lanes) != 0 {
		t.Errorf("lanes are left: %v", y.lanes)
	}
}

// TestPoolParallel has many tasks of many registries come, go and be cancelled.
func TestPoolParallel(t *testing.T) {
	var mu sync.Mutex
	ran := map[types.UID]bool{}
	p := &Pool{Workers: 4, PerRegistry: 2, Moved: func(context.Context, Task) {}, Run: func(_ context.Context, task Task) Outcome {
		mu.Lock()
		defer mu.Unlock()
		if ran[task.UID] {
			t.Errorf("%s ran twice", task.UID)
		}
		ran[task.UID] = true
		return Outcome{}
	}}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { _ = p.Start(ctx) }) // always nil
	var submitters sync.WaitGroup
	for g := range 8 {
		submitters.Go(func() {
			for i := range 300 {
				x := task(fmt.Sprintf("r%d", i%5), fmt.Sprintf("%d-%d", g, i), i%3 == 0)
				p.Submit(x)
				if i%7 == 0 {
					p.Cancel(x.UID, nil)
				}
			}
		})
	}
	submitters.Wait()
	for range 2000 {
		if w, r := p.Counts(); w == 0 && r == 0 {
			break
		}
		time.Sleep(time.Millisecond)
	}
	cancel()
	wg.Wait()
	if w, r := p.Counts(); w != 0 || r != 0 || len(p.lanes) != 0 || len(p.tags) != 0 {
		t.Errorf("%d wait, %d run, lanes %v, tags %v", w, r, p.lanes, p.tags)
	}
}

func BenchmarkPool(b *testing.B) {
	p := &Pool{Workers: 4, PerRegistry: 4, Moved: func(context.Context, Task) {}, Run: func(context.Context, Task) Outcome { return Outcome{} }}
	for i := range 10_000 { // which all wait: it is not started
		p.Submit(task(fmt.Sprintf("r%d", i%20), fmt.Sprint("old-", i), false))
	}
	b.ResetTimer()
	for i := range b.N {
		x := task("r1", fmt.Sprint(i), true)
		p.Submit(x)
		p.Cancel(x.UID, nil)
	}
}
