// Package registry keeps the status of each Registry true, and gives the other
// parts what they need to speak to it: credentials, certificates, sessions.
package registry

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
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
	"github.com/apparate/apparate/controllers/watch"
	"github.com/apparate/apparate/converter/fault"
)

// WebhookPath is the path of the notification endpoint of a Registry.
func WebhookPath(key types.NamespacedName) string {
	return watch.PathPrefix + key.Namespace + "/" + key.Name
}

// Scanner scans registries; watch.Scanner is one.
type Scanner interface {
	Watch(watch.Target)
	Forget(types.NamespacedName)
	Last(types.NamespacedName) (watch.ScanResult, bool)
}

// Reconciler keeps the status of each Registry true, and has it scanned.
type Reconciler struct {
	Client   client.Client
	Store    *Store
	Sessions *Sessions
	Scanner  Scanner
	Events   status.Recorder
	// Interval is how often a registry and its Secrets are looked at: the operator
	// may not watch Secrets.
	Interval time.Duration
}

// Setup adds the reconciler to a manager. Scanned tells of registries that were
// scanned.
func (r *Reconciler) Setup(m manager.Manager, scanned <-chan event.TypedGenericEvent[types.NamespacedName]) error {
	return builder.ControllerManagedBy(m).Named("registry").
		For(&v1alpha1.Registry{}, builder.WithPredicates(predicate.Or(predicate.GenerationChangedPredicate{}, predicate.AnnotationChangedPredicate{}))).
		WatchesRawSource(source.TypedChannel(scanned, handler.TypedFuncs[types.NamespacedName, reconcile.Request]{
			GenericFunc: func(_ context.Context, e event.TypedGenericEvent[types.NamespacedName], q workqueue.TypedRateLimitingInterface[reconcile.Request]) {
				q.Add(reconcile.Request{NamespacedName: e.Object})
			},
		})).
		WithOptions(controller.Options{MaxConcurrentReconciles: 4}).
		Complete(r)
}

// pingLimit bounds how long a registry may take to answer; others wait behind it.
const pingLimit = 20 * time.Second

// Reconcile implements reconcile.Reconciler.
func (r *Reconciler) Reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	var before v1alpha1.Registry
	if err := r.Client.Get(ctx, req.NamespacedName, &before); err != nil {
		if apierrors.IsNotFound(err) {
			r.Scanner.Forget(req.NamespacedName)
			r.Sessions.Forget(req.NamespacedName)
		}
		return reconcile.Result{}, client.IgnoreNotFound(err)
	}
	reg := before.DeepCopy()
	c := status.Conditions{List: &reg.Status.Conditions, Generation: reg.Generation}
	if mistakes := reg.Validate(); len(mistakes) > 0 {
		r.Scanner.Forget(req.NamespacedName)
		notReady(c, status.Stalled, v1alpha1.ReasonInvalid, mistakes[0].Error())
		c.Unknown(v1alpha1.ConditionWebhookReady, v1alpha1.ReasonInvalid, "the spec has a mistake")
	} else {
		r.look(ctx, reg, c)
		r.webhook(ctx, reg, c)
		r.scan(reg)
	}
	reg.Status.ObservedGeneration = reg.Generation
	written, err := status.Write(ctx, r.Client, &before, reg)
	if apierrors.IsConflict(err) || apierrors.IsNotFound(err) {
		return reconcile.Result{RequeueAfter: time.Second}, nil
	}
	if err == nil && written {
		r.tell(&before, reg)
	}
	return reconcile.Result{RequeueAfter: r.Interval - r.Interval/10 + rand.N(r.Interval/5+1)}, err
}

