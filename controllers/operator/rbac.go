package operator

// What the operator may do in a cluster. Secrets and ConfigMaps: only those that
// a Registry names, so get, and neither list nor watch.
//
// +kubebuilder:rbac:groups=apparate.cloud.tencent.com,resources=registries;accelerationrules,verbs=get;list;watch
// +kubebuilder:rbac:groups=apparate.cloud.tencent.com,resources=imageconversions,verbs=get;list;watch;create;delete
// +kubebuilder:rbac:groups=apparate.cloud.tencent.com,resources=registries/status;accelerationrules/status;imageconversions/status,verbs=get;patch
// +kubebuilder:rbac:groups="",resources=secrets;configmaps,verbs=get
// +kubebuilder:rbac:groups="",resources=events,verbs=create;patch
//
// One of several replicas holds a Lease in the operator's own namespace.
//
// +kubebuilder:rbac:groups=coordination.k8s.io,namespace=apparate-system,resources=leases,verbs=get;create;update
//
// With --conversion-mode=job each conversion is a Job beside its Registry; the
// pods of Jobs are read for what they leave as their last words.
//
// +kubebuilder:rbac:groups=batch,resources=jobs,verbs=get;create;delete
// +kubebuilder:rbac:groups="",resources=pods,verbs=list
