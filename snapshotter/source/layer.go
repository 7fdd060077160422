// Package source knows where a layer comes from: it turns the labels that
// containerd gives a snapshotter into the description of a layer, and an image
// reference into hosts, credentials and blobs that can be read in ranges.
//
// It is configured as containerd is: hosts from certs.d/<host>/hosts.toml, with
// mirrors, CAs and client certificates. Credentials come from a directory of
// files, from kubelet's credential provider plugins and from docker's config.json,
// in this order. All is read when first needed and again when a registry refuses
// us, so that a rotated password needs no restart; tokens and the plugins' answers
// are renewed before they end.
package source

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/apparate/apparate/api/image"
)

// Labels that containerd's CRI plugin gives the Prepare of a layer (containerd,
// pkg/snapshotters/annotations.go); LabelDiffID since 2.3.
const (
	LabelImageRef       = "containerd.io/snapshot/cri.image-ref"
	LabelLayerDigest    = "containerd.io/snapshot/cri.layer-digest"
	LabelManifestDigest = "containerd.io/snapshot/cri.manifest-digest"
	LabelDiffID         = "containerd.io/snapshot/diff-id"
)

// Labels that clients with an eStargz image handler, such as nerdctl and
// ctr-remote, give instead (stargz-snapshotter, fs/source).
const (
	LabelRemoteRef    = "containerd.io/snapshot/remote/stargz.reference"
	LabelRemoteDigest = "containerd.io/snapshot/remote/stargz.digest"
)

// Why labels do not describe a lazy layer; for errors.Is.
var (
	// ErrNoReference says that no label names the image. containerd then pulls
	// without snapshot annotations: see disable_snapshot_annotations.
	ErrNoReference = errors.New("no label names the image: containerd must pass snapshot annotations")
	// ErrNoLayerDigest says that no label names the layer's blob.
	ErrNoLayerDigest = errors.New("no label names the layer's digest")
	// ErrNoTOCDigest says that the layer is not known to have a table of
	// contents: it is an ordinary one.
	ErrNoTOCDigest = errors.New("layer has no TOC digest: it was not converted")
	// ErrBadLabel says that a label cannot be read; the text names it.
	ErrBadLabel = errors.New("bad label")
)

// Layer is what is known of one layer of an image. Zero values are not known.
type Layer struct {
	// Ref is the image as it was pulled, by tag or by digest, with its host.
	Ref string `json:"ref,omitempty"`
	// Manifest is the digest of the platform's manifest.
	Manifest digest.Digest `json:"manifest,omitempty"`
	// Digest is that of the blob as it is stored, DiffID that of the tar in it.
	Digest digest.Digest `json:"digest,omitempty"`
	DiffID digest.Digest `json:"diffID,omitempty"`
	// MediaType is the blob's; labels do not have it.
	MediaType string `json:"mediaType,omitempty"`
	// TOCDigest is that of the TOC, uncompressed or as it is in the blob. Without it a layer is an ordinary one.
	TOCDigest digest.Digest `json:"tocDigest,omitempty"`
	// TOCOffset and TOCSize are where the compressed TOC is in the blob, in
	// bytes: both or neither. They are a hint, the TOC digest is the proof.
	TOCOffset int64 `json:"tocOffset,omitempty"`
	TOCSize   int64 `json:"tocSize,omitempty"`
	// IndexDigest is that of the layer index (package layerindex), IndexOffset and
	// IndexSize are where it is in the blob, in bytes: all or none.
	IndexDigest digest.Digest `json:"indexDigest,omitempty"`
	IndexOffset int64         `json:"indexOffset,omitempty"`
	IndexSize   int64         `json:"indexSize,omitempty"`
	// BlobSize is the length of the blob in bytes.
	BlobSize int64 `json:"blobSize,omitempty"`
}

// FromLabels reads the labels of a Prepare. With ErrNoTOCDigest, and only then,
// the Layer holds what else was found.
func FromLabels(labels map[string]string) (Layer, error) {
	var l Layer
	if l.Ref = first(labels, LabelImageRef, LabelRemoteRef); l.Ref == "" {
		return Layer{}, ErrNoReference
	}
	if _, err := parseRef(l.Ref); err != nil {
		return Layer{}, fmt.Errorf("%w %s: %w", ErrBadLabel, LabelImageRef, err)
	}
	for _, f := range []struct {
		to   *digest.Digest
		keys []string
	}{
		{&l.Digest, []string{LabelLayerDigest, LabelRemoteDigest}},
		{&l.Manifest, []string{LabelManifestDigest}},
		{&l.DiffID, []string{LabelDiffID}},
	} {
		if err := readDigest(labels, f.to, f.keys...); err != nil {
			return Layer{}, err
		}
	}
	if l.Digest == "" {
		return Layer{}, ErrNoLayerDigest
	}
	if err := l.annotate(labels); err != nil {
		return Layer{}, err
	}
	if l.TOCDigest == "" {
		return l, ErrNoTOCDigest
	}
	return l, nil
}

