package accelerationrule

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/apparate/apparate/api/v1alpha1"
	"github.com/apparate/apparate/controllers/conversion"
	"github.com/apparate/apparate/controllers/match"
	"github.com/apparate/apparate/controllers/status"
)

// Reconciler keeps the status of each rule true: its conditions, its counts, its
// answers to spec.verify. What matches is converted elsewhere.
type Reconciler struct {
	Client client.Client
	Counts *Counts
	Events status.Recorder
}

// visit is one reconcile of one rule.
type visit struct {
	*Reconciler
	rule     *v1alpha1.AccelerationRule // to write
	registry *v1alpha1.Registry         // nil when there is none
	cond     status.Conditions
}

// Reconcile implements reconcile.Reconciler.
func (r *Reconciler) Reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	var before v1alpha1.AccelerationRule
	if err := r.Client.Get(ctx, req.NamespacedName, &before); err != nil {
		return reconcile.Result{}, client.IgnoreNotFound(err)
	}
	if !before.DeletionTimestamp.IsZero() {
		return reconcile.Result{}, nil
	}
	v := &visit{Reconciler: r, rule: before.DeepCopy()}
	v.cond = status.Conditions{List: &v.rule.Status.Conditions, Generation: before.Generation}
	var reg v1alpha1.Registry
	switch err := r.Client.Get(ctx, client.ObjectKey{Namespace: before.Namespace, Name: before.Spec.Trigger.RegistryRef.Name}, &reg); {
	case err == nil:
		v.registry = &reg
	case !apierrors.IsNotFound(err):
		return reconcile.Result{}, err
	}
	if err := v.conversions(ctx); err != nil {
		return reconcile.Result{}, err
	}
	if err := v.counts(ctx); err != nil {
		return reconcile.Result{}, err
	}
	v.source()
	v.verify()
	v.ready()
	v.rule.Status.ObservedGeneration = before.Generation
	written, err := status.Write(ctx, r.Client, &before, v.rule)
	if apierrors.IsConflict(err) || apierrors.IsNotFound(err) {
		return reconcile.Result{RequeueAfter: time.Second}, nil
	}
	if err == nil && written {
		v.tell(&before)
	}
	return reconcile.Result{}, err
}

// conversions counts the rule's conversions, the last of each tag.
func (v *visit) conversions(ctx context.Context) error {
	var all v1alpha1.ImageConversionList
	err := v.Client.List(ctx, &all, client.InNamespace(v.rule.Namespace), client.UnsafeDisableDeepCopy,
		client.MatchingFields{conversion.IndexRule: v.rule.Namespace + "/" + v.rule.Name})
	if err != nil {
		return err
	}
	s := &v.rule.Status
	s.Pending, s.Failed, s.Failures = 0, 0, nil
	type tag struct{ repository, tag string }
	last := map[tag]*v1alpha1.ImageConversion{}
	for i := range all.Items {
		c := &all.Items[i]
		if !conversion.Finished(c) {
			s.Pending++
		}
		k := tag{c.Spec.Repository, c.Spec.Tag}
		if l := last[k]; l == nil || l.CreationTimestamp.Before(&c.CreationTimestamp) {
			last[k] = c
		}
		if end := c.Status.CompletionTime; end != nil && conversion.Succeeded(c) &&
			(s.LastConversion == nil || s.LastConversion.Time.Before(end)) {
			s.LastConversion = &v1alpha1.RuleLastConversion{Image: c.Status.Target, Time: *end}
		}
	}
	var failed []*v1alpha1.ImageConversion
	for _, c := range last {
		if conversion.Failed(c) {
			failed = append(failed, c)
		}
	}
	s.Failed = int64(len(failed))
	slices.SortFunc(failed, func(a, b *v1alpha1.ImageConversion) int {
		return cmp.Or(endOf(b).Compare(endOf(a)), cmp.Compare(a.Name, b.Name))
	})
	const sample = 5
	for _, c := range failed[:min(sample, len(failed))] {
		why := meta.FindStatusCondition(c.Status.Conditions, v1alpha1.ConditionSucceeded)
		s.Failures = append(s.Failures, v1alpha1.RuleFailure{
			Image: c.Status.Source, Reason: why.Reason, Message: why.Message, Conversion: c.Name,
		})
	}
	return nil
}

func endOf(c *v1alpha1.ImageConversion) time.Time {
	if c.Status.CompletionTime == nil {
		return time.Time{}
	}
	return c.Status.CompletionTime.Time
}

// counts takes over how many tags the registry has for the rule. Until the
// registry was scanned what is known from before stays.
func (v *visit) counts(ctx context.Context) error {
	if v.registry == nil {
		return nil
	}
	n, complete, err := v.Counts.Of(ctx, client.ObjectKeyFromObject(v.registry), client.ObjectKeyFromObject(v.rule))
	if err != nil {
		return err
	}
	s := &v.rule.Status
	if complete {
		s.Matched, s.Converted = n.Matched, n.Converted
	} else {
		s.Matched, s.Converted = max(s.Matched, n.Matched), max(s.Converted, n.Converted)
	}
	return nil
}

