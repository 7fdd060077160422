package accelerationrule

import (
	"context"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"

	"github.com/apparate/apparate/api/v1alpha1"
	"github.com/apparate/apparate/controllers/status"
)

type requests = workqueue.TypedRateLimitingInterface[reconcile.Request]

// gather is how long a rule waits for more conversions to move before its counts
// are taken: a thousand that end in a second are one look at the rule.
const gather = time.Second

// Scanned is an event that the tags of a registry have changed.
type Scanned = event.TypedGenericEvent[types.NamespacedName]

// Setup adds the reconciler to a manager. Scanned tells of registries whose tags
// may have changed.
func (r *Reconciler) Setup(m manager.Manager, scanned <-chan Scanned) error {
	return builder.ControllerManagedBy(m).Named("accelerationrule").
		For(&v1alpha1.AccelerationRule{}, builder.WithPredicates(predicate.Or(predicate.GenerationChangedPredicate{}, predicate.AnnotationChangedPredicate{}))).
		Watches(&v1alpha1.Registry{}, handler.EnqueueRequestsFromMapFunc(func(ctx context.Context, o client.Object) []reconcile.Request {
			return r.ofRegistry(ctx, client.ObjectKeyFromObject(o))
		})).
		Watches(&v1alpha1.ImageConversion{}, handler.Funcs{
			CreateFunc: func(_ context.Context, e event.CreateEvent, q requests) { later(e.Object, q) },
			UpdateFunc: func(_ context.Context, e event.UpdateEvent, q requests) { later(e.ObjectNew, q) },
			DeleteFunc: func(_ context.Context, e event.DeleteEvent, q requests) { later(e.Object, q) },
		}).
		WatchesRawSource(source.TypedChannel(scanned, handler.TypedFuncs[types.NamespacedName, reconcile.Request]{
			GenericFunc: func(ctx context.Context, e Scanned, q requests) {
				for _, req := range r.ofRegistry(ctx, e.Object) {
					q.Add(req)
				}
			},
		})).
		WithOptions(controller.Options{MaxConcurrentReconciles: 2}).
		Complete(r)
}

// later enqueues the rule of a conversion, for when things have calmed down.
func later(o client.Object, q requests) {
	c, ok := o.(*v1alpha1.ImageConversion)
	if ok && c.Spec.RuleRef != nil {
		q.AddAfter(reconcile.Request{NamespacedName: types.NamespacedName{Namespace: c.Namespace, Name: c.Spec.RuleRef.Name}}, gather)
	}
}

// ofRegistry finds the rules of a registry.
func (r *Reconciler) ofRegistry(ctx context.Context, key types.NamespacedName) (found []reconcile.Request) {
	var all v1alpha1.AccelerationRuleList
	if err := r.Client.List(ctx, &all, client.InNamespace(key.Namespace), client.UnsafeDisableDeepCopy); err != nil {
		return nil // of a cache: only while the operator stops
	}
	for i := range all.Items {
		if all.Items[i].Spec.Trigger.RegistryRef.Name == key.Name {
			found = append(found, reconcile.Request{NamespacedName: client.ObjectKeyFromObject(&all.Items[i])})
		}
	}
	return found
}

// tell records the transitions of a rule.
func (v *visit) tell(before *v1alpha1.AccelerationRule) {
	now, changed := status.Changed(before.Status.Conditions, v.rule.Status.Conditions, v1alpha1.ConditionReady)
	if !changed || now.Status == metav1.ConditionUnknown {
		return
	}
	kind := corev1.EventTypeNormal
	if now.Status == metav1.ConditionFalse && now.Reason != v1alpha1.ReasonSuspended {
		kind = corev1.EventTypeWarning
	}
	v.Events.Event(v.rule, kind, now.Reason, now.Message)
}
