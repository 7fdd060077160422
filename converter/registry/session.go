package registry

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"golang.org/x/time/rate"

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
type Session struct {
	registry name.Registry
	auth     func() (authn.Authenticator, error)
	base     http.RoundTripper // paced and counted
	ping     *pingOnce
	pace     *pacer

	mu     sync.Mutex
	scopes map[string]http.RoundTripper // "" for registries that know no scopes
}

// maxScopes bounds the tokens that are kept; one more only costs a request.
const maxScopes = 4096

// NewSession makes a session with the registry host, as it stands in image names.
// It sends nothing yet.
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
	s := &Session{registry: reg, scopes: map[string]http.RoundTripper{}}
	s.auth = func() (authn.Authenticator, error) { return o.Keychain.Resolve(reg) }
	s.pace = newPacer(&watch{next: o.Transport, limit: o.Silence}, limit)
	s.ping = &pingOnce{next: &patient{next: s.pace, wait: o.RetryWait}}
	s.base = s.ping
	return s, nil
}

// Requests is how many requests were sent so far, those for tokens included.
func (s *Session) Requests() int64 { return s.pace.sent.Load() }

// Ping makes sure that the registry answers and takes the credentials, as far as
// can be told without asking for a repository. Tokens that others use stay; when
// it fails, what is known of how to speak to the registry is forgotten.
func (s *Session) Ping(ctx context.Context) error {
	err := s.pingAnew(ctx)
	if err != nil {
		s.ping.forget()
		s.mu.Lock()
		defer s.mu.Unlock()
		clear(s.scopes)
	}
	return err
}

func (s *Session) pingAnew(ctx context.Context) error {
	auth, err := s.auth()
	if err != nil {
		return fault.New(fault.PullDenied, err, "no credentials for %s", s.registry)
	}
	t, err := transport.NewWithContext(ctx, s.registry, auth, s.ping.next, nil)
	if err != nil {
		return classify(ctx, pull, s.registry.RegistryStr(), err)
	}
	resp, err := s.do(ctx, t, http.MethodGet, "/v2/", nil)
	if err != nil {
		return err
	}
	return discard(resp)
}

// transport returns the one that has the right for a scope
// ("repository:team/app:pull"; distribution's token specification).
func (s *Session) transport(ctx context.Context, scope string) (http.RoundTripper, error) {
	s.mu.Lock()
	t := s.scopes[scope]
	if t == nil {
		t = s.scopes[noScope]
	}
	s.mu.Unlock()
	if t != nil {
		return t, nil
	}
	auth, err := s.auth()
	if err != nil {
		return nil, fault.New(fault.PullDenied, err, "no credentials for %s", s.registry)
	}
	var scopes []string
	if scope != "" {
		scopes = []string{scope}
	}
	t, err = transport.NewWithContext(ctx, s.registry, auth, s.base, scopes)
	if err != nil {
		return nil, classify(ctx, pull, s.registry.RegistryStr(), err)
	}
	if !s.ping.bearer() {
		scope = noScope
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.scopes) >= maxScopes {
		clear(s.scopes)
	}
	s.scopes[scope] = t
	return t, nil
}

// noScope is the key of the transport of a registry that gives no tokens.
const noScope = "none"

// get asks for a path below the registry with the right to pull from repo.
func (s *Session) get(ctx context.Context, scope, path string, header http.Header) (*http.Response, error) {
	t, err := s.transport(ctx, scope)
	if err != nil {
		return nil, err
	}
	return s.do(ctx, t, http.MethodGet, path, header)
}

// do sends a request; what is not 200 or 304 is an error.
func (s *Session) do(ctx context.Context, t http.RoundTripper, method, path string, header http.Header) (*http.Response, error) {
	at := url.URL{Scheme: s.registry.Scheme(), Host: s.registry.RegistryStr()}
	target, err := at.Parse(path)
	if err != nil {
		return nil, fault.New(fault.BadName, err, "%q is no path of registry %s", path, s.registry)
	}
	req, err := http.NewRequestWithContext(ctx, method, target.String(), nil)
	if err != nil {
		return nil, fault.New(fault.Internal, err, "asking registry %s", s.registry)
	}
	for k, v := range header {
		req.Header[k] = v
	}
	resp, err := (&http.Client{Transport: t}).Do(req)
	if err != nil {
		return nil, classify(ctx, pull, s.registry.RegistryStr(), err)
	}
	if err := transport.CheckError(resp, http.StatusOK, http.StatusNotModified); err != nil {
		_ = resp.Body.Close() // the error has what was in it
		err = classify(ctx, pull, s.registry.RegistryStr()+strings.TrimPrefix(target.Path, "/v2"), err)
		var e *fault.Error
		if after, ok := longestAfter(resp); ok && errors.As(err, &e) && e.Retry {
			e.After = after
		}
		return nil, err
	}
	return resp, nil
}

