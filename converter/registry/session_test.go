package registry

import (
	"context"
	"crypto/sha256"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"

	"github.com/apparate/apparate/converter/fault"
)

// shop is a registry by hand: what each path answers.
type shop struct {
	*httptest.Server
	mu     sync.Mutex
	asked  []string
	tokens map[string]int // how often each was used
	answer func(w http.ResponseWriter, r *http.Request)
	scheme string                                         // "Basic", "Bearer" or ""
	uses   int                                            // of a token, 0 without end
	token  func(w http.ResponseWriter, scope string) bool // answers in place of the token service
}

func newShop(t *testing.T, scheme string, answer func(w http.ResponseWriter, r *http.Request)) *shop {
	t.Helper()
	s := &shop{scheme: scheme, answer: answer, tokens: map[string]int{}}
	s.Server = httptest.NewServer(s)
	t.Cleanup(s.Close)
	return s
}

func (s *shop) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	s.asked = append(s.asked, r.URL.RequestURI())
	authorized := s.authorized(r)
	number := len(s.tokens)
	s.mu.Unlock()
	switch {
	case r.URL.Path == "/token":
		scope := r.URL.Query().Get("scope")
		if s.token == nil || !s.token(w, scope) {
			_, _ = fmt.Fprintf(w, `{"token":"%s-%d"}`, scope, number)
		}
	case !authorized:
		challenge := s.scheme + ` realm="registry"`
		if s.scheme == "Bearer" {
			challenge = fmt.Sprintf(`Bearer realm="%s/token",service="s"`, s.URL)
		}
		w.Header().Set("WWW-Authenticate", challenge)
		w.WriteHeader(http.StatusUnauthorized)
	case r.URL.Path == "/v2/":
	default:
		s.answer(w, r)
	}
}

func (s *shop) authorized(r *http.Request) bool {
	switch s.scheme {
	case "Basic":
		user, password, _ := r.BasicAuth()
		return user == "u" && password == "p"
	case "Bearer":
		token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
		s.tokens[token]++
		repo := strings.Split(strings.TrimPrefix(r.URL.Path, "/v2/"), "/")[0]
		return ok && (strings.Contains(token, ":"+repo+":") || r.URL.Path == "/v2/") && (s.uses == 0 || s.tokens[token] <= s.uses)
	}
	return true
}

// paths returns what was asked for since the last call.
func (s *shop) paths() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := s.asked
	s.asked = nil
	return all
}

type login struct{}

func (login) Resolve(authn.Resource) (authn.Authenticator, error) {
	return &authn.Basic{Username: "u", Password: "p"}, nil
}