// zstdPosition reads where the TOC of a zstd:chunked layer is.
func (l *Layer) zstdPosition(a map[string]string) error {
	for _, key := range [...]string{image.AnnotationZstdPosition, image.AnnotationStargzZstdPosition} {
		s, ok := a[key]
		if !ok {
			continue
		}
		var n [4]int64 // offset, size, size of the JSON, type
		fields := strings.Split(s, ":")
		if len(fields) != len(n) {
			return fmt.Errorf("%w %s: %.64q has not %d numbers", ErrBadLabel, key, s, len(n))
		}
		for i, f := range fields {
			v, err := strconv.ParseUint(f, 10, 63)
			if err != nil {
				return fmt.Errorf("%w %s: %w", ErrBadLabel, key, err)
			}
			n[i] = int64(v)
		}
		if n[0] == 0 || n[1] == 0 || n[0]+n[1] < 0 {
			return fmt.Errorf("%w %s: %.64q is no place in a blob", ErrBadLabel, key, s)
		}
		l.TOCOffset, l.TOCSize = n[0], n[1]
		return nil
	}
	return nil
}

// annotate reads what the converter wrote into the layer's descriptor; containerd
// hands it on as labels of the same names.
func (l *Layer) annotate(a map[string]string) error {
	// The first is there in eStargz and in one dialect of zstd:chunked, the others in
	// manifests of zstd:chunked layers only; see package toc for what each is a digest of.
	err := readDigest(a, &l.TOCDigest, image.AnnotationTOCDigest, image.AnnotationZstdChecksum, image.AnnotationStargzZstdChecksum)
	if err != nil {
		return err
	}
	if err := l.zstdPosition(a); err != nil {
		return err
	}
	if err := readDigest(a, &l.IndexDigest, image.AnnotationIndexDigest); err != nil {
		return err
	}
	for key, to := range map[string]*int64{
		image.AnnotationTOCOffset:   &l.TOCOffset,
		image.AnnotationTOCSize:     &l.TOCSize,
		image.AnnotationIndexOffset: &l.IndexOffset,
		image.AnnotationIndexSize:   &l.IndexSize,
		image.AnnotationBlobSize:    &l.BlobSize,
	} {
		s, ok := a[key]
		if !ok {
			continue
		}
		v, err := strconv.ParseUint(s, 10, 63)
		if err != nil {
			return fmt.Errorf("%w %s: %w", ErrBadLabel, key, err)
		}
		*to = int64(v)
	}
	if err := l.inBlob(a, image.AnnotationTOCOffset, image.AnnotationTOCSize, l.TOCOffset, l.TOCSize); err != nil {
		return err
	}
	if (l.IndexDigest != "") != (l.IndexSize != 0) {
		return fmt.Errorf("%w %s: it needs %s, and that needs it", ErrBadLabel, image.AnnotationIndexDigest, image.AnnotationIndexSize)
	}
	return l.inBlob(a, image.AnnotationIndexOffset, image.AnnotationIndexSize, l.IndexOffset, l.IndexSize)
}

// inBlob makes sure that of an offset and a size both are there or neither is, and that
// they are a part of the blob.
func (l *Layer) inBlob(a map[string]string, offsetKey, sizeKey string, offset, size int64) error {
	// An empty layer has its TOC at offset 0; zstdPosition needs no key for its own.
	if _, hasOffset := a[offsetKey]; hasOffset && size == 0 || !hasOffset && size != 0 && offset == 0 {
		return fmt.Errorf("%w %s: it needs %s", ErrBadLabel, offsetKey, sizeKey)
	}
	if l.BlobSize != 0 && (size > l.BlobSize || offset > l.BlobSize-size) {
		return fmt.Errorf("%w %s: %d bytes from %d are outside the blob of %d bytes", ErrBadLabel, offsetKey, size, offset, l.BlobSize)
	}
	return nil
}

// first returns the first label of keys that is there and not empty.
func first(labels map[string]string, keys ...string) string {
	for _, k := range keys {
		if v := labels[k]; v != "" {
			return v
		}
	}
	return ""
}

// readDigest reads the first label of keys into to, if there is one.
func readDigest(labels map[string]string, to *digest.Digest, keys ...string) error {
	for _, k := range keys {
		if labels[k] == "" {
			continue
		}
		d, err := digest.Parse(labels[k])
		if err != nil {
			return fmt.Errorf("%w %s: %w", ErrBadLabel, k, err)
		}
		*to = d
		return nil
	}
	return nil
}
