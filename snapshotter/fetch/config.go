package fetch

import (
	"context"
	"errors"
	"net/http"
	"time"
)

// Causes that callers tell apart with errors.Is.
var (
	// ErrNoRanges says that the registry sent the whole blob where a part was
	// asked for. Such a registry cannot serve lazy layers.
	ErrNoRanges = errors.New("registry does not support range requests: pull the image the ordinary way, or from another registry")
	// ErrRange says that the caller asked for bytes outside the blob.
	ErrRange = errors.New("range is outside the blob")
	// ErrClosed says that the Blob was closed.
	ErrClosed = errors.New("blob is closed")
)

// Endpoint is one place that serves the blob: the registry itself or a mirror.
type Endpoint struct {
	// URL is ".../v2/<repository>/blobs/<digest>", with "?ns=<registry>" for a
	// mirror (containerd's registry host namespace).
	URL string
	// Client sends the requests; nil is http.DefaultClient. Redirects are
	// followed by this package, whatever Client.CheckRedirect says.
	Client *http.Client
	// Authorize adds credentials to a request for the registry's own host; nil
	// sends none. It is called in parallel.
	Authorize func(context.Context, *http.Request) error
	// Challenge learns from 401 answers how to authorize; nil cannot. It is
	// called in parallel: many reads may meet the same expired token, and it is
	// Challenge that must renew it once for all of them.
	Challenge func(context.Context, []*http.Response) error
	// Header is sent to the registry's own host only, never to a redirect's target.
	Header http.Header
}

// Config says where a blob is and how patient to be. Zero durations and counts
// mean the default in brackets.
type Config struct {
	// Endpoints finds where the blob is served, best first. It is called at the
	// first Open that needs it, again if it failed, and again after Stale.
	Endpoints func(context.Context) ([]Endpoint, error)
	// Size is the blob's length in bytes, as the manifest has it.
	Size int64
	// Name is the registry's name in errors that come from no single endpoint.
	Name string
	// Stale, if set, is called when the endpoints refused us (401, 403, TLS):
	// what they were made of, credentials or certificates, may have been
	// rotated. Endpoints is then asked once more.
	Stale func()

	// HeaderTimeout ends an attempt that has no response header yet [10 s].
	HeaderTimeout time.Duration
	// StallTimeout ends an attempt in which no byte came for that long while
	// the caller waited for one [10 s].
	StallTimeout time.Duration
	// TotalTimeout ends Open and all reads of its stream together [60 s].
	TotalTimeout time.Duration
	// MinRate lengthens TotalTimeout by one second for every MinRate bytes of
	// the range, so that a whole layer can be read in one stream [256 KiB].
	MinRate int64
	// Attempts is how often one range is tried [5]. A stream that got on by
	// 1 MiB since the last failure starts counting again.
	Attempts int
	// Backoff is the wait before the second attempt; it doubles from there up to
	// MaxBackoff [100 ms, 5 s]. The waits are spread by half to keep nodes that
	// failed together from coming back together.
	Backoff, MaxBackoff time.Duration
	// MaxRetryAfter is the longest Retry-After that is obeyed [30 s].
	MaxRetryAfter time.Duration
	// Limit bounds the requests in flight; nil does not. Blobs may share one.
	Limit *Limiter
	// Meter learns how fast the registry is, and so which answers are late: those are
	// asked for once more. nil does not. Blobs should share one.
	Meter *Meter
	// Stats observes; the zero value does not.
	Stats Stats

	// learn, if set, takes the blob's length from the answers instead of
	// demanding that it is Size.
	learn func(total int64)
}

// withDefaults returns c with its zero values replaced.
func (c Config) withDefaults() Config {
	setDefault(&c.HeaderTimeout, 10*time.Second)
	setDefault(&c.StallTimeout, 10*time.Second)
	setDefault(&c.TotalTimeout, time.Minute)
	setDefault(&c.MinRate, 256<<10)
	setDefault(&c.Attempts, 5)
	setDefault(&c.Backoff, 100*time.Millisecond)
	setDefault(&c.MaxBackoff, 5*time.Second)
	setDefault(&c.MaxRetryAfter, 30*time.Second)
	setDefault(&c.Name, "(unknown)")
	return c
}

func setDefault[T comparable](v *T, d T) {
	var zero T
	if *v == zero {
		*v = d
	}
}

// total is how long Open and the reads of n bytes may take together.
func (c Config) total(n int64) time.Duration {
	return c.TotalTimeout + time.Duration(n/c.MinRate)*time.Second
}
