package node

import (
	"io"
	"net/http"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/validate"

	"github.com/apparate/apparate/test/tools"
)

// registryProgram is built where it is not there.
func registryProgram(t *testing.T) string {
	t.Helper()
	paths, err := tools.Ensure(t.Context(), t.Output(), tools.Registry)
	if err != nil {
		t.Fatal(err)
	}
	return paths[tools.Registry]
}

// startRegistry starts a registry that ends with the test.
func startRegistry(t *testing.T, args ...string) *Registry {
	t.Helper()
	r, err := StartRegistry(t.Context(), registryProgram(t), t.TempDir(), args...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

// TestRegistryDirect: blobs that come straight from their files are the same answers, and
// only of the repository that has them.
func TestRegistryDirect(t *testing.T) {
	img, err := random.Image(1000, 1)
	if err != nil {
		t.Fatal(err)
	}
	m, err := img.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	blob := m.Layers[0]
	answers := map[string][]string{}
	for _, args := range [][]string{nil, {"--direct"}} {
		r := startRegistry(t, args...)
		ref, err := name.ParseReference(r.Addr + "/some/app:1")
		if err != nil {
			t.Fatal(err)
		}
		if err := remote.Write(ref, img); err != nil {
			t.Fatal(err)
		}
		got, err := remote.Image(ref)
		if err != nil {
			t.Fatal(err)
		}
		if err := validate.Image(got); err != nil {
			t.Errorf("%v: what was pulled: %v", args, err)
		}
		for _, q := range []struct{ method, path, ranges string }{
			{http.MethodGet, "some/app", ""}, {http.MethodGet, "some/app", "bytes=100-199"}, {http.MethodHead, "some/app", ""},
			{http.MethodGet, "other/app", ""}, {http.MethodGet, "some/app", "bytes=5000-6000"}, {http.MethodGet, "some/../some/app", ""},
		} {
			req, err := http.NewRequestWithContext(t.Context(), q.method, "http://"+r.Addr+"/v2/"+q.path+"/blobs/"+blob.Digest.String(), nil)
			if err != nil {
				t.Fatal(err)
			}
			if q.ranges != "" {
				req.Header.Set("Range", q.ranges)
			}
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			body, err := io.ReadAll(resp.Body)
			if err != nil {
				t.Fatal(err)
			}
			_ = resp.Body.Close() // read to its end
			if resp.StatusCode >= 400 {
				body = nil // the words are theirs
			}
			key := q.method + " " + q.path + " " + q.ranges
			answers[key] = append(answers[key], resp.Status+resp.Header.Get("Content-Range")+resp.Header.Get("Content-Length")+string(body))
		}
	}
	for key, a := range answers {
		if len(a) != 2 || a[0] != a[1] {
			t.Errorf("%s: %.80q, straight from the file %.80q", key, a[0], a[1])
		}
	}
	if _, err := StartRegistry(t.Context(), registryProgram(t), t.TempDir(), "--direct", "--token", "realm=x"); err == nil {
		t.Error("--direct with --token began")
	}
}
