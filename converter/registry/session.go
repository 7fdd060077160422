package registry

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"github.com/apparate/apparate/converter/fault"
)

// SessionLimit is the pace of a [Session]; zero values stand for the defaults.
type SessionLimit struct {
	// QPS is how many requests a second it sends in the long run, 50 by default;
	// Burst how many of them at once after a pause, 100 by default.
	QPS   float64
	Burst int
	// Parallel is how many requests are under way at once, 4 by default.
	Parallel int
}

// Session asks much of one registry: it pings it once, keeps tokens for as long
// as they are good, bounds its own pace, and holds back all of its requests when
// the registry asks for fewer. Its methods may be called from several goroutines.
//
// Repositories are named as in the registry's own paths: on Docker Hub the image
// "redis" is in "library/redis".
type Session struct {
	o        Options
	registry name.Registry
	base     http.RoundTripper // paced, counted and patient; without credentials
	pace     *pacer
	pinging  lock

	mu        sync.Mutex
	challenge *transport.Challenge // the answer to the ping; nil before it
	rights    map[string]*right    // by scope; see Session.access
}

// NewSession makes a session with the registry host, as it stands in image names
// ("docker.io" is Docker Hub). It sends nothing yet.
func NewSession(o Options, host string, limit SessionLimit) (*Session, error) {
	var opts []name.Option
	if o.PlainHTTP {
		opts = append(opts, name.Insecure)
	}
	reg, err := name.NewRegistry(host, opts...)
	if err != nil {
		return nil, fault.New(fault.BadName, err, "%q is no registry host such as registry.example.com or 10.0.0.5:5000", host)
	}
	o.setDefaults()
	s := &Session{o: o, registry: reg, pinging: newLock(), rights: map[string]*right{}}
	s.pace = newPacer(&watch{next: o.Transport, limit: o.Silence}, limit)
	s.base = transport.NewUserAgent(&patient{next: s.pace, wait: o.RetryWait}, "apparate")
	return s, nil
}

// Requests is how many requests were sent so far, pings and those for tokens
// included.
func (s *Session) Requests() int64 { return s.pace.sent.Load() }

// Ping makes sure that the registry answers and takes the credentials, as far as
// can be told without asking for a repository. Tokens that others use stay; when
// it fails, what is known of how to speak to the registry is forgotten.
func (s *Session) Ping(ctx context.Context) error {
	c, err := transport.Ping(ctx, s.registry, s.base)
	if err != nil {
		err = s.judge(ctx, s.host(), err)
	} else {
		err = s.try(ctx, c)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case err != nil:
		s.challenge, s.rights = nil, map[string]*right{}
	case s.challenge == nil || !sameChallenge(s.challenge, c):
		s.challenge, s.rights = c, map[string]*right{}
	}
	return err
}

// try finds out whether the credentials are taken.
func (s *Session) try(ctx context.Context, c *transport.Challenge) error {
	a, err := s.authorize(ctx, c, "")
	if err != nil || a.anonymous() && !strings.EqualFold(c.Scheme, "basic") {
		// Without credentials there is nothing to try; and what a token for
		// everybody is good for shows only at a repository.
		return err
	}
	resp, err := s.send(ctx, a, question{path: "/v2/", what: s.host()})
	if err != nil {
		return err
	}
	discard(resp)
	return nil
}

// host is the registry as in image names.
func (s *Session) host() string { return s.registry.RegistryStr() }

// question is one GET.
type question struct {
	// scope is the right that it needs ("repository:team/app:pull"; distribution's
	// token specification).
	scope string
	// path begins with "/v2/" and may have a query.
	path   string
	header http.Header
	// what is asked for, for messages.
	what string
}

// conditional says whether "304 Not Modified" is an answer to it. Where it is
// not, a 304 must not pass for an empty list.
func (q *question) conditional() bool { return q.header.Get("If-None-Match") != "" }

// get asks, once more with new credentials where the old ones have gone stale.
func (s *Session) get(ctx context.Context, q question) (*http.Response, error) {
	a, err := s.access(ctx, q.scope)
	if err != nil {
		return nil, err
	}
	resp, err := s.send(ctx, a, q)
	if err == nil || !s.stale(ctx, a, err) {
		return resp, err
	}
	if a, err = s.access(ctx, q.scope); err != nil {
		return nil, err
	}
	return s.send(ctx, a, q)
}

// send sends a request. An answer other than 200, and 304 where that is one, is
// an error.
func (s *Session) send(ctx context.Context, a *access, q question) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, a.scheme+"://"+s.host()+q.path, nil)
	if err != nil {
		return nil, fault.New(fault.Internal, withoutURL(err), "asking registry %s for %s", s.host(), q.what)
	}
	for k, v := range q.header {
		req.Header[k] = v
	}
	resp, err := (&http.Client{Transport: a.carrier}).Do(req)
	if err != nil {
		// An answer of the token service, if it was answered at all.
		return nil, s.judgeToken(ctx, q.what, err)
	}
	codes := []int{http.StatusOK}
	if q.conditional() {
		codes = append(codes, http.StatusNotModified)
	}
	if err := transport.CheckError(resp, codes...); err != nil {
		_ = resp.Body.Close() // the error has what was in it
		return nil, s.judge(ctx, q.what, err)
	}
	a.worked.Store(true)
	return resp, nil
}

// judge makes a fault of an error, and says in it how long the registry wants to
// be left alone.
func (s *Session) judge(ctx context.Context, what string, err error) error {
	err = classify(ctx, pull, what, err)
	var e *fault.Error
	if !errors.As(err, &e) {
		return err
	}
	if e.After == 0 && (hasStatus(e, http.StatusTooManyRequests) || hasStatus(e, http.StatusServiceUnavailable)) {
		e.After = s.pace.left()
	}
	if e.Err != nil {
		e.Err = &line{e.Err}
	}
	return e // and not what the client wrapped around it, which has the URL
}

// judgeToken is judge for what a token service may have answered: its 404 does
// not mean that the image is gone, which callers would act upon.
func (s *Session) judgeToken(ctx context.Context, what string, err error) error {
	err = s.judge(ctx, what, err)
	var e *fault.Error
	if errors.As(err, &e) && e.Kind == fault.NotFound {
		return fault.NewTemporary(fault.RegistryError, e.Err, "the token service of registry %s is not where the registry says", s.host())
	}
	return err
}

// discard ends an answer of which nothing is wanted. Reading it lets the
// connection be used again; how that ends does not matter.
func discard(resp *http.Response) {
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 64<<10))
	_ = resp.Body.Close()
}
