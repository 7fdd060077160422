package operator

// What --samples-address needs besides, as a role of its own: to ask whose token a
// sample came with.
//
// +kubebuilder:rbac:groups=authentication.k8s.io,resources=tokenreviews,verbs=create,roleName=apparate-profiles
