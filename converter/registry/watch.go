package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"
)

// DefaultSilence is how long a registry may say nothing by default.
const DefaultSilence = time.Minute

// watch ends requests of which nothing comes back: no headers, or no more of a
// body. For the headers of a write it does not care, since a registry may take
// long to look at a large blob before it answers.
type watch struct {
	next  http.RoundTripper
	limit time.Duration
}

// silentError is why a watched request ended. Trying again may help.
type silentError struct{ limit time.Duration }

func (e *silentError) Error() string   { return fmt.Sprintf("nothing came for %s", e.limit) }
func (e *silentError) Timeout() bool   { return true }
func (e *silentError) Temporary() bool { return true }

// RoundTrip implements http.RoundTripper.
func (w *watch) RoundTrip(r *http.Request) (*http.Response, error) {
	ctx, cancel := context.WithCancelCause(r.Context())
	b := &watchedBody{ctx: ctx, cancel: cancel, limit: w.limit}
	b.timer = time.AfterFunc(w.limit, func() { cancel(&silentError{w.limit}) })
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		b.timer.Stop()
	}
	resp, err := w.next.RoundTrip(r.WithContext(ctx))
	b.timer.Stop()
	if err != nil {
		err = b.why(err)
		cancel(nil)
		return nil, err
	}
	b.ReadCloser, resp.Body = resp.Body, b
	return resp, nil
}

// watchedBody runs the clock while somebody waits for bytes, and only then: a
// reader that takes its time is not the registry's fault.
type watchedBody struct {
	io.ReadCloser
	ctx    context.Context
	cancel context.CancelCauseFunc
	timer  *time.Timer
	limit  time.Duration
}

// Read implements io.Reader.
func (b *watchedBody) Read(p []byte) (int, error) {
	b.timer.Reset(b.limit)
	n, err := b.ReadCloser.Read(p)
	b.timer.Stop()
	if err != nil {
		err = b.why(err)
	}
	return n, err
}

// Close ends the request.
func (b *watchedBody) Close() error {
	b.timer.Stop()
	err := b.ReadCloser.Close()
	b.cancel(nil)
	return err
}

// why puts the silence in the place of the error that it led to.
func (b *watchedBody) why(err error) error {
	var silent *silentError
	if errors.Is(err, context.Canceled) && errors.As(context.Cause(b.ctx), &silent) {
		return silent
	}
	return err
}
