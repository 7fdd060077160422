// Package conversion turns ImageConversions into accelerated images. The objects
// are the queue: they are created by [Queue], driven to their end by [Reconciler],
// and removed some time later by [Janitor]. What is in memory, the [Pool] of
// workers, can be lost at any moment; the next operator submits it again, and the
// converter finds what is done already.
package conversion

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/apparate/apparate/api/v1alpha1"
	"github.com/apparate/apparate/controllers/registry"
	"github.com/apparate/apparate/controllers/status"
	"github.com/apparate/apparate/controllers/watch"
)

// Wanted says whether a conversion is still wanted; see accelerationrule.Book.
type Wanted func(ctx context.Context, c *v1alpha1.ImageConversion) (ok bool, reason, message string, err error)

// Reconciler drives each ImageConversion to Succeeded, True or False.
type Reconciler struct {
	Client client.Client
	Access *registry.Store
	Pool   *Pool
	Runner Runner
	Wanted Wanted
	// Moved says whether the source tag of a conversion has another digest now
	// than the one that is being converted.
	Moved func(context.Context, *v1alpha1.Registry, *v1alpha1.ImageConversion) (bool, error)
	// Finished is told of each conversion that ended for good. It may be nil.
	Ended func(*v1alpha1.Registry, *v1alpha1.ImageConversion)
	// Events records transitions.
	Events status.Recorder
	// Metrics counts; it may be nil.
	Metrics *Metrics
	// Timeout bounds one attempt, MaxAttempts how many there are for failures that
	// may pass.
	Timeout     time.Duration
	MaxAttempts int
	// FirstRetry is the wait after the first failure; it doubles up to MaxRetry.
	FirstRetry, MaxRetry time.Duration
	Now                  func() time.Time
}

// visit is one reconcile of one object.
type visit struct {
	*Reconciler
	c        *v1alpha1.ImageConversion // to write
	before   *v1alpha1.ImageConversion
	registry *v1alpha1.Registry // nil when there is none
	cond     status.Conditions
	used     bool // the outcome of its task is in the status
}

// Reconcile implements reconcile.Reconciler.
func (r *Reconciler) Reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	var c v1alpha1.ImageConversion
	if err := r.Client.Get(ctx, req.NamespacedName, &c); err != nil {
		// A task of a deleted object was cancelled by the event of its deletion.
		return reconcile.Result{}, client.IgnoreNotFound(err)
	}
	v := &visit{Reconciler: r, c: c.DeepCopy(), before: &c}
	v.cond = status.Conditions{List: &v.c.Status.Conditions, Generation: c.Generation}
	var reg v1alpha1.Registry
	switch err := r.Client.Get(ctx, v.registryKey(), &reg); {
	case err == nil:
		v.registry = &reg
	case !apierrors.IsNotFound(err):
		return reconcile.Result{}, err
	}
	again, err := v.visit(ctx)
	if err != nil {
		return reconcile.Result{}, err
	}
	written, err := v.write(ctx)
	if apierrors.IsConflict(err) || apierrors.IsNotFound(err) {
		// What we saw is old. Its newer version is on its way to us.
		return reconcile.Result{RequeueAfter: time.Second}, nil
	}
	if err == nil && written {
		v.tell()
	}
	return reconcile.Result{RequeueAfter: again}, err
}

func (v *visit) registryKey() types.NamespacedName {
	return types.NamespacedName{Namespace: v.c.Namespace, Name: v.c.Spec.RegistryRef.Name}
}

// write applies the status. Until that is done the outcome of a task must not be
// lost, so it is taken from the pool only afterwards; and not one that came while
// this visit was under way.
func (v *visit) write(ctx context.Context) (bool, error) {
	v.c.Status.ObservedGeneration = v.c.Generation
	written, err := status.Write(ctx, v.Client, v.before, v.c)
	if err != nil {
		return false, err
	}
	if v.used {
		v.Pool.Take(v.c.UID)
	}
	return written, nil
}

