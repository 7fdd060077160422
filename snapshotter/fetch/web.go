package fetch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"sync"
	"sync/atomic"
	"time"
)

// maxHops is how many redirects one request may take; registries need one or two.
const maxHops = 5

// web reads ranges from one endpoint.
type web struct {
	cfg    Config
	ep     Endpoint
	client *http.Client
	origin *url.URL

	mu sync.Mutex
	// target is where the registry sent us last time, usually a signed URL of a
	// storage service; nil when it must be asked again.
	target *hop
}

// hop is a URL and the page that led there. Some signed URLs are valid only with
// the Referer that an ordinary HTTP client would send.
type hop struct {
	url     *url.URL
	referer string
}

func newWeb(cfg Config, ep Endpoint) (*web, error) {
	u, err := url.Parse(ep.URL)
	if err != nil {
		return nil, fmt.Errorf("address of a registry: %w", Redact(err))
	}
	base := ep.Client
	if base == nil {
		base = http.DefaultClient
	}
	c := *base
	c.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	// Client.Timeout would count the time in which the caller reads nothing.
	c.Timeout = 0
	return &web{cfg: cfg, ep: ep, client: &c, origin: u}, nil
}

// open asks for one range: at the remembered target if there is one, which saves
// the hop over the registry, else at the registry.
func (w *web) open(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	if t := w.remembered(); t != nil {
		r, err := w.attempt(ctx, t, off, n)
		if err == nil {
			return r, nil
		}
		w.drop(t)
		if !expired(err) {
			return nil, err
		}
	}
	return w.attempt(ctx, &hop{url: w.origin}, off, n)
}

func (w *web) remembered() *hop {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.target
}

func (w *web) remember(t *hop) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.target = t
}

// drop forgets t, unless another read has replaced it already.
func (w *web) drop(t *hop) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.target == t {
		w.target = nil
	}
}

// expired says whether err is how storage services answer a signed URL whose
// time has run out: a new one from the registry helps.
func expired(err error) bool {
	e, ok := errors.AsType[*Error](err)
	if !ok {
		return false
	}
	switch e.Status {
	case http.StatusBadRequest, http.StatusUnauthorized, http.StatusForbidden, http.StatusNotFound, http.StatusGone:
		return true
	}
	return false
}

// attempt follows redirects from the hop at to the answer with the bytes.
func (w *web) attempt(ctx context.Context, at *hop, off, n int64) (io.ReadCloser, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	req := &request{web: w, ctx: ctx, cancel: cancel, off: off, n: n}
	for range maxHops + 1 {
		resp, err := req.ask(at)
		if err != nil {
			cancel(err)
			return nil, err
		}
		next, err := redirect(resp, at)
		if err != nil {
			err = req.refuse(at, resp, err)
			cancel(err)
			return nil, err
		}
		if next == nil {
			r, err := req.accept(at, resp)
			if err != nil {
				cancel(err)
			}
			return r, err
		}
		req.discard(resp)
		at = next
	}
	err := &Error{Host: w.origin.Host, Range: rangeOf(off, n), Err: fmt.Errorf("more than %d redirects", maxHops)}
	cancel(err)
	return nil, err
}

// redirect returns where resp sends us, nil if it does not.
func redirect(resp *http.Response, from *hop) (*hop, error) {
	switch resp.StatusCode {
	case http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther,
		http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
	default:
		return nil, nil
	}
	u, err := resp.Location()
	if err != nil {
		return nil, errors.New("redirect without a usable Location")
	}
	if u.Scheme != "http" && u.Scheme != "https" {
		return nil, fmt.Errorf("redirect to scheme %q", u.Scheme)
	}
	h := &hop{url: u}
	if from.url.Scheme != "https" || u.Scheme == "https" {
		// Without the query: it may be the signature of another URL.
		ref := url.URL{Scheme: from.url.Scheme, Host: from.url.Host, Path: from.url.Path, RawPath: from.url.RawPath}
		h.referer = ref.String()
	}
	return h, nil
}

// request is one range on its way through redirects. A timer that is armed while
// we wait for the network, and only then, ends it.
type request struct {
	web    *web
	ctx    context.Context
	cancel context.CancelCauseFunc
	off, n int64
}

// wait arms the timer; the returned function disarms it.
func (r *request) wait(d time.Duration, what string) (stop func() bool) {
	return time.AfterFunc(d, func() { r.cancel(fmt.Errorf("%s for %s", what, d)) }).Stop
}

