package fetch_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/apparate/apparate/snapshotter/fetch"
	"github.com/apparate/apparate/snapshotter/fetch/fetchtest"
	"github.com/apparate/apparate/test/registry"
)

// quick is a Config whose patience fits a test, also on a busy machine.
func quick(eps ...fetch.Endpoint) fetch.Config {
	return fetch.Config{
		Endpoints:     func(context.Context) ([]fetch.Endpoint, error) { return eps, nil },
		Name:          "registry.test",
		HeaderTimeout: time.Second,
		StallTimeout:  time.Second,
		TotalTimeout:  20 * time.Second,
		Backoff:       time.Millisecond,
		MaxBackoff:    4 * time.Millisecond,
		MaxRetryAfter: 2 * time.Millisecond,
	}
}

// bearer answers the challenges of a registry.WithToken, once for all readers.
type bearer struct {
	reg *registry.Registry
	mu  sync.Mutex
	now string
}

func (b *bearer) authorize(_ context.Context, req *http.Request) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.now != "" {
		req.Header.Set("Authorization", b.now)
	}
	return nil
}

func (b *bearer) challenge(ctx context.Context, resps []*http.Response) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if resps[0].Request.Header.Get("Authorization") != b.now {
		return nil
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, b.reg.URL()+"/token", nil)
	if err != nil {
		return err
	}
	req.SetBasicAuth("user", "password")
	resp, err := b.reg.Client().Do(req)
	if err != nil {
		return err
	}
	text, err := io.ReadAll(resp.Body)
	if err := errors.Join(err, resp.Body.Close()); err != nil {
		return err
	}
	_, after, _ := strings.Cut(string(text), `"token":"`)
	token, _, _ := strings.Cut(after, `"`)
	b.now = "Bearer " + token
	return nil
}

// endpoint stores data in reg and returns where it is.
func endpoint(t testing.TB, reg *registry.Registry, data []byte) fetch.Endpoint {
	b := &bearer{reg: reg}
	return fetch.Endpoint{
		URL: reg.BlobURL("team/app", reg.AddBlob(t, data)), Client: reg.Client(),
		Authorize: b.authorize, Challenge: b.challenge,
	}
}

// open returns a blob of reg with the content data.
func open(t testing.TB, reg *registry.Registry, data []byte, edit ...func(*fetch.Config)) fetch.Blob {
	cfg := quick(endpoint(t, reg, data))
	cfg.Size = int64(len(data))
	for _, f := range edit {
		f(&cfg)
	}
	return fetch.New(cfg)
}

func TestSuite(t *testing.T) {
	slowly := func(c *fetch.Config) { c.HeaderTimeout, c.StallTimeout = 5*time.Second, 5*time.Second }
	for name, opts := range map[string][]registry.Option{
		"plain":             nil,
		"TLS":               {registry.WithClientCert()},
		"token":             {registry.WithToken("user", "password", 0)},
		"redirect":          {registry.WithRedirect(0)},
		"redirect, expires": {registry.WithToken("user", "password", 50), registry.WithRedirect(7)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			reg := registry.New(t, opts...)
			fetchtest.Suite(t, func(data []byte) fetch.Blob { return open(t, reg, data, slowly) })
		})
	}
	t.Run("limit", func(t *testing.T) {
		t.Parallel()
		reg := registry.New(t)
		shared := fetch.NewLimiter(2)
		fetchtest.Suite(t, func(data []byte) fetch.Blob {
			return open(t, reg, data, slowly, func(c *fetch.Config) { c.Limit = shared })
		})
	})
}

