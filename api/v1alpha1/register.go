package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// Group is the API group of all kinds.
const Group = "apparate.cloud.tencent.com"

// GroupVersion is the group and version of this package.
var GroupVersion = schema.GroupVersion{Group: Group, Version: "v1alpha1"}

// The kinds by their names in manifests.
const (
	KindRegistry         = "Registry"
	KindAccelerationRule = "AccelerationRule"
	KindImageConversion  = "ImageConversion"
)

// AddToScheme registers the kinds with a scheme.
func AddToScheme(s *runtime.Scheme) error {
	s.AddKnownTypes(GroupVersion,
		&Registry{}, &RegistryList{},
		&AccelerationRule{}, &AccelerationRuleList{},
		&ImageConversion{}, &ImageConversionList{})
	metav1.AddToGroupVersion(s, GroupVersion)
	return nil
}
