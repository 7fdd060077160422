package link

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestWire proves that parallel answers arrive whole over the wire and are counted
// by what was asked for, and that nothing of it stays.
func TestWire(t *testing.T) {
	body := make([]byte, 300_000)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, err := io.Copy(io.Discard, r.Body); err != nil {
			t.Error(err)
		}
		if strings.Contains(r.URL.Path, "/blobs/") {
			_, _ = w.Write(body)
		}
	}))
	defer s.Close()
	w, err := NewWire(s.Listener.Addr().String(), Shape{Bits: 1e9, RTT: time.Millisecond, FirstByte: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Transport: &http.Transport{}} // no proxy
	get := func(method, path, body string) {
		r, err := http.NewRequestWithContext(t.Context(), method, "http://"+w.Addr()+path, strings.NewReader(body))
		if err != nil {
			t.Error(err)
			return
		}
		a, err := client.Do(r)
		if err != nil {
			t.Error(err)
			return
		}
		if _, err := io.Copy(io.Discard, a.Body); err != nil {
			t.Error(err)
		}
		_ = a.Body.Close()
	}
	get(http.MethodGet, "/v2/", "")
	get(http.MethodHead, "/v2/a/manifests/latest", "")
	get(http.MethodPut, "/v2/a/manifests/latest", strings.Repeat("x", 200_000))
	get(http.MethodGet, "/v2/a/referrers/sha256:0?artifactType=x", "")
	var wg sync.WaitGroup
	for i := range 5 {
		wg.Go(func() { get(http.MethodGet, fmt.Sprintf("/v2/a/blobs/sha256:%d", i), "") })
	}
	wg.Wait()
	eventually(func() bool { return w.Counts().Blobs.Bytes >= int64(5*len(body)) })
	c := w.Counts()
	if c.Manifests.Requests != 2 || c.Blobs.Requests != 5 || c.Referrers.Requests != 1 || c.Other.Requests != 1 || c.All().Requests != 9 {
		t.Errorf("requests: %+v", c)
	}
	if least := int64(5 * len(body)); c.Blobs.Bytes < least || c.Blobs.Bytes > least+5*1000 {
		t.Errorf("%d bytes of 5 blobs of %d", c.Blobs.Bytes, len(body))
	}
	if d := w.Counts().Sub(c); d != (Counts{}) {
		t.Errorf("of nothing came %+v", d)
	}
	client.CloseIdleConnections()
	if err := w.Close(); err != nil {
		t.Error(err)
	}
}

// TestHeads proves that requests are told apart however their bytes are cut, and
// that what is not HTTP/1.1 is counted and otherwise left alone.
func TestHeads(t *testing.T) {
	const late = time.Second
	stream := "GET /v2/a/blobs/sha256:1 HTTP/1.1\r\nHost: b\r\n\r\n" +
		"PUT /v2/a/manifests/x HTTP/1.1\r\nContent-Length: 31\r\n\r\nGET /v2/a/blobs/sha256:2 HTTP/1" +
		"HEAD /v2/a/blobs/sha256:3 HTTP/1.1\r\n\r\n"
	for step := 1; step < len(stream); step++ {
		h := &heads{meter: &meter{}, firstByte: late}
		var waited time.Duration
		for rest := stream; rest != ""; {
			n := min(step, len(rest))
			waited += h.request([]byte(rest[:n]))
			rest = rest[n:]
		}
		h.answer(7)
		c := h.meter.read()
		if c.Blobs.Requests != 2 || c.Manifests.Requests != 1 || c.Other.Requests != 0 || c.Blobs.Bytes != 7 || waited != late {
			t.Fatalf("pieces of %d: %+v, %v late", step, c, waited)
		}
	}
	for _, odd := range []string{
		"\x16\x03\x01 a TLS hello", "GET /v2/ HTTP/2.0\r\n\r\n", "POST /v2/ HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
		"POST /v2/ HTTP/1.1\r\nContent-Length: -1\r\n\r\n", "G" + strings.Repeat("x", maxHead),
	} {
		h := &heads{meter: &meter{}, firstByte: late}
		if d := h.request([]byte(odd)); d != 0 || !h.deaf {
			t.Errorf("%.20q: %v late, deaf %v", odd, d, h.deaf)
		}
		_ = h.request([]byte(stream))
		h.answer(7)
		if c := h.meter.read(); c != (Counts{Other: Traffic{Bytes: 7}}) {
			t.Errorf("%.20q: %+v", odd, c)
		}
	}
}

// FuzzHeads: whatever a client sends, looking at it neither fails nor keeps it.
func FuzzHeads(f *testing.F) {
	f.Add([]byte("GET /v2/a/blobs/sha256:1 HTTP/1.1\r\nHost: b\r\n\r\n"), 3)
	f.Add([]byte("PUT /x HTTP/1.1\r\nContent-Length: 9\r\n\r\n123456789GET / HTTP/1.1\r\n\r\n"), 1)
	f.Fuzz(func(t *testing.T, b []byte, step int) {
		h := &heads{meter: &meter{}}
		for len(b) > 0 {
			n := min(max(step, 1), len(b))
			h.request(b[:n])
			b = b[n:]
			if len(h.head) > maxHead+n {
				t.Fatalf("%d bytes kept", len(h.head))
			}
		}
	})
}

// BenchmarkCarry moves 100 MB at 1 Gbit/s; the time of the processor is what to look at.
func BenchmarkCarry(b *testing.B) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		piece := make([]byte, 1e6)
		for range 100 {
			if _, err := w.Write(piece); err != nil {
				return
			}
		}
	}))
	defer s.Close()
	target := s.Listener.Addr().String()
	get := func(b *testing.B, addr string) {
		client := &http.Client{Transport: &http.Transport{}}
		defer client.CloseIdleConnections()
		start := processor(b)
		for b.Loop() {
			a, err := client.Get("http://" + addr + "/v2/a/blobs/sha256:0")
			if err != nil {
				b.Fatal(err)
			}
			if _, err := io.Copy(io.Discard, a.Body); err != nil {
				b.Fatal(err)
			}
			_ = a.Body.Close()
		}
		b.ReportMetric(float64(processor(b)-start)/1e6/float64(b.N), "cpu-ms/op")
	}
	b.Run("direct", func(b *testing.B) { get(b, target) })
	b.Run("link", func(b *testing.B) {
		k, err := New(target, 1e9, time.Millisecond)
		if err != nil {
			b.Fatal(err)
		}
		defer func() { _ = k.Close() }()
		get(b, k.Addr())
	})
	b.Run("wire", func(b *testing.B) {
		w, err := NewWire(target, Shape{Bits: 1e9, RTT: time.Millisecond})
		if err != nil {
			b.Fatal(err)
		}
		defer func() { _ = w.Close() }()
		m, err := w.Tune(context.Background())
		if err != nil {
			b.Fatal(err)
		}
		b.Logf("%.0f Mbit/s, %v", m.Bits/1e6, m.RTT)
		get(b, w.Addr())
	})
}

func processor(b *testing.B) time.Duration {
	b.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
