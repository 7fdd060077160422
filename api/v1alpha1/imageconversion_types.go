package v1alpha1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// ImageConversionSpec is one source digest of one tag that is to become an
// accelerated image. It cannot be changed.
// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="cannot be changed: create another ImageConversion"
type ImageConversionSpec struct {
	// RegistryRef names the Registry in the same namespace.
	RegistryRef LocalReference `json:"registryRef"`

	// Repository is the path of the source within the registry, such as
	// library/nginx.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=255
	// +kubebuilder:validation:XValidation:rule="self.matches('^[a-z0-9]+([._-]+[a-z0-9]+)*(/[a-z0-9]+([._-]+[a-z0-9]+)*)*$')",message="must be a repository path in lower case without host and tag, such as library/nginx"
	Repository string `json:"repository"`

	// Tag of the source. The accelerated image gets the same tag with -apparate
	// behind it, so there is room for 119 characters.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=119
	// +kubebuilder:validation:XValidation:rule="self.matches('^[A-Za-z0-9_][A-Za-z0-9._-]*$')",message="must be a tag such as v1.2: letters, digits, and behind the first character also . and -"
	// +kubebuilder:validation:XValidation:rule="!self.endsWith('-apparate')",message="is the tag of an accelerated image: name the plain one"
	Tag string `json:"tag"`

	// Digest is the source manifest or index. Empty means what the tag is when
	// the conversion starts.
	// +kubebuilder:validation:MaxLength=135
	// +kubebuilder:validation:Pattern=`^(sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128})?$`
	// +optional
	Digest string `json:"digest,omitempty"`

	// RuleRef names the rule because of which this was created. Without one it
	// was created by hand, and no rule is asked.
	// +optional
	RuleRef *LocalReference `json:"ruleRef,omitempty"`

	// Format of the accelerated layers.
	// +kubebuilder:default=estargz
	// +optional
	Format Format `json:"format,omitempty"`

	// Platforms to keep, such as linux/amd64. Empty means all.
	// +kubebuilder:validation:MaxItems=16
	// +listType=set
	// +optional
	Platforms []Platform `json:"platforms,omitempty"`
}

// ImageConversionStatus is how far a conversion is, and what came out.
type ImageConversionStatus struct {
	// ObservedGeneration is the generation of the spec that the rest speaks of.
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
	// Conditions: Succeeded (True, False for good, Unknown while it waits or
	// runs), Reconciling, Stalled.
	// +listType=map
	// +listMapKey=type
	// +optional
	Conditions []metav1.Condition `json:"conditions,omitempty"`
	// Source and Target are the full names of both images.
	// +optional
	Source string `json:"source,omitempty"`
	// +optional
	Target string `json:"target,omitempty"`
	// SourceDigest is what was converted, TargetDigest what it became.
	// +optional
	SourceDigest string `json:"sourceDigest,omitempty"`
	// +optional
	TargetDigest string `json:"targetDigest,omitempty"`
	// Attempts is how often the conversion was begun.
	// +optional
	Attempts int32 `json:"attempts,omitempty"`
	// StartTime is when it was begun last, CompletionTime when it ended for good.
	// +optional
	StartTime *metav1.Time `json:"startTime,omitempty"`
	// +optional
	CompletionTime *metav1.Time `json:"completionTime,omitempty"`
	// NextAttemptTime is when it is tried again after a failure that may pass.
	// +optional
	NextAttemptTime *metav1.Time `json:"nextAttemptTime,omitempty"`
	// Duration of the last attempt, such as 12.3s.
	// +optional
	Duration string `json:"duration,omitempty"`
	// Platforms that were converted.
	// +listType=atomic
	// +optional
	Platforms []string `json:"platforms,omitempty"`
	// Layers says what became of the layers.
	// +optional
	Layers *ConversionLayers `json:"layers,omitempty"`
	// Bytes says how much was read and written.
	// +optional
	Bytes *ConversionBytes `json:"bytes,omitempty"`
	// RegistryRevision identifies the registry's settings and credentials of the
	// last attempt: when they change, what was denied is tried again.
	// +optional
	RegistryRevision string `json:"registryRevision,omitempty"`
	// LastHandledRequest is the value of the annotation requested-at that was
	// followed last: another value tries a failed conversion again.
	// +optional
	LastHandledRequest string `json:"lastHandledRequest,omitempty"`
}

// ConversionLayers counts the distinct layers of an image.
type ConversionLayers struct {
	// Total is the sum of the others.
	Total int32 `json:"total"`
	// Converted were downloaded and encoded.
	Converted int32 `json:"converted"`
	// Reused were converted for an earlier image.
	Reused int32 `json:"reused"`
	// Copied could not be accelerated and are as they were.
	Copied int32 `json:"copied"`
}

// ConversionBytes has sizes in bytes.
type ConversionBytes struct {
	// In and Out went over the network.
	In  int64 `json:"in"`
	Out int64 `json:"out"`
	// SourceSize and TargetSize are the compressed sizes of the layers.
	SourceSize int64 `json:"sourceSize"`
	TargetSize int64 `json:"targetSize"`
}

// ImageConversion is the work of making one accelerated image.
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:shortName=imgconv,categories=apparate
// +kubebuilder:printcolumn:name="Repository",type=string,JSONPath=`.spec.repository`
// +kubebuilder:printcolumn:name="Tag",type=string,JSONPath=`.spec.tag`
// +kubebuilder:printcolumn:name="Succeeded",type=string,JSONPath=`.status.conditions[?(@.type=="Succeeded")].status`
// +kubebuilder:printcolumn:name="Reason",type=string,JSONPath=`.status.conditions[?(@.type=="Succeeded")].reason`
// +kubebuilder:printcolumn:name="Duration",type=string,JSONPath=`.status.duration`
// +kubebuilder:printcolumn:name="Attempts",type=integer,priority=1,JSONPath=`.status.attempts`
// +kubebuilder:printcolumn:name="Rule",type=string,priority=1,JSONPath=`.spec.ruleRef.name`
// +kubebuilder:printcolumn:name="Target",type=string,priority=1,JSONPath=`.status.target`
// +kubebuilder:printcolumn:name="Message",type=string,priority=1,JSONPath=`.status.conditions[?(@.type=="Succeeded")].message`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type ImageConversion struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// Spec is what is wanted.
	Spec ImageConversionSpec `json:"spec"`
	// Status is how far it is.
	// +optional
	Status ImageConversionStatus `json:"status,omitempty"`
}

// ImageConversionList is a list of conversions.
// +kubebuilder:object:root=true
type ImageConversionList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []ImageConversion `json:"items"`
}
