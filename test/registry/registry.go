// Package registry is an OCI registry for tests, in this process and on
// loopback. It serves pushes and pulls like a good registry, asks for
// credentials and redirects to a storage host like a real one, and answers blob
// requests wrongly like a bad one, at exactly the request that the test names.
//
// Nothing of it is timed: tokens and signed URLs run out after a number of uses,
// and an answer that never comes ends when the client goes or the test does.
package registry

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/url"
	"sync"
	"testing"

	ggcr "github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/opencontainers/go-digest"
)

// Registry is a running registry. Its methods may be called in parallel with requests.
type Registry struct {
	opts  options
	blobs blobStore
	front *httptest.Server // the registry API
	store *httptest.Server // where blobs are redirected to; nil without WithRedirect
	done  chan struct{}    // closed when the test ends: it frees what hangs
	pki   *pki             // nil without TLS
	auth  *auth
	signs *signer
	plan  plan
	log   journal
}

// blobStore is what go-containerregistry's memory handler can do.
type blobStore interface {
	ggcr.BlobHandler
	ggcr.BlobPutHandler
	ggcr.BlobStatHandler
}

type options struct {
	tls, clientCert bool
	scheme          string // "Basic", "Bearer" or ""
	user, password  string
	tokenUses       int
	redirect        bool
	urlUses         int
}

// Option changes what New makes.
type Option func(*options)

// WithTLS serves HTTPS with a certificate of the registry's own CA; see WriteCerts.
func WithTLS() Option { return func(o *options) { o.tls = true } }

// WithClientCert serves HTTPS and demands a client certificate of the same CA.
func WithClientCert() Option { return func(o *options) { o.tls, o.clientCert = true, true } }

// WithBasic demands the user name and password on every request.
func WithBasic(user, password string) Option {
	return func(o *options) { o.scheme, o.user, o.password = "Basic", user, password }
}

// WithToken demands a bearer token, which the endpoint /token gives for user name
// and password, by GET or by OAuth POST. A token is good for uses requests, for
// ever if uses is 0; the token endpoint always says that it is good for five minutes.
func WithToken(user, password string, uses int) Option {
	return func(o *options) { o.scheme, o.user, o.password, o.tokenUses = "Bearer", user, password, uses }
}

// WithRedirect answers blob requests with a redirect to a signed URL of a second
// host. The URL is good for uses requests, for ever if uses is 0. Like real
// storage services, that host refuses a request with an Authorization header.
func WithRedirect(uses int) Option {
	return func(o *options) { o.redirect, o.urlUses = true, uses }
}

// New starts a registry that ends with the test.
func New(t testing.TB, opts ...Option) *Registry {
	t.Helper()
	r := &Registry{done: make(chan struct{}), plan: plan{at: map[int]Fault{}}}
	for _, opt := range opts {
		opt(&r.opts)
	}
	store, ok := ggcr.NewInMemoryBlobHandler().(blobStore)
	if !ok {
		t.Fatal("test/registry: the memory blob handler cannot store blobs")
	}
	r.blobs = store
	r.auth = newAuth(r.opts)
	quiet := log.New(io.Discard, "", 0)
	api := ggcr.New(ggcr.Logger(quiet), ggcr.WithBlobHandler(r.blobs), ggcr.WithReferrersSupport(true))
	if r.opts.tls {
		p, err := newPKI()
		if err != nil {
			t.Fatalf("test/registry: make certificates: %v", err)
		}
		r.pki = p
	}
	r.front = r.start(r.frontHandler(referring(api)), quiet)
	t.Cleanup(func() { r.stop() })
	if r.opts.redirect {
		r.signs = newSigner(r.opts.urlUses)
		r.store = r.start(http.HandlerFunc(r.serveStore), quiet)
	}
	return r
}

func (r *Registry) start(h http.Handler, quiet *log.Logger) *httptest.Server {
	s := httptest.NewUnstartedServer(h)
	s.Config.ErrorLog = quiet
	if r.pki == nil {
		s.Start()
		return s
	}
	s.TLS = &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{r.pki.server}}
	if r.opts.clientCert {
		s.TLS.ClientAuth, s.TLS.ClientCAs = tls.RequireAndVerifyClientCert, r.pki.pool
	}
	s.StartTLS()
	return s
}

// stop ends both servers. httptest waits for requests under way, so whatever
// hangs is freed first.
func (r *Registry) stop() {
	close(r.done)
	for _, s := range []*httptest.Server{r.front, r.store} {
		if s != nil {
			s.CloseClientConnections()
			s.Close()
		}
	}
}

// Host is "127.0.0.1:port", the first part of an image reference.
func (r *Registry) Host() string { return r.front.Listener.Addr().String() }

// StoreHost is the host that blobs are redirected to, "" without WithRedirect.
func (r *Registry) StoreHost() string {
	if r.store == nil {
		return ""
	}
	return r.store.Listener.Addr().String()
}

// URL is "http://host" or "https://host".
func (r *Registry) URL() string { return r.front.URL }

// BlobURL is where the blob d of a repository is served.
func (r *Registry) BlobURL(repo string, d digest.Digest) string {
	return fmt.Sprintf("%s/v2/%s/blobs/%s", r.URL(), repo, d)
}

// Client is an HTTP client that trusts the registry and shows the client
// certificate it may ask for. It sends no other credentials.
func (r *Registry) Client() *http.Client {
	tr := &http.Transport{MaxIdleConnsPerHost: 32}
	if r.pki != nil {
		tr.TLSClientConfig = r.pki.client()
	}
	return &http.Client{Transport: tr}
}

// AddBlob stores data, past all faults and credentials, and returns its digest.
// It is then served from every repository.
func (r *Registry) AddBlob(t testing.TB, data []byte) digest.Digest {
	t.Helper()
	d := digest.FromBytes(data)
	h, err := v1.NewHash(d.String())
	if err != nil {
		t.Fatal(err)
	}
	if err := r.blobs.Put(context.Background(), "", h, io.NopCloser(newReader(data))); err != nil {
		t.Fatal(err)
	}
	return d
}

// signer makes and checks signed URLs.
type signer struct {
	uses int // 0: without end

	mu   sync.Mutex
	next int
	left map[string]int
}

func newSigner(uses int) *signer { return &signer{uses: uses, left: map[string]int{}} }

// query returns a new signature.
func (s *signer) query() url.Values {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.next++
	sig := fmt.Sprintf("secret-signature-%d", s.next)
	s.left[sig] = s.uses
	return url.Values{"X-Sig": {sig}}
}

// good spends one use of the signature.
func (s *signer) good(q url.Values) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	left, ok := s.left[q.Get("X-Sig")]
	switch {
	case !ok:
		return false
	case s.uses == 0:
		return true
	case left == 0:
		return false
	}
	s.left[q.Get("X-Sig")]--
	return true
}

// ExpireURLs makes all signed URLs so far invalid.
func (r *Registry) ExpireURLs() {
	if r.signs == nil {
		return
	}
	r.signs.mu.Lock()
	defer r.signs.mu.Unlock()
	clear(r.signs.left)
}
