package match

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/apparate/apparate/api/v1alpha1"
)

// KeyOf names an object.
func KeyOf(o metav1.Object) Key { return Key{Namespace: o.GetNamespace(), Name: o.GetName()} }

// InstanceOf is what decisions need of a Registry.
func InstanceOf(r *v1alpha1.Registry) Instance {
	return Instance{Key: KeyOf(r), Host: r.Host(), Enabled: r.Spec.AccelerationEnabled}
}

// RuleOf is what decisions need of an AccelerationRule.
func RuleOf(r *v1alpha1.AccelerationRule) Rule {
	t := r.Spec.Trigger
	return Rule{
		Key:       KeyOf(r),
		Registry:  Key{Namespace: r.Namespace, Name: t.RegistryRef.Name},
		Namespace: t.Namespace, Repository: t.Repository, Tag: t.Tag,
		Suspended: r.Spec.Suspend,
		Format:    r.Spec.Conversion.Format, Platforms: r.Spec.Conversion.Platforms,
		Created: r.CreationTimestamp.Time,
	}
}
