package source

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	dockerauth "github.com/containerd/containerd/v2/core/remotes/docker/auth"
	remoteerrors "github.com/containerd/containerd/v2/core/remotes/errors"
	"github.com/containerd/errdefs"

	"github.com/apparate/apparate/snapshotter/fetch"
)

const (
	// untoldLife is the life of a token whose server does not tell (distribution,
	// token specification). It is often longer: such a token is renewed early, but
	// used until it is refused.
	untoldLife = time.Minute
	// maxTokenMargin is how long before its end a token is not sent any more, at
	// most: a request takes a while to arrive.
	maxTokenMargin = 10 * time.Second
	// maxTokenAnswer is the longest answer of a token server, in bytes.
	maxTokenAnswer = 1 << 20
	// maxPause is the longest Retry-After of a token server that is obeyed.
	maxPause = 5 * time.Minute
)

// demand is what a registry's 401 asks for.
type demand struct {
	dockerauth.Challenge
	scopes []string
	// refused is the request, for trying credentials on it.
	refused *http.Request
}

// parseDemand reads the challenge of a 401.
func parseDemand(resp *http.Response, scope string) (*demand, error) {
	for _, c := range dockerauth.ParseAuthHeader(resp.Header) {
		if c.Scheme != dockerauth.BearerAuth && c.Scheme != dockerauth.BasicAuth {
			continue
		}
		d := &demand{Challenge: c, refused: resp.Request}
		if c.Scheme == dockerauth.BearerAuth {
			if c.Parameters["realm"] == "" {
				return nil, fmt.Errorf("registry does not say where to get a token: %w", docker.ErrInvalidAuthorization)
			}
			d.scopes = docker.GetTokenScopes(docker.WithScope(context.Background(), scope), strings.Fields(c.Parameters["scope"]))
		}
		return d, nil
	}
	return nil, fmt.Errorf("registry asks for a way to log in that is not supported: %w", errdefs.ErrNotImplemented)
}

// grant is an Authorization that a registry may accept.
type grant struct {
	value string
	choice
	// renew is when to look for the next one, end when this one is not sent any
	// more; zero: never.
	renew, end time.Time
	proven     bool // accepted once
}

func (g *grant) ended(now time.Time) bool { return !g.end.IsZero() && !now.Before(g.end) }
func (g *grant) due(now time.Time) bool   { return !g.renew.IsZero() && !now.Before(g.renew) }

// stale says whether a token whose end is not known was not looked after for long,
// because nobody read: it may be as good as ended.
func (g *grant) stale(now time.Time) bool {
	return g.end.IsZero() && !g.renew.IsZero() && now.Sub(g.renew) > 5*untoldLife
}

// refusal is why credentials were not taken: they, not the network, are at fault.
type refusal struct{ error }

func (r refusal) Unwrap() error { return r.error }

// grantFor turns a credential into what d asks for. An error is a refusal, or
// something that passes.
func grantFor(ctx context.Context, a *auth, d *demand, c choice) (*grant, error) {
	if d.Scheme == dockerauth.BasicAuth {
		if c.User == "" || c.Secret == "" {
			return nil, refusal{errors.New("registry wants a user name and a password")}
		}
		return &grant{value: "Basic " + base64.StdEncoding.EncodeToString([]byte(c.User+":"+c.Secret)), choice: c}, nil
	}
	server := a.realms.of(d.Parameters["realm"])
	if err := server.wait(ctx); err != nil {
		return nil, err
	}
	began := time.Now() // the token's life may begin that early
	token, seconds, err := server.ask(ctx, a, d, c.Credential)
	if err != nil {
		return nil, err
	}
	g := &grant{value: "Bearer " + token, choice: c}
	life := untoldLife
	if seconds > 0 {
		life = time.Duration(min(seconds, 10*365*24*3600)) * time.Second
		g.end = began.Add(life - min(life/10, maxTokenMargin))
	}
	g.renew = began.Add(spread(life))
	return g, nil
}

// spread is when something that lives so long is renewed: after about two
// thirds, and not by all nodes at once.
func spread(life time.Duration) time.Duration {
	return time.Duration(float64(life) * (0.6 + rand.Float64()/10))
}

// realms are the token servers that were asked, by address.
type realms struct {
	mu  sync.Mutex
	all map[string]*realm
}