// longestAfter reads how long a registry wants to be left alone, bounded by a
// day.
func longestAfter(resp *http.Response) (time.Duration, bool) {
	h := resp.Header.Get("Retry-After")
	if h == "" {
		return 0, false
	}
	wait, ok := parseRetryAfter(h)
	return min(wait, 24*time.Hour), ok
}

func discard(resp *http.Response) error {
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 64<<10)) // only for reuse
	return resp.Body.Close()
}

// acceptManifests are the types that are understood.
var acceptManifests = strings.Join([]string{
	"application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json",
	"application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json",
}, ", ")

// Look fetches the manifest under a tag or digest of a repository, unless it is
// still the one with the digest known: then changed is false. Registries that
// understand conditional requests send nothing in that case.
func (s *Session) Look(ctx context.Context, repo, reference, known string) (m Manifest, changed bool, err error) {
	what := s.registry.RegistryStr() + "/" + repo + ":" + reference
	header := http.Header{"Accept": {acceptManifests}}
	if known != "" {
		header.Set("If-None-Match", `"`+known+`"`)
	}
	resp, err := s.get(ctx, pullScope(repo), "/v2/"+repo+"/manifests/"+reference, header)
	if err != nil {
		return Manifest{}, false, renamed(err, what)
	}
	if resp.StatusCode == http.StatusNotModified {
		if known == "" {
			err = fault.NewTemporary(fault.RegistryError, nil, "registry %s says that %s is not modified, without having been asked", s.registry, what)
		}
		return Manifest{}, false, errors.Join(err, discard(resp))
	}
	raw, err := readBounded(ctx, resp, MaxManifestSize, what)
	if err != nil {
		return Manifest{}, false, err
	}
	sum := sha256.Sum256(raw)
	m = Manifest{Raw: raw, MediaType: mediaType(resp), Digest: "sha256:" + hex.EncodeToString(sum[:])}
	said := resp.Header.Get("Docker-Content-Digest")
	if strings.HasPrefix(said, "sha256:") && said != m.Digest {
		return Manifest{}, false, fault.NewTemporary(fault.ImageInvalid, nil, "the manifest of %s is said to be %s and is %s: it was damaged on its way, or in the registry", what, said, m.Digest)
	}
	if m.MediaType == "text/html" {
		return Manifest{}, false, fault.New(fault.NotRegistry, nil, "%s answers with a web page: it is no OCI registry; check the host and port", s.registry)
	}
	return m, m.Digest != known, nil
}

// ReadBlob reads a small blob, such as a config, whole.
func (s *Session) ReadBlob(ctx context.Context, repo, digest string, size int64) ([]byte, error) {
	what := fmt.Sprintf("blob %s of %s/%s", digest, s.registry, repo)
	if size < 0 || size > MaxManifestSize {
		return nil, fault.New(fault.ImageInvalid, nil, "%s is said to have %d bytes, more than the %d that are read", what, size, MaxManifestSize)
	}
	resp, err := s.get(ctx, pullScope(repo), "/v2/"+repo+"/blobs/"+digest, nil)
	if err != nil {
		return nil, err
	}
	raw, err := readBounded(ctx, resp, size, what)
	if err != nil {
		return nil, err
	}
	if sum := sha256.Sum256(raw); "sha256:"+hex.EncodeToString(sum[:]) != digest {
		return nil, fault.NewTemporary(fault.LayerCorrupt, nil, "%s is damaged: its bytes have another digest", what)
	}
	return raw, nil
}

func pullScope(repo string) string { return "repository:" + repo + ":pull" }

// mediaType is the answer's, without parameters.
func mediaType(resp *http.Response) string {
	t, _, _ := strings.Cut(resp.Header.Get("Content-Type"), ";")
	return strings.TrimSpace(t)
}

// readBounded reads and closes a body of at most limit bytes.
func readBounded(ctx context.Context, resp *http.Response, limit int64, what string) ([]byte, error) {
	var b bytes.Buffer
	n, err := io.Copy(&b, io.LimitReader(resp.Body, limit+1))
	err = errors.Join(err, resp.Body.Close())
	switch {
	case ctx.Err() != nil:
		return nil, context.Cause(ctx)
	case n > limit:
		return nil, fault.New(fault.ImageInvalid, nil, "%s has more than the %d bytes that are read", what, limit)
	case err != nil:
		return nil, fault.NewTemporary(fault.Unreachable, withoutURL(err), "%s broke off", what)
	}
	return b.Bytes(), nil
}

