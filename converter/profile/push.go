package profile

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/opencontainers/go-digest"

	"github.com/apparate/apparate/api/image"
	"github.com/apparate/apparate/api/profile"
	"github.com/apparate/apparate/converter/fault"
	"github.com/apparate/apparate/converter/registry"
)

const (
	// keep is how many profiles of an image stay: the new one, and the one before
	// it, whose pack a starting container may be reading.
	keep = 2
	// maxRemove bounds how many old ones are removed each time.
	maxRemove = 8
	// fallbackTries is how often an index is written that others write too.
	fallbackTries = 6
	// maxIndex is the longest index in bytes that every registry takes; above it
	// our entry goes without its table.
	maxIndex = 3 << 20
	// settle is about how long another writer of the index may need between its
	// reading and its writing.
	settle = 100 * time.Millisecond
)

// Pushed says what Push did.
type Pushed struct {
	// Descriptor of the artifact's manifest.
	Descriptor Descriptor `json:"descriptor"`
	// Unchanged says that the newest profile has just this table already:
	// nothing was pushed.
	Unchanged bool `json:"unchanged"`
	// Listed says that the registry lists referrers; where not, the profile is in the index under a tag.
	Listed bool `json:"listed"`
	// Removed is how many older profiles were removed.
	Removed int `json:"removed"`
}

// Push makes table and pack the newest profile of im. The summary's Created is
// set. It is safe against others that push at the same time as far as registries
// allow: without a list of referrers there is but an index, read and written as a
// whole, and an entry that another writer undid is put there again.
func Push(ctx context.Context, im *Image, table *profile.Table, pack registry.Upload, s profile.Summary) (Pushed, error) {
	ref := im.Ref
	repo, err := im.client.Writable(ctx, ref.Context())
	if err != nil {
		return Pushed{}, err
	}
	encoded, err := table.Encode()
	if err != nil {
		return Pushed{}, fault.New(fault.Internal, err, "the profile of %s cannot be pushed", ref)
	}
	old, _, err := candidates(ctx, im.client, repo, ref)
	if err != nil {
		return Pushed{}, err
	}
	s.Created = time.Now().UTC().Truncate(time.Second)
	if len(old) > 0 {
		if f, err := open(ctx, im.client, ref.Context(), old[0]); err == nil && sameTable(f.Table, encoded) {
			return Pushed{Descriptor: old[0], Unchanged: true}, nil
		}
		// The newest counts, and other machines have other clocks.
		if last := old[0].created(); !s.Created.After(last) {
			s.Created = last.Add(time.Second)
		}
	}
	empty, tableBlob := registry.Bytes([]byte(image.EmptyJSON)), registry.Bytes(encoded)
	for _, u := range []registry.Upload{empty, tableBlob, pack} {
		if err := im.client.PutBlob(ctx, ref.Context(), u); err != nil {
			return Pushed{}, err
		}
	}
	raw, d, err := artifact(im, encoded, tableBlob, pack, s)
	if err != nil {
		return Pushed{}, fault.New(fault.Internal, err, "the profile of %s cannot be pushed", ref)
	}
	listed, err := repo.PutReferrer(ctx, d.Digest, d.MediaType, raw)
	if err != nil {
		return Pushed{}, err
	}
	p := Pushed{Descriptor: d, Listed: listed}
	stale := old[min(len(old), keep-1):]
	if !listed {
		if err := addFallback(ctx, im.client, ref, d, stale); err != nil {
			return Pushed{}, err
		}
	}
	for i := range stale[:min(len(stale), maxRemove)] {
		// Many registries do not allow it; then their list grows.
		if im.client.DeleteManifest(ctx, ref.Context().Digest(stale[i].Digest)) == nil {
			p.Removed++
		}
	}
	return p, nil
}

func sameTable(t *profile.Table, encoded []byte) bool {
	b, err := t.Encode()
	return err == nil && bytes.Equal(b, encoded)
}

