// Package v1alpha1 has the Kubernetes kinds of Apparate: [Registry],
// [AccelerationRule] and [ImageConversion], all namespaced, with their
// validation, conditions and reasons. It imports apimachinery only.
//
// How they belong together: a Registry is one instance in which images are
// accelerated. A rule names the images of it that are. A conversion is the work
// of one of them: the queue of pending work and its history are these objects
// and nothing else.
//
// What the OpenAPI schema and its CEL rules refuse on "kubectl apply", Validate
// of each kind finds again: servers before Kubernetes 1.25 do not know CEL, and
// the operator reports there in status what newer servers refuse.
//
// +kubebuilder:object:generate=true
// +groupName=apparate.cloud.tencent.com
package v1alpha1