// visit decides what is so, and returns after which time to look again; 0 for
// not before something happens.
func (v *visit) visit(ctx context.Context) (time.Duration, error) {
	if Finished(v.c) && !v.reopen(ctx) {
		_, v.used = v.Pool.Outcome(v.c.UID) // of a task that nobody waits for any more
		return 0, nil
	}
	if mistakes := v.c.Validate(); len(mistakes) > 0 {
		v.fail(v1alpha1.ReasonInvalid, mistakes[0].Error())
		return 0, nil
	}
	if v.registry == nil {
		v.wait(v1alpha1.ReasonRegistryNotFound, fmt.Sprintf("there is no Registry %q in namespace %q: create it, or delete this conversion", v.registryKey().Name, v.c.Namespace), status.Stalled)
		return 0, nil
	}
	v.c.Status.Source, v.c.Status.Target = Source(v.registry, &v.c.Spec), Target(v.registry, &v.c.Spec)
	if out, done := v.Pool.Outcome(v.c.UID); done {
		v.used = true
		return v.finish(out), nil
	}
	ok, reason, message, err := v.Wanted(ctx, v.c)
	if err != nil {
		return 0, err
	}
	if !ok {
		return v.unwanted(reason, message), nil
	}
	return v.proceed(ctx)
}

// unwanted handles a conversion that its rule or registry no longer wants.
func (v *visit) unwanted(reason, message string) time.Duration {
	switch reason {
	case v1alpha1.ReasonRuleSuspended, v1alpha1.ReasonAccelerationDisabled:
		if v.Pool.State(v.c.UID) == Running {
			return 0 // almost done is not worth throwing away
		}
		v.Pool.Cancel(v.c.UID, nil)
		v.wait(v1alpha1.ReasonHeld, message, status.Stalled)
	default:
		v.Pool.Cancel(v.c.UID, errors.New(message))
		v.fail(v1alpha1.ReasonRuleGone, message)
	}
	return 0
}

// proceed submits the task when its time has come, and notes how far it is.
func (v *visit) proceed(ctx context.Context) (time.Duration, error) {
	if t := v.c.Status.NextAttemptTime; t != nil && v.Pool.State(v.c.UID) == Absent {
		if wait := t.Sub(v.Now()); wait > 0 {
			return wait, nil
		}
	}
	task := Task{
		Key: client.ObjectKeyFromObject(v.c), UID: v.c.UID, Registry: v.registryKey(), Tag: tagKey(v.c),
		Urgent: v.c.Annotations[v1alpha1.AnnotationOrigin] != string(watch.Scan),
	}
	if v.Pool.Submit(task) != Running {
		v.wait(v1alpha1.ReasonQueued, "it waits for its turn", status.Reconciling)
		return 0, nil
	}
	if s := succeeded(v.c); s == nil || s.Reason != v1alpha1.ReasonRunning {
		v.c.Status.Attempts++
		now := metav1.NewTime(v.Now())
		v.c.Status.StartTime, v.c.Status.NextAttemptTime = &now, nil
		v.wait(v1alpha1.ReasonRunning, "it is being converted", status.Reconciling)
		return 0, nil
	}
	return 0, v.overtaken(ctx)
}

// overtaken cancels a task that runs when its tag was pushed again. It is asked
// when another conversion of the same tag appears.
func (v *visit) overtaken(ctx context.Context) error {
	if v.c.Spec.Digest == "" {
		return nil
	}
	var same v1alpha1.ImageConversionList
	err := v.Client.List(ctx, &same, client.InNamespace(v.c.Namespace), client.MatchingFields{IndexTag: tagKey(v.c)}, client.UnsafeDisableDeepCopy)
	if err != nil {
		return err
	}
	for i := range same.Items {
		if o := &same.Items[i]; o.UID == v.c.UID || Finished(o) || o.Spec.Digest == v.c.Spec.Digest {
			continue
		}
		moved, err := v.Moved(ctx, v.registry, v.c)
		if err == nil && moved {
			v.Pool.Cancel(v.c.UID, ErrSuperseded)
		}
		return nil //nolint:nilerr // only a hint: the converter looks again before it moves the tag
	}
	return nil
}

// backoff is the wait after the n-th failure, with jitter of a fifth.
func (r *Reconciler) backoff(n int32) time.Duration {
	d := r.MaxRetry
	if n = max(n, 1); n < 20 {
		d = min(r.FirstRetry<<(n-1), r.MaxRetry)
	}
	return d - d/10 + rand.N(d/5+1)
}
