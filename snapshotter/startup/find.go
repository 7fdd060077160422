package startup

import (
	"cmp"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/apparate/apparate/api/image"
	"github.com/apparate/apparate/api/profile"
	"github.com/apparate/apparate/snapshotter/fetch"
)

const (
	// patience is how long a profile is looked for.
	patience = 2 * time.Second
	// maxCandidates is how many profiles of one image are looked at, the newest first.
	maxCandidates = 4
	// fresh is how long a kept table of an image is used without asking for a newer one.
	fresh = 10 * time.Minute
)

// found is a profile that was found.
type found struct {
	table *profile.Table
	// own says that it was made of this very image.
	own bool
	// origin is "registry", "kept" or "repository".
	origin string
}

// look finds the profile of a start and uses it.
func (e *Engine) look(st *start) {
	f := e.find(st)
	st.event(eventLooked)
	if f == nil {
		e.metrics.found.WithLabelValues("none").Inc()
		return
	}
	e.metrics.found.WithLabelValues(f.origin).Inc()
	if err := check(f.table); err != nil {
		e.log.Debug("start-up profile is not used", "image", st.ref, "error", err)
		return
	}
	st.use(f)
}

// find returns the kept table of this image, the registry's, or another digest's of the
// repository; nil when there is none.
func (e *Engine) find(st *start) *found {
	kept, age := e.tables.ofImage(st.manifest)
	if kept != nil && age < fresh {
		return &found{kept, true, "kept"}
	}
	b, err := e.ask(st.ref, st.manifest)
	if err != nil {
		e.log.Debug("no start-up profile from the registry", "image", st.ref, "manifest", st.manifest, "error", err)
	}
	if b != nil {
		if t, err := profile.Decode(b); err == nil {
			e.keep(st, b)
			return &found{t, true, "registry"}
		}
	}
	if err != nil && b == nil {
		if kept != nil {
			return &found{kept, true, "kept"}
		}
		st.lookAgain()
	}
	if t := e.tables.ofRepository(st.repo); t != nil {
		return &found{t, false, "repository"}
	}
	return nil
}

// keep writes a table for the next start.
func (e *Engine) keep(st *start, b []byte) {
	if err := e.tables.keep(st.manifest, st.repo, b); err != nil {
		e.log.Warn("start-up profile is not kept", "image", st.ref, "error", err)
	}
}

// ask asks the registry for the newest profile of an image that can be decoded.
func (e *Engine) ask(ref string, manifest digest.Digest) ([]byte, error) {
	ctx, cancel := context.WithTimeout(e.ctx, patience)
	defer cancel()
	list, err := e.o.Registry.Referrers(ctx, ref, manifest, image.ProfileArtifactType)
	if len(list) == 0 {
		return nil, err
	}
	slices.SortStableFunc(list, func(a, b ocispec.Descriptor) int { return cmp.Compare(created(b), created(a)) })
	var errs []error
	for _, d := range list[:min(len(list), maxCandidates)] {
		b, err := e.table(ctx, ref, d)
		if err == nil {
			_, err = profile.Decode(b)
		}
		if err == nil {
			return b, nil
		}
		errs = append(errs, err)
	}
	return nil, errors.Join(errs...)
}

// created is when a profile was made, in nanoseconds; 0 where it does not say.
func created(d ocispec.Descriptor) int64 {
	t, err := time.Parse(time.RFC3339, d.Annotations[image.AnnotationProfileCreated])
	if err != nil || t.Unix() < 0 {
		return 0
	}
	return t.UnixNano()
}

// table returns the encoded table of the profile d: of its annotation, or its blob.
func (e *Engine) table(ctx context.Context, ref string, d ocispec.Descriptor) ([]byte, error) {
	if text := d.Annotations[image.AnnotationProfileTable]; text != "" {
		if len(text) > base64.StdEncoding.EncodedLen(image.MaxInlineTable) {
			return nil, fmt.Errorf("profile %s: its table is too long for an annotation", d.Digest)
		}
		return base64.StdEncoding.DecodeString(text)
	}
	layers, err := e.o.Registry.Attachment(ctx, ref, d.Digest)
	if err != nil {
		return nil, err
	}
	for _, l := range layers {
		if l.MediaType == image.ProfileTableMediaType {
			return e.o.Registry.Bytes(ctx, ref, l, profile.MaxTable)
		}
	}
	return nil, fmt.Errorf("profile %s has no table", d.Digest)
}

// opener opens the pack of a profile.
func (st *start) opener(f *found) func(context.Context) (fetch.Blob, error) {
	return func(ctx context.Context) (fetch.Blob, error) {
		return st.e.o.Registry.Open(ctx, st.ref, digest.Digest(f.table.Pack), f.table.Size)
	}
}
