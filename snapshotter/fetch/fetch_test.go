package fetch_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
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

// quick is a Config whose patience fits a test. TotalTimeout is what a read may
// take at most, however the registry behaves.
func quick(eps ...fetch.Endpoint) fetch.Config {
	return fetch.Config{
		Endpoints:     func(context.Context) ([]fetch.Endpoint, error) { return eps, nil },
		Name:          "registry.test",
		HeaderTimeout: 200 * time.Millisecond,
		StallTimeout:  200 * time.Millisecond,
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

// read reads a few ranges one after the other, as a mount does, and fails the test if a
// byte is wrong, an error is not an *Error, or a read outlives its time.
func read(t *testing.T, b fetch.Blob, data []byte) error {
	t.Helper()
	size := int64(len(data))
	for _, r := range [][2]int64{{size - 100, 100}, {0, 1000}, {5000, 20_000}} {
		start := time.Now()
		p := make([]byte, r[1])
		err := fetch.ReadAt(t.Context(), b, p, r[0])
		if took := time.Since(start); took > 30*time.Second {
			t.Errorf("a read took %s", took)
		}
		if err != nil {
			if _, ok := errors.AsType[*fetch.Error](err); !ok {
				t.Errorf("error is a %T: %v", err, err)
			}
			if strings.Contains(err.Error(), "secret-") {
				t.Errorf("error has a credential: %v", err)
			}
			return err
		}
		if !bytes.Equal(p, data[r[0]:r[0]+r[1]]) {
			return errWrongBytes
		}
	}
	return nil
}

var errWrongBytes = errors.New("wrong bytes")

// TestEveryFaultEverywhere makes every fault at every request in turn: each read
// gives the right bytes or an *Error, except for the faults that only a digest
// can tell.
func TestEveryFaultEverywhere(t *testing.T) {
	data := fetchtest.Random(60_000)
	// A single one of these ends a read: they do not look like going away.
	final := []registry.Fault{registry.WholeBody200, registry.NotFound, registry.RedirectExpired}
	for name, opts := range map[string][]registry.Option{
		"plain":     nil,
		"in clouds": {registry.WithToken("user", "password", 3), registry.WithRedirect(2)},
	} {
		for _, fault := range registry.Faults() {
			t.Run(name+"/"+string(fault), func(t *testing.T) {
				t.Parallel()
				for i := 0; ; i++ {
					reg := registry.New(t, opts...)
					reg.FailAt(i, fault)
					b := open(t, reg, data)
					err := read(t, b, data)
					if cerr := b.Close(); cerr != nil {
						t.Error(cerr)
					}
					switch {
					case errors.Is(err, errWrongBytes):
						if !fault.Lies() {
							t.Errorf("request %d: wrong bytes", i)
						}
					case err != nil && !slices.Contains(final, fault) && fault != registry.Unauthorized:
						t.Errorf("request %d: one failure was not survived: %v", i, err)
					}
					if err == nil && reg.Count() <= i {
						return // the fault came after the last request
					}
				}
			})
		}
	}
}

// TestFaultForever has a registry that never recovers: the read ends all the same.
func TestFaultForever(t *testing.T) {
	data := fetchtest.Random(60_000)
	for _, fault := range registry.Faults() {
		t.Run(string(fault), func(t *testing.T) {
			t.Parallel()
			reg := registry.New(t)
			reg.FailEvery(1, fault)
			b := open(t, reg, data)
			err := read(t, b, data)
			switch {
			case fault == registry.Slow:
				if err != nil {
					t.Errorf("slow is not wrong: %v", err)
				}
			case fault.Lies():
				if !errors.Is(err, errWrongBytes) {
					t.Errorf("lie: %v", err)
				}
			// Half of the rest, five times, does not make the whole.
			case err == nil, errors.Is(err, errWrongBytes):
				t.Errorf("read = %v, want an *Error", err)
			}
			if want := fault == registry.WholeBody200; errors.Is(err, fetch.ErrNoRanges) != want {
				t.Errorf("is ErrNoRanges: %v, of %v", !want, err)
			}
			if reg.Count() > 3*5 {
				t.Errorf("%d requests for 3 reads", reg.Count())
			}
		})
	}
}

// TestResume cuts a stream off and looks at what is asked for next.
func TestResume(t *testing.T) {
	data := fetchtest.Random(60_000)
	reg := registry.New(t)
	reg.FailAt(0, registry.CutOff)
	reg.FailAt(1, registry.Stall)
	reg.FailAt(2, registry.ShortBody)
	reg.FailAt(3, registry.TooManyRequests)
	b := open(t, reg, data)
	p := make([]byte, 800)
	if err := fetch.ReadAt(t.Context(), b, p, 100); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(p, data[100:900]) {
		t.Error("wrong bytes")
	}
	var got []string
	for _, q := range reg.Requests() {
		got = append(got, q.Range)
	}
	want := []string{"bytes=100-899", "bytes=500-899", "bytes=700-899", "bytes=800-899", "bytes=800-899"}
	if !slices.Equal(got, want) {
		t.Errorf("ranges %q, want %q", got, want)
	}
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

// TestRedirects has the redirects that no good registry makes.
func TestRedirects(t *testing.T) {
	data := fetchtest.Random(100)
	for name, c := range map[string]struct {
		location string
		ok       bool
	}{
		"for ever":    {"/loop", false},
		"no location": {"", false},
		"to a file":   {"file:///etc/passwd", false},
		"relative":    {"blob", true},
		"five hops":   {"/hop/5", true},
		"six hops":    {"/hop/6", false},
	} {
		t.Run(name, func(t *testing.T) {
			srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				var n int
				location := c.location
				if _, err := fmt.Sscanf(r.URL.Path, "/hop/%d", &n); err == nil {
					location = fmt.Sprintf("/hop/%d", n-1)
				}
				if r.URL.Path == "/v2/app/blobs/blob" || n == 1 {
					http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(data))
					return
				}
				if location != "" {
					w.Header().Set("Location", location)
				}
				w.WriteHeader(http.StatusFound)
			}))
			t.Cleanup(srv.Close)
			cfg := quick(fetch.Endpoint{URL: srv.URL + "/v2/app/blobs/digest"})
			cfg.Size = int64(len(data))
			p := make([]byte, 10)
			err := fetch.ReadAt(t.Context(), fetch.New(cfg), p, 0)
			if (err == nil) != c.ok || (c.ok && !bytes.Equal(p, data[:10])) {
				t.Errorf("read = %v", err)
			}
		})
	}
}

