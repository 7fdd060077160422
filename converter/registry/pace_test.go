package registry

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/apparate/apparate/converter/fault"
)

// TestRest proves that a registry that asks for rest gets it, for all requests.
func TestRest(t *testing.T) {
	var limited, served int
	var mu sync.Mutex
	after := "0"
	s := newShop(t, "", func(w http.ResponseWriter, _ *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		if limited++; limited%2 == 1 {
			w.Header().Set("Retry-After", after)
			w.WriteHeader(http.StatusTooManyRequests)
			return
		}
		served++
		_, _ = w.Write([]byte(`{"tags":["a"]}`))
	})
	n := newTestSession(t, s)
	tags(t, n, "a", "") // asked again at once
	after = "3600"
	_, _, err := n.Tags(t.Context(), "a", "", func(TagPage) error { return nil })
	if fault.KindOf(err) != fault.RegistryError || !fault.Temporary(err) || fault.After(err) != time.Hour {
		t.Errorf("%v, after %v", err, fault.After(err))
	}
	s.paths()
	_, _, err = n.Look(t.Context(), "b", "x", "")
	if strings.Contains(err.Error(), "http://") {
		t.Errorf("the URL is in the message: %v", err)
	}
	if left := fault.After(err); left < 50*time.Minute || len(s.paths()) > 0 {
		t.Errorf("another request is sent: %v, after %v", err, left)
	}
}

// TestPace proves the bound on requests at once, and that cancelled ones end.
func TestPace(t *testing.T) {
	var mu sync.Mutex
	now, most := 0, 0
	hold := make(chan struct{})
	s := newShop(t, "", func(w http.ResponseWriter, _ *http.Request) {
		mu.Lock()
		now++
		most = max(most, now)
		mu.Unlock()
		<-hold
		mu.Lock()
		now--
		mu.Unlock()
		_, _ = w.Write([]byte(`{}`))
	})
	n := newTestSession(t, s)
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			if _, _, err := n.Look(t.Context(), "a", fmt.Sprint("t", i), ""); err != nil {
				t.Error(err)
			}
		})
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := n.Look(ctx, "a", "x", ""); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	for range 4 {
		hold <- struct{}{}
	}
	close(hold)
	wg.Wait()
	if most > 4 {
		t.Errorf("%d requests were under way at once", most)
	}
}

// TestHoldBack proves that no answer shortens the wait that another one asked
// for, and that both forms of Retry-After count.
func TestHoldBack(t *testing.T) {
	for _, after := range []string{"3600", time.Now().Add(time.Hour).UTC().Format(http.TimeFormat)} {
		s := newShop(t, "", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Retry-After", after)
			w.WriteHeader(http.StatusServiceUnavailable)
		})
		n := newTestSession(t, s)
		_, _, err := n.Look(t.Context(), "a", "x", "")
		if left := fault.After(err); left < time.Hour-2*time.Second || left > time.Hour || !fault.Temporary(err) {
			t.Errorf("%s: %v, after %v", after, err, left)
		}
		n.pace.holdBack(0)
		if left := n.pace.left(); left < time.Hour-2*time.Second {
			t.Errorf("%s: shortened to %v", after, left)
		}
	}
	if p := newPacer(nil, SessionLimit{}); p.left() != 0 {
		t.Errorf("held back for %v from the start", p.left())
	}
}

// TestShortRest proves that a short Retry-After is waited for, by requests that
// were not refused themselves, and that it is reported where it did not help.
func TestShortRest(t *testing.T) {
	var mu sync.Mutex
	var refused time.Time
	s := newShop(t, "", func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		if strings.Contains(r.URL.Path, "/busy/") {
			refused = time.Now()
			w.Header().Set("Retry-After", "1")
			w.WriteHeader(http.StatusTooManyRequests)
			return
		}
		if since := time.Since(refused); since < 900*time.Millisecond {
			t.Errorf("another request came after %v", since)
		}
		_, _ = w.Write([]byte(`{"tags":["a"]}`))
	})
	n := newTestSession(t, s)
	_, _, err := n.Tags(t.Context(), "busy", "", func(TagPage) error { return nil })
	if fault.KindOf(err) != fault.RegistryError || fault.After(err) != time.Second {
		t.Errorf("%v, after %v", err, fault.After(err))
	}
	if asked := s.paths(); len(asked) != 3 { // the ping, and twice the list
		t.Error(asked)
	}
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(10*time.Millisecond, cancel)
	if _, _, err := n.Tags(ctx, "other", "", nil); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled while held back: %v", err)
	}
	tags(t, n, "other", "")
}

// TestQPS proves that the pace is kept, and that what comes too late for a
// deadline is not waited for.
func TestQPS(t *testing.T) {
	s := newShop(t, "", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(`{}`)) })
	n, err := NewSession(Options{PlainHTTP: true, Keychain: login{}}, strings.TrimPrefix(s.URL, "http://"), SessionLimit{QPS: 50, Burst: 3})
	if err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	for range 6 { // and two pings
		tags(t, n, "a", "")
	}
	if took := time.Since(begin); took < 90*time.Millisecond {
		t.Errorf("eight requests took %v", took)
	}
	n.pace.rate.SetLimit(0.001)
	n.pace.rate.ReserveN(time.Now(), 3) // what it has saved up on a slow machine
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if _, _, err := n.Tags(ctx, "a", "", nil); fault.KindOf(err) != fault.Canceled || !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
}
