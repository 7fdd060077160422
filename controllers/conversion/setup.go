package conversion

import (
	"context"
	"time"

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
)

type requests = workqueue.TypedRateLimitingInterface[reconcile.Request]

// settle is how long conversions wait after their rule or registry has changed:
// the rule book follows the same events, and must be ahead of them.
const settle = 500 * time.Millisecond

// Setup adds the reconciler and its pool to a manager. The pool's Run and Moved
// are set here.
func (r *Reconciler) Setup(m manager.Manager) error {
	type task = event.TypedGenericEvent[types.NamespacedName]
	moved := make(chan task, 64)
	r.Pool.Run = r.execute
	r.Pool.Moved = func(ctx context.Context, t Task) {
		select {
		case moved <- task{Object: t.Key}:
		case <-ctx.Done():
		}
	}
	if err := m.Add(manager.RunnableFunc(r.Pool.Start)); err != nil {
		return err
	}
	return builder.ControllerManagedBy(m).Named("conversion").
		For(&v1alpha1.ImageConversion{}, builder.WithPredicates(r.cancelDeleted(),
			// Our own status must not wake us.
			predicate.Or(predicate.GenerationChangedPredicate{}, predicate.AnnotationChangedPredicate{}))).
		Watches(&v1alpha1.ImageConversion{}, onCreate(r.sameTag)).
		Watches(&v1alpha1.Registry{}, onChange(r.ofRegistry, func(before, now client.Object) bool {
			return before.(*v1alpha1.Registry).Status.Revision != now.(*v1alpha1.Registry).Status.Revision
		})).
		Watches(&v1alpha1.AccelerationRule{}, onChange(r.ofRule, nil)).
		WatchesRawSource(source.TypedChannel(moved, handler.TypedFuncs[types.NamespacedName, reconcile.Request]{
			GenericFunc: func(_ context.Context, e task, q requests) { q.Add(reconcile.Request{NamespacedName: e.Object}) },
		})).
		WithOptions(controller.Options{MaxConcurrentReconciles: 4}).
		Complete(r)
}

// cancelDeleted ends the task of a conversion that is deleted.
func (r *Reconciler) cancelDeleted() predicate.Predicate {
	return predicate.Funcs{DeleteFunc: func(e event.DeleteEvent) bool {
		r.Pool.Cancel(e.Object.GetUID(), context.Canceled)
		return false
	}}
}

// find lists conversions that an event is about, out of the cache.
type find func(context.Context, client.Object) []reconcile.Request

// onCreate enqueues what an object that is new is about.
func onCreate(f find) handler.EventHandler {
	return handler.Funcs{CreateFunc: func(ctx context.Context, e event.CreateEvent, q requests) {
		for _, r := range f(ctx, e.Object) {
			q.Add(r)
		}
	}}
}

// onChange enqueues what a new, deleted or changed object is about: one with
// another spec, or for which also says so.
func onChange(f find, also func(before, now client.Object) bool) handler.EventHandler {
	later := func(ctx context.Context, o client.Object, q requests) {
		for _, r := range f(ctx, o) {
			q.AddAfter(r, settle)
		}
	}
	return handler.Funcs{
		CreateFunc: func(ctx context.Context, e event.CreateEvent, q requests) { later(ctx, e.Object, q) },
		DeleteFunc: func(ctx context.Context, e event.DeleteEvent, q requests) { later(ctx, e.Object, q) },
		UpdateFunc: func(ctx context.Context, e event.UpdateEvent, q requests) {
			if e.ObjectOld.GetGeneration() != e.ObjectNew.GetGeneration() || also != nil && also(e.ObjectOld, e.ObjectNew) {
				later(ctx, e.ObjectNew, q)
			}
		},
	}
}

// list returns requests for those conversions of a list for which keep holds.
func (r *Reconciler) list(ctx context.Context, keep func(*v1alpha1.ImageConversion) bool, opts ...client.ListOption) (found []reconcile.Request) {
	var all v1alpha1.ImageConversionList
	if err := r.Client.List(ctx, &all, append(opts, client.UnsafeDisableDeepCopy)...); err != nil {
		return nil // of a cache: only while the operator stops
	}
	for i := range all.Items {
		if c := &all.Items[i]; keep(c) {
			found = append(found, reconcile.Request{NamespacedName: client.ObjectKeyFromObject(c)})
		}
	}
	return found
}

// sameTag finds the other conversions of a tag that have not ended.
func (r *Reconciler) sameTag(ctx context.Context, o client.Object) []reconcile.Request {
	created := o.(*v1alpha1.ImageConversion)
	return r.list(ctx, func(c *v1alpha1.ImageConversion) bool { return c.UID != created.UID && !Finished(c) },
		client.InNamespace(created.Namespace), client.MatchingFields{IndexTag: tagKey(created)})
}

// ofRegistry finds the conversions of a registry that may go on: those that have
// not ended, and those that ended because of what it was.
func (r *Reconciler) ofRegistry(ctx context.Context, o client.Object) []reconcile.Request {
	return r.list(ctx, func(c *v1alpha1.ImageConversion) bool {
		return c.Spec.RegistryRef.Name == o.GetName() && (!Finished(c) || wasDenied(c))
	}, client.InNamespace(o.GetNamespace()))
}

// ofRule finds the conversions of a rule that have not ended.
func (r *Reconciler) ofRule(ctx context.Context, o client.Object) []reconcile.Request {
	return r.list(ctx, func(c *v1alpha1.ImageConversion) bool { return !Finished(c) },
		client.InNamespace(o.GetNamespace()), client.MatchingFields{IndexRule: o.GetNamespace() + "/" + o.GetName()})
}
