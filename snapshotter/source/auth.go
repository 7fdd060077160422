package source

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"path"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	dockerauth "github.com/containerd/containerd/v2/core/remotes/docker/auth"
	"github.com/containerd/errdefs"
	"golang.org/x/sync/singleflight"
)

const (
	// authTimeout ends one attempt to get authorized, with the credentials and the
	// tokens that are tried in it.
	authTimeout = 30 * time.Second
	// maxProbeAnswer is how much of an answer to a trial is read, so that its
	// connection can be used again.
	maxProbeAnswer = 64 << 10
)

// auth authorizes pulls from one repository on one host. Its many readers share
// one attempt; a token is renewed before it ends, while readers go on with the
// old one; where there are several credentials, they are tried on the very
// request that was refused, so that no reader sees the wrong ones fail.
type auth struct {
	client *http.Client // for token servers and trials
	header http.Header
	host   string // with its port, as in requests
	repo   string // as the host names it
	scope  string
	keys   *keychain
	memory *memory
	realms *realms
	life   context.Context // of what runs in the background
	report func(error)
	log    *slog.Logger

	flights singleflight.Group

	mu sync.Mutex
	// demand is the last challenge; nil before the first.
	demand *demand
	// grant is what is sent; nil before the first, and after a refusal.
	grant *grant
	// renewing says that the next grant is being looked for, tries how often in a
	// row that has failed.
	renewing bool
	tries    int
}

var _ docker.Authorizer = (*auth)(nil)

// authorize gives the host h of the repository repo an authorizer, and a client
// that tells it how the registry answers.
func (r *Resolver) authorize(h *docker.RegistryHost, repo string) {
	repo = path.Join(strings.Trim(strings.TrimPrefix(h.Path, "/v2"), "/"), repo)
	host := h.Host
	a := &auth{
		client: h.Client, header: h.Header, host: host, repo: repo, scope: "repository:" + repo + ":pull",
		keys: r.keys, memory: r.memoryOf(host + "/" + repo), realms: &r.realms, life: r.life,
		report: func(err error) { r.report(host, repo, err) }, log: r.opts.Logger,
	}
	seen := *h.Client
	seen.Transport = &witness{base: h.Client.Transport, auth: a}
	h.Client, h.Authorizer = &seen, a
}

// Authorize adds what the last challenge asked for; before the first, nothing.
// Its errors are of the kind that passes: what is refused for good is sent
// without, and AddResponses then says why.
func (a *auth) Authorize(ctx context.Context, req *http.Request) error {
	if req.URL.Host != a.host {
		return nil // the target of a redirect
	}
	a.mu.Lock()
	now := time.Now()
	g, asked := a.grant, a.demand != nil
	if g != nil && g.ended(now) {
		g = nil
	}
	due := g != nil && g.due(now)
	if due && !a.renewing {
		a.renewing = true
		go a.renew()
	}
	a.mu.Unlock()
	if !asked {
		return nil
	}
	if due && g.stale(now) {
		if next, err := a.once(ctx); err == nil {
			g = next
		}
	}
	if g == nil {
		var err error
		if g, err = a.once(ctx); err != nil {
			if _, ok := errors.AsType[refusal](err); ok {
				return nil
			}
			return err
		}
	}
	req.Header.Set("Authorization", g.value)
	return nil
}

