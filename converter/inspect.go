package converter

import (
	"slices"

	"github.com/apparate/apparate/api/image"
	"github.com/apparate/apparate/converter/fault"
	"github.com/apparate/apparate/converter/registry"
)

// Inspection is what a manifest or index says of itself, without any request.
type Inspection struct {
	// Accelerated says that it is the result of a conversion, SourceDigest from
	// which manifest.
	Accelerated  bool
	SourceDigest string
	// NotImage says what it is instead of a container image; empty for an image
	// and for an index that lists at least one.
	NotImage string
	// Platforms are those of an index's images, each once, "linux/arm64/v8". An
	// image's own platform is in its config: see [ConfigPlatform].
	Platforms []string
	// ConfigDigest and ConfigSize describe an image's config; empty for an index.
	ConfigDigest string
	ConfigSize   int64
}

// Inspect reads a manifest or index. Its errors are faults of kind ImageInvalid
// and NotImage (for Docker's schema 1).
func Inspect(m registry.Manifest) (Inspection, error) {
	doc, err := parseDocument(m.Raw, m.Digest)
	if err != nil {
		return Inspection{}, err
	}
	mediaType := manifestType(m.MediaType, doc)
	in := Inspection{SourceDigest: doc.Annotations[image.AnnotationSourceDigest]}
	_, in.Accelerated = doc.Annotations[image.AnnotationSourceDigest]
	if !isIndex(mediaType) {
		if in.NotImage = notImage(doc); in.NotImage == "" {
			in.ConfigDigest, in.ConfigSize = doc.Config.Digest, doc.Config.Size
		}
		return in, nil
	}
	images := 0
	for i := range doc.Manifests {
		d := &doc.Manifests[i]
		if d.Annotations[annotationReferenceType] != "" || d.ArtifactType != "" && !isConfig(d.ArtifactType) {
			continue // an attestation or another artifact
		}
		images++
		if p := platformName(d.Platform); p != "" && !slices.Contains(in.Platforms, p) {
			in.Platforms = append(in.Platforms, p)
		}
	}
	if images == 0 {
		in.NotImage = "it is an index without a container image"
	}
	return in, nil
}

// ConfigPlatform reads the platform of an image, "linux/amd64", from its config;
// empty when the config does not tell.
func ConfigPlatform(config []byte) (string, error) {
	c, err := parseConfig(config, "the image")
	if err != nil {
		return "", err
	}
	return platformName(&c.platform), nil
}

// manifestType is the media type that a manifest has: what is under the digest
// counts for more than a header.
func manifestType(header string, doc *document) string {
	if t := doc.MediaType; isIndex(t) || t == ociManifest || t == dockerManifest {
		return t
	}
	return header
}

// refuseOther says that the source is not the manifest that was expected.
func (j *job) refuseOther() error {
	if want := j.req.SourceDigest; want != "" && want != j.seen.SourceDigest {
		return fault.NewTemporary(fault.Superseded, nil, "%s was pushed again: it is %s now, and was %s", j.source, j.seen.SourceDigest, want)
	}
	return nil
}
