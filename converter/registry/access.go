package registry

import (
	"cmp"
	"context"
	"errors"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"github.com/apparate/apparate/converter/fault"
)

// maxRights bounds the tokens that are kept; one more only costs a request.
const maxRights = 4096

// How long a token is good when its service does not say (distribution's token
// specification, "expires_in"), and the longest that is believed.
const (
	tokenLife    = time.Minute
	maxTokenLife = 24 * time.Hour
)

// right is a scope and what gives the right to it.
type right struct {
	asking lock    // whoever holds it may read and write a
	a      *access // nil before the first token
}

// access is how requests of one scope are sent: with a token, with a name and
// password, or with nothing.
type access struct {
	carrier http.RoundTripper
	scheme  string
	bearer  bool
	login   authn.AuthConfig // what it was made with
	end     time.Time        // of the token; zero for none

	worked  atomic.Bool // a request was answered well
	dropped atomic.Bool
}

func (a *access) anonymous() bool { return a.login == authn.AuthConfig{} }

func (a *access) good() bool {
	return !a.dropped.Load() && (a.end.IsZero() || time.Now().Before(a.end))
}

// access returns what has the right for a scope. Registries that give no tokens
// have one for all scopes, and are asked for nothing. Of callers that need the
// same right at once, one asks and the others wait for it.
func (s *Session) access(ctx context.Context, scope string) (*access, error) {
	c, err := s.challenged(ctx)
	if err != nil {
		return nil, err
	}
	if !bearer(c) {
		scope = ""
	}
	r := s.right(scope)
	if err := r.asking.take(ctx); err != nil {
		return nil, err
	}
	defer r.asking.give()
	if r.a == nil || !r.a.good() {
		if r.a, err = s.authorize(ctx, c, scope); err != nil {
			return nil, err
		}
	}
	return r.a, nil
}

func (s *Session) right(scope string) *right {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.rights[scope]
	if r == nil {
		if len(s.rights) >= maxRights {
			clear(s.rights)
		}
		r = &right{asking: newLock()}
		s.rights[scope] = r
	}
	return r
}

// challenged returns how the registry wants to be spoken to: from memory, or by
// a ping (GET /v2/), for which all callers wait.
func (s *Session) challenged(ctx context.Context) (*transport.Challenge, error) {
	known := func() *transport.Challenge {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.challenge
	}
	if c := known(); c != nil {
		return c, nil
	}
	if err := s.pinging.take(ctx); err != nil {
		return nil, err
	}
	defer s.pinging.give()
	if c := known(); c != nil {
		return c, nil // from the one that was waited for
	}
	c, err := transport.Ping(ctx, s.registry, s.base)
	if err != nil {
		return nil, s.judge(ctx, s.host(), err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.challenge = c
	return c, nil
}

// authorize asks for a token where the registry wants one; an empty scope means
// a token that is good for no more than a ping.
func (s *Session) authorize(ctx context.Context, c *transport.Challenge, scope string) (*access, error) {
	auth, login, err := s.credentials(ctx)
	if err != nil {
		return nil, err
	}
	a := &access{scheme: "https", bearer: bearer(c), login: login}
	if c.Insecure {
		a.scheme = "http"
	}
	var token *transport.Token
	switch {
	case !a.bearer:
	case login.RegistryToken != "":
		token = &transport.Token{Token: login.RegistryToken}
	default:
		var scopes []string
		if scope != "" {
			scopes = []string{scope}
		}
		asked := time.Now()
		if token, err = transport.Exchange(ctx, s.registry, auth, s.base, scopes, c); err != nil {
			return nil, s.judgeToken(ctx, s.host(), err)
		}
		// Some services fill in only the one, some only the other.
		token.Token = cmp.Or(token.AccessToken, token.Token)
		life := tokenLife
		if token.ExpiresIn > 0 {
			life = time.Duration(min(int64(token.ExpiresIn), int64(maxTokenLife/time.Second))) * time.Second
		}
		// Renewed a little early: a request that is refused costs one more.
		a.end = asked.Add(life * 9 / 10)
	}
	// It asks for another token when one is refused before its time.
	if a.carrier, err = transport.FromToken(s.registry, auth, s.base, c, token); err != nil {
		return nil, s.judge(ctx, s.host(), err)
	}
	return a, nil
}

// credentials are those for the registry, as they are now.
func (s *Session) credentials(ctx context.Context) (authn.Authenticator, authn.AuthConfig, error) {
	auth, err := authn.Resolve(ctx, s.o.Keychain, s.registry)
	if err == nil {
		var login *authn.AuthConfig
		if login, err = authn.Authorization(ctx, auth); err == nil {
			return auth, *login, nil
		}
	}
	if ctx.Err() != nil {
		return nil, authn.AuthConfig{}, context.Cause(ctx)
	}
	return nil, authn.AuthConfig{}, fault.New(fault.PullDenied, err, "the credentials for %s cannot be read", s.host())
}

// stale says whether the registry refused an access that may have been good
// once, and drops it. A refusal alone is no reason: it would double the requests
// for everything that the credentials do not open.
func (s *Session) stale(ctx context.Context, a *access, err error) bool {
	var e *fault.Error
	if !errors.As(err, &e) || !hasStatus(e, http.StatusUnauthorized) {
		return false
	}
	_, login, err := s.credentials(ctx)
	if err != nil {
		return false
	}
	if changed := login != a.login; !changed && (!a.bearer || !a.worked.Load()) {
		return false
	}
	a.dropped.Store(true)
	return true
}

func bearer(c *transport.Challenge) bool { return strings.EqualFold(c.Scheme, "bearer") }

// sameChallenge compares what tokens depend on; other parameters may change
// with every answer.
func sameChallenge(a, b *transport.Challenge) bool {
	return strings.EqualFold(a.Scheme, b.Scheme) && a.Insecure == b.Insecure &&
		a.Parameters["realm"] == b.Parameters["realm"] && a.Parameters["service"] == b.Parameters["service"]
}

// lock is a mutex that is waited for no longer than a context lives.
type lock chan struct{}

func newLock() lock { return make(lock, 1) }

func (l lock) take(ctx context.Context) error {
	select {
	case l <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (l lock) give() { <-l }