// AddResponses learns from the last of responses, a 401, how to authorize, and
// reads the credentials anew. It fails if they are refused; what may pass is left
// to Authorize.
func (a *auth) AddResponses(ctx context.Context, responses []*http.Response) error {
	last := responses[len(responses)-1]
	if last.Request.URL.Host != a.host {
		return fmt.Errorf("%s, to which registry %s redirects, wants credentials: %w", last.Request.URL.Host, a.host, errdefs.ErrNotImplemented)
	}
	d, err := parseDemand(last, a.scope)
	if err != nil {
		return err
	}
	used := last.Request.Header.Get("Authorization")
	a.mu.Lock()
	if a.grant != nil && used != a.grant.value {
		a.mu.Unlock()
		return nil // renewed since that request was sent
	}
	a.demand, a.grant = d, nil
	a.mu.Unlock()
	_, err = a.once(ctx)
	if _, ok := errors.AsType[refusal](err); ok {
		return fmt.Errorf("%w: %w", docker.ErrInvalidAuthorization, err)
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return nil
}

// renew looks for the next grant while the present one still holds.
func (a *auth) renew() {
	ctx, cancel := context.WithTimeout(a.life, authTimeout)
	defer cancel()
	a.mu.Lock()
	if a.grant == nil || !a.grant.due(time.Now()) {
		a.renewing = false // somebody else was quicker
		a.mu.Unlock()
		return
	}
	a.mu.Unlock()
	_, err := a.once(ctx)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.renewing = false
	if err == nil {
		a.tries = 0
		return
	}
	if a.grant != nil && a.life.Err() == nil {
		a.log.Warn("authorization is not renewed: the one there is holds a while", "registry", a.host, "repository", a.repo, "error", err)
		next := time.Now().Add(backoff(a.tries))
		// Others may hold the grant without the lock: they get a new one.
		g := *a.grant
		g.renew = next
		a.grant = &g
	}
	a.tries++
}

// once gets a grant for all that call at a time. It has a time of its own: that
// one reader gives up must not fail the others.
func (a *auth) once(ctx context.Context) (*grant, error) {
	done := a.flights.DoChan("grant", func() (any, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), authTimeout)
		defer cancel()
		defer context.AfterFunc(a.life, cancel)()
		a.mu.Lock()
		d := a.demand
		a.mu.Unlock()
		g, err := a.obtain(ctx, d)
		if err != nil {
			if !errors.Is(err, context.Canceled) {
				a.report(err)
			}
			return nil, err
		}
		a.mu.Lock()
		defer a.mu.Unlock()
		a.grant = g
		return g, nil
	})
	select {
	case r := <-done:
		g, _ := r.Val.(*grant)
		return g, r.Err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// obtain tries the credentials that there are. All but the last of them, and but
// the one that worked before, are tried on the registry.
func (a *auth) obtain(ctx context.Context, d *demand) (*grant, error) {
	all := newChoices(a.keys.candidates(a.host, a.repo), a.memory.success())
	var refused []error
	var fallback *grant
	for {
		c, ok := all.next(ctx)
		if !ok {
			break
		}
		g, err := a.try(ctx, d, c, (all.more() || fallback != nil) && !c.trusted)
		switch {
		case err == nil:
			return g, nil
		case errors.Is(err, errNotThere):
			// A registry may hide what one must not see: another may see it.
			if fallback == nil {
				fallback = g
			}
		default:
			r, ok := errors.AsType[refusal](err)
			if !ok {
				return nil, err
			}
			refused = append(refused, fmt.Errorf("%s: %w", c.origin, r.error))
		}
	}
	if fallback != nil {
		return fallback, nil
	}
	return a.nobody(ctx, d, refused, all.failed)
}

// nobody is what to do when no credentials are good: if there are none at all,
// or some may be missing, the repository may be public.
func (a *auth) nobody(ctx context.Context, d *demand, refused, failed []error) (*grant, error) {
	if len(refused) == 0 && d.Scheme == dockerauth.BearerAuth {
		g, err := a.try(ctx, d, choice{origin: "nobody"}, len(failed) > 0)
		if err == nil {
			return g, nil
		}
		if _, ok := errors.AsType[refusal](err); !ok && !errors.Is(err, errNotThere) {
			return nil, err
		}
	}
	switch {
	case len(failed) > 0:
		// They may be had later.
		return nil, fmt.Errorf("credentials for %s: %w", a.repo, joined(append(failed, refused...)))
	case len(refused) > 0:
		return nil, refusal{fmt.Errorf("registry %s refuses the credentials for %s: %w", a.host, a.repo, joined(refused))}
	}
	return nil, refusal{fmt.Errorf("registry %s wants credentials for %s, and none are known", a.host, a.repo)}
}

// joined is several errors on one line.
type joined []error

func (j joined) Unwrap() []error { return j }

func (j joined) Error() string {
	texts := make([]string, len(j))
	for i, err := range j {
		texts[i] = err.Error()
	}
	return strings.Join(texts, "; ")
}

// try makes a grant of c, and proves it if asked to.
func (a *auth) try(ctx context.Context, d *demand, c choice, prove bool) (*grant, error) {
	id := c.fingerprint()
	if err := a.memory.refusedLately(id); err != nil {
		return nil, refusal{err}
	}
	g, err := grantFor(ctx, a, d, c)
	if err == nil && prove {
		err = a.prove(ctx, d, g)
	}
	if r, ok := errors.AsType[refusal](err); ok {
		a.refused(c, r.error)
	}
	return g, err
}

// refused notes that the registry does not take c.
func (a *auth) refused(c choice, err error) {
	a.memory.refuse(c.fingerprint(), err)
	if c.refused != nil {
		c.refused(c.Credential)
	}
}

// errNotThere says that a trial found nothing, with credentials that are good or not.
var errNotThere = errors.New("not found")

// prove sends the refused request once more, for one byte, with g.
func (a *auth) prove(ctx context.Context, d *demand, g *grant) error {
	req := d.refused.Clone(ctx)
	req.Header.Set("Authorization", g.value)
	req.Header.Set("Range", "bytes=0-0")
	client := *a.client
	client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	// Whatever is in it, only the status counts.
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, maxProbeAnswer))
	_ = resp.Body.Close()
	switch s := resp.StatusCode; {
	case s == http.StatusUnauthorized, s == http.StatusForbidden:
		return refusal{fmt.Errorf("HTTP %d", s)}
	case s == http.StatusNotFound:
		return errNotThere
	case s == http.StatusTooManyRequests, s >= 500:
		return fmt.Errorf("registry %s: HTTP %d", a.host, s)
	}
	g.proven = true
	a.memory.accept(g.choice)
	a.report(nil)
	return nil
}

