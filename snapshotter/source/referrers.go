package source

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/apparate/apparate/snapshotter/fetch"
)

const (
	// maxReferrers is the longest list of referrers that is read, in bytes.
	maxReferrers = 4 << 20
	// withoutAPI is how long a host is remembered to have no referrers API.
	withoutAPI = time.Hour
)

// errNoAPI says that a host does not know what a list of referrers is.
var errNoAPI = errors.New("no referrers API")

// Referrers returns the descriptors of what is attached to the manifest d of the
// repository that ref names and has the artifact type (OCI distribution spec 1.1,
// "Listing Referrers" and "Referrers Tag Schema"); none are no error. The list and the
// fallback tag are asked for at the same time, and a list that has something is not kept
// waiting for the tag. Nothing in it is verified. Only the first page of a list is read.
//
// What these questions are answered says nothing of credentials: a registry may refuse
// them that serves the image.
func (r *Resolver) Referrers(ctx context.Context, ref string, d digest.Digest, artifactType string) ([]ocispec.Descriptor, error) {
	if err := d.Validate(); err != nil {
		return nil, err
	}
	named, err := parseRef(ref)
	if err != nil {
		return nil, err
	}
	repo, err := r.repository(named)
	if err != nil {
		return nil, err
	}
	var errs []error
	for i := range repo.hosts {
		h := &repo.hosts[i]
		if !h.Capabilities.Has(docker.HostCapabilityPull) {
			continue
		}
		q := question{r: r, h: h, repo: repo, subject: d, artifact: artifactType}
		list, err := q.ask(ctx)
		if len(list) > 0 {
			return list, nil
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("registry %s: %w", h.Host, fetch.Redact(err)))
		}
		if ctx.Err() != nil {
			break
		}
	}
	return nil, errors.Join(errs...)
}

// Attachment returns the layers of the artifact manifest d in the repository of ref.
func (r *Resolver) Attachment(ctx context.Context, ref string, d digest.Digest) ([]ocispec.Descriptor, error) {
	p, err := r.pull(ref)
	if err != nil {
		return nil, err
	}
	m, err := p.manifest(r.quiet(ctx), d)
	if err != nil {
		return nil, err
	}
	return m.Layers, nil
}

// Bytes returns the whole blob desc of the repository of ref, verified. A blob of more
// than most bytes is refused.
func (r *Resolver) Bytes(ctx context.Context, ref string, desc ocispec.Descriptor, most int64) ([]byte, error) {
	if desc.Size <= 0 || desc.Size > most {
		return nil, fmt.Errorf("blob %s has %d bytes: 1 to %d are read", desc.Digest, desc.Size, most)
	}
	blob, err := r.Open(ctx, ref, desc.Digest, desc.Size)
	if err != nil {
		return nil, err
	}
	defer func() { _ = blob.Close() }() // it was read
	b := make([]byte, desc.Size)
	if err := fetch.ReadAt(ctx, blob, b, 0); err != nil {
		return nil, err
	}
	if got := desc.Digest.Algorithm().FromBytes(b); got != desc.Digest {
		return nil, fmt.Errorf("registry sent a blob with digest %s for %s", got, desc.Digest)
	}
	return b, nil
}

// question is what one host is asked about one subject.
type question struct {
	r        *Resolver
	h        *docker.RegistryHost
	repo     *repository
	subject  digest.Digest
	artifact string
}

// attached is one of the two there may be.
type attached struct {
	list []ocispec.Descriptor
	err  error
	api  bool
}

// ask asks for the list and the tag.
func (q *question) ask(ctx context.Context) ([]ocispec.Descriptor, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // whoever is not waited for
	answers := make(chan attached, 2)
	asked := 1
	tag := strings.Replace(q.subject.String(), ":", "-", 1)
	go func() {
		list, err := q.list(ctx, "manifests/"+tag, nil)
		answers <- attached{list: list, err: err}
	}()
	if q.r.referrers.known(q.h.Host) {
		asked++
		go func() {
			list, err := q.list(ctx, "referrers/"+q.subject.String(), url.Values{"artifactType": {q.artifact}})
			if errors.Is(err, errNoAPI) {
				q.r.referrers.missing(q.h.Host)
				err = nil
			}
			answers <- attached{list: list, err: err, api: true}
		}()
	}
	var all []ocispec.Descriptor
	var errs []error
	for range asked {
		select {
		case a := <-answers:
			all = append(all, a.list...)
			if a.api && len(a.list) > 0 {
				return all, nil
			}
			if a.err != nil && !errors.Is(a.err, errNoAPI) {
				errs = append(errs, a.err)
			}
		case <-ctx.Done():
			return all, context.Cause(ctx)
		}
	}
	return all, errors.Join(errs...)
}

