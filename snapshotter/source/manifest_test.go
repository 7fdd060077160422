package source_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

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
	"github.com/apparate/apparate/snapshotter/source"
	"github.com/apparate/apparate/test/registry"
)

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
	o.Credentials = func(context.Context, string, string) ([]source.Credential, error) {
		return []source.Credential{{User: "user", Secret: "secret-wrong"}}, nil
	}
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
