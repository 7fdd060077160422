package link

import (
	"bytes"
	"crypto/rand"
	"io"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"
)

// TestRelay proves that parallel exchanges arrive whole and are counted.
func TestRelay(t *testing.T) {
	body := make([]byte, 300_000)
	if _, err := rand.Read(body); err != nil {
		t.Fatal(err)
	}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write(body)
	}))
	defer s.Close()
	k, err := New(s.Listener.Addr().String(), 400_000_000, 2*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 6 {
		wg.Go(func() {
			r, err := http.Get("http://" + k.Addr())
			if err != nil {
				t.Error(err)
				return
			}
			got, err := io.ReadAll(r.Body)
			if err != nil || !bytes.Equal(got, body) {
				t.Errorf("%d bytes of %d, %v", len(got), len(body), err)
			}
			_ = r.Body.Close()
		})
	}
	wg.Wait()
	least := int64(6 * len(body))
	eventually(func() bool { down, _ := k.Bytes(); return down >= least })
	down, up := k.Bytes()
	if down < least || down > least+6*1000 || up == 0 {
		t.Errorf("%d bytes down and %d up for 6 bodies of %d", down, up, len(body))
	}
	http.DefaultClient.CloseIdleConnections()
	if err := k.Close(); err != nil {
		t.Error(err)
	}
}

// eventually gives what is counted after it was sent some time to be counted.
func eventually(counted func() bool) {
	for until := time.Now().Add(10 * time.Second); !counted() && time.Now().Before(until); {
		time.Sleep(time.Millisecond)
	}
}

// TestCloseEndsTransfers proves that Close does not wait for a slow transfer.
func TestCloseEndsTransfers(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write(make([]byte, 1<<20))
	}))
	defer s.Close()
	k, err := New(s.Listener.Addr().String(), 8000, 0) // a kilobyte a second
	if err != nil {
		t.Fatal(err)
	}
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+k.Addr(), nil)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		a, err := http.DefaultClient.Do(r)
		if err == nil {
			_, err = io.Copy(io.Discard, a.Body)
			_ = a.Body.Close()
		}
		done <- err
	}()
	time.Sleep(20 * time.Millisecond) // under way, or about to be: both must end
	if err := k.Close(); err != nil {
		t.Error(err)
	}
	if err := <-done; err == nil {
		t.Error("a transfer survives its link")
	}
}

// TestUnreachableTarget proves that a client is not left waiting.
func TestUnreachableTarget(t *testing.T) {
	s := httptest.NewServer(nil)
	s.Close()
	k, err := New(s.Listener.Addr().String(), 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	if r, err := http.Get("http://" + k.Addr()); err == nil {
		_ = r.Body.Close()
		t.Error("an answer from nowhere")
	}
	if err := k.Close(); err != nil {
		t.Error(err)
	}
}

// BenchmarkCheck runs the check that the demo runs before it measures.
func BenchmarkCheck(b *testing.B) {
	for b.Loop() {
		if err := Check(b.Context(), 200_000_000, 5*time.Millisecond); err != nil {
			b.Fatal(err)
		}
	}
}
