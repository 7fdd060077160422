package fetch_test

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/apparate/apparate/snapshotter/fetch"
	"github.com/apparate/apparate/snapshotter/fetch/fetchtest"
	"github.com/apparate/apparate/test/registry"
)

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

// TestConnectionIsReused reads one range after the other, some after an error.
func TestConnectionIsReused(t *testing.T) {
	data := fetchtest.Random(100_000)
	var conns, requests atomic.Int32
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if requests.Add(1)%3 == 0 {
			http.Error(w, "a moment, please", http.StatusServiceUnavailable)
			return
		}
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(data))
	}))
	srv.Config.ConnState = func(_ net.Conn, s http.ConnState) {
		if s == http.StateNew {
			conns.Add(1)
		}
	}
	srv.Start()
	t.Cleanup(srv.Close)
	cfg := quick(fetch.Endpoint{URL: srv.URL + "/v2/app/blobs/digest"})
	cfg.Size = int64(len(data))
	b := fetch.New(cfg)
	for i := range int64(10) {
		p := make([]byte, 9000)
		if err := fetch.ReadAt(t.Context(), b, p, i*10_000); err != nil || !bytes.Equal(p, data[i*10_000:i*10_000+9000]) {
			t.Fatal(err)
		}
	}
	if conns.Load() != 1 {
		t.Errorf("%d connections for %d requests, want 1", conns.Load(), requests.Load())
	}
}
