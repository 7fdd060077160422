package kubeapi_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"k8s.io/client-go/rest"

	"github.com/apparate/apparate/snapshotter/kubeapi"
)

const token = "secret-token"

// odd is a client of a server that answers as h does.
func odd(t *testing.T, h http.HandlerFunc) *kubeapi.Client {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	c, err := kubeapi.New(&rest.Config{Host: s.URL + "/prefix", BearerToken: token})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// answer writes an answer. A client that is gone needs none.
func answer(w http.ResponseWriter, text string) { _, _ = io.WriteString(w, text) }

const notFound = `{"kind":"Status","apiVersion":"v1","status":"Failure","message":"nodes \"n\" not found","reason":"NotFound","code":404}`

// Whatever the server answers, the error names the request and what is wrong,
// and never the token.
func TestErrors(t *testing.T) {
	kind := func(w http.ResponseWriter, code int, kind, body string) {
		w.Header().Set("Content-Type", kind)
		w.WriteHeader(code)
		answer(w, body)
	}
	tests := map[string]struct {
		answer http.HandlerFunc
		want   string
		code   int
	}{
		"not found": {func(w http.ResponseWriter, _ *http.Request) { kind(w, 404, "application/json", notFound) },
			`GET /api/v1/nodes/n: nodes "n" not found`, 404},
		"html": {func(w http.ResponseWriter, _ *http.Request) { kind(w, 502, "text/html", "<html>") },
			"GET /api/v1/nodes/n: 502 Bad Gateway", 502},
		"text": {func(w http.ResponseWriter, _ *http.Request) {
			kind(w, 503, "text/plain; charset=utf-8", "no\nbackend "+strings.Repeat("x", 1000))
		}, "GET /api/v1/nodes/n: 503 Service Unavailable: no backend " + strings.Repeat("x", 189) + "…", 503},
		"long": {func(w http.ResponseWriter, _ *http.Request) {
			kind(w, 403, "application/json", `{"kind":"Status","message":"`+strings.Repeat("y", 5000)+`"}`)
		}, "GET /api/v1/nodes/n: " + strings.Repeat("y", 1024) + "…", 403},
		"other json": {func(w http.ResponseWriter, _ *http.Request) {
			kind(w, 409, "application/json", `{"message":"not a Status"}`)
		},
			"GET /api/v1/nodes/n: 409 Conflict", 409},
		"endless error": {func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(500)
			for r.Context().Err() == nil {
				if _, err := w.Write(make([]byte, 1<<20)); err != nil {
					return
				}
			}
		}, "GET /api/v1/nodes/n: 500 Internal Server Error", 500},
		"redirect": {func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path != "/prefix/api/v1/nodes/n" {
				t.Errorf("the token went to %s", r.URL)
			}
			http.Redirect(w, r, "/elsewhere", http.StatusFound)
		}, "GET /api/v1/nodes/n: 302 Found", 302},
		"captive": {func(w http.ResponseWriter, _ *http.Request) { kind(w, 200, "text/html", "<html>log in</html>") },
			"GET /api/v1/nodes/n: the answer is not what was asked for: ", 0},
		"cut": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "1000")
			kind(w, 200, "application/json", `{"a":`)
		}, "GET /api/v1/nodes/n: reading the answer: unexpected EOF", 0},
		"endless": {func(w http.ResponseWriter, r *http.Request) {
			for b := make([]byte, 1<<20); r.Context().Err() == nil; {
				if _, err := w.Write(b); err != nil {
					return
				}
			}
		}, "GET /api/v1/nodes/n: the answer has more than 67108864 bytes", 0},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			c := odd(t, func(w http.ResponseWriter, r *http.Request) {
				if got := r.Header.Get("Authorization"); got != "Bearer "+token {
					t.Errorf("Authorization is %q", got)
				}
				test.answer(w, r)
			})
			var into map[string]any
			err := c.Get(t.Context(), "/api/v1/nodes/n?a=b", &into)
			if err == nil || !strings.HasPrefix(err.Error(), test.want) || strings.Contains(err.Error(), token) {
				t.Errorf("the error is %v", err)
			}
			var s *kubeapi.StatusError
			if errors.As(err, &s) != (test.code != 0) || s != nil && s.Code != test.code {
				t.Errorf("the status is %+v", s)
			}
			for code, is := range map[int]bool{404: kubeapi.IsNotFound(err), 403: kubeapi.IsForbidden(err), 409: kubeapi.IsConflict(err)} {
				if is != (code == test.code) {
					t.Errorf("%d: %v", code, is)
				}
			}
		})
	}
}

