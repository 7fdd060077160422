package registry

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

var alphabet = []byte("abcdefghijklmnopqrstuvwxyz")

// get sends one request and reads the answer.
func get(t *testing.T, c *http.Client, url, rng string) (*http.Response, []byte, error) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	if rng != "" {
		req.Header.Set("Range", rng)
	}
	resp, err := c.Do(req)
	if err != nil {
		return nil, nil, err
	}
	b, err := io.ReadAll(resp.Body)
	if cerr := resp.Body.Close(); cerr != nil {
		t.Error(cerr)
	}
	return resp, b, err
}

func TestRanges(t *testing.T) {
	r := New(t)
	url := r.BlobURL("app", r.AddBlob(t, alphabet))
	for _, c := range []struct {
		rng    string
		status int
		want   string
	}{
		{"", 200, string(alphabet)},
		{"bytes=0-0", 206, "a"},
		{"bytes=3-5", 206, "def"},
		{"bytes=23-", 206, "xyz"},
		{"bytes=-2", 206, "yz"},
		{"bytes=20-99", 206, "uvwxyz"},
		{"bytes=26-30", 416, ""},
	} {
		resp, b, err := get(t, r.Client(), url, c.rng)
		if err != nil {
			t.Fatal(err)
		}
		if resp.StatusCode != c.status || (c.want != "" && string(b) != c.want) {
			t.Errorf("%q: %d %q, want %d %q", c.rng, resp.StatusCode, b, c.status, c.want)
		}
	}
	d := strings.TrimPrefix(url, r.BlobURL("app", ""))[:19]
	want := []string{"GET blob " + d + " 200 26", "GET blob " + d + " bytes=0-0 206 1", "GET blob " + d + " bytes=3-5 206 3"}
	if got := r.BlobLines(); !slices.Equal(got[:3], want) {
		t.Errorf("lines = %q, want %q", got[:3], want)
	}
	if got, want := r.BlobBytes(), int64(26+1+3+3+2+6); got != want {
		t.Errorf("BlobBytes = %d, want %d", got, want)
	}
}

// TestPushPull moves an image through every kind of registry with a client that
// knows nothing of this package.
func TestPushPull(t *testing.T) {
	for label, opts := range map[string][]Option{
		"plain":          nil,
		"TLS":            {WithTLS()},
		"client cert":    {WithClientCert()},
		"basic":          {WithBasic("u", "p")},
		"token":          {WithToken("u", "p", 0)},
		"redirect":       {WithRedirect(1)},
		"all of a cloud": {WithTLS(), WithToken("u", "p", 0), WithRedirect(1)},
	} {
		t.Run(label, func(t *testing.T) {
			r := New(t, opts...)
			img, err := random.Image(10_000, 3)
			if err != nil {
				t.Fatal(err)
			}
			ref, err := name.ParseReference(r.Host() + "/team/app:v1")
			if err != nil {
				t.Fatal(err)
			}
			ropts := []remote.Option{
				remote.WithTransport(r.Client().Transport), remote.WithContext(t.Context()),
				remote.WithAuth(authn.FromConfig(authn.AuthConfig{Username: "u", Password: "p"})),
			}
			if err := remote.Write(ref, img, ropts...); err != nil {
				t.Fatal(err)
			}
			back, err := remote.Image(ref, ropts...)
			if err != nil {
				t.Fatal(err)
			}
			layers, err := back.Layers()
			if err != nil {
				t.Fatal(err)
			}
			for _, l := range layers {
				rc, err := l.Compressed() // verifies the digest
				if err != nil {
					t.Fatal(err)
				}
				if _, err := io.Copy(io.Discard, rc); err != nil {
					t.Error(err)
				}
				if err := rc.Close(); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

func TestFaults(t *testing.T) {
	for _, f := range Faults() {
		t.Run(string(f), func(t *testing.T) {
			r := New(t)
			url := r.BlobURL("app", r.AddBlob(t, alphabet))
			r.FailAt(1, f)
			c := r.Client()
			c.Timeout = 200 * time.Millisecond // for those that hang
			// On a connection that was used before, net/http itself repeats a
			// request that was reset.
			c.Transport.(*http.Transport).DisableKeepAlives = true
			for i := range 3 {
				resp, b, err := get(t, c, url, "bytes=4-13")
				good := err == nil && resp.StatusCode == 206 && bytes.Equal(b, alphabet[4:14]) &&
					resp.Header.Get("Content-Range") == "bytes 4-13/26"
				if good != (i != 1 || f == Slow) {
					t.Errorf("request %d: %v, %q, %v", i, resp, b, err)
				}
				if i == 1 && f.Lies() && (err != nil || resp.StatusCode != 206 || len(b) != 10) {
					t.Errorf("a lie must look right: %v, %q, %v", resp, b, err)
				}
			}
			if r.Count() != 3 {
				t.Errorf("Count = %d, want 3", r.Count())
			}
		})
	}
}

func TestFailEvery(t *testing.T) {
	r := New(t)
	url := r.BlobURL("app", r.AddBlob(t, alphabet))
	r.FailEvery(3, ServerError)
	var got []int
	for range 7 {
		resp, _, err := get(t, r.Client(), url, "bytes=0-1")
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, resp.StatusCode)
	}
	if want := []int{206, 206, 503, 206, 206, 503, 206}; !slices.Equal(got, want) {
		t.Errorf("statuses %v, want %v", got, want)
	}
	r.Heal()
	if resp, _, err := get(t, r.Client(), url, "bytes=0-1"); err != nil || resp.StatusCode != 206 || r.Count() != 1 {
		t.Errorf("after Heal: %v, %v, count %d", resp, err, r.Count())
	}
}

// TestHangEnds proves that a request nobody answers does not keep the test from ending.
func TestHangEnds(t *testing.T) {
	failed := make(chan error, 1)
	t.Run("inner", func(t *testing.T) {
		r := New(t)
		url := r.BlobURL("app", r.AddBlob(t, alphabet))
		r.FailEvery(1, Hang)
		c := r.Client()
		go func() {
			resp, err := c.Get(url)
			if err == nil {
				err = errors.Join(errors.New("answered"), resp.Body.Close())
			}
			failed <- err
		}()
		for r.Count() == 0 {
			time.Sleep(time.Millisecond)
		}
	})
	if err := <-failed; err == nil || err.Error() == "answered" {
		t.Errorf("hanging request = %v, want a broken connection", err)
	}
}

func TestRedirectExpires(t *testing.T) {
	r := New(t, WithRedirect(2))
	url := r.BlobURL("app", r.AddBlob(t, alphabet))
	resp, _, err := get(t, r.Client(), url, "bytes=0-3")
	if err != nil || resp.Request.URL.Host != r.StoreHost() {
		t.Fatalf("not redirected: %v, %v", resp, err)
	}
	signed := resp.Request.URL.String()
	for i, want := range []int{206, 403} {
		if resp, _, err := get(t, r.Client(), signed, "bytes=0-3"); err != nil || resp.StatusCode != want {
			t.Errorf("use %d: %v, %v; want %d", i+2, resp, err, want)
		}
	}
	for _, q := range r.Requests() {
		if strings.Contains(q.Line(), "signature") {
			t.Errorf("golden line has the signature: %s", q.Line())
		}
	}
}