// renamed lets a fault about a path speak of an image.
func renamed(err error, what string) error {
	var e *fault.Error
	if errors.As(err, &e) && e.Kind == fault.NotFound {
		return fault.New(fault.NotFound, e.Err, "%s does not exist: check the repository and the tag", what)
	}
	return err
}

// pacer bounds and counts requests. It is below everything that repeats them.
type pacer struct {
	next  http.RoundTripper
	rate  *rate.Limiter
	slots chan struct{}
	sent  atomic.Int64
	until atomic.Int64 // no request before, in Unix nanoseconds
}

func newPacer(next http.RoundTripper, l SessionLimit) *pacer {
	if l.QPS <= 0 {
		l.QPS = 50
	}
	if l.Burst <= 0 {
		l.Burst = 100
	}
	if l.Parallel <= 0 {
		l.Parallel = 4
	}
	return &pacer{next: next, rate: rate.NewLimiter(rate.Limit(l.QPS), l.Burst), slots: make(chan struct{}, l.Parallel)}
}

// RoundTrip implements http.RoundTripper. A place is held until the body is
// closed or the request has failed.
func (p *pacer) RoundTrip(r *http.Request) (*http.Response, error) {
	ctx := r.Context()
	if err := p.rate.Wait(ctx); err != nil {
		return nil, err
	}
	select {
	case p.slots <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	free := sync.OnceFunc(func() { <-p.slots })
	if wait := time.Until(time.Unix(0, p.until.Load())); wait > 0 {
		if wait > maxPatience {
			free()
			return nil, fault.NewTemporary(fault.RegistryError, nil, "registry %s asks for no requests for %v", r.URL.Host, wait.Round(time.Second)).WithAfter(wait)
		}
		t := time.NewTimer(wait)
		defer t.Stop()
		select {
		case <-t.C:
		case <-ctx.Done():
			free()
			return nil, ctx.Err()
		}
	}
	p.sent.Add(1)
	resp, err := p.next.RoundTrip(r)
	if err != nil {
		free()
		return nil, err
	}
	if resp.StatusCode == http.StatusTooManyRequests || resp.StatusCode == http.StatusServiceUnavailable {
		if after, ok := longestAfter(resp); ok {
			p.until.Store(time.Now().Add(after).UnixNano())
		}
	}
	resp.Body = &freeing{resp.Body, free}
	return resp, nil
}

// freeing gives a place back when a body is closed.
type freeing struct {
	io.ReadCloser
	free func()
}

// Close implements io.Closer.
func (f *freeing) Close() error {
	defer f.free()
	return f.ReadCloser.Close()
}

// pingOnce answers a ping (GET /v2/) without credentials out of memory, once it
// was answered: go-containerregistry pings before it asks for each token.
type pingOnce struct {
	next http.RoundTripper

	mu   sync.Mutex
	seen map[string]pong // by URL
}

type pong struct {
	status int
	header http.Header
}

// RoundTrip implements http.RoundTripper.
func (p *pingOnce) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Method != http.MethodGet || r.URL.Path != "/v2/" || r.Header.Get("Authorization") != "" {
		return p.next.RoundTrip(r)
	}
	at := r.URL.Scheme + "://" + r.URL.Host
	p.mu.Lock()
	known, ok := p.seen[at]
	other := len(p.seen) > 0
	p.mu.Unlock()
	if !ok && other {
		// Where plain HTTP is allowed both are tried, each time.
		return nil, fmt.Errorf("%s does not answer, and is spoken to otherwise", at)
	}
	if !ok {
		resp, err := p.next.RoundTrip(r)
		if err != nil || resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusUnauthorized {
			return resp, err
		}
		if err := discard(resp); err != nil {
			return nil, err
		}
		known = pong{resp.StatusCode, resp.Header}
		p.mu.Lock()
		if p.seen == nil {
			p.seen = map[string]pong{}
		}
		p.seen[at] = known
		p.mu.Unlock()
	}
	return &http.Response{
		Status: http.StatusText(known.status), StatusCode: known.status, Header: known.header.Clone(),
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Body: http.NoBody, Request: r,
	}, nil
}

// bearer says whether the registry gives tokens.
func (p *pingOnce) bearer() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, k := range p.seen {
		for _, c := range k.header.Values("WWW-Authenticate") {
			if strings.HasPrefix(strings.ToLower(c), "bearer") {
				return true
			}
		}
	}
	return false
}

func (p *pingOnce) forget() {
	p.mu.Lock()
	defer p.mu.Unlock()
	clear(p.seen)
}
