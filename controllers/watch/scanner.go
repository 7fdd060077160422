package watch

import (
	"cmp"
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/apparate/apparate/converter/fault"
)

// Target is a registry to scan.
type Target struct {
	// Key names the Registry object.
	Key types.NamespacedName
	// Interval between two scans; 0 scans only when asked to.
	Interval time.Duration
	// Repositories to scan; none asks the registry for its catalog.
	Repositories []string
	// Requested is any text: a new one asks for a scan at once.
	Requested string
}

// same says whether a target needs no other scan than another.
func (t *Target) same(o *Target) bool {
	return t.Interval == o.Interval && t.Requested == o.Requested && slices.Equal(t.Repositories, o.Repositories)
}

// Scanner is the source that looks by itself. Its exported fields are set before
// Run, and stay.
type Scanner struct {
	// Sessions gives the session of a registry.
	Sessions func(context.Context, types.NamespacedName) (Session, error)
	// Interest says what is worth a request.
	Interest Interest
	// Inventory remembers what was seen.
	Inventory *Inventory
	// MaxRecheck is the longest time that a known tag is believed; see Recheck.
	MaxRecheck time.Duration
	// Retry is how long to wait after a scan that was not complete; it doubles up
	// to ten minutes. 0 means 15 seconds.
	Retry time.Duration
	// Done is called after each scan, complete or not, Gone when a registry is not
	// to be scanned any more. They must not block. Gone may be nil.
	Done func(types.NamespacedName, ScanResult)
	Gone func(types.NamespacedName)
	// Now is the clock.
	Now func() time.Time

	mu      sync.Mutex
	targets map[types.NamespacedName]*running
	start   func(*running) // nil before Run
}

// running is a target with its goroutine.
type running struct {
	target Target
	wake   chan struct{} // buffered: a request to scan at once
	cancel context.CancelFunc
	last   ScanResult
}

var _ Source = (*Scanner)(nil)

const (
	firstRetry = 15 * time.Second
	maxRetry   = 10 * time.Minute
	// settle is the wait for more changes before a scan that was asked for.
	settle = 500 * time.Millisecond
)

// Watch adds a registry, or changes how it is scanned.
func (s *Scanner) Watch(t Target) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.targets == nil {
		s.targets = map[types.NamespacedName]*running{}
	}
	if r := s.targets[t.Key]; r != nil {
		if !r.target.same(&t) {
			r.target = t
			r.nudge()
		}
		return
	}
	r := &running{target: t, wake: make(chan struct{}, 1)}
	s.targets[t.Key] = r
	if s.start != nil {
		s.start(r)
	}
}

// Forget ends the scans of a registry and drops what is known of it.
func (s *Scanner) Forget(key types.NamespacedName) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r := s.targets[key]; r != nil {
		if r.cancel != nil {
			r.cancel()
		}
		delete(s.targets, key)
	}
	s.Inventory.Forget(key)
	if s.Gone != nil {
		s.Gone(key)
	}
}

// Nudge asks for a scan soon: what is wanted of a registry has changed, or a
// notification could not be followed.
func (s *Scanner) Nudge(key types.NamespacedName) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r := s.targets[key]; r != nil {
		r.nudge()
	}
}

func (r *running) nudge() {
	select {
	case r.wake <- struct{}{}:
	default: // one is asked for already
	}
}

// Last returns the last scan of a registry; ok is false before the first.
func (s *Scanner) Last(key types.NamespacedName) (r ScanResult, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if t := s.targets[key]; t != nil {
		return t.last, !t.last.End.IsZero()
	}
	return ScanResult{}, false
}

// Run scans all targets until the context ends.
func (s *Scanner) Run(ctx context.Context, report Report) error {
	var wg sync.WaitGroup
	s.mu.Lock()
	s.start = func(r *running) {
		var one context.Context
		one, r.cancel = context.WithCancel(ctx)
		wg.Go(func() { s.loop(one, r, report) })
	}
	for _, r := range s.targets {
		s.start(r)
	}
	s.mu.Unlock()
	<-ctx.Done()
	s.mu.Lock()
	s.start = nil
	s.mu.Unlock()
	wg.Wait()
	return nil
}

// loop scans one registry again and again.
func (s *Scanner) loop(ctx context.Context, r *running, report Report) {
	first := cmp.Or(s.Retry, firstRetry)
	retry := first
	for {
		s.mu.Lock()
		t := r.target
		s.mu.Unlock()
		result := s.once(ctx, t, report)
		if ctx.Err() != nil {
			return
		}
		s.mu.Lock()
		r.last = result
		s.mu.Unlock()
		s.Done(t.Key, result)

		wait := jitter(t.Interval)
		if result.Err != nil {
			wait = max(jitter(retry), fault.After(result.Err))
			retry = min(2*retry, maxRetry)
			if errors.Is(result.Err, ErrBusy) {
				retry = first // it is our own doing, and passes by itself
			}
		} else {
			retry = first
		}
		if !s.pause(ctx, r, wait, fault.After(result.Err)) {
			return
		}
	}
}

// pause waits for the next scan: for the time wait (for ever if that is 0), or
// until it is asked for, but in any case for least, which the registry demands.
func (s *Scanner) pause(ctx context.Context, r *running, wait, least time.Duration) bool {
	var due <-chan time.Time
	if wait > 0 {
		t := time.NewTimer(wait)
		defer t.Stop()
		due = t.C
	}
	select {
	case <-due:
		return true
	case <-ctx.Done():
		return false
	case <-r.wake:
	}
	t := time.NewTimer(max(settle, least))
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
		return false
	}
	select {
	case <-r.wake: // asked for while it settled
	default:
	}
	return true
}

func (s *Scanner) once(ctx context.Context, t Target, report Report) ScanResult {
	session, err := s.Sessions(ctx, t.Key)
	if err != nil {
		return ScanResult{End: s.Now(), Err: err}
	}
	one := scan{Scanner: s, target: t, session: session, report: report}
	return one.run(ctx)
}

// jitter spreads a wait over a fifth of it, so that many registries, and many
// operators, do not ask at the same moment.
func jitter(d time.Duration) time.Duration {
	if d <= 0 {
		return 0
	}
	return d - d/10 + rand.N(d/5+1)
}
