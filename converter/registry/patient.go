package registry

import (
	"io"
	"net/http"
	"strconv"
	"time"
)

// maxPatience is the longest Retry-After that is waited for. A registry that
// wants more is reported instead.
const maxPatience = time.Minute

// patient waits as long as a busy registry asks for, once for each request. The
// retries above it would come too soon, and repeat a whole upload where one
// request of it was turned away.
type patient struct {
	next http.RoundTripper
	// wait is how long to wait where the registry does not say.
	wait time.Duration
}

// RoundTrip implements http.RoundTripper.
func (p *patient) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := p.next.RoundTrip(r)
	if err != nil || resp.StatusCode != http.StatusTooManyRequests && resp.StatusCode != http.StatusServiceUnavailable {
		return resp, err
	}
	wait, ok := p.wait, true
	if h := resp.Header.Get("Retry-After"); h != "" {
		wait, ok = retryAfter(h)
	}
	if !ok || r.Body != nil && r.GetBody == nil {
		return resp, nil
	}
	again := r.Clone(r.Context())
	if r.Body != nil {
		if again.Body, err = r.GetBody(); err != nil {
			return resp, nil //nolint:nilerr // the registry's answer says more
		}
	}
	// The body has to be read and closed before the connection can be reused.
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 64<<10)) // only for reuse
	_ = resp.Body.Close()                                         // the answer is given up
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case <-t.C:
		return p.next.RoundTrip(again)
	case <-r.Context().Done():
		return nil, r.Context().Err()
	}
}

// retryAfter reads how long to wait; false for what is longer than patience.
func retryAfter(h string) (time.Duration, bool) {
	wait, ok := parseRetryAfter(h)
	return wait, ok && wait <= maxPatience
}

// parseRetryAfter reads the header's two forms (RFC 9110, section 10.2.3).
func parseRetryAfter(h string) (time.Duration, bool) {
	if n, err := strconv.ParseUint(h, 10, 31); err == nil {
		return time.Duration(n) * time.Second, true
	}
	t, err := http.ParseTime(h)
	return max(0, time.Until(t)), err == nil
}