// list reads one index and picks what is of the wanted type.
func (q *question) list(ctx context.Context, what string, query url.Values) ([]ocispec.Descriptor, error) {
	resp, err := q.get(ctx, what, query)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }() // it was read, or is of no use
	switch resp.StatusCode {
	case http.StatusOK:
	case http.StatusNotFound, http.StatusMethodNotAllowed, http.StatusNotImplemented, http.StatusBadRequest:
		_, _ = io.CopyN(io.Discard, resp.Body, maxProbeAnswer) // so that its connection can be used again
		return nil, errNoAPI
	default:
		return nil, fmt.Errorf("%s: HTTP %d", what, resp.StatusCode)
	}
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxReferrers+1))
	if err != nil {
		return nil, err
	}
	if len(b) > maxReferrers {
		return nil, fmt.Errorf("%s: more than %d bytes", what, maxReferrers)
	}
	var index ocispec.Index
	if err := json.Unmarshal(b, &index); err != nil {
		return nil, fmt.Errorf("%s: %w", what, ErrNotRegistry)
	}
	return slices.DeleteFunc(index.Manifests, func(d ocispec.Descriptor) bool {
		return d.ArtifactType != q.artifact || d.Digest.Validate() != nil
	}), nil
}

// get sends one request, and once more after a challenge.
func (q *question) get(ctx context.Context, what string, query url.Values) (*http.Response, error) {
	resp, err := q.send(ctx, http.MethodGet, what, query, q.plain())
	if err != nil || resp.StatusCode != http.StatusUnauthorized {
		return resp, err
	}
	_ = resp.Body.Close() // only the status counts
	// Credentials are tried on a request that fails only if they are no good, and
	// these here may fail for other reasons.
	probe, err := q.send(ctx, http.MethodHead, "manifests/"+q.subject.String(), nil, q.h.Client)
	if err != nil {
		return nil, err
	}
	_ = probe.Body.Close() // it has none
	if probe.StatusCode == http.StatusUnauthorized {
		if err := q.h.Authorizer.AddResponses(ctx, []*http.Response{probe}); err != nil {
			return nil, err
		}
	}
	return q.send(ctx, http.MethodGet, what, query, q.plain())
}

// plain is a client whose answers nobody takes for an opinion about credentials.
func (q *question) plain() *http.Client {
	c := *q.h.Client
	if w, ok := c.Transport.(*witness); ok {
		c.Transport = w.base
	}
	return &c
}

// send sends one request to the host.
func (q *question) send(ctx context.Context, method, what string, query url.Values, client *http.Client) (*http.Response, error) {
	u := url.URL{Scheme: q.h.Scheme, Host: q.h.Host, Path: path.Join("/", q.h.Path, q.repo.path, what)}
	if isMirror(q.repo.host, q.h.Host) {
		if query == nil {
			query = url.Values{}
		}
		query.Set("ns", q.repo.host)
	}
	u.RawQuery = query.Encode()
	req, err := http.NewRequestWithContext(ctx, method, u.String(), nil)
	if err != nil {
		return nil, err
	}
	req.Header = userAgent(q.h.Header)
	req.Header.Set("Accept", ocispec.MediaTypeImageIndex+", "+ocispec.MediaTypeImageManifest+", */*;q=0.1")
	if err := q.h.Authorizer.Authorize(ctx, req); err != nil {
		return nil, err
	}
	return client.Do(req)
}

// apis remembers which hosts have no referrers API.
type apis struct {
	mu   sync.Mutex
	gone map[string]time.Time
}

// known says that a host has the API, or may have it.
func (a *apis) known(host string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	t, ok := a.gone[host]
	return !ok || time.Since(t) > withoutAPI
}

func (a *apis) missing(host string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.gone == nil {
		a.gone = map[string]time.Time{}
	}
	a.gone[host] = time.Now()
}

// Repository returns the repository of an image's name, with its host, and without
// tag and digest.
func Repository(ref string) (string, error) {
	named, err := parseRef(ref)
	if err != nil {
		return "", err
	}
	return reference.TrimNamed(named).Name(), nil
}
