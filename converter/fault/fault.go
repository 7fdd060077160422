// Package fault holds the one error type that converting and checking end in:
// a kind that programs act on, and a line that tells a person what to do.
package fault

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"time"
)

// Kind says what went wrong, in a word that is stable and fit for a condition's
// reason. It is never empty.
type Kind string

// The kinds of faults.
const (
	// BadName: the name of an image or platform cannot be read.
	BadName Kind = "BadName"
	// TagTooLong: no room for the suffix of accelerated images.
	TagTooLong Kind = "TagTooLong"
	// NotFound: the registry has no such image.
	NotFound Kind = "ImageNotFound"
	// PullDenied and PushDenied: the credentials do not allow it, or are missing.
	PullDenied Kind = "PullDenied"
	PushDenied Kind = "PushDenied"
	// Unreachable: no connection.
	Unreachable Kind = "RegistryUnreachable"
	// NotRegistry: what answers there is no OCI registry.
	NotRegistry Kind = "NotARegistry"
	// RegistryError: the registry failed, or has too much to do.
	RegistryError Kind = "RegistryError"
	// ContentMissing: a manifest refers to something the registry does not have.
	ContentMissing Kind = "ContentMissing"
	// LayerCorrupt: a layer's bytes are not what its digest or its format says.
	LayerCorrupt Kind = "LayerCorrupt"
	// ImageInvalid: a manifest or config is broken.
	ImageInvalid Kind = "ImageInvalid"
	// NotImage: an artifact of another sort, or an image without layers of files.
	NotImage Kind = "NotAnImage"
	// NotAccelerated: the image to check was not made by this project.
	NotAccelerated Kind = "NotAccelerated"
	// AlreadyAccelerated: the source was made by this project.
	AlreadyAccelerated Kind = "AlreadyAccelerated"
	// TargetTaken: the target tag holds an image that somebody else put there.
	TargetTaken Kind = "TargetTaken"
	// NoPlatform: the image does not have a platform that was asked for.
	NoPlatform Kind = "NoSuchPlatform"
	// Superseded: the source tag moved while its image was being converted.
	Superseded Kind = "Superseded"
	// NoCatalog: the registry does not list its repositories.
	NoCatalog Kind = "NoCatalog"
	// DiskFull: no space for temporary files.
	DiskFull Kind = "DiskFull"
	// Canceled: the caller gave up.
	Canceled Kind = "Canceled"
	// Internal: anything else.
	Internal Kind = "Internal"
)

// Error is a fault.
type Error struct {
	Kind Kind
	// Message is one line: what is wrong, with which image, and what to do.
	Message string
	// Err is the cause; it may be nil.
	Err error
	// Retry says that the same request may well succeed later.
	Retry bool
	// After is how long the registry wants to be left alone; 0 where it does not
	// say.
	After time.Duration
}

// New makes an Error that cannot be helped by trying again. The cause may be nil.
func New(k Kind, cause error, format string, args ...any) *Error {
	return &Error{Kind: k, Err: cause, Message: fmt.Sprintf(format, args...)}
}

// NewTemporary makes an Error that may pass.
func NewTemporary(k Kind, cause error, format string, args ...any) *Error {
	e := New(k, cause, format, args...)
	e.Retry = true
	return e
}

// WithAfter sets After and returns e.
func (e *Error) WithAfter(d time.Duration) *Error {
	e.After = d
	return e
}

// After is how long the registry wants to be left alone, as far as err says it.
func After(err error) time.Duration {
	var e *Error
	if errors.As(err, &e) {
		return e.After
	}
	return 0
}

// Error is the message, and the cause where there is one.
func (e *Error) Error() string {
	if e.Err == nil {
		return e.Message
	}
	return e.Message + ": " + e.Err.Error()
}

// Unwrap gives the cause.
func (e *Error) Unwrap() error { return e.Err }

// Temporary says whether trying again later may help.
func (e *Error) Temporary() bool { return e.Retry }

// KindOf returns the kind of err's first Error; Internal when it has none, and
// "" for nil.
func KindOf(err error) Kind {
	var e *Error
	switch {
	case err == nil:
		return ""
	case errors.As(err, &e):
		return e.Kind
	}
	return Internal
}

// Temporary says whether trying again later may help against err.
func Temporary(err error) bool {
	var e *Error
	return errors.As(err, &e) && e.Retry
}

// Local gives errors that have nothing to do with a registry their kind: a full
// disk and a caller that gave up. Others come back as they are; doing names
// what was being done ("converting registry/app:v1").
func Local(err error, doing string) error {
	var e *Error
	switch {
	case err == nil || errors.As(err, &e):
		return err
	case errors.Is(err, context.Canceled):
		return NewTemporary(Canceled, err, "%s was stopped", doing)
	case errors.Is(err, context.DeadlineExceeded):
		return NewTemporary(Canceled, err, "%s took longer than it was allowed to", doing)
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return NewTemporary(DiskFull, err, "%s needs space for temporary files: free some, or choose another directory with --temp-dir", doing)
	}
	return New(Internal, err, "%s failed", doing)
}
