package profile

import (
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"slices"
	"time"

	"github.com/google/go-containerregistry/pkg/name"

	"github.com/apparate/apparate/api/image"
	"github.com/apparate/apparate/api/profile"
	"github.com/apparate/apparate/converter/fault"
	"github.com/apparate/apparate/converter/registry"
)

// Descriptor describes a manifest (OCI image spec 1.1, "Content Descriptors").
type Descriptor struct {
	MediaType    string            `json:"mediaType"`
	Digest       string            `json:"digest"`
	Size         int64             `json:"size"`
	ArtifactType string            `json:"artifactType,omitempty"`
	Annotations  map[string]string `json:"annotations,omitempty"`
}

// created is when the profile was made; zero where the descriptor does not say.
func (d *Descriptor) created() time.Time {
	t, err := time.Parse(time.RFC3339, d.Annotations[image.AnnotationProfileCreated])
	if err != nil {
		return time.Time{}
	}
	return t
}

// Found is a profile in a registry.
type Found struct {
	// Descriptor of the artifact's manifest.
	Descriptor Descriptor
	Table      *profile.Table
	// Summary is empty where the profile has none that can be read.
	Summary profile.Summary
}

// maxCandidates is how many profiles of an image are tried, the newest first.
const maxCandidates = 3

// Find returns the newest profile of the platform manifest ref that can be read.
// ok is false if there is none.
func Find(ctx context.Context, client *registry.Client, ref name.Digest) (f Found, ok bool, err error) {
	repo, err := client.Readable(ctx, ref.Context())
	if err != nil {
		return Found{}, false, err
	}
	list, _, err := candidates(ctx, client, repo, ref)
	if err != nil {
		return Found{}, false, err
	}
	var first error
	for i := range list[:min(len(list), maxCandidates)] {
		f, err := open(ctx, client, ref.Context(), list[i])
		if err == nil {
			return f, true, nil
		}
		first = cmp.Or(first, err)
	}
	return Found{}, false, first
}

// candidates lists our artifacts of ref, the newest first: from the list of
// referrers and from the index that stands in for one, asked at the same time.
// hasAPI says that there is a list.
func candidates(ctx context.Context, client *registry.Client, repo *registry.Repository, ref name.Digest) (list []Descriptor, hasAPI bool, err error) {
	type answer struct {
		index
		err error
	}
	fallback := make(chan answer, 1)
	go func() {
		ix, err := readFallback(ctx, client, ref)
		fallback <- answer{ix, err}
	}()
	listed, hasAPI, err := repo.Referrers(ctx, ref.DigestStr(), image.ProfileArtifactType)
	fallen := <-fallback
	if err != nil {
		return nil, hasAPI, err
	}
	// Where there is a list, the tag is a leftover, or somebody else's.
	if fallen.err != nil && !hasAPI {
		return nil, false, fallen.err
	}
	seen := make(map[string]bool)
	for _, raw := range append(listed, fallen.entries...) {
		if d, ok := ours(raw); ok && !seen[d.Digest] {
			seen[d.Digest] = true
			list = append(list, d)
		}
	}
	newestFirst(list)
	return list, hasAPI, nil
}

func newestFirst(list []Descriptor) {
	slices.SortFunc(list, func(a, b Descriptor) int {
		return cmp.Or(b.created().Compare(a.created()), cmp.Compare(b.Digest, a.Digest))
	})
}

// ours reads a descriptor if it is one of a profile. Some registries list an
// artifact by the type of its config; our annotation tells then.
func ours(raw json.RawMessage) (Descriptor, bool) {
	var d Descriptor
	if json.Unmarshal(raw, &d) != nil || d.Digest == "" {
		return Descriptor{}, false
	}
	_, summary := d.Annotations[image.AnnotationProfileSummary]
	return d, d.ArtifactType == image.ProfileArtifactType || summary && d.ArtifactType == image.EmptyMediaType
}

// open reads the table and summary of a profile.
func open(ctx context.Context, client *registry.Client, repo name.Repository, d Descriptor) (Found, error) {
	annotations := d.Annotations
	raw, err := base64.StdEncoding.DecodeString(annotations[image.AnnotationProfileTable])
	if err != nil || len(raw) == 0 {
		if raw, annotations, err = openManifest(ctx, client, repo.Digest(d.Digest)); err != nil {
			return Found{}, err
		}
	}
	table, err := profile.Decode(raw)
	if err != nil {
		return Found{}, fault.New(fault.ImageInvalid, err, "the profile %s of %s cannot be read: push another with 'apparate profile push'", d.Digest, repo)
	}
	f := Found{Descriptor: d, Table: table}
	// For people only: a profile is as good without.
	_ = json.Unmarshal([]byte(annotations[image.AnnotationProfileSummary]), &f.Summary)
	return f, nil
}

// openManifest reads a profile's table through its manifest.
func openManifest(ctx context.Context, client *registry.Client, ref name.Digest) ([]byte, map[string]string, error) {
	m, err := client.Manifest(ctx, ref)
	if err != nil {
		return nil, nil, err
	}
	var doc struct {
		ArtifactType string            `json:"artifactType"`
		Layers       []Descriptor      `json:"layers"`
		Annotations  map[string]string `json:"annotations"`
	}
	if err := json.Unmarshal(m.Raw, &doc); err != nil {
		return nil, nil, fault.New(fault.ImageInvalid, err, "the manifest of %s cannot be read", ref)
	}
	if doc.ArtifactType != image.ProfileArtifactType || len(doc.Layers) != 2 || doc.Layers[0].MediaType != image.ProfileTableMediaType || doc.Layers[0].Size > profile.MaxTable {
		return nil, nil, fault.New(fault.ImageInvalid, nil, "%s is no profile, or one of a later version", ref)
	}
	raw, err := client.ReadBlob(ctx, ref.Context(), doc.Layers[0].Digest, doc.Layers[0].Size)
	return raw, doc.Annotations, err
}

// index is the index under a fallback tag; its zero value is none.
type index struct {
	fields  map[string]json.RawMessage
	entries []json.RawMessage
}

// readFallback reads the index of ref's fallback tag.
func readFallback(ctx context.Context, client *registry.Client, ref name.Digest) (index, error) {
	tag := ref.Context().Tag(registry.FallbackTag(ref.DigestStr()))
	m, err := client.Manifest(ctx, tag)
	if k := fault.KindOf(err); k == fault.NotFound || k == fault.PullDenied {
		// Some registries deny what does not exist.
		return index{}, nil
	}
	if err != nil {
		return index{}, err
	}
	var ix index
	if err := json.Unmarshal(m.Raw, &ix.fields); err == nil {
		ix.entries, err = registry.ReadReferrers(m.Raw)
		if err == nil && ix.fields["manifests"] != nil {
			return ix, nil
		}
	}
	return index{}, fault.New(fault.TargetTaken, errors.New("it holds no index"), "%s is where the artifacts of an image are listed, and somebody else uses it: remove that tag", tag)
}
