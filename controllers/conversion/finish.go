package conversion

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/apparate/apparate/api/v1alpha1"
	"github.com/apparate/apparate/controllers/status"
	"github.com/apparate/apparate/converter"
	"github.com/apparate/apparate/converter/fault"
)

// finish notes the outcome of an attempt and returns the wait before the next.
func (v *visit) finish(out Outcome) time.Duration {
	s := &v.c.Status
	if s.StartTime == nil || s.Attempts == 0 {
		s.Attempts++ // it was over before we could note that it began
		now := metav1.NewTime(out.Started)
		s.StartTime = &now
	}
	s.NextAttemptTime, s.RegistryRevision = nil, out.Revision
	s.Duration = seconds(out.Elapsed)
	if d := out.Result.SourceDigest; d != "" {
		s.SourceDigest = d
	}
	if out.Err == nil {
		v.succeed(out.Result)
		return 0
	}
	reason, message := string(fault.KindOf(out.Err)), out.Err.Error()
	switch {
	case errors.Is(out.Cause, ErrSuperseded), reason == string(fault.Superseded):
		if v.c.Spec.Digest != "" {
			v.fail(v1alpha1.ReasonSuperseded, "the tag was pushed again: the newer image is converted instead")
			return 0
		}
		// By hand, for whatever the tag is: go on with what it is now.
	case errors.Is(out.Cause, context.Canceled):
		// The operator is stopping: another one goes on.
		v.wait(v1alpha1.ReasonQueued, "the operator was stopped meanwhile; it is tried again", status.Reconciling)
		return time.Second
	case !fault.Temporary(out.Err):
		v.fail(reason, message)
		return 0
	}
	if out.Cause != nil {
		message += " (" + out.Cause.Error() + ")"
	}
	if int(s.Attempts) >= v.MaxAttempts {
		v.fail(v1alpha1.ReasonGaveUp, fmt.Sprintf("tried %d times, the last time: %s: %s", s.Attempts, reason, message))
		return 0
	}
	wait := max(v.backoff(s.Attempts), fault.After(out.Err))
	next := metav1.NewTime(v.Now().Add(wait))
	s.NextAttemptTime = &next
	v.wait(v1alpha1.ReasonRetrying, reason+": "+message, status.Reconciling)
	return wait
}

// succeed notes a result.
func (v *visit) succeed(r converter.Result) {
	s := &v.c.Status
	s.TargetDigest = r.TargetDigest
	if r.UpToDate {
		v.end(metav1.ConditionTrue, v1alpha1.ReasonUpToDate, s.Target+" was there already, made from the same image")
		return
	}
	s.Platforms = r.Platforms
	s.Layers = &v1alpha1.ConversionLayers{
		Total: int32(r.Layers), Converted: int32(r.Converted), Reused: int32(r.Reused), Copied: int32(r.Copied),
	}
	s.Bytes = &v1alpha1.ConversionBytes{In: r.BytesIn, Out: r.BytesOut, SourceSize: r.SourceSize, TargetSize: r.TargetSize}
	v.end(metav1.ConditionTrue, v1alpha1.ReasonConverted, s.Target+" is there")
}

// fail ends the conversion without a result.
func (v *visit) fail(reason, message string) { v.end(metav1.ConditionFalse, reason, message) }

func (v *visit) end(s metav1.ConditionStatus, reason, message string) {
	now := metav1.NewTime(v.Now())
	v.c.Status.CompletionTime, v.c.Status.NextAttemptTime = &now, nil
	v.c.Status.LastHandledRequest = v.c.Annotations[v1alpha1.AnnotationRequested]
	v.cond.Set(v1alpha1.ConditionSucceeded, s, reason, message)
	progress := status.Settled
	if Failed(v.c) {
		progress = status.Stalled
	}
	v.cond.Progress(progress, reason, message)
}

// wait notes why it is not over.
func (v *visit) wait(reason, message string, p status.Progress) {
	v.cond.Unknown(v1alpha1.ConditionSucceeded, reason, message)
	v.cond.Progress(p, reason, message)
}

// denied are reasons that a change of the registry's settings may undo.
var denied = []string{
	string(fault.PullDenied), string(fault.PushDenied), string(fault.NotRegistry),
	v1alpha1.ReasonSecretInvalid, v1alpha1.ReasonGaveUp,
}

// wasDenied says whether a conversion failed for one of them.
func wasDenied(c *v1alpha1.ImageConversion) bool {
	s := succeeded(c)
	return s != nil && s.Status == metav1.ConditionFalse && slices.Contains(denied, s.Reason)
}

// reopen says whether a conversion that failed is to be tried again, because
// somebody asked for it or changed what it failed for, and makes it so.
func (v *visit) reopen(ctx context.Context) bool {
	s := succeeded(v.c)
	if s.Status != metav1.ConditionFalse {
		return false
	}
	asked := v.c.Annotations[v1alpha1.AnnotationRequested]
	again := asked != v.c.Status.LastHandledRequest
	if !again && v.registry != nil && wasDenied(v.c) {
		// An error leaves it as it is: the Registry's own status tells.
		access, err := v.Access.Access(ctx, v.registry)
		again = err == nil && access.Revision != v.c.Status.RegistryRevision
	}
	if again {
		v.c.Status.Attempts, v.c.Status.CompletionTime = 0, nil
	}
	return again
}

// seconds writes a duration for people.
func seconds(d time.Duration) string { return d.Round(100 * time.Millisecond).String() }
