package converter

import (
	"context"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/apparate/apparate/api/image"
	"github.com/apparate/apparate/converter/fault"
)

const (
	// maxDepth is how deep indexes may be nested; nobody nests them twice.
	maxDepth = 4
	// maxNodes and maxLayers bound what one request may lead to.
	maxNodes  = 1000
	maxLayers = 10000
)

// kind is what becomes of a manifest.
type kind int

const (
	isImage kind = iota // converted
	isList              // its children are looked at
	isOther             // copied byte by byte
)

// node is one manifest of the source.
type node struct {
	*manifest
	kind kind
	// children of a list, in order; nil for those not asked for.
	children []*node
	// For an image:
	config   *config
	platform *v1.Platform
}

// plan reads all manifests and configs below the source, and collects the
// distinct layers to convert.
func (j *job) plan(ctx context.Context) error {
	j.layers = make(map[string]*layer)
	root, err := j.planNode(ctx, j.top, nil, 0)
	if err != nil {
		return err
	}
	j.root = root
	if len(j.images) > 0 {
		j.result.Platforms = platformList(j.images)
		return nil
	}
	switch {
	case j.accelerated:
		return fault.New(fault.AlreadyAccelerated, nil, "%s holds accelerated images already: convert the images they were made from", j.source)
	case len(j.platforms) > 0:
		return fault.New(fault.NoPlatform, nil, "%s has no image for the platforms asked for; it has: %s", j.source, j.offers())
	}
	return fault.New(fault.NotImage, nil, "%s is an index without a container image: only images can be accelerated", j.source)
}

// planNode decides what becomes of a manifest, and goes on below it.
func (j *job) planNode(ctx context.Context, m *manifest, d *descriptor, depth int) (*node, error) {
	if j.nodes++; j.nodes > maxNodes || depth > maxDepth {
		return nil, fault.New(fault.ImageInvalid, nil, "%s has more than %d manifests or %d levels of indexes", j.source, maxNodes, maxDepth)
	}
	n := &node{manifest: m, kind: isOther}
	_, ours := m.doc.Annotations[image.AnnotationSourceDigest]
	switch {
	case ours:
		j.accelerated = true
	case isIndex(m.MediaType):
		n.kind = isList
		return n, j.planChildren(ctx, n, depth)
	case d != nil && d.Annotations[annotationReferenceType] != "":
		// An attestation has an image's config and no image.
	case notImage(m.doc) == "":
		n.kind = isImage
		if d != nil {
			n.platform = d.Platform
		}
		return n, j.planImage(ctx, n)
	}
	return n, nil
}

// planChildren reads the manifests of an index that were asked for.
func (j *job) planChildren(ctx context.Context, n *node, depth int) error {
	n.children = make([]*node, len(n.doc.Manifests))
	kept := make(map[string]bool)
	// Attestations come after their images, and stay with them.
	for i := range n.doc.Manifests {
		d := &n.doc.Manifests[i]
		about, attestation := d.Annotations[annotationReferenceDigest]
		if len(j.platforms) > 0 && (attestation && !kept[about] || !attestation && !isIndex(d.MediaType) && !wanted(d.Platform, j.platforms)) {
			continue
		}
		m, err := j.fetch(ctx, j.source.Context().Digest(d.Digest))
		if fault.KindOf(err) == fault.NotFound {
			return fault.New(fault.ContentMissing, nil, "%s lists the manifest %s, which the registry does not have: push the image again with all platforms, or choose with --platform", j.source, d.Digest)
		}
		if err != nil {
			return err
		}
		kept[d.Digest] = true
		if n.children[i], err = j.planNode(ctx, m, d, depth+1); err != nil {
			return err
		}
	}
	return nil
}

// planImage reads an image's config and notes its layers.
func (j *job) planImage(ctx context.Context, n *node) error {
	repo := j.source.Context()
	what := repo.Digest(n.Digest).String()
	raw, err := j.client.ReadBlob(ctx, repo, n.doc.Config.Digest, n.doc.Config.Size)
	if err != nil {
		return err
	}
	if n.config, err = parseConfig(raw, what); err != nil {
		return err
	}
	if n.platform == nil {
		n.platform = &n.config.platform
	}
	if len(n.config.diffIDs) != len(n.doc.Layers) {
		return fault.New(fault.ImageInvalid, nil, "%s has %d layers, and its config speaks of %d: push the image again", what, len(n.doc.Layers), len(n.config.diffIDs))
	}
	for i := range n.doc.Layers {
		if err := j.planLayer(&n.doc.Layers[i], n.config.diffIDs[i], repo); err != nil {
			return err
		}
	}
	j.images = append(j.images, n)
	return nil
}

// planLayer notes a layer, once for each digest.
func (j *job) planLayer(d *descriptor, diffID string, repo name.Repository) error {
	if l, ok := j.layers[d.Digest]; ok {
		if l.source.Size != d.Size || l.diffID != diffID {
			return fault.New(fault.ImageInvalid, nil, "%s says different things about layer %s: push the image again", repo, d.Digest)
		}
		return nil
	}
	if len(j.order) >= maxLayers {
		return fault.New(fault.ImageInvalid, nil, "%s has more than %d layers", j.source, maxLayers)
	}
	if d.Size < 0 {
		return fault.New(fault.ImageInvalid, nil, "layer %s of %s is said to have %d bytes", d.Digest, repo, d.Size)
	}
	mediaType, foreign, _ := layerType(d.MediaType)
	l := &layer{source: d, mediaType: mediaType, foreign: foreign, diffID: diffID, index: len(j.order) + 1}
	j.layers[d.Digest] = l
	j.order = append(j.order, l)
	j.result.SourceSize += d.Size
	return nil
}

// offers names the platforms of the source's index.
func (j *job) offers() string {
	s := ""
	for _, d := range j.top.doc.Manifests {
		if n := platformName(d.Platform); n != "" {
			if s != "" {
				s += ", "
			}
			s += n
		}
	}
	if s == "" {
		return "none"
	}
	return s
}