// realm is one token server.
type realm struct {
	mu      sync.Mutex
	getOnly bool      // it has no OAuth2 form
	until   time.Time // it wants to be left alone until then
	tries   int       // failures in a row
	last    error
}

func (r *realms) of(address string) *realm {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.all == nil {
		r.all = map[string]*realm{}
	}
	if r.all[address] == nil {
		r.all[address] = &realm{}
	}
	return r.all[address]
}

// wait waits until the server may be asked again.
func (r *realm) wait(ctx context.Context) error {
	r.mu.Lock()
	d, last := time.Until(r.until), r.last
	r.mu.Unlock()
	if d <= 0 || sleep(ctx, d) {
		return nil
	}
	return fmt.Errorf("%w; it is asked again in %s", last, d.Round(time.Second))
}

// ask gets a token and its life in seconds, 0 if that is not told: by the OAuth2
// form, or by the older one where a server does not know that (containerd does
// the same, with the same exceptions).
func (r *realm) ask(ctx context.Context, a *auth, d *demand, c Credential) (token string, seconds int, err error) {
	o, err := dockerauth.GenerateTokenOptions(ctx, a.host, c.User, c.Secret, d.Challenge)
	if err != nil {
		return "", 0, refusal{err}
	}
	o.Scopes = d.scopes
	t := &tokenTransport{base: a.client.Transport}
	client := *a.client
	client.Transport = t
	r.mu.Lock()
	get := r.getOnly
	r.mu.Unlock()
	if c.Secret != "" && (!get || c.User == "") {
		answer, err := dockerauth.FetchTokenWithOAuth(ctx, &client, userAgent(a.header), "apparate", o)
		if err == nil {
			r.worked(false)
			return answer.AccessToken, answer.ExpiresInSeconds, nil
		}
		s, _ := errors.AsType[remoteerrors.ErrUnexpectedStatus](err)
		if !slices.Contains([]int{http.StatusBadRequest, http.StatusUnauthorized, http.StatusNotFound, http.StatusMethodNotAllowed}, s.StatusCode) || c.User == "" {
			return "", 0, r.failed(err, t)
		}
		get = true
	}
	answer, err := dockerauth.FetchToken(ctx, &client, userAgent(a.header), o)
	if err != nil {
		return "", 0, r.failed(err, t)
	}
	r.worked(get)
	return answer.Token, answer.ExpiresInSeconds, nil
}

func (r *realm) worked(getOnly bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.getOnly, r.tries, r.until, r.last = r.getOnly || getOnly, 0, time.Time{}, nil
}

// failed tells refusals from failures that pass, after which the server is left
// alone for a while.
func (r *realm) failed(err error, t *tokenTransport) error {
	err = fetch.Redact(err)
	if s, ok := errors.AsType[remoteerrors.ErrUnexpectedStatus](err); ok {
		switch s.StatusCode {
		case http.StatusBadRequest, http.StatusUnauthorized, http.StatusForbidden, http.StatusNotFound, http.StatusMethodNotAllowed:
			return refusal{err}
		}
	}
	if errors.Is(err, context.Canceled) {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.until = time.Now().Add(max(backoff(r.tries), min(t.pause, maxPause)))
	r.tries++
	r.last = fmt.Errorf("token server: %w", err)
	return r.last
}

// tokenTransport bounds a token server's answer and notes its Retry-After.
type tokenTransport struct {
	base  http.RoundTripper
	pause time.Duration
}

func (t *tokenTransport) RoundTrip(req *http.Request) (*http.Response, error) {
	base := t.base
	if base == nil {
		base = http.DefaultTransport
	}
	resp, err := base.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode >= 400 {
		t.pause = retryAfter(resp.Header.Get("Retry-After"))
	}
	resp.Body = struct {
		io.Reader
		io.Closer
	}{io.LimitReader(resp.Body, maxTokenAnswer), resp.Body}
	return resp, nil
}

// retryAfter reads the header in both its forms (RFC 9110, 10.2.3).
func retryAfter(s string) time.Duration {
	if n, err := strconv.ParseUint(s, 10, 31); err == nil {
		return time.Duration(n) * time.Second
	}
	if t, err := http.ParseTime(s); err == nil {
		return max(0, time.Until(t))
	}
	return 0
}