// TestUnreachable has an address where nobody listens.
func TestUnreachable(t *testing.T) {
	srv := httptest.NewServer(http.NotFoundHandler())
	srv.Close()
	cfg := quick(fetch.Endpoint{URL: srv.URL + "/v2/app/blobs/digest?secret-query=1"})
	cfg.Size = 10
	err := fetch.ReadAt(t.Context(), fetch.New(cfg), make([]byte, 10), 0)
	e, ok := errors.AsType[*fetch.Error](err)
	if !ok || !e.Temporary || e.Status != 0 || strings.Contains(err.Error(), "secret") {
		t.Errorf("read = %v, want a temporary *Error without the query", err)
	}
}

func TestUntrustedTLS(t *testing.T) {
	reg := registry.New(t, registry.WithTLS())
	data := fetchtest.Random(10)
	ep := endpoint(t, reg, data)
	ep.Client = &http.Client{Transport: &http.Transport{}}
	cfg := quick(ep)
	cfg.Size = 10
	err := fetch.ReadAt(t.Context(), fetch.New(cfg), make([]byte, 10), 0)
	if e, ok := errors.AsType[*fetch.Error](err); !ok || e.Temporary {
		t.Errorf("unknown CA = %v, want a lasting *Error", err)
	}
	plain := registry.New(t)
	ep = endpoint(t, plain, data)
	ep.URL = strings.Replace(ep.URL, "http:", "https:", 1)
	cfg = quick(ep)
	cfg.Size = 10
	err = fetch.ReadAt(t.Context(), fetch.New(cfg), make([]byte, 10), 0)
	if e, ok := errors.AsType[*fetch.Error](err); !ok || e.Temporary {
		t.Errorf("TLS to a plain registry = %v, want a lasting *Error", err)
	}
}
