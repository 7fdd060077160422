package converter

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/apparate/apparate/converter/check"
	"github.com/apparate/apparate/converter/fault"
	"github.com/apparate/apparate/test/registry"
)

// wrongAnswers are the ways in which a request can go wrong. Those that get the
// right answer have it after the registry did what was asked: an upload may have
// happened though its answer is lost.
func wrongAnswers() map[string]func(w http.ResponseWriter, r *http.Request, right *httptest.ResponseRecorder) {
	type answer = func(http.ResponseWriter, *http.Request, *httptest.ResponseRecorder)
	status := func(code int) answer {
		return func(w http.ResponseWriter, _ *http.Request, _ *httptest.ResponseRecorder) { w.WriteHeader(code) }
	}
	half := func(w http.ResponseWriter, right *httptest.ResponseRecorder) {
		b := right.Body.Bytes()
		begin(w, right, len(b))
		_, _ = w.Write(b[:len(b)/2]) // the client may be gone
		_ = http.NewResponseController(w).Flush()
	}
	return map[string]answer{
		"reset": func(http.ResponseWriter, *http.Request, *httptest.ResponseRecorder) { panic(http.ErrAbortHandler) },
		"hang": func(_ http.ResponseWriter, r *http.Request, _ *httptest.ResponseRecorder) {
			<-r.Context().Done()
		},
		"cut off": func(w http.ResponseWriter, _ *http.Request, right *httptest.ResponseRecorder) {
			half(w, right)
			panic(http.ErrAbortHandler)
		},
		"stall": func(w http.ResponseWriter, r *http.Request, right *httptest.ResponseRecorder) {
			half(w, right)
			if right.Body.Len() > 0 && r.Method != http.MethodHead { // else it is complete, and nobody waits
				<-r.Context().Done()
			}
		},
		"short": func(w http.ResponseWriter, _ *http.Request, right *httptest.ResponseRecorder) {
			begin(w, right, -1)
			_, _ = w.Write(right.Body.Bytes()[:right.Body.Len()/2]) // the client may be gone
		},
		"flipped": func(w http.ResponseWriter, _ *http.Request, right *httptest.ResponseRecorder) {
			b := right.Body.Bytes()
			if len(b) > 0 {
				b[len(b)/2] ^= 0x20
			}
			begin(w, right, len(b))
			_, _ = w.Write(b) // the client may be gone
		},
		"longer": func(w http.ResponseWriter, _ *http.Request, right *httptest.ResponseRecorder) {
			begin(w, right, -1)
			_, _ = w.Write(append(right.Body.Bytes(), "more"...)) // the client may be gone
		},
		"401": status(401), "403": status(403), "404": status(404), "405": status(405), "410": status(410),
		"416": status(416), "429": status(429), "500": status(500), "503": status(503),
	}
}

// begin sends the right header, with another length; -1 for none.
func begin(w http.ResponseWriter, right *httptest.ResponseRecorder, length int) {
	for k, v := range right.Header() {
		if k != "Content-Length" || length >= 0 && right.Body.Len() == 0 {
			w.Header()[k] = v
		}
	}
	if length > 0 {
		w.Header().Set("Content-Length", fmt.Sprint(length))
	}
	w.WriteHeader(right.Code)
}

// failFrom makes requests first to last go wrong, counted from 1.
func (l *lab) failFrom(first, last int32, wrong func(http.ResponseWriter, *http.Request, *httptest.ResponseRecorder)) *atomic.Int32 {
	n := new(atomic.Int32)
	l.setHook(func(w http.ResponseWriter, r *http.Request) bool {
		if i := n.Add(1); i < first || i > last {
			return false
		}
		right := httptest.NewRecorder()
		l.inner.ServeHTTP(right, r)
		_, _ = io.Copy(io.Discard, r.Body) // or the server does not see the client leave
		wrong(w, r, right)
		return true
	})
	return n
}

