package control

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"k8s.io/client-go/rest"
)

// fuse kills the operator at one request of a sequence: at step n, where a request
// that only reads is one step and one that changes something is two, one before it
// is carried out and one after, when its answer is on the way.
type fuse struct {
	mu    sync.Mutex
	armed int // the step that kills; 0 for none
	step  int
	fired string // what it was
	kill  func()
	seen  func() // told of every request, a step or not; may be nil
}

// arm resets the count; n 0 only counts.
func (f *fuse) arm(n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.armed, f.step, f.fired = n, 0, ""
}

// state tells how many steps there were, and which one killed.
func (f *fuse) state() (steps int, fired string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.step, f.fired
}

// pass counts a step and kills when it is the one.
func (f *fuse) pass(what string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.step++
	if f.step != f.armed {
		return true
	}
	f.fired = what
	f.kill()
	return false
}

// proxy stands between the operator and a server. counts says which requests are
// steps.
func (f *fuse) proxy(t testing.TB, target string, transport http.RoundTripper, name string, counts func(*http.Request) bool) *httptest.Server {
	t.Helper()
	u, err := url.Parse(target)
	if err != nil {
		t.Fatal(err)
	}
	p := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(u)
			if name == "registry" {
				r.Out.Host = r.In.Host // its Location headers lead back here
			}
		},
		Transport: transport, FlushInterval: -1,
		ModifyResponse: func(resp *http.Response) error {
			r := resp.Request
			if r.Method == http.MethodGet || r.Method == http.MethodHead || !counts(r) {
				return nil
			}
			if !f.pass(fmt.Sprintf("after %s %s %s", name, r.Method, r.URL.Path)) {
				return errors.New("the operator is gone")
			}
			return nil
		},
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, _ error) { w.WriteHeader(http.StatusBadGateway) },
	}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if f.seen != nil {
			f.seen()
		}
		if counts(r) && !f.pass(fmt.Sprintf("before %s %s %s", name, r.Method, r.URL.Path)) {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		p.ServeHTTP(w, r)
	}))
	t.Cleanup(func() {
		s.CloseClientConnections()
		s.Close()
	})
	return s
}

// apiProxy makes a kubeconfig that leads through the fuse to the API server. Steps
// are what changes ImageConversions.
func (f *fuse) apiProxy(t testing.TB) (kubeconfig string) {
	t.Helper()
	transport, err := rest.TransportFor(operatorOf(t, cluster).config)
	if err != nil {
		t.Fatal(err)
	}
	s := f.proxy(t, cluster.Server, transport, "kube", func(r *http.Request) bool {
		return r.Method != http.MethodGet && strings.Contains(r.URL.Path, "/imageconversions")
	})
	kubeconfig = filepath.Join(t.TempDir(), "kubeconfig")
	text := fmt.Sprintf("apiVersion: v1\nkind: Config\nclusters: [{name: c, cluster: {server: %q}}]\ncontexts: [{name: c, context: {cluster: c}}]\ncurrent-context: c\n", s.URL)
	if err := os.WriteFile(kubeconfig, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return kubeconfig
}
