package image

// A start-up profile in a registry: an OCI artifact manifest whose subject is
// the platform manifest of an accelerated image, whose config is the OCI empty
// descriptor, whose first layer is the table and whose second layer is the pack
// (package api/profile). It is found with the referrers API or, where a registry
// has none, in the index under the tag "sha256-<hex>" (OCI distribution spec 1.1,
// "Referrers Tag Schema"). Of several the newest by AnnotationProfileCreated counts.
const (
	// ProfileArtifactType is the artifactType of a profile's manifest.
	ProfileArtifactType = "application/vnd.apparate.profile.v1"
	// ProfileTableMediaType is the media type of layers[0], an encoded profile.Table.
	ProfileTableMediaType = "application/vnd.apparate.profile.table.v1"
	// ProfilePackMediaType is the media type of layers[1]: zstd frames, one for each group of the table, one after the other.
	ProfilePackMediaType = "application/vnd.apparate.profile.pack.v1+zstd"
)

// Annotations of a profile's manifest. A list of referrers repeats them.
const (
	// AnnotationProfileTable is the table in standard base64, present if the table
	// is at most MaxInlineTable bytes long: the list of referrers is then all a node asks for before the pack.
	AnnotationProfileTable = "cloud.tencent.com/apparate.profile.table"
	// AnnotationProfileSummary is a profile.Summary as JSON, for people.
	AnnotationProfileSummary = "cloud.tencent.com/apparate.profile.summary"
	// AnnotationProfileCreated is when the profile was made, RFC 3339 in UTC
	// (OCI image spec 1.1, "Pre-Defined Annotation Keys").
	AnnotationProfileCreated = "org.opencontainers.image.created"
)

// MaxInlineTable is the longest table, in bytes before base64, that AnnotationProfileTable carries.
const MaxInlineTable = 64 << 10

// EmptyMediaType is the media type of the config of a profile's manifest, and
// EmptyJSON its whole content (OCI image spec 1.1, "Guidance for an Empty Descriptor").
const (
	EmptyMediaType = "application/vnd.oci.empty.v1+json"
	EmptyJSON      = "{}"
)