// look asks the registry whether it answers and takes the credentials.
func (r *Reconciler) look(ctx context.Context, reg *v1alpha1.Registry, c status.Conditions) {
	session, revision, err := r.Sessions.get(ctx, reg)
	if err == nil {
		reg.Status.Revision = revision
		ctx, cancel := context.WithTimeout(ctx, pingLimit)
		defer cancel()
		err = session.Ping(ctx)
	}
	var secret *SecretError
	switch {
	case err == nil:
		c.True(v1alpha1.ConditionReachable, v1alpha1.ReasonAsExpected, reg.Host()+" answers")
		c.True(v1alpha1.ConditionReady, v1alpha1.ReasonReady, reg.Host()+" can be used")
		c.Progress(status.Settled, "", "")
	case errors.As(err, &secret):
		notReady(c, status.Stalled, v1alpha1.ReasonSecretInvalid, secret.Error())
	case fault.Temporary(err) || errors.Is(err, context.DeadlineExceeded):
		notReady(c, status.Reconciling, string(fault.KindOf(err)), err.Error())
	default:
		notReady(c, status.Stalled, string(fault.KindOf(err)), err.Error())
	}
}

func notReady(c status.Conditions, p status.Progress, reason, message string) {
	c.False(v1alpha1.ConditionReachable, reason, message)
	c.False(v1alpha1.ConditionReady, reason, message)
	c.Progress(p, reason, message)
}

// webhook says whether notifications can be accepted, and where.
func (r *Reconciler) webhook(ctx context.Context, reg *v1alpha1.Registry, c status.Conditions) {
	reg.Status.WebhookPath = ""
	if reg.Spec.Webhook == nil {
		c.False(v1alpha1.ConditionWebhookReady, v1alpha1.ReasonWebhookNotConfigured, "spec.webhook is not set: pushes are found by the scan")
		return
	}
	reg.Status.WebhookPath = WebhookPath(client.ObjectKeyFromObject(reg))
	if _, err := r.Store.WebhookSecrets(ctx, reg); err != nil {
		c.False(v1alpha1.ConditionWebhookReady, v1alpha1.ReasonSecretInvalid, err.Error())
		return
	}
	c.True(v1alpha1.ConditionWebhookReady, v1alpha1.ReasonAsExpected, "notifications are accepted at "+reg.Status.WebhookPath)
}

// scan has the registry scanned, and takes over what the last scan found.
func (r *Reconciler) scan(reg *v1alpha1.Registry) {
	key := client.ObjectKeyFromObject(reg)
	r.Scanner.Watch(watch.Target{
		Key: key, Interval: reg.ScanInterval(), Repositories: reg.Spec.Scan.Repositories,
		Requested: reg.Annotations[v1alpha1.AnnotationRequested],
	})
	last, ok := r.Scanner.Last(key)
	if !ok {
		return
	}
	if reg.Status.Scan == nil {
		reg.Status.Scan = &v1alpha1.RegistryScanStatus{}
	}
	s := reg.Status.Scan
	s.Message = ""
	if last.Err != nil {
		s.Message = status.Cut(last.Err.Error())
		return
	}
	end := metav1.NewTime(last.End.Truncate(time.Second))
	if s.LastTime.Equal(&end) {
		return
	}
	*s = v1alpha1.RegistryScanStatus{
		LastTime: &end, DurationSeconds: int64(last.Duration.Round(time.Second) / time.Second),
		Repositories: int64(last.Repositories), Tags: int64(last.Tags), Requests: last.Requests,
	}
}

// tell records the transitions of a Registry.
func (r *Reconciler) tell(before, now *v1alpha1.Registry) {
	if c, changed := status.Changed(before.Status.Conditions, now.Status.Conditions, v1alpha1.ConditionReady); changed {
		kind := corev1.EventTypeNormal
		if c.Status != metav1.ConditionTrue {
			kind = corev1.EventTypeWarning
		}
		r.Events.Event(now, kind, c.Reason, c.Message)
	}
	if meta.IsStatusConditionFalse(now.Status.Conditions, v1alpha1.ConditionWebhookReady) {
		c, changed := status.Changed(before.Status.Conditions, now.Status.Conditions, v1alpha1.ConditionWebhookReady)
		if changed && c.Reason != v1alpha1.ReasonWebhookNotConfigured {
			r.Events.Event(now, corev1.EventTypeWarning, c.Reason, fmt.Sprintf("webhook: %s", c.Message))
		}
	}
}