// TestEveryFaultAtEveryRequest: each request in turn goes wrong, in every way
// there is. The image is right in the end, or there is a clear error and no tag.
func TestEveryFaultAtEveryRequest(t *testing.T) {
	for name, wrong := range wrongAnswers() {
		switch name {
		case "405", "410", "416", "503":
			continue // like others here; TestEveryFaultForGood has them
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t)
			l.c = New(Options{TempDir: l.tmp, RetryWait: time.Millisecond, Silence: 100 * time.Millisecond, Transport: impatient()})
			l.push("app", "v1", img{layers: [][]byte{layerOf(t, "a", 30<<10), layerOf(t, "b", 1000)}})
			for i := int32(1); ; i++ {
				tag := fmt.Sprintf("fast-%d", i)
				n := l.failFrom(i, i, wrong)
				_, err := l.convert(Request{Source: "app:v1", Target: "to:" + tag})
				l.setHook(nil)
				l.judge(name, i, tag, err)
				if n.Load() < i {
					return
				}
			}
		})
	}
}

// judge looks at a conversion during which something went wrong. A tag that was
// put though its answer got lost is as good as any.
func (l *lab) judge(name string, i int32, tag string, err error) {
	l.t.Helper()
	_, _, tagged := l.get("to", tag)
	if err == nil && !tagged {
		l.t.Fatalf("%s at %d: no error and no tag", name, i)
	}
	if tagged {
		l.mustCheck("to:"+tag, "app:v1")
	}
	if k := fault.KindOf(err); k == fault.Internal || err != nil && strings.Contains(err.Error(), "\n") {
		l.t.Errorf("%s at %d: no clear error: %v", name, i, err)
	}
}

// impatient is a transport that gives up writes early as well.
func impatient() http.RoundTripper {
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.ResponseHeaderTimeout = 200 * time.Millisecond
	return t
}

// TestEveryFaultForGood: when everything goes wrong there is an error, in a
// bounded time.
func TestEveryFaultForGood(t *testing.T) {
	for name, wrong := range wrongAnswers() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t)
			l.c = New(Options{TempDir: l.tmp, RetryWait: time.Millisecond, Silence: 50 * time.Millisecond, Transport: impatient()})
			l.push("app", "v1", img{layers: [][]byte{layerOf(t, "a", 3000)}})
			l.failFrom(1, 1<<30, wrong)
			_, err := l.convert(Request{Source: "app:v1"})
			_, cerr := check.Check(context.Background(), check.Options{Image: l.host + "/app:v1", Silence: 50 * time.Millisecond, RetryWait: time.Millisecond})
			l.setHook(nil)
			if _, _, tagged := l.get("app", "v1-apparate"); tagged || err == nil || cerr == nil {
				t.Errorf("%v, %v, tagged %v", err, cerr, tagged)
			}
			if k := fault.KindOf(err); k == fault.Internal || err != nil && strings.Contains(err.Error(), "\n") {
				t.Errorf("no clear error: %v", err)
			}
		})
	}
}

// TestSlowIsNoFault: a registry that sends a little at a time is waited for.
func TestSlowIsNoFault(t *testing.T) {
	l := newLab(t)
	l.push("app", "v1", img{layers: [][]byte{layerOf(t, "a", 3000)}})
	l.failFrom(1, 1<<30, func(w http.ResponseWriter, _ *http.Request, right *httptest.ResponseRecorder) {
		begin(w, right, right.Body.Len())
		for b := right.Body.Bytes(); len(b) > 0; b = b[min(len(b), 100):] {
			_, _ = w.Write(b[:min(len(b), 100)]) // the client may be gone
			_ = http.NewResponseController(w).Flush()
		}
	})
	l.mustConvert(Request{Source: "app:v1"})
	l.setHook(nil)
	l.mustCheck("app:v1-apparate", "")
}

// TestRedirectsAndTokens: blobs from another host, and tokens that run out.
func TestRedirectsAndTokens(t *testing.T) {
	r := registry.New(t, registry.WithRedirect(1))
	l := &lab{t: t, host: r.Host(), tmp: t.TempDir()}
	l.c = New(Options{TempDir: l.tmp, RetryWait: time.Millisecond})
	l.push("app", "v1", img{layers: [][]byte{layerOf(t, "a", 300<<10), layerOf(t, "b", 1000)}})
	l.mustConvert(Request{Source: "app:v1"})
	l.mustCheck("app:v1-apparate", "")

	r = registry.New(t, registry.WithToken("me", "secret", 3))
	_, err := l.c.Convert(context.Background(), Request{Source: r.Host() + "/app:v1"})
	wantKind(t, err, fault.PullDenied, "docker login")
	if strings.Contains(err.Error(), "secret") {
		t.Errorf("a password in the error: %v", err)
	}
}
