// Package image holds what the converter and the node must agree on: how an
// accelerated image is named and which annotation keys it carries. It does no
// I/O and imports nothing of this project.
package image

import (
	"fmt"
	"strings"
)

// Suffix is appended to a tag to name the accelerated image beside the plain one.
const Suffix = "-apparate"

// MaxTagLength is the longest tag a registry accepts, in bytes
// (OCI distribution spec 1.1, "Pulling manifests").
const MaxTagLength = 128

// Format is the value of AnnotationFormat that this version writes. It changes
// when the same source would be converted to other bytes.
//
//   - estargz/1: eStargz layers, chunks of 256 KiB
//   - estargz/2: with a layer index behind the TOC (package layerindex)
const Format = "estargz/2"

// FormatZstd is Format for layers that are zstd:chunked.
//
//   - zstd:chunked/1: chunks and layer index as in estargz/2
const FormatZstd = "zstd:chunked/1"

// FormatOf returns the value of AnnotationFormat for a format by the name that people
// give it, "estargz", "zstd:chunked" or "" for the first.
func FormatOf(name string) string {
	if name == "zstd:chunked" {
		return FormatZstd
	}
	return Format
}

// Annotations of an accelerated manifest or index.
const (
	// AnnotationSourceDigest is the digest of the manifest or index that was converted.
	AnnotationSourceDigest = "cloud.tencent.com/apparate.source.digest"
	// AnnotationFormat names the layer format and its version; see Format.
	AnnotationFormat = "cloud.tencent.com/apparate.format"
)

// Annotations of an accelerated layer. Those under "containerd.io/snapshot/"
// reach a snapshotter as labels without any change to containerd.
const (
	// AnnotationTOCDigest is the digest of the uncompressed TOC JSON
	// (eStargz specification, "TOC digest").
	AnnotationTOCDigest = "containerd.io/snapshot/stargz/toc.digest"
	// AnnotationUncompressedSize is the size in bytes of the layer's tar, decimal.
	AnnotationUncompressedSize = "io.containers.estargz.uncompressed-size"
	// AnnotationTOCOffset is where the compressed TOC begins in the blob, decimal bytes.
	AnnotationTOCOffset = "containerd.io/snapshot/apparate/toc.offset"
	// AnnotationTOCSize is how many bytes of the blob the compressed TOC takes, decimal.
	AnnotationTOCSize = "containerd.io/snapshot/apparate/toc.size"
	// AnnotationIndexDigest is the SHA-256 of the layer index (package layerindex, the
	// payload). It is there with the next two or not at all.
	AnnotationIndexDigest = "containerd.io/snapshot/apparate/index.digest"
	// AnnotationIndexOffset is where the members of the layer index begin in the blob,
	// AnnotationIndexSize how many bytes of the blob they take; decimal.
	AnnotationIndexOffset = "containerd.io/snapshot/apparate/index.offset"
	AnnotationIndexSize   = "containerd.io/snapshot/apparate/index.size"
	// AnnotationBlobSize is the size of the whole blob in bytes, decimal.
	AnnotationBlobSize = "containerd.io/snapshot/apparate/blob.size"
	// AnnotationLayerSource is the digest of the source layer this one was made from.
	AnnotationLayerSource = "cloud.tencent.com/apparate.layer.source.digest"
)

// AcceleratedTag returns the tag of the accelerated image beside tag. The error
// says what to do where the suffix does not fit or tag is itself accelerated.
func AcceleratedTag(tag string) (string, error) {
	switch {
	case tag == "":
		return "", fmt.Errorf("the image has no tag: name the result with --to")
	case IsAcceleratedTag(tag):
		return "", fmt.Errorf("tag %q already ends in %q: convert the plain tag, or name the result with --to", tag, Suffix)
	case len(tag)+len(Suffix) > MaxTagLength:
		return "", fmt.Errorf("tag %q is %d characters long and %q does not fit into the %d a registry allows: use a tag of at most %d characters, or name the result with --to",
			tag, len(tag), Suffix, MaxTagLength, MaxTagLength-len(Suffix))
	}
	return tag + Suffix, nil
}

// IsAcceleratedTag says whether tag has the suffix of accelerated images. It is
// a hint only: the truth is AnnotationSourceDigest in the manifest.
func IsAcceleratedTag(tag string) bool {
	return strings.HasSuffix(tag, Suffix)
}