// ask sends the request to at and answers one 401 of the registry.
func (r *request) ask(at *hop) (*http.Response, error) {
	resp, err := r.send(at)
	if err != nil || resp.StatusCode != http.StatusUnauthorized || !r.home(at) || r.web.ep.Challenge == nil {
		return resp, err
	}
	said := r.message(resp)
	stop := r.wait(r.web.cfg.HeaderTimeout, "no answer about credentials")
	err = r.web.ep.Challenge(r.ctx, []*http.Response{resp})
	stop()
	if err != nil {
		e := r.fail(at, fmt.Errorf("%w%s", Redact(err), said))
		e.Status = http.StatusUnauthorized
		e.Err = refusal{e.Err}
		return nil, e
	}
	return r.send(at)
}

// home says whether at is the registry itself, which alone gets credentials and
// headers. The scheme counts: they must not travel in the clear after a redirect.
func (r *request) home(at *hop) bool {
	o := r.web.origin
	return at.url.Scheme == o.Scheme && at.url.Hostname() == o.Hostname() && port(at.url) == port(o)
}

func port(u *url.URL) string {
	switch p := u.Port(); {
	case p != "":
		return p
	case u.Scheme == "https":
		return "443"
	default:
		return "80"
	}
}

// send sends one request and returns its answer, whatever the status.
func (r *request) send(at *hop) (*http.Response, error) {
	req, err := http.NewRequestWithContext(r.ctx, http.MethodGet, at.url.String(), nil)
	if err != nil {
		return nil, r.fail(at, Redact(err))
	}
	stop := r.wait(r.web.cfg.HeaderTimeout, "no answer")
	defer stop()
	if r.home(at) {
		for k, v := range r.web.ep.Header {
			req.Header[http.CanonicalHeaderKey(k)] = append([]string(nil), v...)
		}
		if r.web.ep.Authorize != nil {
			if err := r.web.ep.Authorize(r.ctx, req); err != nil {
				e := r.broken(at, err)
				e.Err = refusal{fmt.Errorf("get credentials: %w", e.Err)}
				return nil, e
			}
		}
	}
	req.Header.Set("Range", rangeOf(r.off, r.n))
	// A compressed transfer would have offsets of its own.
	req.Header.Set("Accept-Encoding", "identity")
	if at.referer != "" {
		req.Header.Set("Referer", at.referer)
	}
	x := r.web.cfg.Stats.begin(at.url.Host, rangeOf(r.off, r.n))
	resp, err := r.web.client.Do(req)
	if err != nil {
		x.end(nil)
		if u, ok := errors.AsType[*url.Error](err); ok {
			err = u.Err // Host and Range name the request already
		}
		return nil, r.broken(at, err)
	}
	resp.Body = &reported{ReadCloser: resp.Body, x: x, resp: resp}
	return resp, nil
}

// reported counts the bytes of a good answer and reports the exchange at its end.
type reported struct {
	io.ReadCloser
	once  sync.Once
	bytes atomic.Int64 // Close may come while another goroutine reads
	x     *exchange
	resp  *http.Response
}

func (b *reported) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if b.resp.StatusCode == http.StatusPartialContent || b.resp.StatusCode == http.StatusOK {
		b.bytes.Add(int64(n))
	}
	return n, err
}

func (b *reported) Close() error {
	err := b.ReadCloser.Close()
	b.once.Do(func() {
		b.x.Bytes = b.bytes.Load()
		b.x.end(b.resp)
	})
	return err
}

// body is the answer's body, held to exactly n bytes and to StallTimeout.
type body struct {
	req  *request
	at   *hop
	resp *http.Response
	left int64
}

func (b *body) Read(p []byte) (int, error) {
	if b.left == 0 {
		return 0, io.EOF
	}
	if int64(len(p)) > b.left {
		p = p[:b.left]
	}
	stop := b.req.wait(b.req.web.cfg.StallTimeout, "no byte")
	n, err := b.resp.Body.Read(p)
	stop()
	b.left -= int64(n)
	if err == nil || b.left == 0 {
		return n, nil
	}
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	b.req.web.drop(b.at)
	e := b.req.broken(b.at, err)
	e.Err = fmt.Errorf("%d of %d bytes came: %w", b.req.n-b.left, b.req.n, e.Err)
	return n, e
}

func (b *body) Close() error {
	err := b.resp.Body.Close()
	b.req.cancel(errStreamClosed)
	return err
}
