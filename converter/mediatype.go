package converter

import (
	"strings"

	"github.com/apparate/apparate/converter/encode"
)

// Media types (OCI image spec 1.1, "Media Types"; Docker image manifest v2,
// schema 2).
const (
	ociManifest    = "application/vnd.oci.image.manifest.v1+json"
	ociIndex       = "application/vnd.oci.image.index.v1+json"
	ociConfig      = "application/vnd.oci.image.config.v1+json"
	ociLayer       = "application/vnd.oci.image.layer.v1.tar"
	ociForeign     = "application/vnd.oci.image.layer.nondistributable.v1.tar"
	dockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	dockerList     = "application/vnd.docker.distribution.manifest.list.v2+json"
	dockerSchema1  = "application/vnd.docker.distribution.manifest.v1+"
	dockerConfig   = "application/vnd.docker.container.image.v1+json"
	dockerLayer    = "application/vnd.docker.image.rootfs.diff.tar"
	dockerForeign  = "application/vnd.docker.image.rootfs.foreign.diff.tar"
)

// Annotations by which BuildKit ties an attestation to its image.
const (
	annotationReferenceDigest = "vnd.docker.reference.digest"
	annotationReferenceType   = "vnd.docker.reference.type"
)

// compression is the end of the media type of layers of a format.
func compression(f encode.Format) string {
	if f == encode.ZstdChunked {
		return "+zstd"
	}
	return "+gzip"
}

func isIndex(mediaType string) bool  { return mediaType == ociIndex || mediaType == dockerList }
func isConfig(mediaType string) bool { return mediaType == ociConfig || mediaType == dockerConfig }

// layerType reads a layer's media type: OCI's name of the same type, and whether
// the layer is foreign. ok is false for what holds no tree of files.
func layerType(mediaType string) (oci string, foreign, ok bool) {
	for _, c := range []struct {
		prefix, oci string
		foreign     bool
	}{
		{ociForeign, ociForeign, true}, {dockerForeign, ociForeign, true},
		{ociLayer, ociLayer, false}, {dockerLayer, ociLayer, false},
	} {
		rest, found := strings.CutPrefix(mediaType, c.prefix)
		if !found {
			continue
		}
		switch rest {
		case "":
			return c.oci, c.foreign, true
		case "+gzip", ".gzip":
			return c.oci + "+gzip", c.foreign, true
		case "+zstd", ".zstd":
			return c.oci + "+zstd", c.foreign, true
		}
	}
	return "", false, false
}

// notImage says why a manifest is no image of files; "" when it is one.
func notImage(d *document) string {
	switch {
	case d.Config == nil:
		return "its manifest has no config"
	case d.ArtifactType != "" && !isConfig(d.ArtifactType):
		return "it is an artifact of type " + d.ArtifactType
	case !isConfig(d.Config.MediaType):
		return "its config has the type " + d.Config.MediaType
	case len(d.Layers) == 0:
		return "it has no layers"
	}
	for _, l := range d.Layers {
		if _, _, ok := layerType(l.MediaType); !ok {
			return "it has a layer of type " + l.MediaType
		}
	}
	return ""
}
