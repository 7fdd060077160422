package registry

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"

	"github.com/apparate/apparate/converter/fault"
	good "github.com/apparate/apparate/test/registry"
)

// account is a keychain whose password may change.
type account struct {
	mu       sync.Mutex
	password string
}

func (a *account) Resolve(authn.Resource) (authn.Authenticator, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return &authn.Basic{Username: "u", Password: a.password}, nil
}

func (a *account) set(password string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.password = password
}

// stock opens a session with a good registry that has an image.
func stock(t *testing.T, a *account, opts ...good.Option) (*good.Registry, *Session, Manifest) {
	t.Helper()
	r := good.New(t, opts...)
	o := Options{Keychain: a, Transport: r.Client().Transport, RetryWait: time.Millisecond}
	c, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	config := []byte(`{}`)
	h := r.AddBlob(t, config)
	raw := fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"%s","size":2},"layers":[]}`, h)
	for _, repo := range []string{"team/a", "team/b"} {
		ref, err := name.NewTag(r.Host() + "/" + repo + ":v1")
		if err != nil {
			t.Fatal(err)
		}
		if err := c.PutManifest(t.Context(), ref, "application/vnd.oci.image.manifest.v1+json", raw); err != nil {
			t.Fatal(err)
		}
	}
	s, err := NewSession(o, r.Host(), SessionLimit{})
	if err != nil {
		t.Fatal(err)
	}
	r.Forget()
	return r, s, Manifest{Raw: raw, Digest: digestOf(raw)}
}

// lines are the requests since the last call.
func lines(r *good.Registry) []string {
	var all []string
	for _, q := range r.Requests() {
		all = append(all, fmt.Sprintf("%s %s %d", q.Method, q.Path, q.Status))
	}
	r.Forget()
	return all
}

// TestExpiry proves that a token that was refused, or whose time is up, is
// renewed: the first for two requests more, the second for one.
func TestExpiry(t *testing.T) {
	r, s, m := stock(t, &account{password: "p"}, good.WithTLS(), good.WithToken("u", "p", 0))
	look := func(want ...string) {
		t.Helper()
		got, changed, err := s.Look(t.Context(), "team/a", "v1", "")
		if err != nil || !changed || got.Digest != m.Digest {
			t.Errorf("%+v, %v, %v", got, changed, err)
		}
		if all := lines(r); !slices.Equal(all, want) {
			t.Errorf("%q, want %q", all, want)
		}
	}
	const path = "GET /v2/team/a/manifests/v1 "
	look("GET /v2/ 401", "GET /token 200", path+"200")
	look(path + "200")
	r.ExpireTokens()
	look(path+"401", "GET /token 200", path+"200")
	look(path + "200")
	r.ExpireTokens()
	held := s.right(pullScope("team/a"))
	if left := time.Until(held.a.end); left < 4*time.Minute || left > 5*time.Minute {
		t.Errorf("the token is kept for %v; it is good for 5m", left)
	}
	held.a.end = time.Now()
	look("GET /token 200", path+"200")
	if n := s.Requests(); n != 10 {
		t.Errorf("%d requests", n)
	}
}

// TestRotation proves that new credentials are used once the old ones are
// refused, and that refusals do not multiply requests.
func TestRotation(t *testing.T) {
	for scheme, opts := range map[string][]good.Option{
		"Basic": {good.WithBasic("u", "p")}, "Bearer": {good.WithToken("u", "p", 0)},
	} {
		a := &account{password: "p"}
		r, s, _ := stock(t, a, opts...)
		tags(t, s, "team/a", "")
		r.SetPassword("u", "q")
		a.set("q")
		tags(t, s, "team/a", "")
		r.SetPassword("u", "nobody knows")
		for range 3 {
			lines(r)
			_, _, err := s.Tags(t.Context(), "team/a", "", nil)
			if all := lines(r); fault.KindOf(err) != fault.PullDenied || len(all) > 3 {
				t.Errorf("%s: %v; %q", scheme, err, all)
			}
		}
	}
}

// TestGoodRegistry reads from a registry that redirects blobs to another host.
func TestGoodRegistry(t *testing.T) {
	r, s, m := stock(t, &account{password: "p"}, good.WithTLS(), good.WithToken("u", "p", 0), good.WithRedirect(0))
	if names, _, _ := tags(t, s, "team/b", ""); !slices.Equal(names, []string{"v1"}) {
		t.Error(names)
	}
	got, changed, err := s.Look(t.Context(), "team/b", m.Digest, "")
	if err != nil || !changed || string(got.Raw) != string(m.Raw) {
		t.Errorf("%+v, %v, %v", got, changed, err)
	}
	if b, err := s.ReadBlob(t.Context(), "team/b", digestOf([]byte(`{}`)), 2); err != nil || string(b) != `{}` {
		t.Errorf("%q, %v", b, err)
	}
	if all := lines(r); len(all) != 6 || s.Requests() != 6 { // the ping, a token, and the blob in two
		t.Errorf("%d: %q", s.Requests(), all)
	}
}

// TestColdStart proves that callers that begin at once share ping and token.
func TestColdStart(t *testing.T) {
	r, s, _ := stock(t, &account{password: "p"}, good.WithTLS(), good.WithToken("u", "p", 0))
	var wg sync.WaitGroup
	for i := range 30 {
		wg.Go(func() {
			if _, _, err := s.Look(t.Context(), []string{"team/a", "team/b"}[i%2], "v1", ""); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if all := lines(r); len(all) != 1+2+30 {
		t.Errorf("%d requests", len(all))
	}
}

// TestPing counts what a ping sends, and proves that it changes nothing.
func TestPing(t *testing.T) {
	for scheme, want := range map[string]int{"": 2, "Basic": 2, "Bearer": 3} {
		s := newShop(t, scheme, func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(`{}`)) })
		s.token = func(w http.ResponseWriter, scope string) bool {
			_, _ = fmt.Fprintf(w, `{"access_token":"for %s","expires_in":600}`, scope)
			return true
		}
		n := newTestSession(t, s)
		tags(t, n, "a", "")
		s.paths()
		if err := n.Ping(t.Context()); err != nil {
			t.Errorf("%q: %v", scheme, err)
		}
		if asked := s.paths(); len(asked) != want {
			t.Errorf("%q: %q", scheme, asked)
		}
		tags(t, n, "a", "")
		if asked := s.paths(); len(asked) != 1 {
			t.Errorf("%q, after the ping: %q", scheme, asked)
		}
	}
	s := newShop(t, "", nil)
	n, err := NewSession(Options{PlainHTTP: true, Keychain: authn.NewMultiKeychain()}, strings.TrimPrefix(s.URL, "http://"), SessionLimit{})
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Ping(t.Context()); err != nil || len(s.paths()) != 1 {
		t.Errorf("without credentials: %v", err)
	}
	s.Config.Handler = http.NotFoundHandler()
	if err := n.Ping(t.Context()); fault.KindOf(err) != fault.NotRegistry {
		t.Errorf("no registry: %v", err)
	}
}

// TestSchemeChange proves that a ping notices when a registry begins to ask for
// tokens.
func TestSchemeChange(t *testing.T) {
	s := newShop(t, "", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(`{}`)) })
	n := newTestSession(t, s)
	tags(t, n, "a", "")
	s.mu.Lock()
	s.scheme = "Bearer"
	s.mu.Unlock()
	if _, _, err := n.Tags(t.Context(), "a", "", nil); fault.KindOf(err) != fault.PullDenied {
		t.Error(err)
	}
	s.token = func(w http.ResponseWriter, scope string) bool {
		_, _ = fmt.Fprintf(w, `{"token":"for %s"}`, scope)
		return true
	}
	if err := n.Ping(t.Context()); err != nil {
		t.Error(err)
	}
	tags(t, n, "a", "")
}

// TestTokenService proves that what a token service answers is not taken for an
// answer about the image.
func TestTokenService(t *testing.T) {
	for _, c := range []struct {
		status      int
		retry, body string
		kind        fault.Kind
		after       time.Duration
	}{
		{404, "", "", fault.RegistryError, 0}, {401, "", "", fault.PullDenied, 0}, {500, "", "", fault.RegistryError, 0},
		{429, "3600", "", fault.RegistryError, time.Hour}, {200, "", `{"more":"` + strings.Repeat("\\n", 10000) + `"}`, fault.RegistryError, 0}, {200, "", "<html>", fault.RegistryError, 0},
	} {
		s := newShop(t, "Bearer", nil)
		broken := func(w http.ResponseWriter, _ string) bool {
			if c.retry != "" {
				w.Header().Set("Retry-After", c.retry)
			}
			w.WriteHeader(c.status)
			_, _ = w.Write([]byte(c.body))
			return true
		}
		s.token = broken
		_, _, err := newTestSession(t, s).Look(t.Context(), "a", "x", "")
		if fault.KindOf(err) != c.kind || fault.After(err) != c.after {
			t.Errorf("%d: %v, after %v", c.status, err, fault.After(err))
		}
		// And once it had given one.
		s.token, s.uses = nil, 1
		s.answer = func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(`{}`)) }
		n := newTestSession(t, s)
		tags(t, n, "a", "")
		s.token = broken
		_, _, err = n.Look(t.Context(), "a", "x", "")
		if c.status == http.StatusOK {
			// Here it cannot be told from a connection that makes no sense.
			c.kind = fault.Unreachable
		}
		if fault.KindOf(err) != c.kind || fault.After(err) != c.after || len(err.Error()) > 500 {
			t.Errorf("%d, at a renewal: %v, after %v", c.status, err, fault.After(err))
		}
	}
}

// TestPingRedirect proves that a registry whose ping is redirected is pinged once
// as well.
func TestPingRedirect(t *testing.T) {
	s := newShop(t, "", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(`{}`)) })
	pings := 0
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/v2/" {
			pings++
			http.Redirect(w, r, s.URL+"/v2/", http.StatusFound)
			return
		}
		s.ServeHTTP(w, r)
	}))
	t.Cleanup(front.Close)
	n, err := NewSession(Options{PlainHTTP: true, Keychain: login{}}, strings.TrimPrefix(front.URL, "http://"), SessionLimit{})
	if err != nil {
		t.Fatal(err)
	}
	for _, repo := range []string{"a", "b", "c"} {
		tags(t, n, repo, "")
	}
	if pings != 1 {
		t.Errorf("%d pings", pings)
	}
}

// TestRights proves that the tokens that are kept are bounded in number, and that
// waiting for one ends with the context.
func TestRights(t *testing.T) {
	s, err := NewSession(Options{}, "docker.io", SessionLimit{})
	if err != nil {
		t.Fatal(err)
	}
	if s.host() != "index.docker.io" {
		t.Errorf("Docker Hub is %s", s.host())
	}
	for i := range maxRights + 10 {
		s.right(fmt.Sprint(i))
	}
	if len(s.rights) != 10 {
		t.Errorf("%d are kept", len(s.rights))
	}
	l := newLock()
	if err := l.take(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := l.take(ctx); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}