// source judges the rule's registry.
func (v *visit) source() {
	name := v.rule.Spec.Trigger.RegistryRef.Name
	if v.registry == nil {
		v.cond.False(v1alpha1.ConditionSourceReachable, v1alpha1.ReasonRegistryNotFound,
			fmt.Sprintf("there is no Registry %q in namespace %q: create it, or correct spec.trigger.registryRef.name", name, v.rule.Namespace))
		return
	}
	ready := meta.FindStatusCondition(v.registry.Status.Conditions, v1alpha1.ConditionReady)
	switch {
	case ready == nil || ready.Status == metav1.ConditionUnknown:
		v.cond.Unknown(v1alpha1.ConditionSourceReachable, v1alpha1.ReasonProgressing, fmt.Sprintf("Registry %q was not looked at yet", name))
	case ready.Status == metav1.ConditionFalse:
		v.cond.False(v1alpha1.ConditionSourceReachable, v1alpha1.ReasonRegistryNotReady, fmt.Sprintf("Registry %q: %s: %s", name, ready.Reason, ready.Message))
	default:
		v.cond.True(v1alpha1.ConditionSourceReachable, v1alpha1.ReasonAsExpected, fmt.Sprintf("Registry %q is ready", name))
	}
}

// verify answers for the addresses that the user wants to know of.
func (v *visit) verify() {
	v.rule.Status.Verify = nil
	for _, address := range v.rule.Spec.Verify {
		v.rule.Status.Verify = append(v.rule.Status.Verify, Verify(v.rule, v.registry, address))
	}
}

// ready says whether matching pushes are being converted.
func (v *visit) ready() {
	s := &v.rule.Status
	if s.Failed == 0 {
		v.cond.True(v1alpha1.ConditionConversionsHealthy, v1alpha1.ReasonAsExpected, "no conversion has failed")
	} else {
		f := s.Failures[0]
		v.cond.False(v1alpha1.ConditionConversionsHealthy, v1alpha1.ReasonConversionsFailing,
			fmt.Sprintf("%d images could not be converted, the last one %s: %s: %s", s.Failed, f.Image, f.Reason, f.Message))
	}
	not := func(p status.Progress, reason, message string) {
		v.cond.False(v1alpha1.ConditionReady, reason, message)
		v.cond.Progress(p, reason, message)
	}
	source := meta.FindStatusCondition(s.Conditions, v1alpha1.ConditionSourceReachable)
	mistake := v.mistake()
	switch {
	case mistake != "":
		not(status.Stalled, v1alpha1.ReasonInvalid, mistake)
	case v.rule.Spec.Suspend:
		not(status.Stalled, v1alpha1.ReasonSuspended, "spec.suspend is true: nothing new is converted because of this rule")
	case v.registry == nil:
		not(status.Stalled, source.Reason, source.Message)
	case !v.registry.Spec.AccelerationEnabled:
		not(status.Stalled, v1alpha1.ReasonAccelerationDisabled,
			fmt.Sprintf("image acceleration is off in registry %q: set its spec.accelerationEnabled to true", v.registry.Name))
	case source.Status == metav1.ConditionUnknown:
		v.cond.Unknown(v1alpha1.ConditionReady, source.Reason, source.Message)
		v.cond.Progress(status.Reconciling, source.Reason, source.Message)
	case source.Status == metav1.ConditionFalse:
		// The registry may come back by itself, and is asked again and again.
		not(status.Reconciling, source.Reason, source.Message)
	default:
		v.cond.True(v1alpha1.ConditionReady, v1alpha1.ReasonReady, "pushes that match are being converted")
		v.cond.Progress(status.Settled, "", "")
	}
}

// mistake finds what the server should have refused; "" when there is nothing.
func (v *visit) mistake() string {
	if m := v.rule.Validate(); len(m) > 0 {
		return m[0].Error()
	}
	_, bad := match.Compile(nil, []match.Rule{match.RuleOf(v.rule)})
	if err := bad[client.ObjectKeyFromObject(v.rule)]; err != nil {
		return err.Error()
	}
	return ""
}

// Verify says whether a rule would convert the image at an address. The registry
// may be nil: then hosts are not compared.
func Verify(rule *v1alpha1.AccelerationRule, registry *v1alpha1.Registry, address string) v1alpha1.VerifyResult {
	r := match.RuleOf(rule)
	in := match.Instance{Key: r.Registry, Enabled: true}
	if registry != nil {
		in = match.InstanceOf(registry)
	}
	set, bad := match.Compile([]match.Instance{in}, []match.Rule{r})
	if err := bad[r.Key]; err != nil {
		return v1alpha1.VerifyResult{Image: address, Reason: v1alpha1.ReasonInvalid, Message: err.Error()}
	}
	reason, message, ok := set.Verify(in, address)
	return v1alpha1.VerifyResult{Image: address, Matches: ok, Reason: reason, Message: message}
}
