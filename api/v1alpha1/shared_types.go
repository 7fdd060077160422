package v1alpha1

// LocalReference names an object in the namespace of the one that refers to it.
type LocalReference struct {
	// Name of the object.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	Name string `json:"name"`
}

// SecretKeyReference names a key of a Secret in the same namespace.
type SecretKeyReference struct {
	// Name of the Secret.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	Name string `json:"name"`
	// Key in the Secret's data.
	// +kubebuilder:default=token
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	// +optional
	Key string `json:"key,omitempty"`
}

// BundleReference names a key of a ConfigMap or Secret in the same namespace
// that holds PEM certificates.
type BundleReference struct {
	// Kind is ConfigMap or Secret.
	// +kubebuilder:validation:Enum=ConfigMap;Secret
	// +kubebuilder:default=ConfigMap
	// +optional
	Kind string `json:"kind,omitempty"`
	// Name of the object.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	Name string `json:"name"`
	// Key in the object's data.
	// +kubebuilder:default=ca.crt
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	// +optional
	Key string `json:"key,omitempty"`
}

// Format is how the layers of accelerated images are written.
// +kubebuilder:validation:Enum=estargz;"zstd:chunked"
type Format string

// The formats. Both are valid layers with a table of contents: FormatEstargz is tar+gzip,
// which every runtime can pull, FormatZstdChunked is tar+zstd, which is quicker to
// decompress and which containerd pulls since 1.5.
const (
	FormatEstargz     Format = "estargz"
	FormatZstdChunked Format = "zstd:chunked"
)

// Platform is "os/architecture" or "os/architecture/variant".
// +kubebuilder:validation:Pattern=`^[a-z0-9]+/[a-z0-9_]+(/[a-z0-9.]+)?$`
// +kubebuilder:validation:MaxLength=64
type Platform string
