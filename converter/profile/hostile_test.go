package profile_test

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"

	"github.com/apparate/apparate/api/image"
	api "github.com/apparate/apparate/api/profile"
	"github.com/apparate/apparate/converter/fault"
	"github.com/apparate/apparate/converter/profile"
	"github.com/apparate/apparate/converter/registry"
)

const manifestType = "application/vnd.oci.image.manifest.v1+json"

// artifact pushes a profile by hand: table as the blob, inline as the annotation.
func (l *lab) artifact(ref name.Digest, created string, table []byte, inline string, change func(map[string]any)) {
	l.t.Helper()
	put := func(b []byte, mediaType string) map[string]any {
		u := registry.Bytes(b)
		if err := l.client.PutBlob(l.t.Context(), ref.Context(), u); err != nil {
			l.t.Fatal(err)
		}
		return map[string]any{"mediaType": mediaType, "digest": u.Digest, "size": u.Size}
	}
	subject, err := l.client.Manifest(l.t.Context(), ref)
	if err != nil {
		l.t.Fatal(err)
	}
	m := map[string]any{
		"schemaVersion": 2, "mediaType": manifestType, "artifactType": image.ProfileArtifactType,
		"config":      put([]byte("{}"), image.EmptyMediaType),
		"layers":      []any{put(table, image.ProfileTableMediaType), put([]byte("pack"), image.ProfilePackMediaType)},
		"subject":     map[string]any{"mediaType": manifestType, "digest": ref.DigestStr(), "size": len(subject.Raw)},
		"annotations": map[string]any{image.AnnotationProfileCreated: created, image.AnnotationProfileTable: inline, image.AnnotationProfileSummary: "no JSON"},
	}
	if change != nil {
		change(m)
	}
	raw, err := json.Marshal(m)
	if err != nil {
		l.t.Fatal(err)
	}
	u := registry.Bytes(raw)
	if err := l.client.PutManifest(l.t.Context(), ref.Context().Digest(u.Digest), manifestType, raw); err != nil {
		l.t.Fatal(err)
	}
}

// A profile that cannot be read does not hide one that can.
func TestFindHostile(t *testing.T) {
	l := newLab(t)
	ref, _ := l.convert(theImage()...)
	table := func(size int64) []byte {
		b, err := (&api.Table{Pack: "sha256:" + fmt.Sprintf("%064d", 0), Size: size, Groups: []api.Group{{Size: size, Chunks: []api.Chunk{{ID: 1, Size: 1}}}}}).Encode()
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	found := func() (api.Table, error) {
		f, ok, err := profile.Find(t.Context(), l.client, ref)
		if !ok {
			return api.Table{}, err
		}
		return *f.Table, err
	}
	l.artifact(ref, "2026-01-01T00:00:00Z", []byte("garbage"), "", nil)
	if _, err := found(); fault.KindOf(err) != fault.ImageInvalid {
		t.Errorf("only garbage: %v", err)
	}
	l.artifact(ref, "2026-01-02T00:00:00Z", table(5), base64.StdEncoding.EncodeToString(table(5)), nil)
	l.artifact(ref, "no time at all", table(99), base64.StdEncoding.EncodeToString(table(99)), nil)
	if got, err := found(); err != nil || got.Size != 5 {
		t.Errorf("the one that is good: %+v, %v", got, err)
	}
	// What the annotation cannot tell the manifest can.
	l.artifact(ref, "2026-01-03T00:00:00Z", table(6), "%%%", nil)
	if got, err := found(); err != nil || got.Size != 6 {
		t.Errorf("with a broken annotation: %+v, %v", got, err)
	}
	l.artifact(ref, "2026-01-04T00:00:00Z", table(7), "", func(m map[string]any) { m["layers"] = []any{} })
	l.artifact(ref, "2026-01-05T00:00:00Z", table(8), base64.StdEncoding.EncodeToString([]byte("APPRPRF1 and then nothing")), nil)
	if got, err := found(); err != nil || got.Size != 6 {
		t.Errorf("below two that are broken: %+v, %v", got, err)
	}
	// Ours wins over all of them, whatever time they claim.
	l.artifact(ref, "2999-01-01T00:00:00Z", table(9), base64.StdEncoding.EncodeToString(table(9)), nil)
	made, err := profile.Make(t.Context(), l.client, ref, []api.Sample{sample(ref, 0, big)}, profile.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := found(); err != nil || got.Size != made.PackBytes {
		t.Errorf("after a push: %+v, %v", got, err)
	}
}

// A tag that somebody else uses is left alone.
func TestForeignFallbackTag(t *testing.T) {
	l := newRealLab(t)
	ref, _ := l.convert(theImage()...)
	m, err := l.client.Manifest(t.Context(), ref)
	if err != nil {
		t.Fatal(err)
	}
	tag := ref.Context().Tag(registry.FallbackTag(ref.DigestStr()))
	if err := l.client.PutManifest(t.Context(), tag, m.MediaType, m.Raw); err != nil {
		t.Fatal(err)
	}
	if _, err := profile.Make(t.Context(), l.client, ref, []api.Sample{sample(ref, 0, big)}, profile.Options{}); fault.KindOf(err) != fault.TargetTaken {
		t.Errorf("%v", err)
	}
	if d, err := l.client.Digest(t.Context(), tag); err != nil || d != ref.DigestStr() {
		t.Errorf("the tag moved to %s, %v", d, err)
	}
}

// noise is content that does not compress.
func noise(seed uint64, n int) []byte {
	r := rand.New(rand.NewPCG(seed, 2))
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

// A table that does not fit into an annotation is read from its blob, and a node
// that claims to have read everything does not get everything packed.
func TestLargeTable(t *testing.T) {
	l := newLab(t)
	files := make([]file, 7000)
	for i := range files {
		files[i] = file{fmt.Sprintf("f/%d", i), noise(uint64(i), 1000)}
	}
	ref, _ := l.convert(files)
	s := sample(ref, 0, files...)
	s.Layers[0].Add([32]byte{1, 2, 3}, 0) // of no image
	made, err := profile.Make(t.Context(), l.client, ref, []api.Sample{s}, profile.Options{Build: profile.BuildOptions{Budget: 1 << 30}})
	if err != nil {
		t.Fatal(err)
	}
	if _, inline := made.Descriptor.Annotations[image.AnnotationProfileTable]; inline || made.Unknown != 1 {
		t.Errorf("the table of %d chunks is in the annotation: %v; %+v", made.Summary.Chunks, inline, made)
	}
	f, ok, err := profile.Find(t.Context(), l.client, ref)
	if err != nil || !ok || f.Table.Chunks() != len(files) {
		t.Fatalf("%v %v", ok, err)
	}
	im, _ := l.load(ref)
	greedy, err := profile.Make(t.Context(), l.client, ref, []api.Sample{s}, profile.Options{})
	if err != nil || greedy.Left == 0 || greedy.PackBytes > profile.DefaultBudget(im.CompressedSize) {
		t.Errorf("%d bytes of an image of %d, %d chunks left out, %v", greedy.PackBytes, im.CompressedSize, greedy.Left, err)
	}
}