// Nobody answers: the error comes in time, and once.
func TestNobody(t *testing.T) {
	c, err := kubeapi.New(&rest.Config{Host: "http://127.0.0.1:1", BearerToken: token})
	if err != nil {
		t.Fatal(err)
	}
	err = c.Get(t.Context(), "/version", nil)
	if err == nil || err.Error() != "GET /version: dial tcp 127.0.0.1:1: connect: connection refused" {
		t.Errorf("the error is %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	hang := odd(t, func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	if err := hang.Get(ctx, "/version", nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("the error is %v", err)
	}
	ctx, cancel = context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := hang.Watch(ctx, "/version", "1", nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("the error is %v", err)
	}
}

// A server that is busy is asked again when it says so, body and all; not more often.
func TestRetryAfter(t *testing.T) {
	var asked atomic.Int32
	var after atomic.Value
	c := odd(t, func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		if err != nil || string(b) != `{"a":1}` || r.Method != http.MethodPatch || r.Header.Get("Content-Type") != kubeapi.JSONPatch {
			t.Errorf("%s of %s with %s: %v", r.Method, r.Header.Get("Content-Type"), b, err)
		}
		if asked.Add(1) == 1 {
			w.Header().Set("Retry-After", after.Load().(string))
			w.WriteHeader(http.StatusTooManyRequests)
			return
		}
		answer(w, `{"b":2}`)
	})
	patch := json.RawMessage(`{"a":1}`)
	for text, want := range map[string]int32{"1": 2, "x": 1, "3600": 1, "": 1} {
		asked.Store(0)
		after.Store(text)
		var into struct{ B int }
		start := time.Now()
		err := c.Patch(t.Context(), "/x", kubeapi.JSONPatch, patch, &into)
		if asked.Load() != want || (err == nil) != (want == 2) {
			t.Errorf("Retry-After %q: asked %d times, %v", text, asked.Load(), err)
		}
		if err == nil && (into.B != 2 || time.Since(start) < time.Second) {
			t.Errorf("%+v after %v", into, time.Since(start))
		}
	}
	asked.Store(0)
	after.Store("5")
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	err := c.Patch(ctx, "/x", kubeapi.JSONPatch, []byte(patch), nil)
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "429") {
		t.Errorf("the error is %v", err)
	}
}

// A token that was rotated is used at once: the refusal of an old one would be taken
// for the end of our rights. Where the file is gone the last one is good enough.
func TestRotation(t *testing.T) {
	var good atomic.Value
	good.Store("Bearer one")
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != good.Load() {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		answer(w, `{}`)
	}))
	t.Cleanup(s.Close)
	root := t.TempDir()
	dir := filepath.Join(root, "var/run/secrets/kubernetes.io/serviceaccount")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	host, port, _ := strings.Cut(s.Listener.Addr().String(), ":")
	t.Setenv("KUBERNETES_SERVICE_HOST", host)
	t.Setenv("KUBERNETES_SERVICE_PORT", port)
	if _, err := kubeapi.InCluster(root); err == nil || !strings.Contains(err.Error(), "automountServiceAccountToken") {
		t.Errorf("without a token: %v", err)
	}
	write(t, filepath.Join(dir, "ca.crt"), certificate(s))
	write(t, filepath.Join(dir, "token"), "\n")
	if _, err := kubeapi.InCluster(root); err == nil || !strings.Contains(err.Error(), "empty") {
		t.Errorf("with an empty token: %v", err)
	}
	write(t, filepath.Join(dir, "token"), "one\n")
	c, err := kubeapi.InCluster(root)
	if err != nil {
		t.Fatal(err)
	}
	get := func() error { return c.Get(t.Context(), "/version", &struct{}{}) }
	if err := get(); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "token"), "two\n")
	good.Store("Bearer two")
	if err := get(); err != nil {
		t.Error("after the rotation:", err)
	}
	good.Store("Bearer three")
	if err := get(); !kubeapi.IsForbidden(err) {
		t.Error("refused:", err)
	}
	write(t, filepath.Join(dir, "token"), "three\n")
	if err := get(); err != nil {
		t.Error("third:", err)
	}
	if err := os.Remove(filepath.Join(dir, "token")); err != nil {
		t.Fatal(err)
	}
	if err := get(); err != nil {
		t.Error("without the file:", err)
	}
	good.Store("Bearer four")
	if err := get(); !kubeapi.IsForbidden(err) {
		t.Error("without the file, refused:", err)
	}
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	if _, err := kubeapi.InCluster(root); err == nil || !strings.Contains(err.Error(), "no pod") {
		t.Errorf("outside a cluster: %v", err)
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}