// TestRedirectRemembered counts the hops over the registry.
func TestRedirectRemembered(t *testing.T) {
	data := fetchtest.Random(60_000)
	reg := registry.New(t, registry.WithRedirect(3), registry.WithToken("user", "password", 0))
	ep := endpoint(t, reg, data)
	ep.Header = http.Header{"X-Custom": {"to-the-registry-only"}}
	cfg := quick(ep)
	cfg.Size = int64(len(data))
	b := fetch.New(cfg)
	for i := range int64(5) {
		if err := fetch.ReadAt(t.Context(), b, make([]byte, 10), i*10); err != nil {
			t.Fatal(err)
		}
	}
	var got []string
	for _, q := range reg.Requests() {
		got = append(got, fmt.Sprintf("%s %s %d", q.Server, q.Range, q.Status))
		if q.Server != "storage" {
			if q.Path != "/token" && q.Header.Get("X-Custom") == "" {
				t.Errorf("custom header is missing: %s", q.Line())
			}
			continue
		}
		if q.Header.Get("Authorization") != "" || q.Header.Get("X-Custom") != "" {
			t.Errorf("storage host got our headers: %v", q.Header)
		}
		if want := strings.SplitN(ep.URL, "?", 2)[0]; q.Header.Get("Referer") != want {
			t.Errorf("Referer %q, want %q", q.Header.Get("Referer"), want)
		}
	}
	want := []string{
		"registry bytes=0-9 401", "registry  200", "registry bytes=0-9 307", "storage bytes=0-9 206",
		"storage bytes=10-19 206", "storage bytes=20-29 206",
		"storage bytes=30-39 403", "registry bytes=30-39 307", "storage bytes=30-39 206",
		"storage bytes=40-49 206",
	}
	if !slices.Equal(got, want) {
		t.Errorf("requests:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestTokenOnceForAll(t *testing.T) {
	data := fetchtest.Random(60_000)
	reg := registry.New(t, registry.WithToken("user", "password", 0))
	b := open(t, reg, data, func(c *fetch.Config) { c.HeaderTimeout = 5 * time.Second })
	for round := 1; round <= 3; round++ {
		var wg sync.WaitGroup
		for i := range int64(20) {
			wg.Go(func() {
				if err := fetch.ReadAt(t.Context(), b, make([]byte, 10), i*100); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if reg.Tokens() != round {
			t.Errorf("round %d: %d tokens for 20 readers", round, reg.Tokens())
		}
		reg.ExpireTokens()
	}
}

func TestMirrors(t *testing.T) {
	data := fetchtest.Random(60_000)
	mirror, origin := registry.New(t), registry.New(t)
	cfg := quick(endpoint(t, mirror, data), endpoint(t, origin, data))
	cfg.Size = int64(len(data))
	b := fetch.New(cfg)
	get := func() {
		t.Helper()
		if err := read(t, b, data); err != nil {
			t.Fatal(err)
		}
	}
	get()
	if mirror.Count() != 3 || origin.Count() != 0 {
		t.Errorf("healthy mirror: %d and %d requests", mirror.Count(), origin.Count())
	}
	for _, f := range []registry.Fault{registry.NotFound, registry.WholeBody200, registry.ServerError, registry.Hang, registry.CutOff} {
		mirror.Heal()
		origin.Heal()
		mirror.FailEvery(1, f)
		b = fetch.New(cfg)
		get()
		if mirror.Count() != 1 || origin.Count() != 3 {
			t.Errorf("%s: %d requests to the mirror, %d to the registry; want 1, 3", f, mirror.Count(), origin.Count())
		}
	}
	origin.FailEvery(1, registry.NotFound)
	mirror.FailEvery(1, registry.NotFound)
	err := read(t, b, data)
	if err == nil || !strings.Contains(err.Error(), mirror.Host()) && !strings.Contains(err.Error(), origin.Host()) {
		t.Errorf("all fail: %v", err)
	}
}

// TestStale proves that a refusal makes the endpoints be found anew, once.
func TestStale(t *testing.T) {
	data := fetchtest.Random(1000)
	reg := registry.New(t, registry.WithBasic("user", "new"))
	ep := endpoint(t, reg, data)
	var stale, asked atomic.Int32
	cfg := quick()
	cfg.Size = int64(len(data))
	cfg.Stale = func() { stale.Add(1) }
	cfg.Endpoints = func(context.Context) ([]fetch.Endpoint, error) {
		if asked.Add(1) == 1 {
			return nil, errors.New("hosts.toml is being written")
		}
		password := []string{"old", "new"}[min(stale.Load(), 1)]
		e := ep
		e.Challenge = nil
		e.Authorize = func(_ context.Context, r *http.Request) error { r.SetBasicAuth("user", password); return nil }
		return []fetch.Endpoint{e}, nil
	}
	b := fetch.New(cfg)
	if err := fetch.ReadAt(t.Context(), b, make([]byte, 10), 0); err == nil || !strings.Contains(err.Error(), "hosts.toml") {
		t.Errorf("first = %v, want the error of Endpoints", err)
	}
	if err := fetch.ReadAt(t.Context(), b, make([]byte, 10), 0); err != nil {
		t.Error(err)
	}
	if stale.Load() != 1 || asked.Load() != 3 {
		t.Errorf("stale %d times, asked %d times; want 1, 3", stale.Load(), asked.Load())
	}
	reg.SetPassword("user", "newest")
	err := fetch.ReadAt(t.Context(), b, make([]byte, 10), 0)
	if e, ok := errors.AsType[*fetch.Error](err); !ok || e.Status != 401 || e.Temporary {
		t.Errorf("still refused = %v, want 401", err)
	}
}

func TestProbe(t *testing.T) {
	reg := registry.New(t, registry.WithRedirect(0))
	for _, n := range []int{0, 1, 12_345} {
		size, err := fetch.Probe(t.Context(), quick(endpoint(t, reg, fetchtest.Random(n))))
		if err != nil || size != int64(n) {
			t.Errorf("Probe = %d, %v; want %d", size, err, n)
		}
	}
	reg.Heal()
	reg.FailEvery(1, registry.WholeBody200)
	if _, err := fetch.Probe(t.Context(), quick(endpoint(t, reg, fetchtest.Random(10)))); !errors.Is(err, fetch.ErrNoRanges) {
		t.Errorf("Probe without ranges = %v, want ErrNoRanges", err)
	}
}

func TestWrongSize(t *testing.T) {
	reg := registry.New(t)
	data := fetchtest.Random(1000)
	for _, size := range []int64{999, 1001} {
		b := open(t, reg, data, func(c *fetch.Config) { c.Size = size })
		err := fetch.ReadAt(t.Context(), b, make([]byte, size), 0)
		if e, ok := errors.AsType[*fetch.Error](err); !ok || e.Temporary {
			t.Errorf("size %d: %v, want a lasting *Error", size, err)
		}
	}
}

// TestWholeBlobMayBe200 is the one case where 200 is the range.
func TestWholeBlobMayBe200(t *testing.T) {
	reg := registry.New(t)
	reg.FailEvery(1, registry.WholeBody200)
	data := fetchtest.Random(1000)
	p := make([]byte, len(data))
	if err := fetch.ReadAt(t.Context(), open(t, reg, data), p, 0); err != nil || !bytes.Equal(p, data) {
		t.Errorf("whole blob by 200: %v", err)
	}
}

func TestNewDoesNoIO(t *testing.T) {
	cfg := fetch.Config{Size: 5, Endpoints: func(context.Context) ([]fetch.Endpoint, error) {
		t.Error("Endpoints called")
		return nil, nil
	}}
	b := fetch.New(cfg)
	if b.Size() != 5 {
		t.Errorf("Size = %d", b.Size())
	}
	if err := b.Close(); err != nil {
		t.Error(err)
	}
}

func TestTotalTimeout(t *testing.T) {
	reg := registry.New(t)
	reg.FailEvery(1, registry.Hang)
	data := fetchtest.Random(1000)
	b := open(t, reg, data, func(c *fetch.Config) { c.TotalTimeout, c.HeaderTimeout = 100*time.Millisecond, time.Hour })
	err := fetch.ReadAt(t.Context(), b, make([]byte, 10), 0)
	if e, ok := errors.AsType[*fetch.Error](err); !ok || !e.Temporary {
		t.Errorf("read = %v, want a temporary *Error", err)
	}
}

// TestLimit holds a stream open and waits for the second one in vain.
func TestLimit(t *testing.T) {
	reg := registry.New(t)
	data := fetchtest.Random(100_000)
	shared := fetch.NewLimiter(1)
	b := open(t, reg, data, func(c *fetch.Config) { c.Limit, c.TotalTimeout = shared, 300*time.Millisecond })
	first, err := b.Open(t.Context(), 0, 100)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancelled := make(chan error, 1)
	go func() { cancelled <- fetch.ReadAt(ctx, b, make([]byte, 10), 0) }()
	cancel()
	if err := <-cancelled; !errors.Is(err, context.Canceled) {
		t.Errorf("waiting read = %v, want context.Canceled", err)
	}
	if reg.Count() != 1 {
		t.Errorf("%d requests, want 1", reg.Count())
	}
	// Nobody closes first, yet its slot comes free when its time is over.
	other := open(t, reg, data, func(c *fetch.Config) { c.Limit = shared })
	if err := fetch.ReadAt(t.Context(), other, make([]byte, 10), 0); err != nil {
		t.Error(err)
	}
	if err := first.Close(); err != nil {
		t.Error(err)
	}
}

func TestStats(t *testing.T) {
	reg := registry.New(t)
	reg.FailAt(0, registry.CutOff)
	data := fetchtest.Random(1000)
	var mu sync.Mutex
	var requests []fetch.Request
	var reads []fetch.Read
	b := open(t, reg, data, func(c *fetch.Config) {
		c.Stats.Request = func(r fetch.Request) { mu.Lock(); defer mu.Unlock(); requests = append(requests, r) }
		c.Stats.Read = func(r fetch.Read) { mu.Lock(); defer mu.Unlock(); reads = append(reads, r) }
	})
	if err := fetch.ReadAt(t.Context(), b, make([]byte, 100), 0); err != nil {
		t.Fatal(err)
	}
	if len(requests) != 2 || requests[0].Bytes != 50 || requests[1].Bytes != 50 || requests[1].Status != 206 ||
		requests[1].Range != "bytes=50-99" || requests[1].Host != reg.Host() {
		t.Errorf("requests %+v", requests)
	}
	if len(reads) != 1 || reads[0].N != 100 || reads[0].Bytes != 100 || reads[0].Err != nil {
		t.Errorf("reads %+v", reads)
	}
}

// BenchmarkRead is the cost of one range on an open connection: 4 KiB is a page
// fault, 4 MiB a piece of the background fetch.
func BenchmarkRead(b *testing.B) {
	data := fetchtest.Random(8 << 20)
	for _, n := range []int{4 << 10, 256 << 10, 4 << 20} {
		b.Run(fmt.Sprintf("%dKiB", n>>10), func(b *testing.B) {
			blob := open(b, registry.New(b), data)
			p := make([]byte, n)
			b.SetBytes(int64(n))
			for b.Loop() {
				if err := fetch.ReadAt(b.Context(), blob, p, 4096); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
