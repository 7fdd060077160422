package v1alpha1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// RegistrySpec is what a user wants of a registry instance.
type RegistrySpec struct {
	// Endpoint is the host of the registry and its port, as in image names:
	// "registry.example.com" or "10.0.0.5:5000". "http://" in front of it allows
	// a registry without TLS. It cannot be changed.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=261
	// +kubebuilder:validation:XValidation:rule="self.matches('^(https?://)?([A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?|\\\\[[0-9A-Fa-f:]+\\\\])(:[0-9]{1,5})?$')",message="must be a host with an optional port, such as registry.example.com or http://10.0.0.5:5000, without a path"
	// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="cannot be changed: make another Registry for another endpoint"
	Endpoint string `json:"endpoint"`

	// AccelerationEnabled is the switch for image acceleration in this instance:
	// while it is off, nothing is converted. Accelerated images are stored beside
	// the plain ones and take space there.
	// +kubebuilder:default=false
	// +optional
	AccelerationEnabled bool `json:"accelerationEnabled"`

	// CredentialsRef names a Secret of type kubernetes.io/dockerconfigjson with
	// an account that may pull and push. Without it the registry is used
	// anonymously.
	// +optional
	CredentialsRef *LocalReference `json:"credentialsRef,omitempty"`

	// CARef names the certificates (PEM) by which the registry is trusted, beside
	// those of the system.
	// +optional
	CARef *BundleReference `json:"caRef,omitempty"`

	// Webhook lets the registry tell of pushes. Without it pushes are found by
	// the scan alone.
	// +optional
	Webhook *RegistryWebhook `json:"webhook,omitempty"`

	// Scan looks for pushes of which no notification came.
	// +kubebuilder:default={}
	// +optional
	Scan RegistryScan `json:"scan,omitempty"`
}

// RegistryWebhook says how push notifications are authenticated.
type RegistryWebhook struct {
	// SecretRef names the Secret whose key holds the token that the registry
	// sends along, or signs with. A key of the same name with ".previous" behind
	// it is accepted as well, so that the token can be changed without a gap.
	SecretRef SecretKeyReference `json:"secretRef"`
}

// RegistryScan says what is looked at, and how often.
type RegistryScan struct {
	// Interval between two scans, such as 10m; some jitter is added. 0s scans
	// only when the operator starts and when rules change.
	// +kubebuilder:default="10m"
	// +kubebuilder:validation:Pattern=`^([0-9]{1,5}(s|m|h)){1,4}$`
	// +kubebuilder:validation:XValidation:rule="duration(self) == duration('0s') || duration(self) >= duration('10s')",message="must be 0s or at least 10s"
	// +kubebuilder:validation:MaxLength=32
	// +optional
	Interval string `json:"interval,omitempty"`

	// Repositories to scan, such as team-a/app, for registries that cannot list
	// theirs. Without any the registry's catalog is asked.
	// +kubebuilder:validation:MaxItems=1000
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=255
	// +kubebuilder:validation:XValidation:rule="self.all(r, r.matches('^[a-z0-9]+([._-]+[a-z0-9]+)*(/[a-z0-9]+([._-]+[a-z0-9]+)*)*$'))",message="must be repository paths in lower case without host and tag, such as team-a/app"
	// +listType=set
	// +optional
	Repositories []string `json:"repositories,omitempty"`
}

// RegistryStatus is what the operator sees of a registry instance.
type RegistryStatus struct {
	// ObservedGeneration is the generation of the spec that the rest speaks of.
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
	// Conditions: Ready, Reachable, WebhookReady, Reconciling, Stalled.
	// +listType=map
	// +listMapKey=type
	// +optional
	Conditions []metav1.Condition `json:"conditions,omitempty"`
	// WebhookPath is the path of the operator's notification endpoint to which
	// the registry must send. Empty without a webhook.
	// +optional
	WebhookPath string `json:"webhookPath,omitempty"`
	// Revision identifies the settings and credentials in use, and tells nothing
	// about them: it changes when they do.
	// +optional
	Revision string `json:"revision,omitempty"`
	// Scan is what the last scan found.
	// +optional
	Scan *RegistryScanStatus `json:"scan,omitempty"`
}

// RegistryScanStatus is the outcome of a scan.
type RegistryScanStatus struct {
	// LastTime is when the last complete scan ended.
	// +optional
	LastTime *metav1.Time `json:"lastTime,omitempty"`
	// DurationSeconds is how long it took.
	DurationSeconds int64 `json:"durationSeconds"`
	// Repositories and Tags that the registry has, in the namespaces of rules.
	Repositories int64 `json:"repositories"`
	Tags         int64 `json:"tags"`
	// Requests that the scan needed.
	Requests int64 `json:"requests"`
	// Message says why a later scan was not complete; empty if there was none.
	// +optional
	Message string `json:"message,omitempty"`
}

// Registry is one registry instance whose images can be accelerated.
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:shortName=accelreg,categories=apparate
// +kubebuilder:printcolumn:name="Endpoint",type=string,JSONPath=`.spec.endpoint`
// +kubebuilder:printcolumn:name="Enabled",type=boolean,JSONPath=`.spec.accelerationEnabled`
// +kubebuilder:printcolumn:name="Ready",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].status`
// +kubebuilder:printcolumn:name="Reason",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].reason`
// +kubebuilder:printcolumn:name="Tags",type=integer,JSONPath=`.status.scan.tags`
// +kubebuilder:printcolumn:name="Scanned",type=date,JSONPath=`.status.scan.lastTime`
// +kubebuilder:printcolumn:name="Webhook",type=string,priority=1,JSONPath=`.status.webhookPath`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type Registry struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// Spec is what is wanted.
	Spec RegistrySpec `json:"spec"`
	// Status is what the operator sees.
	// +optional
	Status RegistryStatus `json:"status,omitempty"`
}

// RegistryList is a list of registries.
// +kubebuilder:object:root=true
type RegistryList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []Registry `json:"items"`
}
