package converter

import (
	"context"
	"strings"

	"github.com/apparate/apparate/api/image"
)

// reusable is a layer of the target's previous image.
type reusable struct{ converted }

// ourLayerKeys are the annotations that a converted layer has, maybeKeys those that it
// may have: of an index, unless it is a layer that none can describe, and of zstd:chunked.
var ourLayerKeys = [...]string{
	image.AnnotationTOCDigest, image.AnnotationTOCOffset, image.AnnotationTOCSize,
	image.AnnotationBlobSize, image.AnnotationUncompressedSize, image.AnnotationLayerSource,
}

var maybeKeys = [...]string{
	image.AnnotationIndexDigest, image.AnnotationIndexOffset, image.AnnotationIndexSize,
	image.AnnotationStargzZstdChecksum, image.AnnotationStargzZstdPosition,
}

// findReusable lists the layers of the image that the target tag names now, by
// the layer that each was made from. What cannot be read is not reused: that
// costs time and nothing else.
func (j *job) findReusable(ctx context.Context) {
	j.reusable = make(map[string]reusable)
	if j.previous == nil || j.req.Force {
		return
	}
	for _, m := range j.previousImages(ctx) {
		a := m.doc.Annotations
		if a[image.AnnotationFormat] != image.FormatOf(string(j.req.Format)) || notImage(m.doc) != "" {
			continue
		}
		raw, err := j.client.ReadBlob(ctx, j.target.Context(), m.doc.Config.Digest, m.doc.Config.Size)
		if err != nil {
			continue
		}
		c, err := parseConfig(raw, j.target.String())
		if err != nil || len(c.diffIDs) != len(m.doc.Layers) {
			continue
		}
		for i := range m.doc.Layers {
			j.addReusable(&m.doc.Layers[i], c.diffIDs[i])
		}
	}
}

func (j *job) addReusable(d *descriptor, diffID string) {
	source := d.Annotations[image.AnnotationLayerSource]
	if _, used := j.layers[source]; !used {
		return
	}
	ours := make(map[string]string, len(ourLayerKeys))
	for _, k := range ourLayerKeys {
		v, ok := d.Annotations[k]
		if !ok {
			return
		}
		ours[k] = v
	}
	for _, k := range maybeKeys {
		if v, ok := d.Annotations[k]; ok {
			ours[k] = v
		}
	}
	if !strings.HasPrefix(d.Digest, "sha256:") {
		return
	}
	j.reusable[source] = reusable{converted{
		mediaType: d.MediaType, digest: d.Digest, diffID: diffID, size: d.Size, annotations: ours,
	}}
}

// previousImages returns the manifests of the target's present image.
func (j *job) previousImages(ctx context.Context) []*manifest {
	if !isIndex(j.previous.MediaType) {
		return []*manifest{j.previous}
	}
	var all []*manifest
	for _, d := range j.previous.doc.Manifests[:min(len(j.previous.doc.Manifests), maxNodes)] {
		if d.Annotations[annotationReferenceType] != "" {
			continue
		}
		if m, err := j.fetch(ctx, j.target.Context().Digest(d.Digest)); err == nil {
			all = append(all, m)
		}
	}
	return all
}
