package v1alpha1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// AccelerationRuleSpec says which images are accelerated, and how.
type AccelerationRuleSpec struct {
	// Description for people, in any language.
	// +kubebuilder:validation:MaxLength=1024
	// +optional
	Description string `json:"description,omitempty"`

	// Suspend stops the rule: nothing new is converted because of it.
	// +kubebuilder:default=false
	// +optional
	Suspend bool `json:"suspend,omitempty"`

	// Trigger says which pushes the rule is for.
	Trigger RuleTrigger `json:"trigger"`

	// Verify are addresses of images, such as registry.example.com/team/app:v1,
	// for which status.verify says whether the rule matches them.
	// +kubebuilder:validation:MaxItems=32
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=512
	// +listType=set
	// +optional
	Verify []string `json:"verify,omitempty"`

	// Conversion says how matching images are converted.
	// +kubebuilder:default={}
	// +optional
	Conversion RuleConversion `json:"conversion,omitempty"`
}

// RuleTrigger names images of a registry instance.
type RuleTrigger struct {
	// RegistryRef names the Registry in the rule's namespace.
	RegistryRef LocalReference `json:"registryRef"`

	// Namespace is the registry's namespace, literally: the first part of
	// the repository path ("team-a" of team-a/app; more parts are allowed). All
	// namespaces at once is not offered. A repository without a namespace counts
	// as one of "library", as Docker names it.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=255
	// +kubebuilder:validation:XValidation:rule="self.matches('^[a-z0-9]+([._-]+[a-z0-9]+)*(/[a-z0-9]+([._-]+[a-z0-9]+)*)*$')",message="must be one literal namespace of the registry in lower case, such as team-a; for several namespaces make several rules"
	Namespace string `json:"namespace"`

	// Repository is a regular expression (RE2) for the path below the namespace,
	// all of it: "app" matches team-a/app and not team-a/app2. Empty means every
	// repository of the namespace.
	// +kubebuilder:validation:MaxLength=512
	// +kubebuilder:validation:XValidation:rule="''.matches(self) ? true : true",message="must be a regular expression in RE2 syntax"
	// +optional
	Repository string `json:"repository,omitempty"`

	// Tag is a regular expression (RE2) for the tag, all of it. Empty means
	// every tag.
	// +kubebuilder:validation:MaxLength=512
	// +kubebuilder:validation:XValidation:rule="''.matches(self) ? true : true",message="must be a regular expression in RE2 syntax"
	// +optional
	Tag string `json:"tag,omitempty"`
}

// RuleConversion says how images are converted.
type RuleConversion struct {
	// Format of the accelerated layers.
	// +kubebuilder:default=estargz
	// +optional
	Format Format `json:"format,omitempty"`

	// Platforms to keep of a multi-platform image, such as linux/amd64. Empty
	// means all. Images for other platforms only are not converted.
	// +kubebuilder:validation:MaxItems=16
	// +listType=set
	// +optional
	Platforms []Platform `json:"platforms,omitempty"`
}

// AccelerationRuleStatus is how a rule does.
type AccelerationRuleStatus struct {
	// ObservedGeneration is the generation of the spec that the rest speaks of.
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
	// Conditions: Ready (matching pushes are being converted), SourceReachable,
	// ConversionsHealthy, Reconciling, Stalled.
	// +listType=map
	// +listMapKey=type
	// +optional
	Conditions []metav1.Condition `json:"conditions,omitempty"`
	// Matched is how many tags the registry has that this rule is for.
	Matched int64 `json:"matched"`
	// Converted is how many of them have an accelerated image.
	Converted int64 `json:"converted"`
	// Pending is how many conversions wait or run.
	Pending int64 `json:"pending"`
	// Failed is how many tags could not be converted, at their last try.
	Failed int64 `json:"failed"`
	// Failures is a sample of those, the latest first.
	// +kubebuilder:validation:MaxItems=5
	// +listType=atomic
	// +optional
	Failures []RuleFailure `json:"failures,omitempty"`
	// LastConversion is the latest success.
	// +optional
	LastConversion *RuleLastConversion `json:"lastConversion,omitempty"`
	// Verify has an answer for each address in spec.verify, in the same order.
	// +listType=atomic
	// +optional
	Verify []VerifyResult `json:"verify,omitempty"`
}

// RuleFailure is one tag that could not be converted.
type RuleFailure struct {
	// Image is the full name of the source.
	Image string `json:"image"`
	// Reason is the conversion's.
	Reason string `json:"reason"`
	// Message says what to do.
	Message string `json:"message"`
	// Conversion is the ImageConversion's name.
	Conversion string `json:"conversion"`
}

// RuleLastConversion is the latest accelerated image.
type RuleLastConversion struct {
	// Image is the full name of the accelerated image.
	Image string `json:"image"`
	// Time is when it was there.
	Time metav1.Time `json:"time"`
}

// VerifyResult answers for one address in spec.verify.
type VerifyResult struct {
	// Image is the address.
	Image string `json:"image"`
	// Matches says whether this rule would convert the image.
	Matches bool `json:"matches"`
	// Reason is a skip reason, or Matched.
	Reason string `json:"reason"`
	// Message explains it.
	Message string `json:"message"`
}

// AccelerationRule says which pushed images become accelerated images.
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:shortName=accelrule,categories=apparate
// +kubebuilder:printcolumn:name="Ready",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].status`
// +kubebuilder:printcolumn:name="Matched",type=integer,JSONPath=`.status.matched`
// +kubebuilder:printcolumn:name="Converted",type=integer,JSONPath=`.status.converted`
// +kubebuilder:printcolumn:name="Failed",type=integer,JSONPath=`.status.failed`
// +kubebuilder:printcolumn:name="Reason",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].reason`
// +kubebuilder:printcolumn:name="Registry",type=string,priority=1,JSONPath=`.spec.trigger.registryRef.name`
// +kubebuilder:printcolumn:name="Namespace",type=string,priority=1,JSONPath=`.spec.trigger.namespace`
// +kubebuilder:printcolumn:name="Pending",type=integer,priority=1,JSONPath=`.status.pending`
// +kubebuilder:printcolumn:name="Description",type=string,priority=1,JSONPath=`.spec.description`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type AccelerationRule struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// Spec is what is wanted.
	Spec AccelerationRuleSpec `json:"spec"`
	// Status is how it does.
	// +optional
	Status AccelerationRuleStatus `json:"status,omitempty"`
}

// AccelerationRuleList is a list of rules.
// +kubebuilder:object:root=true
type AccelerationRuleList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []AccelerationRule `json:"items"`
}
