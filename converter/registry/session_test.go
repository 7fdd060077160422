package registry

import (
	"context"
	"crypto/sha256"
	"encoding/json"
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

	"github.com/apparate/apparate/converter/fault"
)

// shop is a registry by hand: what each path answers.
type shop struct {
	*httptest.Server
	mu     sync.Mutex
	asked  []string
	tokens map[string]int // how often each was used
	answer func(w http.ResponseWriter, r *http.Request)
	scheme string // "Basic", "Bearer" or ""
	uses   int    // of a token, 0 without end
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
	s.mu.Unlock()
	switch {
	case r.URL.Path == "/token":
		_, _ = fmt.Fprintf(w, `{"token":"%s-%d"}`, r.URL.Query().Get("scope"), len(s.tokens))
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
	for scheme, want := range map[string]int64{"": 1 + 20*3, "Basic": 1 + 20*3, "Bearer": 1 + 20*3 + 20} {
		s := newShop(t, scheme, list)
		n := newTestSession(t, s)
		for range 3 {
			for i := range 20 {
				if names, _, _ := tags(t, n, fmt.Sprintf("repo%d", i), ""); !slices.Equal(names, []string{"a", "b"}) {
					t.Error(names)
				}
			}
		}
		// go-containerregistry tries https first where http is allowed.
		pings := int64(0)
		for _, p := range s.paths() {
			if p == "/v2/" {
				pings++
			}
		}
		if got := n.Requests(); pings != 1 || got > want+1 {
			t.Errorf("%q: %d requests, %d pings; want %d", scheme, got, pings, want)
		}
	}
	s := newShop(t, "Bearer", list)
	s.uses = 2
	n := newTestSession(t, s)
	for range 10 { // tokens run out on the way
		tags(t, n, "repo", "")
	}
}

// TestPages follows lists over several pages, and notices what has not changed.
func TestPages(t *testing.T) {
	const etag = `"v1"`
	s := newShop(t, "", func(w http.ResponseWriter, r *http.Request) {
		last := r.URL.Query().Get("last")
		switch r.URL.Path + " " + last {
		case "/v2/_catalog ":
			w.Header().Set("Link", `</v2/_catalog?last=b&n=1000>; rel="next"`)
			_, _ = w.Write([]byte(`{"repositories":["a","b"]}`))
		case "/v2/_catalog b":
			_, _ = w.Write([]byte(`{"repositories":["c"]}`))
		case "/v2/a/tags/list ":
			w.Header().Add("Link", `<https://docs.example/>; rel="help", <list?last=2>; rel=next`)
			w.Header().Set("ETag", etag)
			_, _ = w.Write([]byte(`{"tags":["1","2"]}`))
		case "/v2/a/tags/list 2":
			_, _ = w.Write([]byte(`{"tags":null}`))
		case "/v2/b/tags/list ":
			if r.Header.Get("If-None-Match") == etag {
				w.WriteHeader(http.StatusNotModified)
				return
			}
			w.Header().Set("ETag", etag)
			_, _ = w.Write([]byte(`{"tags":["1"],"manifest":{"sha256:x":{"tag":["1"]},"sha256:y":{}}}`))
		default:
			w.WriteHeader(http.StatusNotFound)
		}
	})
	n := newTestSession(t, s)
	var repos []string
	if err := n.Repositories(t.Context(), func(p []string) error { repos = append(repos, p...); return nil }); err != nil || !slices.Equal(repos, []string{"a", "b", "c"}) {
		t.Errorf("%v, %v", repos, err)
	}
	if names, v, _ := tags(t, n, "a", ""); !slices.Equal(names, []string{"1", "2"}) || v != "" {
		t.Errorf("%v, %q: a validator of several pages tells nothing", names, v)
	}
	names, v, unchanged := tags(t, n, "b", "")
	if !slices.Equal(names, []string{"1"}) || v != etag || unchanged {
		t.Errorf("%v, %q, %v", names, v, unchanged)
	}
	if names, v, unchanged = tags(t, n, "b", v); len(names) > 0 || v != etag || !unchanged {
		t.Errorf("%v, %q, %v", names, v, unchanged)
	}
	if _, _, err := n.Tags(t.Context(), "b", "", func(p TagPage) error {
		if p.Digests["1"] != "sha256:x" {
			t.Errorf("%+v", p)
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
	stop := errors.New("enough")
	if err := n.Repositories(t.Context(), func([]string) error { return stop }); !errors.Is(err, stop) {
		t.Error(err)
	}
	if _, _, err := n.Tags(t.Context(), "none", "", nil); fault.KindOf(err) != fault.NotFound {
		t.Error(err)
	}
}

// TestLook looks at manifests, with and without knowing them.
func TestLook(t *testing.T) {
	raw := []byte(`{"schemaVersion":2}`)
	digest := fmt.Sprintf("sha256:%x", sha256.Sum256(raw))
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
		case "/v2/a/blobs/" + digest, "/v2/a/manifests/plain", "/v2/a/blobs/sha256:other":
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
	for what, size := range map[string]int64{digest: 3, "sha256:other": int64(len(raw)), "sha256:none": 1} {
		if _, err := n.ReadBlob(t.Context(), "a", what, size); err == nil {
			t.Errorf("%s of %d bytes is read", what, size)
		}
	}
	if _, err := n.ReadBlob(t.Context(), "a", digest, MaxManifestSize+1); fault.KindOf(err) != fault.ImageInvalid {
		t.Error(err)
	}
}

// TestHostile proves that a registry cannot lead us round in circles or away.
func TestHostile(t *testing.T) {
	for what, c := range map[string]struct {
		link, body string
		kind       fault.Kind
	}{
		"itself":       {`</v2/a/tags/list?n=1000>; rel="next"`, `{"tags":[]}`, fault.RegistryError},
		"another host": {`<http://evil.example/v2/a/tags/list>; rel="next"`, `{"tags":[]}`, fault.RegistryError},
		"elsewhere":    {`</admin>; rel="next"`, `{"tags":[]}`, fault.RegistryError},
		"no list":      {``, `<html>`, fault.NotRegistry},
		"far too long": {``, `{"tags":["` + strings.Repeat("a", maxPageSize) + `"]}`, fault.ImageInvalid},
	} {
		s := newShop(t, "", func(w http.ResponseWriter, _ *http.Request) {
			if c.link != "" {
				w.Header().Set("Link", c.link)
			}
			_, _ = w.Write([]byte(c.body))
		})
		_, _, err := newTestSession(t, s).Tags(t.Context(), "a", "", func(TagPage) error { return nil })
		if fault.KindOf(err) != c.kind || len(err.Error()) > 500 {
			t.Errorf("%s: %.300v", what, err)
		}
	}
}

// TestRest proves that a registry that asks for rest gets it, for all requests.
func TestRest(t *testing.T) {
	var limited, served int
	var mu sync.Mutex
	after := "0"
	s := newShop(t, "", func(w http.ResponseWriter, _ *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		if limited++; limited%2 == 1 {
			w.Header().Set("Retry-After", after)
			w.WriteHeader(http.StatusTooManyRequests)
			return
		}
		served++
		_, _ = w.Write([]byte(`{"tags":["a"]}`))
	})
	n := newTestSession(t, s)
	tags(t, n, "a", "") // asked again at once
	after = "3600"
	_, _, err := n.Tags(t.Context(), "a", "", func(TagPage) error { return nil })
	if fault.KindOf(err) != fault.RegistryError || !fault.Temporary(err) || fault.After(err) != time.Hour {
		t.Errorf("%v, after %v", err, fault.After(err))
	}
	s.paths()
	_, _, err = n.Look(t.Context(), "b", "x", "")
	if left := fault.After(err); left < 50*time.Minute || len(s.paths()) > 0 {
		t.Errorf("another request is sent: %v, after %v", err, left)
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

// TestPace proves the bound on requests at once, and that cancelled ones end.
func TestPace(t *testing.T) {
	var mu sync.Mutex
	now, most := 0, 0
	hold := make(chan struct{})
	s := newShop(t, "", func(w http.ResponseWriter, _ *http.Request) {
		mu.Lock()
		now++
		most = max(most, now)
		mu.Unlock()
		<-hold
		mu.Lock()
		now--
		mu.Unlock()
		_, _ = w.Write([]byte(`{}`))
	})
	n := newTestSession(t, s)
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			if _, _, err := n.Look(t.Context(), "a", fmt.Sprint("t", i), ""); err != nil {
				t.Error(err)
			}
		})
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := n.Look(ctx, "a", "x", ""); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	for range 4 {
		hold <- struct{}{}
	}
	close(hold)
	wg.Wait()
	if most > 4 {
		t.Errorf("%d requests were under way at once", most)
	}
}

// FuzzLists proves that nothing that a registry lists brings us down.
func FuzzLists(f *testing.F) {
	f.Add(`</v2/_catalog?last=b>; rel="next"`, []byte(`{"tags":["a"],"manifest":{"d":{"tag":["a"]}}}`))
	f.Add(`<a>;rel=help,<b>;rel=next`, []byte(`{}`))
	f.Add(`<<>>,;=`, []byte(`null`))
	s, err := NewSession(Options{}, "r.example", SessionLimit{})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, link string, body []byte) {
		if next, err := s.following("/v2/a/tags/list?n=1", []string{link}); err == nil && next != "" && !strings.HasPrefix(next, "/v2/") {
			t.Errorf("%q leads to %q", link, next)
		}
		page, err := s.tagPage(body)
		if err == nil && !json.Valid(body) {
			t.Errorf("%+v out of %q", page, body)
		}
	})
}
