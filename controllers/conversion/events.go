package conversion

import (
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/apparate/apparate/api/v1alpha1"
	"github.com/apparate/apparate/controllers/status"
)

// tell lets the world know of a transition that was written.
func (v *visit) tell() {
	now, changed := status.Changed(v.before.Status.Conditions, v.c.Status.Conditions, v1alpha1.ConditionSucceeded)
	if !changed {
		return
	}
	elapsed, _ := time.ParseDuration(v.c.Status.Duration)
	v.Metrics.note(v.c, elapsed.Seconds())
	switch now.Reason {
	case v1alpha1.ReasonConverted, v1alpha1.ReasonUpToDate, v1alpha1.ReasonSuperseded, v1alpha1.ReasonRuleGone:
		v.Events.Event(v.c, corev1.EventTypeNormal, now.Reason, now.Message)
	case v1alpha1.ReasonQueued, v1alpha1.ReasonRunning, v1alpha1.ReasonHeld:
		// The status tells; ten thousand events of it would not tell more.
	default:
		v.Events.Event(v.c, corev1.EventTypeWarning, now.Reason, now.Message)
	}
	if v.Ended != nil && Finished(v.c) {
		v.Ended(v.registry, v.c)
	}
}

// retryReason is the kind of the fault that a retry is for: it begins the message.
func retryReason(message string) string {
	kind, _, _ := strings.Cut(message, ":")
	return kind
}
