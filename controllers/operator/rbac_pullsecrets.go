package operator

// What --pull-secrets needs besides, as a role of its own: it is bound only where
// the list of pull secrets is used. Of Secrets it lists and watches those of its
// own, by their label, and metadata only; RBAC cannot say so.
//
// +kubebuilder:rbac:groups="",resources=namespaces,verbs=get;list;watch,roleName=apparate-pull-secrets
// +kubebuilder:rbac:groups="",resources=secrets,verbs=get;list;watch;create;patch;delete,roleName=apparate-pull-secrets
// +kubebuilder:rbac:groups="",resources=serviceaccounts,verbs=get;list;watch;patch,roleName=apparate-pull-secrets
