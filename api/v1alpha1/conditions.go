package v1alpha1

// Condition types. Each is written on the operator's first visit, Unknown if
// need be, and carries the generation that it speaks of. Those of kstatus,
// Reconciling and Stalled, are there only while they are True.
const (
	// ConditionReady of a Registry: it answers, takes our credentials, and
	// acceleration is on. Of an AccelerationRule: pushes that match are being
	// converted.
	ConditionReady = "Ready"
	// ConditionReachable of a Registry: it answers and takes our credentials.
	ConditionReachable = "Reachable"
	// ConditionWebhookReady of a Registry: push notifications can be accepted.
	// False with reason WebhookNotConfigured is no fault: the scan is enough.
	ConditionWebhookReady = "WebhookReady"
	// ConditionSourceReachable of an AccelerationRule: its Registry is ready.
	ConditionSourceReachable = "SourceReachable"
	// ConditionConversionsHealthy of an AccelerationRule: no conversion because of
	// it has failed for good at its last try.
	ConditionConversionsHealthy = "ConversionsHealthy"
	// ConditionSucceeded of an ImageConversion: True and False are final, Unknown
	// while it waits or runs.
	ConditionSucceeded = "Succeeded"
	// ConditionReconciling: the operator is at work on the object (kstatus).
	ConditionReconciling = "Reconciling"
	// ConditionStalled: it cannot go on until somebody changes something (kstatus).
	ConditionStalled = "Stalled"
)

// Reasons of conditions of a Registry and an AccelerationRule. Where a registry
// refuses, the reason is the kind of the fault ("RegistryUnreachable",
// "PullDenied").
const (
	// ReasonReady and ReasonAsExpected: all is well.
	ReasonReady      = "Ready"
	ReasonAsExpected = "AsExpected"
	// ReasonProgressing: not looked at yet.
	ReasonProgressing = "Progressing"
	// ReasonInvalid: the spec has a mistake that the server did not refuse.
	ReasonInvalid = "InvalidSpec"
	// ReasonSuspended: spec.suspend is true.
	ReasonSuspended = "Suspended"
	// ReasonRegistryNotFound: the rule's registryRef names nothing.
	ReasonRegistryNotFound = "RegistryNotFound"
	// ReasonRegistryNotReady: the rule's Registry is not ready.
	ReasonRegistryNotReady = "RegistryNotReady"
	// ReasonSecretInvalid: a referenced Secret or ConfigMap is missing or unfit.
	ReasonSecretInvalid = "SecretInvalid"
	// ReasonWebhookNotConfigured: spec.webhook is not set.
	ReasonWebhookNotConfigured = "WebhookNotConfigured"
	// ReasonConversionsFailing: tags of this rule could not be converted.
	ReasonConversionsFailing = "ConversionsFailing"
)

// Reasons of an ImageConversion's Succeeded condition, beside the kinds of
// faults of package converter/fault.
const (
	// ReasonQueued: it waits for its turn.
	ReasonQueued = "Queued"
	// ReasonRunning: it is being converted.
	ReasonRunning = "Running"
	// ReasonRetrying: it failed in a way that may pass, and waits.
	ReasonRetrying = "Retrying"
	// ReasonHeld: its rule is suspended or its registry switched off; it goes on
	// when that changes.
	ReasonHeld = "Held"
	// ReasonConverted: the accelerated image was made.
	ReasonConverted = "Converted"
	// ReasonUpToDate: the accelerated image was there already.
	ReasonUpToDate = "UpToDate"
	// ReasonSuperseded: the tag was pushed again; the newer push is converted.
	ReasonSuperseded = "Superseded"
	// ReasonRuleGone: the rule was deleted or no longer matches.
	ReasonRuleGone = "RuleGone"
	// ReasonGaveUp: it failed too often for a reason that might have passed.
	ReasonGaveUp = "GaveUp"
)

// Reasons why an image is converted or is not: those of package
// controllers/match, of a rule's status.verify, and of "apparate verify".
const (
	// ReasonMatched: a rule matches, the image is converted.
	ReasonMatched = "Matched"
	// ReasonNoRuleMatches: no rule is for it; the message names the closest rule
	// and the part of it that does not match.
	ReasonNoRuleMatches = "NoRuleMatches"
	// ReasonRuleSuspended: the rules that match are suspended.
	ReasonRuleSuspended = "RuleSuspended"
	// ReasonAccelerationDisabled: acceleration is off in the registry instance.
	ReasonAccelerationDisabled = "AccelerationDisabled"
	// ReasonAlreadyAccelerated: its accelerated image exists and is up to date.
	ReasonAlreadyAccelerated = "AlreadyAccelerated"
	// ReasonIsAcceleratedImage: it is itself the result of a conversion.
	ReasonIsAcceleratedImage = "IsAcceleratedImage"
	// ReasonNotAnImage: a signature, SBOM, Helm chart, or other artifact.
	ReasonNotAnImage = "NotAnImage"
	// ReasonPlatformNotWanted: it is for none of the rule's platforms.
	ReasonPlatformNotWanted = "PlatformNotWanted"
	// ReasonTagTooLong: there is no room for -apparate behind its tag.
	ReasonTagTooLong = "TagTooLong"
	// ReasonBadAddress: the address to check is not one of an image with a tag.
	ReasonBadAddress = "BadAddress"
)

// Labels and annotations.
const (
	// LabelRegistry and LabelRule of an ImageConversion name its Registry and its
	// rule, where the name fits into a label.
	LabelRegistry = Group + "/registry"
	LabelRule     = Group + "/rule"
	// AnnotationOrigin of an ImageConversion says where the push was seen first:
	// webhook or scan. One without it was created by hand.
	AnnotationOrigin = Group + "/origin"
	// AnnotationRequested asks for another look: any new value makes the operator
	// scan a Registry at once, or try a failed ImageConversion again.
	AnnotationRequested = Group + "/requested-at"
)
