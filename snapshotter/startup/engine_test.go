package startup

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/apparate/apparate/api/image"
	"github.com/apparate/apparate/api/profile"
	"github.com/apparate/apparate/snapshotter/fetch"
	"github.com/apparate/apparate/snapshotter/fetch/fetchtest"
	"github.com/apparate/apparate/snapshotter/images"
	"github.com/apparate/apparate/snapshotter/layer"
	"github.com/apparate/apparate/snapshotter/source"
)

// shop is a registry in memory.
type shop struct {
	mu    sync.Mutex
	list  map[digest.Digest][]ocispec.Descriptor
	blobs map[digest.Digest][]byte
	err   error
	asked int
}

func newShop() *shop {
	return &shop{list: map[digest.Digest][]ocispec.Descriptor{}, blobs: map[digest.Digest][]byte{}}
}

func (s *shop) Referrers(_ context.Context, _ string, d digest.Digest, kind string) ([]ocispec.Descriptor, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked++
	if kind != image.ProfileArtifactType {
		return nil, errors.New("asked for " + kind)
	}
	return slices.Clone(s.list[d]), s.err
}

func (s *shop) Attachment(_ context.Context, _ string, d digest.Digest) ([]ocispec.Descriptor, error) {
	var layers []ocispec.Descriptor
	return layers, json.Unmarshal(s.blobs[d], &layers)
}

func (s *shop) Bytes(_ context.Context, _ string, d ocispec.Descriptor, most int64) ([]byte, error) {
	if d.Size > most {
		return nil, errors.New("too long")
	}
	return s.blobs[d.Digest], nil
}

func (s *shop) Open(_ context.Context, _ string, d digest.Digest, _ int64) (fetch.Blob, error) {
	b, ok := s.blobs[d]
	if !ok {
		return nil, errors.New("not found")
	}
	return fetchtest.NewBytes(b), nil
}

