package profile_test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"reflect"
	"slices"
	"sync"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/klauspost/compress/zstd"

	"github.com/apparate/apparate/api/image"
	api "github.com/apparate/apparate/api/profile"
	"github.com/apparate/apparate/converter/encode"
	"github.com/apparate/apparate/converter/fault"
	"github.com/apparate/apparate/converter/profile"
	"github.com/apparate/apparate/converter/registry"
)

// The image of most tests: a big file, a few small ones, some of which share a
// gzip member, and a second layer.
var (
	big    = file{"bin/big", text(1, 4*256<<10+12345)}
	small1 = file{"etc/one", text(2, 3000)}
	small2 = file{"etc/two", text(3, 70_000)}
	unread = file{"share/doc", text(4, 600<<10)}
	top    = file{"app/main", text(5, 300<<10)}
)

func theImage() [][]file { return [][]file{{big, small1, unread, small2}, {top}} }

func TestMakeAndFind(t *testing.T) {
	for _, format := range []encode.Format{encode.EStargz, encode.ZstdChunked} {
		t.Run(string(format), func(t *testing.T) { testMakeAndFind(t, format) })
	}
}

func testMakeAndFind(t *testing.T, format encode.Format) {
	l := newLab(t)
	l.format = format
	ref, _ := l.convert(theImage()...)
	order := []file{top, small2, big, small1}
	made, err := profile.Make(t.Context(), l.client, ref, []api.Sample{sample(ref, 0, order...)}, profile.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if !made.Listed || made.Unchanged || made.Left != 0 || made.Unknown != 0 || made.Summary.Samples != 1 || made.Summary.HeldOut != 0 {
		t.Errorf("%+v", made)
	}
	if made.Summary.Without == nil || made.Summary.Without.Requests != 10 || made.Summary.With != nil {
		t.Errorf("what the starts cost: %+v, %+v", made.Summary.Without, made.Summary.With)
	}
	f, ok, err := profile.Find(t.Context(), l.client, ref)
	if err != nil || !ok {
		t.Fatal(ok, err)
	}
	if f.Descriptor.Digest != made.Descriptor.Digest || f.Summary.PackBytes != f.Table.Size || f.Summary.Chunks != f.Table.Chunks() {
		t.Errorf("found %+v", f)
	}
	var want [][32]byte
	for _, file := range order {
		want = append(want, chunks(file.body)...)
	}
	blob, err := l.client.Blob(t.Context(), ref.Context(), f.Table.Pack, f.Table.Size)
	if err != nil {
		t.Fatal(err)
	}
	if got := unpack(t, f.Table, blob); !reflect.DeepEqual(got, want) {
		t.Errorf("%d chunks in another order than the %d read", len(got), len(want))
	}
	if err := blob.Close(); err != nil {
		t.Fatal(err)
	}
	// The same once more changes nothing.
	if again, err := profile.Make(t.Context(), l.client, ref, []api.Sample{sample(ref, 0, order...)}, profile.Options{}); err != nil || !again.Unchanged {
		t.Errorf("%+v, %v", again, err)
	}
}

// The artifact is what the design says it is, for readers that are not ours.
func TestArtifact(t *testing.T) {
	l := newLab(t)
	ref, _ := l.convert(theImage()...)
	made, err := profile.Make(t.Context(), l.client, ref, []api.Sample{sample(ref, 0, small1)}, profile.Options{})
	if err != nil {
		t.Fatal(err)
	}
	d, err := remote.Get(ref.Context().Digest(made.Descriptor.Digest))
	if err != nil {
		t.Fatal(err)
	}
	m, err := v1.ParseManifest(bytes.NewReader(d.Manifest))
	if err != nil {
		t.Fatal(err)
	}
	if m.Subject == nil || m.Subject.Digest.String() != ref.DigestStr() || m.Config.MediaType != image.EmptyMediaType || m.Config.Size != 2 || len(m.Layers) != 2 ||
		m.Layers[0].MediaType != image.ProfileTableMediaType || m.Layers[1].MediaType != image.ProfilePackMediaType {
		t.Errorf("%s", d.Manifest)
	}
	inline, err := base64.StdEncoding.DecodeString(m.Annotations[image.AnnotationProfileTable])
	if err != nil {
		t.Fatal(err)
	}
	blob, err := l.client.ReadBlob(t.Context(), ref.Context(), m.Layers[0].Digest.String(), m.Layers[0].Size)
	if err != nil || !bytes.Equal(blob, inline) {
		t.Errorf("the table in the annotation is another than the blob: %v", err)
	}
	var s api.Summary
	if err := json.Unmarshal([]byte(m.Annotations[image.AnnotationProfileSummary]), &s); err != nil || s.Chunks != 1 {
		t.Errorf("summary %+v, %v", s, err)
	}
	ix, err := remote.Referrers(ref, remote.WithFilter("artifactType", image.ProfileArtifactType))
	if err != nil {
		t.Fatal(err)
	}
	im, err := ix.IndexManifest()
	if err != nil || len(im.Manifests) != 1 || im.Manifests[0].Digest.String() != made.Descriptor.Digest {
		t.Errorf("the registry lists %+v, %v", im, err)
	}
}

// In the real registry the profile is in the index under the fallback tag, where
// other entries stay, older ones of ours go, and concurrent writers lose nothing.
func TestFallbackTag(t *testing.T) {
	l := newRealLab(t)
	ref, _ := l.convert(theImage()...)
	other := map[string]any{"mediaType": "application/vnd.oci.image.manifest.v1+json", "size": 7,
		"digest": "sha256:" + fmt.Sprintf("%064d", 1), "artifactType": "application/vnd.example.signature", "x": "kept"}
	tag := ref.Context().Tag(registry.FallbackTag(ref.DigestStr()))
	// The real registry wants what an index lists to be there: a signature of somebody's.
	sig := l.signature(ref, other)
	put := func(v any) {
		raw, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		if err := l.client.PutManifest(t.Context(), tag, "application/vnd.oci.image.index.v1+json", raw); err != nil {
			t.Fatal(err)
		}
	}
	put(map[string]any{"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "annotations": map[string]any{"theirs": "too"}, "manifests": []any{other}})
	var last profile.Made
	for i, files := range [][]file{{small1}, {small2}, {top}, {small1, small2}} {
		made, err := profile.Make(t.Context(), l.client, ref, []api.Sample{sample(ref, 0, files...)}, profile.Options{})
		if err != nil {
			t.Fatal(err)
		}
		if made.Listed || made.Unchanged {
			t.Fatalf("%d: %+v", i, made)
		}
		last = made
	}
	f, ok, err := profile.Find(t.Context(), l.client, ref)
	if err != nil || !ok || f.Descriptor.Digest != last.Descriptor.Digest {
		t.Fatalf("found %+v %v %v, want %s", f.Descriptor, ok, err, last.Descriptor.Digest)
	}
	entries, whole := l.fallback(tag)
	if len(entries) != 3 || entries[0]["digest"] != sig || entries[0]["x"] != "kept" {
		t.Errorf("the index lists %v", entries)
	}
	if !bytes.Contains(whole, []byte(`"theirs":"too"`)) {
		t.Error("the index lost an annotation of its own")
	}
	l.pushAtOnce(ref)
	if entries, _ := l.fallback(tag); !slices.ContainsFunc(entries, func(e map[string]any) bool { return e["digest"] == sig }) {
		t.Errorf("somebody's entry was lost: %v", entries)
	}
}

// signature pushes an artifact of somebody else's and makes other its descriptor.
func (l *lab) signature(ref name.Digest, other map[string]any) string {
	l.t.Helper()
	empty := registry.Bytes([]byte("{}"))
	if err := l.client.PutBlob(l.t.Context(), ref.Context(), empty); err != nil {
		l.t.Fatal(err)
	}
	desc := map[string]any{"mediaType": image.EmptyMediaType, "digest": empty.Digest, "size": 2}
	raw, err := json.Marshal(map[string]any{"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
		"artifactType": other["artifactType"], "config": desc, "layers": []any{desc}})
	if err != nil {
		l.t.Fatal(err)
	}
	d := registry.Bytes(raw)
	if err := l.client.PutManifest(l.t.Context(), ref.Context().Digest(d.Digest), "application/vnd.oci.image.manifest.v1+json", raw); err != nil {
		l.t.Fatal(err)
	}
	other["digest"], other["size"] = d.Digest, d.Size
	return d.Digest
}

// fallback reads the entries of a fallback tag's index.
func (l *lab) fallback(tag name.Tag) (entries []map[string]any, raw []byte) {
	l.t.Helper()
	m, err := l.client.Manifest(l.t.Context(), tag)
	if err != nil {
		l.t.Fatal(err)
	}
	var ix struct {
		Manifests []map[string]any `json:"manifests"`
	}
	if err := json.Unmarshal(m.Raw, &ix); err != nil {
		l.t.Fatal(err)
	}
	return ix.Manifests, m.Raw
}

// pushAtOnce pushes different profiles from several goroutines: each must be in
// the index when its push has ended, or a newer one.
func (l *lab) pushAtOnce(ref name.Digest) {
	l.t.Helper()
	sets := [][]file{{big}, {top, small1}, {top, small2}}
	var wg sync.WaitGroup
	for _, files := range sets {
		wg.Add(1)
		go func() {
			defer wg.Done()
			if _, err := profile.Make(l.t.Context(), l.client, ref, []api.Sample{sample(ref, 0, files...)}, profile.Options{}); err != nil {
				l.t.Error(err)
			}
		}()
	}
	wg.Wait()
	if _, ok, err := profile.Find(l.t.Context(), l.client, ref); err != nil || !ok {
		l.t.Errorf("no profile is left: %v", err)
	}
}

// A newer profile wins although its pusher's clock is behind.
func TestNewestWins(t *testing.T) {
	l := newLab(t)
	ref, _ := l.convert(theImage()...)
	im, all := l.load(ref)
	push := func(files ...file) profile.Pushed {
		plan, _ := profile.Merge([]api.Sample{sample(ref, 0, files...)}, im, profile.MergeOptions{})
		pack, err := profile.Build(t.Context(), im, plan, profile.BuildOptions{TempDir: t.TempDir()})
		if err != nil {
			t.Fatal(err)
		}
		p, err := profile.Push(t.Context(), im, &pack.Table, pack.Upload(), api.Summary{})
		if err != nil {
			t.Fatal(err)
		}
		if err := pack.Close(); err != nil {
			t.Fatal(err)
		}
		return p
	}
	if len(all) == 0 {
		t.Fatal("the image has no chunks")
	}
	removed := 0
	for i, files := range [][]file{{big}, {top}, {small1}, {small2}} {
		p := push(files...) // well within a second of the one before
		removed += p.Removed
		f, ok, err := profile.Find(t.Context(), l.client, ref)
		if err != nil || !ok || f.Descriptor.Digest != p.Descriptor.Digest {
			t.Errorf("%d: found %s, pushed %s, %v", i, f.Descriptor.Digest, p.Descriptor.Digest, err)
		}
	}
	if removed != 2 {
		t.Errorf("%d old profiles were removed, want 2", removed)
	}
}

// A pack is the same whatever the number of processors, and stays in its budget.
func TestBuild(t *testing.T) {
	l := newLab(t)
	ref, _ := l.convert(theImage()...)
	im, _ := l.load(ref)
	plan, _ := profile.Merge([]api.Sample{sample(ref, 0, big, top, small1, small2)}, im, profile.MergeOptions{})
	build := func(o profile.BuildOptions) ([]byte, api.Table, int) {
		o.TempDir = t.TempDir()
		pack, err := profile.Build(t.Context(), im, plan, o)
		if err != nil {
			t.Fatal(err)
		}
		r, err := pack.Open()
		if err != nil {
			t.Fatal(err)
		}
		raw, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		unpack(t, &pack.Table, bytes.NewReader(raw))
		if err := pack.Close(); err != nil {
			t.Fatal(err)
		}
		return raw, pack.Table, pack.Left
	}
	one, table, left := build(profile.BuildOptions{Workers: 1})
	two, _, _ := build(profile.BuildOptions{Workers: 4})
	if !bytes.Equal(one, two) {
		t.Error("another number of processors makes another pack")
	}
	if left != 0 || len(table.Groups) < 2 {
		t.Errorf("%d chunks left out, %d groups", left, len(table.Groups))
	}
	budget := int64(len(one)) / 2
	some, cut, left := build(profile.BuildOptions{Budget: budget})
	if left == 0 || int64(len(some)) > budget || !bytes.HasPrefix(one, some) || !reflect.DeepEqual(cut.Groups, table.Groups[:len(cut.Groups)]) {
		t.Errorf("a budget of %d gave %d bytes, %d chunks left out", budget, len(some), left)
	}
	if _, err := profile.Build(t.Context(), im, plan, profile.BuildOptions{Budget: 10, TempDir: t.TempDir()}); err == nil {
		t.Error("a pack of nothing was built")
	}
	fast, _, _ := build(profile.BuildOptions{Level: zstd.SpeedFastest, Group: 1 << 20})
	if bytes.Equal(fast, one) {
		t.Error("level and group have no effect")
	}
}

// The network breaks and lies; what is in the pack is right all the same, or there is an error.
func TestBuildFaults(t *testing.T) {
	l, reg := newFaultyLab(t)
	ref, _ := l.convert(theImage()...)
	im, _ := l.load(ref)
	plan, _ := profile.Merge([]api.Sample{sample(ref, 0, big, top)}, im, profile.MergeOptions{})
	for _, f := range bodyFaults() {
		reg.Heal()
		reg.FailAt(0, f)
		pack, err := profile.Build(t.Context(), im, plan, profile.BuildOptions{TempDir: t.TempDir()})
		if err != nil {
			t.Errorf("%s once: %v", f, err)
			continue
		}
		r, err := pack.Open()
		if err != nil {
			t.Fatal(err)
		}
		unpack(t, &pack.Table, r)
		if err := pack.Close(); err != nil {
			t.Fatal(err)
		}
		reg.FailEvery(1, f)
		if _, err := profile.Build(t.Context(), im, plan, profile.BuildOptions{TempDir: t.TempDir()}); fault.KindOf(err) == "" || fault.KindOf(err) == fault.Internal {
			t.Errorf("%s always: %v", f, err)
		}
	}
	reg.Heal()
}

// What is not an accelerated image, or not one image, is refused with a way out.
func TestLoadRefuses(t *testing.T) {
	l := newLab(t)
	ref, _ := l.convert(theImage()...)
	plain, err := l.client.Manifest(t.Context(), ref.Context().Tag("v1"))
	if err != nil {
		t.Fatal(err)
	}
	_, err = profile.Load(t.Context(), l.client, ref.Context().Digest(plain.Digest))
	if fault.KindOf(err) != fault.NotAccelerated {
		t.Errorf("a plain image: %v", err)
	}
	_, err = profile.Make(t.Context(), l.client, ref, []api.Sample{sample(ref.Context().Digest("sha256:"+fmt.Sprintf("%064d", 2)), 0, big)}, profile.Options{})
	if fault.KindOf(err) != fault.NotFound {
		t.Errorf("samples of another image: %v", err)
	}
	if _, ok, err := profile.Find(t.Context(), l.client, ref); ok || err != nil {
		t.Errorf("a profile that nobody pushed: %v", err)
	}
}