func newTestSession(t *testing.T, s *shop) *Session {
	t.Helper()
	n, err := NewSession(Options{PlainHTTP: true, Keychain: login{}, RetryWait: time.Millisecond}, strings.TrimPrefix(s.URL, "http://"), SessionLimit{})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func tags(t *testing.T, s *Session, repo, known string) (names []string, validator string, unchanged bool) {
	t.Helper()
	validator, unchanged, err := s.Tags(t.Context(), repo, known, func(p TagPage) error {
		names = append(names, p.Tags...)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return names, validator, unchanged
}

// TestRequests counts: one ping, no request for rights where none are needed, one
// token for each repository where they are.
func TestRequests(t *testing.T) {
	list := func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(`{"tags":["a","b"]}`)) }
	for scheme, want := range map[string]int{"": 1 + 20*3, "Basic": 1 + 20*3, "Bearer": 1 + 20*3 + 20} {
		s := newShop(t, scheme, list)
		n := newTestSession(t, s)
		for range 3 {
			for i := range 20 {
				if names, _, _ := tags(t, n, fmt.Sprintf("repo%d", i), ""); !slices.Equal(names, []string{"a", "b"}) {
					t.Error(names)
				}
			}
		}
		// The session tried https first, which the server took for none.
		if asked := len(s.paths()); asked != want || n.Requests() != int64(want)+1 {
			t.Errorf("%q: %d requests came and %d were sent; want %d", scheme, asked, n.Requests(), want)
		}
	}
}

// TestLook looks at manifests, with and without knowing them.
func TestLook(t *testing.T) {
	raw := []byte(`{"schemaVersion":2}`)
	digest := fmt.Sprintf("sha256:%x", sha256.Sum256(raw))
	other := "sha256:" + strings.Repeat("1", 64)
	s := newShop(t, "", func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/v2/a/manifests/conditional":
			if r.Header.Get("If-None-Match") == `"`+digest+`"` {
				w.WriteHeader(http.StatusNotModified)
				return
			}
		case "/v2/a/manifests/odd":
			w.WriteHeader(http.StatusNotModified)
			return
		case "/v2/a/manifests/wrong":
			w.Header().Set("Docker-Content-Digest", "sha256:"+strings.Repeat("0", 64))
		case "/v2/a/manifests/large":
			_, _ = w.Write(make([]byte, MaxManifestSize+1))
			return
		case "/v2/a/manifests/page":
			w.Header().Set("Content-Type", "text/html; charset=utf-8")
		case "/v2/a/blobs/" + digest, "/v2/a/manifests/plain", "/v2/a/blobs/" + other, "/v2/a/manifests/" + digest, "/v2/a/manifests/" + other:
		case "/v2/a/manifests/cut":
			w.Header().Set("Content-Length", "1000")
		case "/v2/a/manifests/schema1":
			// The digest is of what was signed, not of the bytes that are sent.
			w.Header().Set("Content-Type", "application/vnd.docker.distribution.manifest.v1+prettyjws")
			w.Header().Set("Docker-Content-Digest", other)
		default:
			w.WriteHeader(http.StatusNotFound)
			return
		}
		if w.Header().Get("Content-Type") == "" {
			w.Header().Set("Content-Type", "application/vnd.oci.image.manifest.v1+json; x=y")
		}
		_, _ = w.Write(raw)
	})
	n := newTestSession(t, s)
	for _, c := range []struct {
		tag, known string
		changed    bool
		kind       fault.Kind
	}{
		{"plain", "", true, ""}, {"plain", digest, false, ""}, {"plain", "sha256:x", true, ""},
		{"conditional", "", true, ""}, {"conditional", digest, false, ""},
		{"odd", "", false, fault.RegistryError}, {"wrong", "", false, fault.ImageInvalid}, {"large", "", false, fault.ImageInvalid},
		{"page", "", false, fault.NotRegistry}, {"none", "", false, fault.NotFound},
		{digest, "", true, ""}, {digest, digest, false, ""}, {other, "", false, fault.ImageInvalid}, {"schema1", "", false, fault.NotImage},
		{"cut", "", false, fault.Unreachable},
	} {
		m, changed, err := n.Look(t.Context(), "a", c.tag, c.known)
		if changed != c.changed || fault.KindOf(err) != c.kind || changed && (m.Digest != digest || m.MediaType != "application/vnd.oci.image.manifest.v1+json") {
			t.Errorf("%s, known %q: %+v, %v, %v", c.tag, c.known, m, changed, err)
		}
		if c.kind == fault.NotFound && !strings.Contains(err.Error(), "a:none does not exist") {
			t.Error(err)
		}
	}
	if b, err := n.ReadBlob(t.Context(), "a", digest, int64(len(raw))); err != nil || string(b) != string(raw) {
		t.Errorf("%q, %v", b, err)
	}
	for _, c := range []struct {
		digest string
		size   int64
		kind   fault.Kind
	}{
		{digest, 3, fault.ImageInvalid}, {digest, -1, fault.ImageInvalid}, {digest, MaxManifestSize + 1, fault.ImageInvalid},
		{other, int64(len(raw)), fault.LayerCorrupt}, {"sha256:" + strings.Repeat("2", 64), 1, fault.ContentMissing},
		{"sha256:../../x", 1, fault.ImageInvalid}, {"md5:" + strings.Repeat("2", 32), 1, fault.ImageInvalid},
	} {
		if _, err := n.ReadBlob(t.Context(), "a", c.digest, c.size); fault.KindOf(err) != c.kind {
			t.Errorf("%s of %d bytes: %v", c.digest, c.size, err)
		}
	}
}

// TestDenied proves what is said where rights are missing.
func TestDenied(t *testing.T) {
	for code, kind := range map[int]fault.Kind{401: fault.PullDenied, 403: fault.PullDenied, 404: fault.NoCatalog, 405: fault.NoCatalog, 500: fault.RegistryError} {
		s := newShop(t, "", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) })
		err := newTestSession(t, s).Repositories(t.Context(), nil)
		if fault.KindOf(err) != kind || kind != fault.RegistryError && !strings.Contains(err.Error(), "spec.scan.repositories") {
			t.Errorf("%d: %v", code, err)
		}
	}
	s := newShop(t, "Basic", nil)
	n, err := NewSession(Options{PlainHTTP: true, Keychain: authn.NewMultiKeychain()}, strings.TrimPrefix(s.URL, "http://"), SessionLimit{})
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Ping(t.Context()); fault.KindOf(err) != fault.PullDenied {
		t.Errorf("without credentials: %v", err)
	}
	if err := newTestSession(t, s).Ping(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := NewSession(Options{}, "not a host/", SessionLimit{}); fault.KindOf(err) != fault.BadName {
		t.Error(err)
	}
	s.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := newTestSession(t, s).Ping(ctx); fault.KindOf(err) != fault.Unreachable {
		t.Errorf("nobody is there: %v", err)
	}
}
