package converter

import (
	"context"
	"io"
	"maps"
	"sync/atomic"

	"github.com/opencontainers/go-digest"

	"github.com/apparate/apparate/api/image"
	"github.com/apparate/apparate/converter/registry"
)

// pushed is a manifest that is in the target repository, under its digest.
type pushed struct {
	mediaType, digest string
	raw               []byte
}

// push writes the manifest of a node and what is below it, children first.
func (j *job) push(ctx context.Context, n *node) (pushed, error) {
	switch n.kind {
	case isImage:
		return j.pushImage(ctx, n)
	case isList:
		return j.pushList(ctx, n)
	default:
		return j.pushOther(ctx, n.manifest, 0)
	}
}

// pushImage writes the config and the manifest of a converted image.
func (j *job) pushImage(ctx context.Context, n *node) (pushed, error) {
	layers := make([]object, len(n.doc.Layers))
	diffIDs := make([]string, len(n.doc.Layers))
	for i := range n.doc.Layers {
		d := &n.doc.Layers[i]
		c := j.layers[d.Digest].done
		annotations := d.Annotations
		if c.annotations != nil {
			annotations = layerAnnotations(annotations, c.annotations)
		}
		var err error
		if layers[i], err = d.with(c.mediaType, c.digest, c.size, annotations); err != nil {
			return pushed{}, err
		}
		diffIDs[i] = c.diffID
		if !c.absent {
			j.mustHaveBlob(c.digest)
		}
	}
	conf, err := n.config.withDiffIDs(diffIDs)
	if err != nil {
		return pushed{}, err
	}
	up := registry.Bytes(conf)
	if err := j.client.PutBlob(ctx, j.target.Context(), up); err != nil {
		return pushed{}, err
	}
	j.mustHaveBlob(up.Digest)
	o := maps.Clone(n.doc.raw)
	if _, typed := n.doc.raw["artifactType"]; typed {
		if err := o.set("artifactType", ociConfig); err != nil {
			return pushed{}, err
		}
	}
	desc, err := n.doc.Config.with(ociConfig, up.Digest, up.Size, n.doc.Config.Annotations)
	if err != nil {
		return pushed{}, err
	}
	p, err := j.pushDocument(ctx, n, o, map[string]any{"config": desc, "layers": layers}, ociManifest)
	if err == nil {
		j.made = append(j.made, ofPlatform{platformName(n.platform), p.digest})
	}
	return p, err
}

// pushList writes an index, after its children.
func (j *job) pushList(ctx context.Context, n *node) (pushed, error) {
	var out []object
	renamed := make(map[string]string) // source manifest → ours
	var kept []int
	children := make(map[int]pushed)
	for i, c := range n.children {
		if c == nil {
			continue
		}
		p, err := j.push(ctx, c)
		if err != nil {
			return pushed{}, err
		}
		kept, children[i] = append(kept, i), p
		renamed[n.doc.Manifests[i].Digest] = p.digest
	}
	for _, i := range kept {
		d, p := &n.doc.Manifests[i], children[i]
		annotations := maps.Clone(d.Annotations)
		if to, ok := renamed[annotations[annotationReferenceDigest]]; ok {
			annotations[annotationReferenceDigest] = to
		}
		o, err := d.with(p.mediaType, p.digest, int64(len(p.raw)), annotations)
		if err != nil {
			return pushed{}, err
		}
		out = append(out, o)
	}
	return j.pushDocument(ctx, n, maps.Clone(n.doc.raw), map[string]any{"manifests": out}, ociIndex)
}

// pushDocument completes a changed manifest or index and writes it by digest.
func (j *job) pushDocument(ctx context.Context, n *node, o object, fields map[string]any, mediaType string) (pushed, error) {
	fields["schemaVersion"] = 2
	fields["mediaType"] = mediaType
	fields["annotations"] = mark(n.doc.Annotations, n.Digest, image.FormatOf(string(j.req.Format)))
	for k, v := range fields {
		if err := o.set(k, v); err != nil {
			return pushed{}, err
		}
	}
	raw, err := marshal(o)
	if err != nil {
		return pushed{}, err
	}
	p := pushed{mediaType: mediaType, digest: digest.FromBytes(raw).String(), raw: raw}
	if err := j.putByDigest(ctx, p); err != nil {
		return pushed{}, err
	}
	j.emit(Event{Type: ManifestPushed, Platform: platformName(n.platform), Digest: p.digest})
	return p, nil
}

// pushOther copies a manifest that is no image, with everything it refers to.
func (j *job) pushOther(ctx context.Context, m *manifest, depth int) (pushed, error) {
	p := pushed{mediaType: m.MediaType, digest: m.Digest, raw: m.Raw}
	if j.source.Context().String() == j.target.Context().String() {
		return p, nil // it is there already
	}
	var blobs []descriptor
	if m.doc.Config != nil {
		blobs = append(blobs, *m.doc.Config)
	}
	blobs = append(append(blobs, m.doc.Layers...), m.doc.Blobs...)
	for i := range blobs {
		if len(blobs[i].URLs) > 0 {
			continue // somewhere else
		}
		if err := j.copyBlob(ctx, &blobs[i], new(atomic.Int64)); err != nil {
			return pushed{}, err
		}
		j.mustHaveBlob(blobs[i].Digest)
	}
	if depth < maxDepth {
		for i := range m.doc.Manifests {
			c, err := j.fetch(ctx, j.source.Context().Digest(m.doc.Manifests[i].Digest))
			if err != nil {
				return pushed{}, err
			}
			if _, err := j.pushOther(ctx, c, depth+1); err != nil {
				return pushed{}, err
			}
		}
	}
	return p, j.putByDigest(ctx, p)
}

func (j *job) putByDigest(ctx context.Context, p pushed) error {
	if err := j.client.PutManifest(ctx, j.target.Context().Digest(p.digest), p.mediaType, p.raw); err != nil {
		return err
	}
	if j.pushedManifests == nil {
		j.pushedManifests = make(map[string]bool)
	}
	j.pushedManifests[p.digest] = true
	return nil
}

func (j *job) mustHaveBlob(digest string) {
	if j.pushedBlobs == nil {
		j.pushedBlobs = make(map[string]bool)
	}
	j.pushedBlobs[digest] = true
}

// copyBlob brings a blob of the source repository into the target's: by
// mounting where one registry has both, else through this machine.
func (j *job) copyBlob(ctx context.Context, d *descriptor, n *atomic.Int64) error {
	from, to := j.source.Context(), j.target.Context()
	if from.String() == to.String() {
		return nil
	}
	return j.client.PutBlob(ctx, to, registry.Upload{
		Digest: d.Digest, Size: d.Size, From: &from,
		Open: func() (io.ReadCloser, error) {
			n.Store(0)
			b, err := j.client.Blob(ctx, from, d.Digest, d.Size)
			if err != nil {
				return nil, err
			}
			return struct {
				io.Reader
				io.Closer
			}{&counter{r: b, n: n, tick: func() {}}, b}, nil
		},
	})
}