// witnessed learns from the registry's answer to a request with an Authorization.
func (a *auth) witnessed(value string, status int) {
	a.mu.Lock()
	g := a.grant
	if g == nil || g.value != value {
		a.mu.Unlock()
		return
	}
	proven := g.proven
	taken := status < 400 || status == http.StatusRequestedRangeNotSatisfiable
	refused := status == http.StatusUnauthorized || status == http.StatusForbidden
	switch {
	case taken && !proven:
		n := *g
		n.proven = true
		a.grant = &n
	case refused && !proven, status == http.StatusForbidden:
		a.grant = nil
	}
	a.mu.Unlock()
	switch {
	case taken && !proven:
		a.memory.accept(g.choice)
		a.report(nil)
	case refused && !proven:
		a.refused(g.choice, fmt.Errorf("HTTP %d", status))
		a.report(fmt.Errorf("registry %s refuses the credentials for %s: %s: HTTP %d", a.host, a.repo, g.origin, status))
	case status == http.StatusForbidden:
		a.memory.forget() // permissions have changed
	}
}

// witness is a transport that tells auth how requests with its grants end.
type witness struct {
	base http.RoundTripper
	auth *auth
}

// RoundTrip sends one request.
func (w *witness) RoundTrip(req *http.Request) (*http.Response, error) {
	base := w.base
	if base == nil {
		base = http.DefaultTransport
	}
	resp, err := base.RoundTrip(req)
	if value := req.Header.Get("Authorization"); err == nil && value != "" && req.URL.Host == w.auth.host {
		w.auth.witnessed(value, resp.StatusCode)
	}
	return resp, err
}

// CloseIdleConnections is for http.Client's method of that name.
func (w *witness) CloseIdleConnections() {
	if c, ok := w.base.(interface{ CloseIdleConnections() }); ok {
		c.CloseIdleConnections()
	}
}
