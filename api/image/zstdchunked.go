package image

// Annotations of a zstd:chunked layer. They do not reach a snapshotter as labels: who
// wants them reads the manifest.
//
// There are two dialects. containers/storage (podman, buildah, skopeo) writes the first
// pair, stargz-snapshotter the second and AnnotationTOCDigest with it; containers/storage
// refuses an image that has AnnotationTOCDigest beside the first pair.
const (
	// AnnotationZstdChecksum is the SHA-256 of the compressed TOC.
	AnnotationZstdChecksum = "io.github.containers.zstd-chunked.manifest-checksum"
	// AnnotationZstdPosition is where the compressed TOC is in the blob, as decimal
	// numbers "offset:size:uncompressed size:type" in bytes; the type is 1.
	AnnotationZstdPosition = "io.github.containers.zstd-chunked.manifest-position"
	// AnnotationStargzZstdChecksum and AnnotationStargzZstdPosition are the same of
	// stargz-snapshotter.
	AnnotationStargzZstdChecksum = "io.containers.zstd-chunked.manifest-checksum"
	AnnotationStargzZstdPosition = "io.containers.zstd-chunked.manifest-position"
)
