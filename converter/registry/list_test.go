package registry

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/apparate/apparate/converter/fault"
)

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
		"far too long": {``, `{"tags":["` + strings.Repeat("a", maxPageSize) + `"]}`, fault.RegistryError},
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

// TestUnasked proves that a registry that says "not modified" without having been
// asked is not taken for one that lists nothing.
func TestUnasked(t *testing.T) {
	s := newShop(t, "", func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("last") == "" && strings.HasPrefix(r.URL.Path, "/v2/pages/") {
			w.Header().Set("Link", `<list?last=1>; rel="next"`)
			_, _ = w.Write([]byte(`{"tags":["1"]}`))
			return
		}
		w.WriteHeader(http.StatusNotModified)
	})
	n := newTestSession(t, s)
	if err := n.Repositories(t.Context(), func([]string) error { return nil }); fault.KindOf(err) != fault.RegistryError {
		t.Errorf("the catalog: %v", err)
	}
	for repo, known := range map[string]string{"a": "", "pages": `"v1"`} {
		_, unchanged, err := n.Tags(t.Context(), repo, known, func(TagPage) error { return nil })
		if fault.KindOf(err) != fault.RegistryError || unchanged {
			t.Errorf("%s: %v, %v", repo, unchanged, err)
		}
	}
}

// TestUnconditional lists from a registry that gives a validator and never asks
// for it.
func TestUnconditional(t *testing.T) {
	s := newShop(t, "", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("ETag", `W/"v1"`)
		_, _ = w.Write([]byte(`{"tags":["a"]}`))
	})
	n := newTestSession(t, s)
	for range 2 {
		if names, v, unchanged := tags(t, n, "a", `W/"v1"`); len(names) != 1 || v != `W/"v1"` || unchanged {
			t.Errorf("%v, %q, %v", names, v, unchanged)
		}
	}
}

// TestCircle proves that a list whose pages follow each other in a circle ends.
func TestCircle(t *testing.T) {
	s := newShop(t, "", func(w http.ResponseWriter, r *http.Request) {
		next := map[string]string{"": "b", "b": "c", "c": "b"}[r.URL.Query().Get("last")]
		w.Header().Set("Link", fmt.Sprintf(`<http://%s/v2/_catalog?last=%s>; rel="next"`, r.Host, next))
		_, _ = w.Write([]byte(`{"repositories":[]}`))
	})
	err := newTestSession(t, s).Repositories(t.Context(), func([]string) error { return nil })
	if asked := s.paths(); fault.KindOf(err) != fault.RegistryError || len(asked) != 4 { // with the ping
		t.Errorf("%v; %v", err, asked)
	}
}

// TestYieldFault proves that an error of the caller's is not taken for the
// registry's.
func TestYieldFault(t *testing.T) {
	s := newShop(t, "", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(`{"repositories":["a"]}`)) })
	n := newTestSession(t, s)
	for _, kind := range []fault.Kind{fault.NotFound, fault.PullDenied} {
		own := fault.New(kind, nil, "of the caller")
		if err := n.Repositories(t.Context(), func([]string) error { return own }); !errors.Is(err, own) {
			t.Errorf("%v", err)
		}
	}
}

// TestNames proves that names out of lists lead to no other paths and scopes.
func TestNames(t *testing.T) {
	s := newShop(t, "", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(`{}`)) })
	n := newTestSession(t, s)
	for _, repo := range []string{"", "..", "a/../b", "a//b", "/a", "a/", "a?b", "a#b", "a%2e", "A", "a b", "a:pull repository:b", "a\n", strings.Repeat("a", 256)} {
		_, _, err := n.Tags(t.Context(), repo, "", nil)
		_, _, looked := n.Look(t.Context(), repo, "latest", "")
		_, read := n.ReadBlob(t.Context(), repo, "sha256:"+strings.Repeat("0", 64), 1)
		for _, err := range []error{err, looked, read} {
			if fault.KindOf(err) != fault.BadName {
				t.Errorf("%q: %v", repo, err)
			}
		}
	}
	for _, reference := range []string{"", "..", "../x", "a/b", "a?b", ".a", "sha256:0", strings.Repeat("a", 129)} {
		if _, _, err := n.Look(t.Context(), "a", reference, ""); fault.KindOf(err) != fault.BadName {
			t.Errorf("%q: %v", reference, err)
		}
	}
	if asked := s.paths(); len(asked) > 0 {
		t.Errorf("asked for %v", asked)
	}
	for _, repo := range []string{"a", "library/redis", "a.b/c_d/e__f/g-h", "p/x-", "0"} {
		tags(t, n, repo, "")
	}
}

// TestLinks reads Link headers.
func TestLinks(t *testing.T) {
	for header, want := range map[string]string{
		``:                                 "",
		`</v2/x>; rel="next"`:              "/v2/x",
		`</v2/x>;rel=next`:                 "/v2/x",
		`</v2/x?a=1,2;3>; REL="Next"`:      "/v2/x?a=1,2;3",
		`</v2/x>; rel="prev"`:              "",
		`</v2/x>; title="next"`:            "",
		`</v2/x>; title="a, b"; rel=next`:  "/v2/x",
		`</v2/x>; title="\""; rel="next"`:  "/v2/x",
		`</v2/x>; rel="last next"`:         "/v2/x",
		`<y>; t="<z>", </v2/x>; rel=next`:  "/v2/x",
		`<y>; rel=prev , </v2/x>;rel=next`: "/v2/x",
		`</v2/x; rel="next"`:               "",
	} {
		if got, ok := nextLink([]string{`<other>; rel=help`, header}); got != want || ok != (want != "") {
			t.Errorf("%s: %q, %v", header, got, ok)
		}
	}
	s, err := NewSession(Options{}, "r.example", SessionLimit{})
	if err != nil {
		t.Fatal(err)
	}
	for link, want := range map[string]string{
		"https://r.example/v2/x": "/v2/x", "https://R.example:443/v2/x": "/v2/x", "http://r.example/v2/x": "/v2/x",
		"//r.example/v2/x": "/v2/x", "list?last=a%2Fb": "/v2/a/tags/list?last=a%2Fb",
		"https://r.example:5000/v2/x": "", "https://r.example.evil/v2/x": "", "//evil/v2/x": "", "https://r.example@evil/v2/x": "",
		"/v1/x": "", "/v2/../x": "", "mailto:x": "", "http://[": "",
	} {
		got, err := s.following("/v2/a/tags/list?n=1", []string{"<" + link + ">; rel=next"})
		if got != want || (err == nil) != (want != "") {
			t.Errorf("%s: %q, %v", link, got, err)
		}
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
