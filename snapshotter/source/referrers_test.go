package source_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/apparate/apparate/snapshotter/source"
)

const kind = "application/vnd.test"

// shelf is a registry of lists of referrers.
type shelf struct {
	mu                 sync.Mutex
	api, tag           string // bodies; "" is 404
	token              string // wanted, "" for none
	askedAPI, askedTag int
}

func (s *shelf) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.token != "" {
		if _, p, _ := r.BasicAuth(); p != s.token {
			w.Header().Set("WWW-Authenticate", `Basic realm="shelf"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
	}
	body := ""
	switch {
	case strings.Contains(r.URL.Path, "/referrers/sha256:"):
		s.askedAPI++
		body = s.api
	case strings.Contains(r.URL.Path, "/manifests/sha256-"):
		s.askedTag++
		body = s.tag
	case strings.Contains(r.URL.Path, "/manifests/sha256:"):
		body = "{}"
	}
	if body == "" {
		http.NotFound(w, r)
		return
	}
	_, _ = w.Write([]byte(body)) // the client is in this process
}

// index lists artifacts of a type by the text that their digests are of.
func index(t *testing.T, artifact string, texts ...string) string {
	t.Helper()
	var x ocispec.Index
	for _, text := range texts {
		x.Manifests = append(x.Manifests, ocispec.Descriptor{ArtifactType: artifact, Digest: digest.FromString(text), Annotations: map[string]string{"text": text}})
	}
	b, err := json.Marshal(x)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestReferrers(t *testing.T) {
	subject := digest.FromString("subject")
	for name, c := range map[string]struct {
		api, tag, token string
		want            string
		fails           bool
	}{
		"nothing":        {},
		"empty list":     {api: index(t, kind)},
		"list":           {api: index(t, kind, "a", "b"), want: "a b"},
		"tag":            {tag: index(t, kind, "c"), want: "c"},
		"empty and tag":  {api: index(t, kind), tag: index(t, kind, "c"), want: "c"},
		"another type":   {api: index(t, "other", "a"), tag: index(t, "other", "c")},
		"no JSON":        {api: "<html>", fails: true},
		"no JSON, a tag": {api: "<html>", tag: index(t, kind, "c"), want: "c"},
		"no digest":      {api: `{"manifests":[{"artifactType":"` + kind + `","digest":"sha256:../x"}]}`},
		"too long":       {api: `{"manifests":[]}` + strings.Repeat(" ", 5<<20), fails: true},
		"credentials":    {api: index(t, kind, "a"), token: "p", want: "a"},
		"wrong ones":     {api: index(t, kind, "a"), token: "other", fails: true},
	} {
		s := &shelf{api: c.api, tag: c.tag, token: c.token}
		server := httptest.NewServer(s)
		host := strings.TrimPrefix(server.URL, "http://")
		r := source.New(source.Options{HostsDirs: []string{t.TempDir()}, DockerConfig: t.TempDir(), Credentials: func(context.Context, string, string) ([]source.Credential, error) {
			return []source.Credential{{User: "user", Secret: "p"}}, nil
		}})
		for range 2 {
			list, err := r.Referrers(t.Context(), host+"/app:v1", subject, kind)
			var got []string
			for _, d := range list {
				got = append(got, d.Annotations["text"])
			}
			if strings.Join(got, " ") != c.want || (err != nil) != c.fails {
				t.Errorf("%s: %v, %v", name, got, err)
			}
		}
		if c.api == "" && s.askedAPI != 1 {
			t.Errorf("%s: a host without the API was asked for it %d times", name, s.askedAPI)
		}
		r.Close()
		server.Close()
	}
}

// A blob is verified, and bounded before it is asked for.
func TestBytes(t *testing.T) {
	good := []byte("content")
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body := good
		if !strings.HasSuffix(r.URL.Path, digest.FromBytes(good).String()) {
			body = []byte("another")
		}
		w.Header().Set("Content-Range", fmt.Sprintf("bytes 0-%d/%d", len(body)-1, len(body)))
		w.WriteHeader(http.StatusPartialContent)
		_, _ = w.Write(body) // the client is in this process
	}))
	defer server.Close()
	ref := strings.TrimPrefix(server.URL, "http://") + "/app:v1"
	r := source.New(source.Options{HostsDirs: []string{t.TempDir()}, DockerConfig: t.TempDir()})
	defer r.Close()
	desc := ocispec.Descriptor{Digest: digest.FromBytes(good), Size: int64(len(good))}
	b, err := r.Bytes(t.Context(), ref, desc, 100)
	if err != nil || string(b) != string(good) {
		t.Errorf("%q, %v", b, err)
	}
	if _, err := r.Bytes(t.Context(), ref, desc, 3); err == nil {
		t.Error("a blob of 7 bytes was read where 3 are allowed")
	}
	desc.Digest = digest.FromString("what it is not")
	if _, err := r.Bytes(t.Context(), ref, desc, 100); err == nil || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a blob with another digest was taken: %v", err)
	}
}
