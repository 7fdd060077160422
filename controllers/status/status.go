// Package status is the only writer of status. Reconcilers work on a copy of
// their object, and hand it in once at the end.
//
// A status is written whole, by server-side apply under one field owner, so what
// the operator no longer says is gone; and only over the version of the object
// that it was made from, so an old view of the world never overwrites a newer
// one. An unchanged status is not written: a reconcile that finds everything as
// it was costs the API server nothing.
package status

import (
	"context"
	"fmt"

	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/apparate/apparate/api/v1alpha1"
)

// FieldOwner is the name under which status is applied.
const FieldOwner = "apparate-operator"

// MaxMessage is the most characters of a condition's message; the API allows
// 32768, and nobody reads that much.
const MaxMessage = 1024

// Object is an object of ours.
type Object = client.Object

// Recorder records events; record.EventRecorder of client-go is one.
type Recorder interface {
	Event(object runtime.Object, eventtype, reason, message string)
}

// Write applies the status of now where it differs from that of before; both are
// the same version of the same object. It reports whether it was written. A
// conflict means that before is out of date: reconcile again.
func Write(ctx context.Context, c client.Client, before, now Object) (bool, error) {
	old, err := statusOf(before)
	if err != nil {
		return false, err
	}
	want, err := statusOf(now)
	if err != nil {
		return false, err
	}
	if equality.Semantic.DeepEqual(old, want) {
		return false, nil
	}
	kind, err := kindOf(now)
	if err != nil {
		return false, err
	}
	u := &unstructured.Unstructured{Object: map[string]any{"status": want}}
	u.SetGroupVersionKind(v1alpha1.GroupVersion.WithKind(kind))
	u.SetName(now.GetName())
	u.SetNamespace(now.GetNamespace())
	// Both are preconditions: not another object of this name, not another version.
	u.SetUID(before.GetUID())
	u.SetResourceVersion(before.GetResourceVersion())
	err = c.Status().Apply(ctx, client.ApplyConfigurationFromUnstructured(u), client.FieldOwner(FieldOwner), client.ForceOwnership)
	if err != nil {
		return false, err
	}
	now.SetResourceVersion(u.GetResourceVersion())
	return true, nil
}

// kindOf names the kind: objects out of a typed client do not say it themselves.
func kindOf(o Object) (string, error) {
	switch o.(type) {
	case *v1alpha1.Registry:
		return v1alpha1.KindRegistry, nil
	case *v1alpha1.AccelerationRule:
		return v1alpha1.KindAccelerationRule, nil
	case *v1alpha1.ImageConversion:
		return v1alpha1.KindImageConversion, nil
	}
	return "", fmt.Errorf("no status is written for %T", o)
}

// statusOf is an object's status as JSON would have it.
func statusOf(o Object) (map[string]any, error) {
	m, err := runtime.DefaultUnstructuredConverter.ToUnstructured(o)
	if err != nil {
		return nil, fmt.Errorf("status of %s: %w", client.ObjectKeyFromObject(o), err)
	}
	s, _ := m["status"].(map[string]any)
	return s, nil
}

// Conditions are the conditions of one object at one generation.
type Conditions struct {
	List       *[]metav1.Condition
	Generation int64
}

// Set writes a condition. Its transition time changes only with its status.
func (c Conditions) Set(kind string, s metav1.ConditionStatus, reason, message string) {
	meta.SetStatusCondition(c.List, metav1.Condition{
		Type: kind, Status: s, Reason: reason, Message: Cut(message), ObservedGeneration: c.Generation,
	})
}

// True writes a condition that holds.
func (c Conditions) True(kind, reason, message string) {
	c.Set(kind, metav1.ConditionTrue, reason, message)
}

// False writes a condition that does not hold.
func (c Conditions) False(kind, reason, message string) {
	c.Set(kind, metav1.ConditionFalse, reason, message)
}

// Unknown writes a condition that cannot be told.
func (c Conditions) Unknown(kind, reason, message string) {
	c.Set(kind, metav1.ConditionUnknown, reason, message)
}

// Progress are the ways in which an object can be on its way; kstatus reads them
// from the conditions Reconciling and Stalled, which are there only when True.
type Progress int

const (
	// Settled says that what is written is what it is.
	Settled Progress = iota
	// Reconciling says that the operator is at work, and will say more.
	Reconciling
	// Stalled says that somebody has to change something first.
	Stalled
)

// Progress writes both conditions of kstatus.
func (c Conditions) Progress(p Progress, reason, message string) {
	for kind, on := range map[string]bool{
		v1alpha1.ConditionReconciling: p == Reconciling,
		v1alpha1.ConditionStalled:     p == Stalled,
	} {
		if on {
			c.True(kind, reason, message)
		} else {
			meta.RemoveStatusCondition(c.List, kind)
		}
	}
}

// Changed says whether the status or the reason of a condition differs between
// two lists: a transition, of which an event may tell.
func Changed(before, now []metav1.Condition, kind string) (*metav1.Condition, bool) {
	n := meta.FindStatusCondition(now, kind)
	if n == nil {
		return nil, false
	}
	b := meta.FindStatusCondition(before, kind)
	return n, b == nil || b.Status != n.Status || b.Reason != n.Reason
}

// Cut bounds a message to MaxMessage, at a character and not inside of one.
func Cut(s string) string {
	r := []rune(s)
	if len(r) <= MaxMessage {
		return s
	}
	return string(r[:MaxMessage-1]) + "…"
}