// artifact makes the artifact's manifest and its descriptor.
func artifact(im *Image, encoded []byte, table, pack registry.Upload, s profile.Summary) ([]byte, Descriptor, error) {
	summary, err := json.Marshal(s)
	if err != nil {
		return nil, Descriptor{}, err
	}
	annotations := map[string]string{
		image.AnnotationProfileCreated: s.Created.Format(time.RFC3339),
		image.AnnotationProfileSummary: string(summary),
	}
	if len(encoded) <= image.MaxInlineTable {
		annotations[image.AnnotationProfileTable] = base64.StdEncoding.EncodeToString(encoded)
	}
	raw, err := json.Marshal(struct {
		SchemaVersion int               `json:"schemaVersion"`
		MediaType     string            `json:"mediaType"`
		ArtifactType  string            `json:"artifactType"`
		Config        Descriptor        `json:"config"`
		Layers        []Descriptor      `json:"layers"`
		Subject       Descriptor        `json:"subject"`
		Annotations   map[string]string `json:"annotations"`
	}{
		2, mediaTypeManifest, image.ProfileArtifactType,
		Descriptor{MediaType: image.EmptyMediaType, Digest: digest.FromString(image.EmptyJSON).String(), Size: int64(len(image.EmptyJSON))},
		[]Descriptor{
			{MediaType: image.ProfileTableMediaType, Digest: table.Digest, Size: table.Size},
			{MediaType: image.ProfilePackMediaType, Digest: pack.Digest, Size: pack.Size},
		},
		Descriptor{MediaType: im.MediaType, Digest: im.Ref.DigestStr(), Size: im.Size},
		annotations,
	})
	return raw, Descriptor{
		MediaType: mediaTypeManifest, Digest: digest.FromBytes(raw).String(), Size: int64(len(raw)),
		ArtifactType: image.ProfileArtifactType, Annotations: annotations,
	}, err
}

// addFallback puts d into the index of ref's fallback tag, and takes stale ones
// of ours out. Registries know no condition for a write, so it looks whether the
// entry stayed, after the time in which another writer may have undone it.
func addFallback(ctx context.Context, client *registry.Client, ref name.Digest, d Descriptor, stale []Descriptor) error {
	tag := ref.Context().Tag(registry.FallbackTag(ref.DigestStr()))
	for range fallbackTries {
		ix, err := readFallback(ctx, client, ref)
		if err != nil {
			return err
		}
		if ix.has(d.Digest) {
			return nil
		}
		raw, err := ix.with(d, stale)
		if err != nil {
			return fault.New(fault.Internal, err, "the list of the artifacts of %s cannot be written", ref)
		}
		if err := client.PutManifest(ctx, tag, mediaTypeIndex, raw); err != nil {
			return err
		}
		select {
		case <-time.After(settle + rand.N(settle)):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	ix, err := readFallback(ctx, client, ref)
	if err == nil && !ix.has(d.Digest) {
		err = fault.NewTemporary(fault.RegistryError, nil, "%s is written by others all the time: push the profile again", tag)
	}
	return err
}

func (ix *index) has(digest string) bool {
	return slices.ContainsFunc(ix.entries, func(raw json.RawMessage) bool {
		var d Descriptor
		return json.Unmarshal(raw, &d) == nil && d.Digest == digest
	})
}

// with returns the index with d and without stale. Everything else stays as it is.
func (ix *index) with(d Descriptor, stale []Descriptor) ([]byte, error) {
	entries := make([]json.RawMessage, 0, len(ix.entries)+1)
	size := 0
	for _, raw := range ix.entries {
		if old, ok := ours(raw); ok && slices.ContainsFunc(stale, func(s Descriptor) bool { return s.Digest == old.Digest }) {
			continue
		}
		size += len(raw)
		entries = append(entries, raw)
	}
	if table := d.Annotations[image.AnnotationProfileTable]; size+len(table) > maxIndex {
		shorter := map[string]string{}
		for k, v := range d.Annotations {
			if k != image.AnnotationProfileTable {
				shorter[k] = v
			}
		}
		d.Annotations = shorter
	}
	raw, err := json.Marshal(d)
	if err != nil {
		return nil, err
	}
	list, err := json.Marshal(append(entries, raw))
	if err != nil {
		return nil, err
	}
	fields := map[string]json.RawMessage{}
	for k, v := range ix.fields {
		fields[k] = v
	}
	fields["schemaVersion"], fields["mediaType"], fields["manifests"] = json.RawMessage("2"), json.RawMessage(`"`+mediaTypeIndex+`"`), list
	return json.Marshal(fields)
}
