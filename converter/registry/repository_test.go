package registry

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"

	"github.com/apparate/apparate/converter/fault"
)

// repositoryOf logs in to a server's repository "app".
func repositoryOf(t *testing.T, h http.HandlerFunc) *Repository {
	t.Helper()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/v2/" {
			return
		}
		h(w, r)
	}))
	t.Cleanup(srv.Close)
	host := strings.TrimPrefix(srv.URL, "http://")
	c, err := New(Options{RetryWait: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	repo, err := name.NewRepository(host + "/app")
	if err != nil {
		t.Fatal(err)
	}
	r, err := c.Writable(t.Context(), repo)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

var anyDigest = "sha256:" + strings.Repeat("a", 64)

func TestReferrersPages(t *testing.T) {
	page := func(w http.ResponseWriter, n int) {
		w.Header().Set("Content-Type", "application/vnd.oci.image.index.v1+json; charset=utf-8")
		_, _ = fmt.Fprintf(w, `{"manifests":[{"digest":"%d"}]}`, n) // the test counts them
	}
	for name, c := range map[string]struct {
		answer    http.HandlerFunc
		list      int
		supported bool
		fails     bool
	}{
		"two pages": {func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Query().Get("artifactType") != "a/b+c" {
				t.Errorf("asked for %s", r.URL)
			}
			if r.URL.Query().Get("page") == "" {
				w.Header().Set("Link", `</v2/app/referrers/`+anyDigest+`?artifactType=a%2Fb%2Bc&page=2>; rel="next"`)
				page(w, 1)
				return
			}
			page(w, 2)
		}, 2, true, false},
		"pages without end": {func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Link", `<`+r.URL.String()+`>; rel="next"`)
			page(w, 1)
		}, maxReferrerPages, true, false},
		"a page somewhere else": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Link", `<http://elsewhere.example/v2/app>; rel="next"`)
			page(w, 1)
		}, 1, true, false},
		"no list":        {http.NotFound, 0, false, false},
		"a page of HTML": {func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "<html>") }, 0, false, false},
		"no JSON": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/vnd.oci.image.index.v1+json")
			_, _ = io.WriteString(w, "{")
		}, 0, false, false},
		"out of order": {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) }, 0, false, true},
		"denied":       {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusForbidden) }, 0, false, true},
	} {
		r := repositoryOf(t, c.answer)
		list, supported, err := r.Referrers(t.Context(), anyDigest, "a/b+c")
		if len(list) != c.list || supported != c.supported || (err != nil) != c.fails {
			t.Errorf("%s: %d entries, supported %v, %v", name, len(list), supported, err)
		}
	}
	r := repositoryOf(t, http.NotFound)
	if _, _, err := r.Referrers(t.Context(), "../tags", ""); fault.KindOf(err) != fault.BadName {
		t.Errorf("a digest that leads elsewhere: %v", err)
	}
}

func TestRange(t *testing.T) {
	part := func(status int, contentRange, body string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			if got := r.Header.Get("Range"); got != "bytes=2-4" {
				t.Errorf("asked for %q", got)
			}
			w.Header().Set("Content-Range", contentRange)
			w.WriteHeader(status)
			_, _ = io.WriteString(w, body)
		}
	}
	for name, c := range map[string]struct {
		answer http.HandlerFunc
		want   string
		kind   fault.Kind
	}{
		"right":           {part(206, "bytes 2-4/9", "234"), "234", ""},
		"more than that":  {part(206, "bytes 2-4/9", "23456"), "234", ""},
		"all of it":       {part(200, "", "0123456789"), "", fault.RegistryError},
		"another range":   {part(206, "bytes 0-2/9", "012"), "", fault.RegistryError},
		"shorter":         {part(206, "bytes 2-4/9", "23"), "", fault.Unreachable},
		"a missing blob":  {http.NotFound, "", fault.ContentMissing},
		"a busy registry": {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadGateway) }, "", fault.RegistryError},
	} {
		r := repositoryOf(t, c.answer)
		var got []byte
		body, err := r.Range(t.Context(), anyDigest, 2, 3)
		if err == nil {
			got, err = io.ReadAll(body)
			if cerr := body.Close(); cerr != nil {
				t.Error(cerr)
			}
		}
		if fault.KindOf(err) != c.kind || err == nil && string(got) != c.want {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	r := repositoryOf(t, http.NotFound)
	for _, bad := range []struct{ off, n int64 }{{-1, 5}, {0, 0}, {1 << 62, 1 << 62}} {
		if _, err := r.Range(t.Context(), anyDigest, bad.off, bad.n); err == nil {
			t.Errorf("%+v was asked for", bad)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := r.Range(ctx, anyDigest, 0, 1); err == nil {
		t.Error("a caller that left was served")
	}
}

func TestPutReferrer(t *testing.T) {
	for _, listed := range []bool{true, false} {
		r := repositoryOf(t, func(w http.ResponseWriter, req *http.Request) {
			if req.Method != http.MethodPut || req.URL.Path != "/v2/app/manifests/"+anyDigest || req.Header.Get("Content-Type") != "a/b" {
				t.Errorf("%s %s %v", req.Method, req.URL, req.Header)
			}
			if listed {
				w.Header().Set("OCI-Subject", anyDigest)
			}
			w.WriteHeader(http.StatusCreated)
		})
		if got, err := r.PutReferrer(t.Context(), anyDigest, "a/b", []byte("{}")); err != nil || got != listed {
			t.Errorf("listed: %v, want %v, %v", got, listed, err)
		}
	}
	if got := FallbackTag(anyDigest); got != "sha256-"+strings.Repeat("a", 64) {
		t.Errorf("the tag is %s", got)
	}
}