// publish gives an image a profile, made at a time, with its table inline or not.
func (s *shop) publish(t *testing.T, manifest digest.Digest, created string, inline bool, chunks ...int) string {
	t.Helper()
	table, raw := pack(t, 4, chunks...)
	b, err := table.Encode()
	if err != nil {
		t.Fatal(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.blobs[digest.FromBytes(raw)], s.blobs[digest.FromBytes(b)] = raw, b
	layers, err := json.Marshal([]ocispec.Descriptor{{MediaType: image.ProfileTableMediaType, Digest: digest.FromBytes(b), Size: int64(len(b))}})
	if err != nil {
		t.Fatal(err)
	}
	d := ocispec.Descriptor{Digest: digest.FromBytes(layers), Annotations: map[string]string{image.AnnotationProfileCreated: created}}
	s.blobs[d.Digest] = layers
	if inline {
		d.Annotations[image.AnnotationProfileTable] = base64.StdEncoding.EncodeToString(b)
	}
	s.list[manifest] = append(s.list[manifest], d)
	return table.Pack
}

func engine(t *testing.T, root string, s Registry) *Engine {
	t.Helper()
	e, err := New(Options{Root: root, Registry: s, Logger: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func sourceOf(manifest digest.Digest, n int) source.Layer {
	return source.Layer{Ref: "example.com/app:v1", Manifest: manifest, Digest: digest.FromString(fmt.Sprint("layer ", n)),
		TOCDigest: digest.FromString("toc"), BlobSize: 8 << 20}
}

// startImage tells e of a pull of one layer, its mount, and a container.
func startImage(e *Engine, manifest digest.Digest, w *world) {
	src := []source.Layer{sourceOf(manifest, 0)}
	e.Begin(src[0].Ref, manifest)
	e.Manifest(manifest, src)
	e.Loaded(src[0], w.Layer)
	e.Complete(manifest)
	e.Mounting(src, []*layer.Layer{w.Layer})
	e.Mounted(src, images.StepMounted)
	e.Created(src)
}

func served(t *testing.T, e *Engine) []profile.Sample {
	t.Helper()
	r := httptest.NewRecorder()
	e.ServeSamples(r, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/samples", nil))
	list, err := profile.DecodeSamples(r.Body.Bytes())
	if err != nil {
		t.Fatalf("%v: %s", err, r.Body)
	}
	return list
}

// A start is recorded until nothing new is read for 5 s, or for 20 s; its sample is on
// disk, for the next daemon as well.
func TestSample(t *testing.T) {
	sharedDecoders()
	root := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		manifest := digest.FromString("image")
		e := engine(t, root, newShop())
		w := newWorld(t, nil, numbers(0, 100)...)
		src := []source.Layer{sourceOf(manifest, 0)}
		e.Begin(src[0].Ref, manifest)
		e.Manifest(manifest, src)
		e.Loaded(src[0], w.Layer)
		e.Complete(manifest)
		w.mustRead(t, 50) // of something else: the image is not mounted
		e.Mounting(src, []*layer.Layer{w.Layer})
		w.mustRead(t, 3)
		time.Sleep(time.Minute)
		e.Created(src)
		e.Created(src)
		time.Sleep(2 * time.Second)
		w.mustRead(t, 1)
		w.mustRead(t, 3)
		time.Sleep(4 * time.Second)
		w.mustRead(t, 2)
		if len(served(t, e)) != 0 {
			t.Error("there is a sample already")
		}
		time.Sleep(5*time.Second + 2*lookEvery)
		list := served(t, e)
		if len(list) != 1 || len(list[0].Layers) != 1 {
			t.Fatalf("samples: %+v", list)
		}
		s := list[0]
		l := s.Layers[0]
		if s.Image != "example.com/app" || s.Manifest != manifest.String() || s.Outcome.Requests != 4 || l.Len() != 3 || !slices.Equal(l.At, []uint32{0, 2000, 6000}) {
			t.Errorf("sample: %+v", s)
		}
		w.mustRead(t, 9)
		if starts := e.Starts(); len(starts) != 1 || !starts[0].Over || starts[0].ChunksRead != 3 || starts[0].DemandRequests != 4 {
			t.Errorf("starts: %+v", starts)
		}
		e.Close()
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := os.WriteFile(filepath.Join(root, samplesDir, "0"+sampleExt), []byte("{broken"), 0o600); err != nil {
		t.Fatal(err)
	}
	e := engine(t, root, newShop())
	defer e.Close()
	if list := served(t, e); len(list) != 1 {
		t.Errorf("the next daemon has %d samples", len(list))
	}
	for i := range maxSamples + 5 {
		s := profile.Sample{Image: "a", Manifest: "sha256:b", Started: time.Unix(1<<33+int64(i), 0)}
		if err := e.samples.add(s); err != nil {
			t.Fatal(err)
		}
	}
	if list := served(t, e); len(list) != maxSamples || !list[maxSamples-1].Started.After(list[0].Started) {
		t.Errorf("%d samples are kept", len(list))
	}
}

// The newest profile is used, inline or not; it is kept for the next time, and for
// other images of the repository.
func TestFind(t *testing.T) {
	sharedDecoders()
	first, second := digest.FromString("first"), digest.FromString("second")
	for _, inline := range []bool{true, false} {
		root := t.TempDir()
		synctest.Test(t, func(t *testing.T) {
			s := newShop()
			s.publish(t, first, "2026-01-01T00:00:00Z", inline, numbers(50, 60)...)
			want := s.publish(t, first, "2026-01-02T00:00:00Z", inline, numbers(0, 40)...)
			s.publish(t, first, "nonsense", inline, numbers(60, 70)...)
			e := engine(t, root, s)
			for round, step := range []struct {
				manifest digest.Digest
				origin   string
			}{{first, "registry"}, {first, "kept"}, {second, "repository"}} {
				w := newWorld(t, nil, numbers(20*(round/2), 100)...)
				startImage(e, step.manifest, w)
				synctest.Wait()
				last := e.Starts()[round]
				if last.Profile != want || last.Origin != step.origin || last.Ended != "" || last.PackBytes == 0 {
					t.Errorf("inline %v, start %d: %+v", inline, round, last)
				}
				for i := range 20 {
					w.mustRead(t, i)
				}
				wantRequests(t, 0, w)
				time.Sleep(time.Minute)
				if err := w.Close(); err != nil {
					t.Error(err)
				}
			}
			if got := served(t, e); len(got) != 3 || got[0].Profile != want || got[0].Outcome.PackBytes == 0 {
				t.Errorf("samples: %+v", got)
			}
			e.Close()
		})
	}
}

// TestTinyImage: an image whose layers come whole anyhow is recorded, and started without
// a profile.
func TestTinyImage(t *testing.T) {
	sharedDecoders()
	manifest := digest.FromString("tiny")
	synctest.Test(t, func(t *testing.T) {
		s := newShop()
		s.publish(t, manifest, "2026-01-01T00:00:00Z", true, numbers(0, 40)...)
		for _, size := range []int64{tinyImage, tinyImage + 1} {
			e := engine(t, t.TempDir(), s)
			w := newWorld(t, nil, numbers(0, 100)...)
			src := sourceOf(manifest, 0)
			src.BlobSize = size
			e.Begin(src.Ref, manifest)
			e.Manifest(manifest, []source.Layer{src})
			synctest.Wait()
			e.Loaded(src, w.Layer)
			e.Complete(manifest)
			e.Mounting([]source.Layer{src}, []*layer.Layer{w.Layer})
			e.Mounted([]source.Layer{src}, images.StepMounted)
			e.Created([]source.Layer{src})
			synctest.Wait()
			w.mustRead(t, 0)
			time.Sleep(time.Minute)
			if got := e.Starts()[0]; (got.Profile == "") != (size <= tinyImage) || (got.PackBytes == 0) != (size <= tinyImage) {
				t.Errorf("%d bytes: %+v", size, got)
			}
			if got := served(t, e); len(got) != 1 {
				t.Errorf("%d samples", len(got))
			}
			if err := w.Close(); err != nil {
				t.Error(err)
			}
			e.Close()
		}
	})
}

// A program that reads other chunks ends the stream, a registry that fails is asked
// again by the next Prepare, and no profile is no harm.
func TestFindFails(t *testing.T) {
	sharedDecoders()
	manifest := digest.FromString("image")
	root := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		s := newShop()
		s.err = errors.New("unauthorized")
		e := engine(t, root, s)
		e.Begin("example.com/app:v1", manifest)
		synctest.Wait()
		e.Begin("example.com/app:v1", manifest)
		synctest.Wait()
		s.mu.Lock()
		s.err = nil
		asked := s.asked
		s.mu.Unlock()
		if asked != 2 {
			t.Errorf("a registry that fails was asked %d times, want 2", asked)
		}
		for range 3 {
			e.Begin("example.com/app:v1", manifest)
			synctest.Wait()
		}
		if s.asked != 3 || len(e.Starts()) != 1 {
			t.Errorf("asked %d times, %d starts", s.asked, len(e.Starts()))
		}
		e.Begin("no name at all!", manifest)
		e.Begin("example.com/app:v1", "")
		e.Created(nil)
		e.Close()
		e.Begin("example.com/other:v1", digest.FromString("other"))
	})
}

// Starts and tables do not pile up.
func TestBounds(t *testing.T) {
	root := t.TempDir()
	e := engine(t, root, newShop())
	e.o.Mode = Record
	for i := range 200 {
		e.Begin("example.com/app:v1", digest.FromString(fmt.Sprint(i)))
	}
	if n := len(e.active); n > maxActive || len(e.Starts()) != maxStarts {
		t.Errorf("%d active, %d in all", n, len(e.Starts()))
	}
	table, _ := pack(t, 4, 1, 2)
	b, err := table.Encode()
	if err != nil {
		t.Fatal(err)
	}
	for i := range maxTables + 10 {
		if err := e.tables.keep(digest.FromString(fmt.Sprint(i)), fmt.Sprint("repo", i%3), b); err != nil {
			t.Fatal(err)
		}
	}
	files, err := os.ReadDir(filepath.Join(root, tablesDir))
	if err != nil || len(files) > maxTables {
		t.Errorf("%d tables, %v", len(files), err)
	}
	e.Close()
	var m Mode
	if m.Set("record") != nil || m != Record || m.Set("maybe") == nil || !strings.Contains(m.Set("maybe").Error(), "on, record or off") {
		t.Error("modes are not read")
	}
}
