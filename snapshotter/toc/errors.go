package toc

import (
	"context"
	"errors"
	"fmt"

	"github.com/apparate/apparate/snapshotter/fetch"
)

// Why a layer cannot be mounted from its TOC. Every error of this package and
// of package tree wraps one of them, or the error of the read that failed.
var (
	// ErrNotEStargz says that the blob has no footer that names a TOC.
	ErrNotEStargz = errors.New("no eStargz footer")
	// ErrExternalTOC says that the TOC is in another image, which we do not read.
	ErrExternalTOC = errors.New("the TOC is outside the blob, which is not supported")
	// ErrNoDigest says that nobody told us the digest of the TOC, so that
	// nothing in it could be trusted.
	ErrNoDigest = errors.New("the digest of the TOC is not known")
	// ErrDigest says that the TOC is not the one the image's manifest names.
	ErrDigest = errors.New("the TOC does not have the digest that the image names")
	// ErrCorrupt says that the bytes are no gzip, no tar or no JSON.
	ErrCorrupt = errors.New("the TOC is damaged")
	// ErrHostile says that the TOC contradicts itself or tries to leave the
	// root: no writer makes such a TOC by accident.
	ErrHostile = errors.New("the TOC is invalid")
	// ErrLimit says that something is larger than what we serve.
	ErrLimit = errors.New("the TOC exceeds a limit")
	// ErrUnsupported says that the TOC is valid, but we cannot serve it faithfully.
	ErrUnsupported = errors.New("the TOC needs what is not supported")
)

// Error says what is wrong with a TOC, and where.
type Error struct {
	// Kind is one of the Err values of this package.
	Kind error
	// Entry is the name of the entry concerned, as in the TOC; "" for none.
	Entry string
	// What says what is wrong, in words.
	What string
}

// Error names the kind, the entry and the mistake.
func (e *Error) Error() string {
	if e.Entry == "" {
		return fmt.Sprintf("%v: %s", e.Kind, e.What)
	}
	// Quoted and cut: the name is the attacker's, the log is ours.
	const longest = 128
	name := e.Entry
	if len(name) > longest {
		name = name[:longest] + "..."
	}
	return fmt.Sprintf("%v: entry %q: %s", e.Kind, name, e.What)
}

// Unwrap returns the kind.
func (e *Error) Unwrap() error { return e.Kind }

// failf makes an Error without an entry.
func failf(kind error, format string, args ...any) error {
	return &Error{Kind: kind, What: fmt.Sprintf(format, args...)}
}

// Reason turns an error of Load, Parse or tree.Merge into a word for a metric's
// label: few values, none of them from outside. It is "" for nil.
func Reason(err error) string {
	if err == nil {
		return ""
	}
	for _, r := range [...]struct {
		err  error
		word string
	}{
		{context.Canceled, "canceled"},
		{context.DeadlineExceeded, "timeout"},
		{ErrNotEStargz, "not_estargz"},
		{ErrExternalTOC, "external_toc"},
		{ErrNoDigest, "no_toc_digest"},
		{ErrDigest, "toc_digest_mismatch"},
		{ErrCorrupt, "toc_corrupt"},
		{ErrHostile, "toc_invalid"},
		{ErrLimit, "toc_too_large"},
		{ErrUnsupported, "toc_unsupported"},
	} {
		if errors.Is(err, r.err) {
			return r.word
		}
	}
	var remote *fetch.Error
	if errors.As(err, &remote) {
		return "registry"
	}
	return "other"
}
