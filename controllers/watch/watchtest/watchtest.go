// Package watchtest has the contract of watch.Source as tests that every source
// has to pass, and what they need.
package watchtest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/apparate/apparate/controllers/watch"
)

// Key is the registry of the suite.
var Key = types.NamespacedName{Namespace: "ns", Name: "main"}

// World is a source under test and what it watches.
type World struct {
	Source watch.Source
	// Push makes a push that the source has to see soon, as the world would: a
	// sender of notifications repeats what was not taken. Digest is that of the
	// image, "sha256:…".
	Push func(repository, tag, digest string)
}

// Recorder is a report function that notes what it is told.
type Recorder struct {
	mu    sync.Mutex
	seen  []watch.Push
	wake  chan struct{}
	Fails func(watch.Push) error // may be nil
}

// Report implements watch.Report.
func (r *Recorder) Report(_ context.Context, p watch.Push) (watch.Outcome, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.seen = append(r.seen, p)
	if r.wake != nil {
		close(r.wake)
		r.wake = nil
	}
	if r.Fails != nil {
		if err := r.Fails(p); err != nil {
			return watch.Outcome{}, err
		}
	}
	return watch.Outcome{Reason: "Matched", Conversion: "c"}, nil
}

// Seen returns what was reported so far.
func (r *Recorder) Seen() []watch.Push {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]watch.Push(nil), r.seen...)
}

// Wait waits until done holds for what was reported.
func (r *Recorder) Wait(t testing.TB, what string, done func([]watch.Push) bool) {
	t.Helper()
	limit := time.After(30 * time.Second)
	for {
		r.mu.Lock()
		if done(r.seen) {
			r.mu.Unlock()
			return
		}
		if r.wake == nil {
			r.wake = make(chan struct{})
		}
		wake := r.wake
		r.mu.Unlock()
		select {
		case <-wake:
		case <-limit:
			t.Fatalf("not so: %s; reported were %+v", what, r.Seen())
		}
	}
}

// Digest is a digest for tests.
func Digest(n int) string { return fmt.Sprintf("sha256:%064x", n) }

func has(repository, tag string, times int) func([]watch.Push) bool {
	return func(all []watch.Push) bool {
		for _, p := range all {
			if p.Repository == repository && p.Tag == tag && p.Registry == Key {
				times--
			}
		}
		return times <= 0
	}
}

// Suite runs the contract against sources made by newWorld.
func Suite(t *testing.T, newWorld func(*testing.T) World) {
	start := func(t *testing.T, r *Recorder) (World, func()) {
		w := newWorld(t)
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- w.Source.Run(ctx, r.Report) }()
		stop := sync.OnceFunc(func() {
			cancel()
			select {
			case err := <-ended:
				if err != nil {
					t.Errorf("Run returns %v when its context ends", err)
				}
			case <-time.After(30 * time.Second):
				t.Error("Run does not end with its context")
			}
		})
		t.Cleanup(stop)
		return w, stop
	}
	t.Run("a push is reported", func(t *testing.T) {
		r := &Recorder{}
		w, _ := start(t, r)
		w.Push("team/app", "v1", Digest(1))
		r.Wait(t, "v1 is reported", has("team/app", "v1", 1))
		for _, p := range r.Seen() {
			if p.Origin == "" || p.Manifest == nil && p.Origin == watch.Scan {
				t.Errorf("%+v", p)
			}
		}
	})
	t.Run("a push again is reported again", func(t *testing.T) {
		r := &Recorder{}
		w, _ := start(t, r)
		w.Push("team/app", "latest", Digest(1))
		r.Wait(t, "the first is reported", has("team/app", "latest", 1))
		w.Push("team/app", "latest", Digest(2))
		r.Wait(t, "the second is reported", has("team/app", "latest", 2))
	})
	t.Run("what was not taken is reported again", func(t *testing.T) {
		tries := 0
		r := &Recorder{Fails: func(watch.Push) error {
			if tries++; tries <= 2 {
				return errors.New("on purpose")
			}
			return nil
		}}
		w, _ := start(t, r)
		w.Push("team/app", "v1", Digest(1))
		r.Wait(t, "v1 is reported until it is taken", has("team/app", "v1", 3))
	})
	t.Run("many at once", func(t *testing.T) {
		r := &Recorder{}
		w, _ := start(t, r)
		var wg sync.WaitGroup
		for i := range 20 {
			wg.Go(func() { w.Push("team/app", fmt.Sprintf("v%d", i), Digest(i)) })
		}
		wg.Wait()
		for i := range 20 {
			r.Wait(t, "all are reported", has("team/app", fmt.Sprintf("v%d", i), 1))
		}
	})
	t.Run("nothing is reported after the end", func(t *testing.T) {
		r := &Recorder{}
		w, stop := start(t, r)
		w.Push("team/app", "v1", Digest(1))
		r.Wait(t, "v1 is reported", has("team/app", "v1", 1))
		stop()
		n := len(r.Seen())
		time.Sleep(20 * time.Millisecond)
		if now := len(r.Seen()); now != n {
			t.Errorf("%d more were reported", now-n)
		}
	})
}
