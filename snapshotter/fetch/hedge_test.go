package fetch

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// host is a registry of one blob, whose answers can be held back.
type host struct {
	data []byte
	asks atomic.Int64
	// hold says of a request, counted from 1, that it gets no answer.
	hold func(k int64) bool
	gone chan int64 // requests that were held and cancelled
}

func (h *host) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	k := h.asks.Add(1)
	if h.hold != nil && h.hold(k) {
		<-r.Context().Done()
		h.gone <- k
		return
	}
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(h.data))
}

// blob returns the blob of a host, which has answered often enough to be known.
func (h *host) blob(t *testing.T, m *Meter) Blob {
	t.Helper()
	h.gone = make(chan int64, 100)
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	b := New(Config{
		Size: int64(len(h.data)), Name: "registry.test", Meter: m, HeaderTimeout: time.Minute,
		Endpoints: func(context.Context) ([]Endpoint, error) { return []Endpoint{{URL: s.URL, Client: s.Client()}}, nil },
	})
	for i := range minAnswers {
		h.read(t, b, int64(i))
	}
	return b
}

func (h *host) read(t *testing.T, b Blob, off int64) {
	t.Helper()
	p := make([]byte, 100)
	if err := ReadAt(t.Context(), b, p, off); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(p, h.data[off:off+100]) {
		t.Fatalf("wrong bytes at %d", off)
	}
}

// TestHedge: an answer that does not come is asked for once more, the other one is
// cancelled, and nothing else is asked for.
func TestHedge(t *testing.T) {
	h := &host{data: bytes.Repeat([]byte("0123456789"), 100)}
	m := &Meter{}
	late := int64(minAnswers + 1)
	h.hold = func(k int64) bool { return k == late }
	b := h.blob(t, m)
	h.read(t, b, 7)
	if k := <-h.gone; k != late {
		t.Errorf("request %d was cancelled, want %d", k, late)
	}
	if n := h.asks.Load(); n != late+1 {
		t.Errorf("%d requests, want %d", n, late+1)
	}
	// The second try may be the one that hangs: then the first goes on being waited for.
	h.read(t, b, 8)
	if n := h.asks.Load(); n != late+2 {
		t.Errorf("%d requests, want %d", n, late+2)
	}
}

// TestHedgeBudget: a registry that is slow as a whole is not asked twice as often, and
// background reads are never asked for again.
func TestHedgeBudget(t *testing.T) {
	g := (&Meter{}).host("registry.test")
	extra := 0
	const requests = 1000
	for i := range requests {
		g.answered(time.Millisecond)
		if g.late(Background) != 0 {
			t.Fatal("a background read would be sent again")
		}
		if d := g.late(Demand); (d != 0) != (i+1 >= minAnswers) || d != 0 && d != minLate {
			t.Fatalf("after %d answers of a millisecond, an answer is late after %v", i+1, d)
		}
		if g.spend() {
			extra++
		}
	}
	if most := firstCredit + int(extraShare*requests); extra > most || extra < most-1 {
		t.Errorf("%d of %d were sent again, want %d", extra, requests, most)
	}
	for range samples {
		g.answered(time.Second)
	}
	if d := g.late(Demand); d != slowAnswers*time.Second {
		t.Errorf("where answers take a second, one is late after %v", d)
	}
}

// TestHedgeErrors: an error of one try waits for the other, an error of both is one.
func TestHedgeErrors(t *testing.T) {
	h := &host{data: make([]byte, 1000)}
	m := &Meter{}
	b := h.blob(t, m)
	h.hold = func(int64) bool { return true }
	ctx, cancel := context.WithCancel(t.Context())
	before := h.asks.Load()
	done := make(chan error, 1)
	go func() { done <- ReadAt(ctx, b, make([]byte, 10), 0) }()
	for h.asks.Load() < before+2 { // both are under way
		time.Sleep(time.Millisecond)
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("a read that was cancelled: %v", err)
	}
	for range 2 {
		<-h.gone
	}
}

// TestMeter: what a round trip is worth, when answers are late and bytes come from buffers.
func TestMeter(t *testing.T) {
	m := &Meter{}
	g := m.host("a.test")
	for i := range minAnswers - 1 {
		g.answered(time.Duration(10*i) * time.Millisecond)
	}
	for _, d := range []time.Duration{time.Microsecond, 10 * time.Millisecond} {
		g.came(1_000_000, d, Demand)
	}
	if w := m.Worth("a.test"); w != 0 {
		t.Errorf("%d before enough is known", w)
	}
	g.answered(5 * time.Second)
	g.came(1_000_000, time.Second, Demand)
	g.came(minRated-1, time.Nanosecond, Demand)
	if w := m.Worth("a.test"); w != 2_000_000 {
		t.Errorf("worth %d bytes, want 2000000", w)
	}
	if w := m.Worth("b.test"); w != 0 {
		t.Errorf("another registry: %d", w)
	}
	for i := range 3 * maxHosts {
		m.host(fmt.Sprint(i))
	}
	if n := len(m.hosts); n > maxHosts {
		t.Errorf("%d registries are remembered", n)
	}
}

// TestLine: how fast a registry is, and how much of that readers leave unused.
func TestLine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &Meter{}
		g := m.host("a.test")
		free := func(rate int64, least, most float64) {
			t.Helper()
			if r, f := m.Line("a.test"); r != rate || f < least || f > most {
				t.Errorf("%d bytes a second, %v free, want %d and %v to %v", r, f, rate, least, most)
			}
		}
		free(0, 0, 0)
		g.came(1<<20, time.Second, Background) // better than nothing
		free(1<<20, 1, 1)
		g.came(8<<20, time.Second, Demand)
		g.came(8<<20, time.Second, Demand)
		g.came(1<<20, time.Hour, Background) // stands still for readers
		free(8<<20, 1, 1)
		for range 50 { // 1 MiB a second
			g.use(100<<10, time.Now())
			time.Sleep(100 * time.Millisecond)
		}
		free(8<<20, 0.85, 0.9)
		for range 50 { // 8 MiB a second
			g.use(800<<10, time.Now())
			time.Sleep(100 * time.Millisecond)
		}
		free(8<<20, 0, 0.1)
		time.Sleep(5 * time.Second)
		free(8<<20, 0.99, 1)
	})
}
