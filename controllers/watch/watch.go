// Package watch is where pushes come from: notifications of registries, and a
// scan that finds what they lost. It only reports; whether a push leads to a
// conversion is not decided here.
//
// # Why a scan beside notifications
//
// A notification is a hint to look sooner. Registries lose them (most do not try
// again), and what was there before a rule was made never causes one. The
// registry itself is the truth: a scan lists its tags, and looks at those of
// which it cannot tell from memory what they are.
//
// # What a scan costs
//
// Paging, and at most one request for each tag that is new or was not handled.
// A tag that is known can have been pushed again, which no list shows (except
// Google's, which has digests); so known tags are looked at again with a
// conditional request, often while they are young or of the moving sort
// ("latest"), rarely when they are old and look like a version; see Recheck.
package watch

import (
	"context"
	"errors"

	"k8s.io/apimachinery/pkg/types"

	oci "github.com/apparate/apparate/converter/registry"
)

// Origin is where a push was seen.
type Origin string

// The origins.
const (
	Webhook Origin = "webhook"
	Scan    Origin = "scan"
)

// Push is a tag that was pushed, or may have been.
type Push struct {
	// Registry names the Registry object.
	Registry types.NamespacedName
	// Repository is the path within the registry, Tag the tag.
	Repository, Tag string
	// Digest is what a notification says that was pushed; empty where it does not
	// say, and for a scan.
	Digest string
	// Manifest is what the registry has there now; nil where only a notification
	// speaks, and the registry is still to be asked.
	Manifest *oci.Manifest
	// AcceleratedFrom is the source digest of the accelerated image beside it, as
	// far as was looked.
	AcceleratedFrom string
	Origin          Origin
}

// Outcome is what became of a push.
type Outcome struct {
	// Reason is one of the reasons of package v1alpha1: Matched, or why the image
	// is skipped.
	Reason string `json:"reason"`
	// Message explains it.
	Message string `json:"message"`
	// Conversion is the name of the ImageConversion; empty for what is skipped.
	Conversion string `json:"conversion,omitempty"`
	// Digest is what the registry has under the tag; empty where it was not asked.
	Digest string `json:"digest,omitempty"`
}

// Report takes a push. When it returns nil the push is handled for good: it is
// skipped, or an ImageConversion exists, which outlives the process. Any error
// may pass; the source reports the push again. Report may be called in parallel.
type Report func(context.Context, Push) (Outcome, error)

// ErrBusy is why a push is not taken: enough conversions wait already.
var ErrBusy = errors.New("too many conversions wait already")

// Source reports pushes until the context ends.
type Source interface {
	Run(ctx context.Context, report Report) error
}
