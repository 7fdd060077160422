package source_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/opencontainers/go-digest"

	"github.com/apparate/apparate/api/image"
	"github.com/apparate/apparate/snapshotter/fetch"
	"github.com/apparate/apparate/snapshotter/fetch/fetchtest"
	"github.com/apparate/apparate/snapshotter/source"
	"github.com/apparate/apparate/test/registry"
)

// options are Options that look at nothing outside the test.
func options(t *testing.T) source.Options {
	dir := t.TempDir()
	return source.Options{
		HostsDirs:    []string{filepath.Join(dir, "certs.d")},
		DockerConfig: filepath.Join(dir, "docker"),
		Fetch:        fetch.Config{Backoff: time.Millisecond, MaxBackoff: time.Millisecond},
		Logger:       slog.New(slog.DiscardHandler),
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// login writes a docker config.json with credentials for host.
func login(t *testing.T, o source.Options, host, user, password string) {
	t.Helper()
	write(t, filepath.Join(o.DockerConfig, "config.json"),
		fmt.Sprintf(`{"auths": {%q: {"username": %q, "password": %q}}}`, host, user, password))
}

// check reads a range of a blob that holds data.
func check(t *testing.T, r *source.Resolver, ref string, data []byte) {
	t.Helper()
	b, err := r.Open(t.Context(), ref, digest.FromBytes(data), int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	readsRight(t, b, data)
}

func readsRight(t *testing.T, b fetch.Blob, data []byte) {
	t.Helper()
	p := make([]byte, 100)
	if err := fetch.ReadAt(t.Context(), b, p, 50); err != nil {
		t.Error(err)
	} else if !bytes.Equal(p, data[50:150]) {
		t.Error("wrong bytes")
	}
	if err := b.Close(); err != nil {
		t.Error(err)
	}
}

func TestOpen(t *testing.T) {
	data := fetchtest.Random(1000)
	for label, opts := range map[string][]registry.Option{
		"plain":       nil,
		"TLS":         {registry.WithTLS()},
		"client cert": {registry.WithClientCert()},
		"basic":       {registry.WithBasic("user", "secret-password")},
		"token":       {registry.WithToken("user", "secret-password", 0)},
		"cloud":       {registry.WithTLS(), registry.WithToken("user", "secret-password", 1), registry.WithRedirect(1)},
	} {
		t.Run(label, func(t *testing.T) {
			reg := registry.New(t, opts...)
			reg.AddBlob(t, data)
			o := options(t)
			login(t, o, reg.Host(), "user", "secret-password")
			if strings.HasPrefix(reg.URL(), "https:") {
				reg.WriteCerts(t, o.HostsDirs[0])
			}
			r := source.New(o)
			for range 3 {
				check(t, r, reg.Host()+"/team/app:v1", data)
			}
			b, err := r.Open(t.Context(), reg.Host()+"/team/app:v1", digest.FromBytes(data), 0)
			if err != nil {
				t.Fatal(err)
			}
			if b.Size() != 1000 {
				t.Errorf("size found = %d", b.Size())
			}
			readsRight(t, b, data)
		})
	}
}

func TestOpenDoesNoIO(t *testing.T) {
	reg := registry.New(t)
	r := source.New(options(t))
	if _, err := r.Open(t.Context(), reg.Host()+"/a:1", digest.FromString("x"), 5); err != nil {
		t.Error(err)
	}
	if n := len(reg.Requests()); n != 0 {
		t.Errorf("%d requests", n)
	}
	if _, err := r.Open(t.Context(), "A B", digest.FromString("x"), 5); err == nil {
		t.Error("a bad reference was accepted")
	}
	if _, err := r.Open(t.Context(), reg.Host()+"/a:1", "sha256:x", 5); err == nil {
		t.Error("a bad digest was accepted")
	}
}

func TestMirror(t *testing.T) {
	data := fetchtest.Random(1000)
	upstream, mirror := registry.New(t), registry.New(t, registry.WithBasic("mirror-user", "p"))
	upstream.AddBlob(t, data)
	mirror.AddBlob(t, data)
	o := options(t)
	login(t, o, mirror.Host(), "mirror-user", "p")
	// The reference's host need not exist at all.
	write(t, filepath.Join(o.HostsDirs[0], "registry.test", "hosts.toml"), fmt.Sprintf(`
server = %q
[host.%q]
  capabilities = ["pull"]
  [host.%q.header]
    X-Mirror = ["yes"]
`, upstream.URL(), mirror.URL(), mirror.URL()))
	r := source.New(o)
	check(t, r, "registry.test/team/app:v1", data)
	if mirror.Count() != 2 || upstream.Count() != 0 { // a challenge and the blob
		t.Errorf("%d requests to the mirror, %d to the registry", mirror.Count(), upstream.Count())
	}
	for _, q := range mirror.Requests() {
		if q.NS != "registry.test" || q.Header.Get("X-Mirror") != "yes" || q.Header.Get("User-Agent") != "apparate" {
			t.Errorf("mirror got ns=%q, header %v", q.NS, q.Header)
		}
	}
	mirror.FailEvery(1, registry.NotFound)
	check(t, r, "registry.test/team/app:v1", data)
	if upstream.Count() != 1 || upstream.Requests()[0].Header.Get("X-Mirror") != "" {
		t.Errorf("upstream: %+v", upstream.Requests())
	}
}

func TestPlainHTTP(t *testing.T) {
	data := fetchtest.Random(1000)
	reg := registry.New(t)
	reg.AddBlob(t, data)
	o := options(t)
	o.PlainHTTP = []string{reg.Host()}
	check(t, source.New(o), reg.Host()+"/a:1", data)
}

// TestLayersShareToken opens many layers at once, as the start of a container does.
func TestLayersShareToken(t *testing.T) {
	reg := registry.New(t, registry.WithToken("user", "p", 0))
	o := options(t)
	login(t, o, reg.Host(), "user", "p")
	r := source.New(o)
	for round := 1; round <= 3; round++ {
		var wg sync.WaitGroup
		for i := range 20 {
			data := fetchtest.Random(1000 + i)
			reg.AddBlob(t, data)
			wg.Go(func() {
				p := make([]byte, 100)
				b, err := r.Open(t.Context(), reg.Host()+"/team/app:v1", digest.FromBytes(data), int64(len(data)))
				if err != nil {
					t.Error(err)
				} else if err := fetch.ReadAt(t.Context(), b, p, 0); err != nil || !bytes.Equal(p, data[:100]) {
					t.Errorf("layer %d: %v", i, err)
				}
			})
		}
		wg.Wait()
		if reg.Tokens() != round {
			t.Errorf("round %d: %d tokens for 20 layers", round, reg.Tokens())
		}
		reg.ExpireTokens() // though they said five minutes
	}
}

func TestCredentialsRotate(t *testing.T) {
	data := fetchtest.Random(1000)
	for label, opt := range map[string]registry.Option{
		"basic": registry.WithBasic("user", "old"), "token": registry.WithToken("user", "old", 0),
	} {
		t.Run(label, func(t *testing.T) {
			reg := registry.New(t, opt)
			reg.AddBlob(t, data)
			o := options(t)
			r := source.New(o)
			ref := reg.Host() + "/team/app:v1"
			b, err := r.Open(t.Context(), ref, digest.FromBytes(data), 1000)
			if err != nil {
				t.Fatal(err)
			}
			refused := func(when string) {
				t.Helper()
				err := fetch.ReadAt(t.Context(), b, make([]byte, 10), 0)
				if e, ok := errors.AsType[*fetch.Error](err); !ok || e.Temporary || strings.Contains(err.Error(), "secret-") {
					t.Errorf("%s: %v, want a lasting *fetch.Error", when, err)
				}
			}
			refused("no credentials")
			login(t, o, reg.Host(), "user", "old")
			readOK := func(when string) {
				t.Helper()
				if err := fetch.ReadAt(t.Context(), b, make([]byte, 10), 0); err != nil {
					t.Errorf("%s: %v", when, err)
				}
			}
			readOK("logged in")
			reg.SetPassword("user", "new")
			refused("password changed")
			login(t, o, reg.Host(), "user", "new")
			readOK("logged in again")
			check(t, r, ref, data)
		})
	}
}

// TestCAAppears begins without the registry's CA.
func TestCAAppears(t *testing.T) {
	data := fetchtest.Random(1000)
	reg := registry.New(t, registry.WithClientCert())
	reg.AddBlob(t, data)
	o := options(t)
	r := source.New(o)
	b, err := r.Open(t.Context(), reg.Host()+"/a:1", digest.FromBytes(data), 1000)
	if err != nil {
		t.Fatal(err)
	}
	if err := fetch.ReadAt(t.Context(), b, make([]byte, 10), 0); err == nil {
		t.Error("read without a client certificate")
	}
	reg.WriteCerts(t, o.HostsDirs[0])
	if err := fetch.ReadAt(t.Context(), b, make([]byte, 10), 0); err != nil {
		t.Error(err)
	}
}

// TestCancelledReaderSpoilsNothing cancels the reader that fetches the token.
func TestCancelledReaderSpoilsNothing(t *testing.T) {
	data := fetchtest.Random(1000)
	reg := registry.New(t, registry.WithToken("user", "p", 0))
	reg.AddBlob(t, data)
	o := options(t)
	asked, release := make(chan struct{}), make(chan struct{})
	var once sync.Once
	o.Credentials = func(string) (string, string, error) {
		once.Do(func() { close(asked); <-release })
		return "user", "p", nil
	}
	r := source.New(o)
	b, err := r.Open(t.Context(), reg.Host()+"/a:1", digest.FromBytes(data), 1000)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- fetch.ReadAt(ctx, b, make([]byte, 10), 0) }()
	<-asked
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled reader = %v", err)
	}
	close(release)
	if err := fetch.ReadAt(t.Context(), b, make([]byte, 10), 0); err != nil {
		t.Error(err)
	}
}

func TestCredentialHelper(t *testing.T) {
	data := fetchtest.Random(1000)
	reg := registry.New(t, registry.WithBasic("helped", "p"))
	reg.AddBlob(t, data)
	o := options(t)
	bin := t.TempDir()
	script := "#!/bin/sh\ncat >/dev/null\necho '{\"ServerURL\":\"x\",\"Username\":\"helped\",\"Secret\":\"p\"}'\n"
	if err := os.WriteFile(filepath.Join(bin, "docker-credential-test"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	// A path to the file itself does as well.
	o.DockerConfig = filepath.Join(o.DockerConfig, "config.json")
	write(t, o.DockerConfig, fmt.Sprintf(`{"credHelpers": {%q: "test"}}`, reg.Host()))
	check(t, source.New(o), reg.Host()+"/a:1", data)
}

// push writes an image with three layers, the middle one annotated as ours.
func push(t *testing.T, reg *registry.Registry, ref string, typ types.MediaType) v1.Image {
	t.Helper()
	img := mutate.MediaType(empty.Image, typ)
	for i := range 3 {
		layer, err := random.Layer(2000, types.OCILayer)
		if err != nil {
			t.Fatal(err)
		}
		add := mutate.Addendum{Layer: layer}
		if i == 1 {
			size, err := layer.Size()
			if err != nil {
				t.Fatal(err)
			}
			add.Annotations = map[string]string{
				image.AnnotationTOCDigest: digest.FromString("toc").String(), image.AnnotationTOCOffset: "100",
				image.AnnotationTOCSize: "50", image.AnnotationBlobSize: fmt.Sprint(size),
			}
		}
		if img, err = mutate.Append(img, add); err != nil {
			t.Fatal(err)
		}
	}
	if err := remote.Write(parse(t, ref), img, remoteOpts(reg)...); err != nil {
		t.Fatal(err)
	}
	return img
}

func parse(t *testing.T, ref string) name.Reference {
	t.Helper()
	n, err := name.ParseReference(ref)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func remoteOpts(reg *registry.Registry) []remote.Option {
	return []remote.Option{
		remote.WithTransport(reg.Client().Transport),
		remote.WithAuth(authn.FromConfig(authn.AuthConfig{Username: "user", Password: "p"})),
	}
}

func hash(t *testing.T, x interface{ Digest() (v1.Hash, error) }) digest.Digest {
	t.Helper()
	h, err := x.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return digest.Digest(h.String())
}

// isImage compares what was found with what was pushed.
func isImage(t *testing.T, img v1.Image, d digest.Digest, layers []source.Layer) {
	t.Helper()
	if d != hash(t, img) || len(layers) != 3 {
		t.Fatalf("found %s with %d layers, want %s with 3", d, len(layers), hash(t, img))
	}
	want, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	for i, l := range layers {
		size, err := want[i].Size()
		if err != nil {
			t.Fatal(err)
		}
		if l.Digest != hash(t, want[i]) || l.BlobSize != size || l.Manifest != d || l.MediaType == "" || l.Ref == "" {
			t.Errorf("layer %d: %+v", i, l)
		}
		if lazy := l.TOCDigest != ""; lazy != (i == 1) || lazy && (l.TOCOffset != 100 || l.TOCSize != 50) {
			t.Errorf("layer %d: TOC %+v", i, l)
		}
	}
}

func TestManifestAndResolve(t *testing.T) {
	for label, typ := range map[string]types.MediaType{"OCI": types.OCIManifestSchema1, "docker": types.DockerManifestSchema2} {
		t.Run(label, func(t *testing.T) {
			reg := registry.New(t, registry.WithToken("user", "p", 0))
			o := options(t)
			login(t, o, reg.Host(), "user", "p")
			r := source.New(o)
			ref := reg.Host() + "/team/app:v1"
			img := push(t, reg, ref, typ)
			reg.Forget()
			layers, err := r.Manifest(t.Context(), ref, hash(t, img))
			if err != nil {
				t.Fatal(err)
			}
			isImage(t, img, hash(t, img), layers)
			if n := len(reg.Requests()); n != 3 { // challenge, token, manifest
				t.Errorf("%d requests for a manifest, want 3", n)
			}
			for _, ref := range []string{ref, reg.Host() + "/team/app@" + hash(t, img).String(), ref + "@" + hash(t, img).String()} {
				d, layers, err := r.Resolve(t.Context(), ref, "")
				if err != nil {
					t.Fatal(err)
				}
				isImage(t, img, d, layers)
			}
		})
	}
}

func TestResolvePlatform(t *testing.T) {
	reg := registry.New(t)
	ref := reg.Host() + "/team/app:v1"
	index := v1.ImageIndex(empty.Index)
	images := map[string]v1.Image{}
	for _, p := range []v1.Platform{{OS: "linux", Architecture: "amd64"}, {OS: "linux", Architecture: "arm", Variant: "v6"},
		{OS: "linux", Architecture: "arm", Variant: "v7"}, {OS: "unknown", Architecture: "unknown"}} {
		img := push(t, reg, ref, types.OCIManifestSchema1)
		images[p.String()] = img
		index = mutate.AppendManifests(index, mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: &p}})
	}
	if err := remote.WriteIndex(parse(t, ref), index, remoteOpts(reg)...); err != nil {
		t.Fatal(err)
	}
	r := source.New(options(t))
	for asked, want := range map[string]string{"linux/amd64": "linux/amd64", "linux/arm": "linux/arm/v7", "linux/arm/v6": "linux/arm/v6"} {
		d, layers, err := r.Resolve(t.Context(), ref, asked)
		if err != nil {
			t.Errorf("%s: %v", asked, err)
			continue
		}
		isImage(t, images[want], d, layers)
	}
	if _, _, err := r.Resolve(t.Context(), ref, "linux/s390x"); !errors.Is(err, source.ErrNoPlatform) {
		t.Errorf("absent platform: %v", err)
	}
	if _, _, err := r.Resolve(t.Context(), ref, "a/b/c/d/e"); err == nil {
		t.Error("nonsense platform was accepted")
	}
	if _, err := r.Manifest(t.Context(), ref, hash(t, index)); !errors.Is(err, source.ErrNotManifest) {
		t.Errorf("index as manifest: %v", err)
	}
}

func TestResolveErrors(t *testing.T) {
	reg := registry.New(t)
	locked := registry.New(t, registry.WithToken("user", "p", 0))
	page := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		_, _ = w.Write([]byte("<html>welcome</html>"))
	}))
	t.Cleanup(page.Close)
	gone := httptest.NewServer(http.NotFoundHandler())
	gone.Close()
	host := func(s *httptest.Server) string { return s.Listener.Addr().String() }
	o := options(t)
	o.Credentials = func(string) (string, string, error) { return "user", "secret-wrong", nil }
	r := source.New(o)
	for name, c := range map[string]struct {
		ref string
		is  error
	}{
		"unknown image":   {reg.Host() + "/no/such:v1", source.ErrNotFound},
		"no permission":   {locked.Host() + "/team/app:v1", source.ErrNoPermission},
		"unreachable":     {host(gone) + "/team/app:v1", source.ErrUnreachable},
		"not a registry":  {host(page) + "/team/app:v1", source.ErrNotRegistry},
		"unknown digest":  {reg.Host() + "/no/such@" + digest.FromString("x").String(), source.ErrNotFound},
		"denied a digest": {locked.Host() + "/team/app@" + digest.FromString("x").String(), source.ErrNoPermission},
	} {
		t.Run(name, func(t *testing.T) {
			_, _, err := r.Resolve(t.Context(), c.ref, "")
			if !errors.Is(err, c.is) {
				t.Fatalf("Resolve = %v, want %v", err, c.is)
			}
			if text := err.Error(); strings.Contains(text, "secret") || strings.Contains(text, "\n") || !strings.Contains(text, "/") {
				t.Errorf("text: %s", text)
			}
			t.Log(err)
		})
	}
}

// TestWrongManifest has a registry whose manifest is not what its digest says.
func TestWrongManifest(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case strings.HasPrefix(r.URL.Path, "/v2/big/"):
			_, _ = w.Write(make([]byte, 9<<20))
		default:
			_, _ = w.Write([]byte(`{"schemaVersion":2,"config":{"digest":"x"},"layers":[]}`))
		}
	}))
	t.Cleanup(srv.Close)
	r := source.New(options(t))
	for _, repo := range []string{"app", "big"} {
		layers, err := r.Manifest(t.Context(), srv.Listener.Addr().String()+"/"+repo+":1", digest.FromString("other"))
		if err == nil {
			t.Errorf("%s: %+v was accepted", repo, layers)
		} else {
			t.Log(err)
		}
	}
	both := `{"schemaVersion":2,"config":{"digest":"x"},"layers":[{"digest":"x"}],"manifests":[{"digest":"x"}]}`
	reg := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(both)) }))
	t.Cleanup(reg.Close)
	_, err := r.Manifest(t.Context(), reg.Listener.Addr().String()+"/app:1", digest.FromString(both))
	if !errors.Is(err, source.ErrNotManifest) {
		t.Errorf("manifest and index at once: %v", err)
	}
}
