package source

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"golang.org/x/sync/singleflight"
)

// authTimeout ends one attempt to get a token, with the credential helper it may take.
const authTimeout = 30 * time.Second

// auth authorizes pulls from one repository on one host. It stands between its
// many readers and containerd's authorizer, which alone would fetch a token for
// every reader that meets the same 401, would go on handing out a token that the
// registry has revoked, and would remember for good that one fetch was cancelled.
type auth struct {
	client *http.Client
	header http.Header
	scope  string
	creds  func(host string) (user, secret string, err error)

	flights singleflight.Group

	mu sync.Mutex
	// inner has answered the last challenge; nil before the first, and after a
	// token could not be had: then the registry challenges us again.
	inner docker.Authorizer
	// given is the last Authorization that was handed out.
	given string
}

var _ docker.Authorizer = (*auth)(nil)

func newAuth(h docker.RegistryHost, repo string, creds func(string) (string, string, error)) *auth {
	return &auth{client: h.Client, header: h.Header, scope: "repository:" + repo + ":pull", creds: creds}
}

// Authorize adds what the last challenge asked for; before the first, nothing.
func (a *auth) Authorize(ctx context.Context, req *http.Request) error {
	a.mu.Lock()
	inner := a.inner
	a.mu.Unlock()
	if inner == nil {
		return nil
	}
	value, err := a.once(ctx, fmt.Sprintf("token %p %s", inner, req.URL.Host), func(ctx context.Context) (string, error) {
		value, err := a.token(ctx, inner, req.URL)
		a.mu.Lock()
		defer a.mu.Unlock()
		switch {
		case a.inner != inner: // a challenge has replaced it meanwhile
		case err != nil:
			a.inner, a.given = nil, ""
		case value != "": // "": another host, such as the target of a redirect
			a.given = value
		}
		return value, err
	})
	if err != nil {
		return err
	}
	if value != "" {
		req.Header.Set("Authorization", value)
	}
	return nil
}

// AddResponses learns from the last of responses, a 401, how to authorize, and
// reads the credentials anew. Readers that were refused with the same token
// share one renewal.
func (a *auth) AddResponses(ctx context.Context, responses []*http.Response) error {
	last := responses[len(responses)-1]
	used := last.Request.Header.Get("Authorization")
	if n := len(responses); used != "" && n > 1 && responses[n-2].StatusCode == http.StatusUnauthorized {
		return fmt.Errorf("credentials were refused: %w", docker.ErrInvalidAuthorization)
	}
	_, err := a.once(ctx, "challenge "+last.Request.URL.Host+" "+used, func(ctx context.Context) (string, error) {
		a.mu.Lock()
		inner, given := a.inner, a.given
		a.mu.Unlock()
		if inner != nil && used != given {
			return "", nil // renewed since that request was sent
		}
		inner = docker.NewDockerAuthorizer(
			docker.WithAuthClient(a.client), docker.WithAuthHeader(userAgent(a.header)), docker.WithAuthCreds(a.creds))
		if err := inner.AddResponses(ctx, []*http.Response{last}); err != nil {
			return "", err
		}
		value, err := a.token(ctx, inner, last.Request.URL)
		a.mu.Lock()
		defer a.mu.Unlock()
		if a.inner, a.given = inner, value; err != nil {
			a.inner = nil
		}
		return value, err
	})
	return err
}

// token gets the Authorization for u from inner.
func (a *auth) token(ctx context.Context, inner docker.Authorizer, u *url.URL) (string, error) {
	req := (&http.Request{URL: u, Header: http.Header{}}).WithContext(ctx)
	err := inner.Authorize(docker.WithScope(ctx, a.scope), req)
	return req.Header.Get("Authorization"), err
}

// once runs f for all that call with the same key at a time. f has a time of its
// own: that one reader gives up must not fail the others.
func (a *auth) once(ctx context.Context, key string, f func(context.Context) (string, error)) (string, error) {
	done := a.flights.DoChan(key, func() (any, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), authTimeout)
		defer cancel()
		return f(ctx)
	})
	select {
	case r := <-done:
		value, _ := r.Val.(string)
		return value, r.Err
	case <-ctx.Done():
		return "", context.Cause(ctx)
	}
}
