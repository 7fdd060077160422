package registry

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"github.com/apparate/apparate/converter/fault"
)

// Repository asks one repository for what a [Client] alone does not know: parts
// of blobs, and the artifacts that refer to an image. Its methods may be called
// from several goroutines.
type Repository struct {
	name   name.Repository
	client *http.Client
}

// connect logs in to a repository for one of transport's scopes.
func (c *Client) connect(ctx context.Context, repo name.Repository, scope string, d direction) (*http.Client, error) {
	auth, err := authn.Resolve(ctx, c.o.Keychain, repo)
	if err != nil {
		kind := fault.PullDenied
		if d == push {
			kind = fault.PushDenied
		}
		return nil, fault.New(kind, err, "the credentials for %s cannot be read", repo)
	}
	retrying := transport.NewRetry(transport.NewUserAgent(c.o.Transport, "apparate"),
		transport.WithRetryBackoff(c.o.backoff()),
		transport.WithRetryStatusCodes(http.StatusInternalServerError, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout))
	tr, err := transport.NewWithContext(ctx, repo.Registry, auth, retrying, []string{repo.Scope(scope)})
	if err != nil {
		return nil, classify(ctx, d, repo.String(), err)
	}
	return &http.Client{Transport: tr}, nil
}

// Readable logs in to repo for reading.
func (c *Client) Readable(ctx context.Context, repo name.Repository) (*Repository, error) {
	hc, err := c.connect(ctx, repo, transport.PullScope, pull)
	if err != nil {
		return nil, err
	}
	return &Repository{name: repo, client: hc}, nil
}

// Writable logs in to repo for reading and writing.
func (c *Client) Writable(ctx context.Context, repo name.Repository) (*Repository, error) {
	hc, err := c.connect(ctx, repo, transport.PushScope, push)
	if err != nil {
		return nil, err
	}
	return &Repository{name: repo, client: hc}, nil
}

// url is that of a path below the repository's.
func (r *Repository) url(path string) string {
	return fmt.Sprintf("%s://%s/v2/%s/%s", r.name.Scheme(), r.name.RegistryStr(), r.name.RepositoryStr(), path)
}

// do sends a request. An answer with another status than those is an error.
func (r *Repository) do(req *http.Request, what string, want ...int) (*http.Response, error) {
	d := pull
	if req.Method != http.MethodGet {
		d = push
	}
	resp, err := r.client.Do(req)
	if err != nil {
		return nil, classify(req.Context(), d, what, err)
	}
	if err := transport.CheckError(resp, want...); err != nil {
		_ = resp.Body.Close() // the error has what was in it
		return nil, classify(req.Context(), d, what, err)
	}
	return resp, nil
}

// Range opens n bytes of a blob at off. The bytes are not checked against the
// blob's digest: only the caller can know what it may expect. A body that ends
// early is io.ErrUnexpectedEOF.
func (r *Repository) Range(ctx context.Context, digest string, off, n int64) (io.ReadCloser, error) {
	if !digestName.MatchString(digest) || off < 0 || n <= 0 || off+n < off {
		return nil, fault.New(fault.ImageInvalid, nil, "%d bytes at %d of blob %.100q of %s cannot be asked for", n, off, digest, r.name)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, r.url("blobs/"+digest), nil)
	if err != nil {
		return nil, fault.New(fault.BadName, withoutURL(err), "%s", r.name)
	}
	req.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", off, off+n-1))
	resp, err := r.do(req, r.name.String(), http.StatusPartialContent, http.StatusOK)
	if fault.KindOf(err) == fault.NotFound {
		return nil, fault.New(fault.ContentMissing, err, "%s has no blob %s: push the image again", r.name, digest)
	}
	if err != nil {
		return nil, err
	}
	var first, last int64
	said := resp.Header.Get("Content-Range")
	if _, err := fmt.Sscanf(said, "bytes %d-%d/", &first, &last); resp.StatusCode != http.StatusPartialContent || err != nil || first != off || last != off+n-1 {
		_ = resp.Body.Close() // of no use
		return nil, fault.New(fault.RegistryError, nil, "registry %s does not serve the range that was asked for (%d, %.60q): it cannot be read piece by piece",
			r.name.RegistryStr(), resp.StatusCode, said)
	}
	return &part{ctx: ctx, rc: resp.Body, left: n, what: r.name.String()}, nil
}

// part is a body of exactly left bytes.
type part struct {
	ctx  context.Context
	rc   io.ReadCloser
	left int64
	what string
}

// Read implements io.Reader.
func (p *part) Read(b []byte) (int, error) {
	if p.left == 0 {
		return 0, io.EOF
	}
	n, err := p.rc.Read(b[:min(int64(len(b)), p.left)])
	p.left -= int64(n)
	switch {
	case err == nil || p.left == 0:
		return n, nil
	case p.ctx.Err() != nil:
		return n, context.Cause(p.ctx)
	case errors.Is(err, io.EOF):
		err = io.ErrUnexpectedEOF
	}
	return n, fault.NewTemporary(fault.Unreachable, withoutURL(err), "a part of a blob of %s broke off %d bytes before its end", p.what, p.left)
}

// Close ends reading.
func (p *part) Close() error { return p.rc.Close() }

// maxReferrerPages bounds a list of referrers, each page of which is at most
// MaxManifestSize long.
const maxReferrerPages = 16

// Referrers lists the manifests that have the digest as their subject, as far as
// the registry filters by artifactType those of that type alone (OCI distribution
// spec 1.1, "Listing Referrers"). Each is a descriptor as the registry wrote it.
// supported is false where the registry has no such list; it may then be in the
// index under FallbackTag.
func (r *Repository) Referrers(ctx context.Context, digest, artifactType string) (list []json.RawMessage, supported bool, err error) {
	if !digestName.MatchString(digest) {
		return nil, false, fault.New(fault.BadName, nil, "%.100q is no sha256 digest", digest)
	}
	what := "the referrers of " + digest + " in " + r.name.String()
	next := r.url("referrers/" + digest + "?artifactType=" + url.QueryEscape(artifactType))
	for range maxReferrerPages {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, next, nil)
		if err != nil {
			return nil, false, fault.New(fault.RegistryError, withoutURL(err), "registry %s has a list that does not go on", r.name.RegistryStr())
		}
		req.Header.Set("Accept", "application/vnd.oci.image.index.v1+json")
		resp, err := r.client.Do(req)
		if err != nil {
			return nil, false, classify(ctx, pull, r.name.String(), err)
		}
		if resp.StatusCode == http.StatusNotFound || resp.StatusCode == http.StatusMethodNotAllowed || resp.StatusCode == http.StatusBadRequest {
			discard(resp)
			return nil, false, nil
		}
		if err := transport.CheckError(resp, http.StatusOK); err != nil {
			_ = resp.Body.Close() // the error has what was in it
			return nil, false, classify(ctx, pull, r.name.String(), err)
		}
		isIndex := mediaType(resp) == "application/vnd.oci.image.index.v1+json"
		link := resp.Header.Get("Link")
		raw, err := readBounded(ctx, resp, MaxManifestSize, fault.RegistryError, what)
		if err != nil {
			return nil, false, err
		}
		page, err := ReadReferrers(raw)
		if !isIndex || err != nil {
			return list, false, nil //nolint:nilerr // a page for people, from what has no referrers
		}
		list = append(list, page...)
		if next = r.follow(req.URL, link); next == "" {
			return list, true, nil
		}
	}
	return list, true, nil
}

// follow is the next page's address, of the same registry; "" for none.
func (r *Repository) follow(from *url.URL, link string) string {
	target, rest, ok := strings.Cut(strings.TrimPrefix(strings.TrimSpace(link), "<"), ">")
	if !ok || !strings.Contains(rest, "next") {
		return ""
	}
	u, err := from.Parse(target)
	if err != nil || u.Host != from.Host || u.Scheme != from.Scheme {
		return ""
	}
	return u.String()
}

// FallbackTag names the index that lists the referrers of a manifest where the
// registry does not (OCI distribution spec 1.1, "Referrers Tag Schema").
func FallbackTag(digest string) string {
	tag := strings.Replace(digest, ":", "-", 1)
	return tag[:min(len(tag), 128)]
}

// ReadReferrers reads the descriptors of an index.
func ReadReferrers(raw []byte) ([]json.RawMessage, error) {
	var index struct {
		Manifests []json.RawMessage `json:"manifests"`
	}
	err := json.Unmarshal(raw, &index)
	return index.Manifests, err
}

// PutReferrer writes a manifest that has a subject, under its digest. listed
// says that the registry lists it among the subject's referrers; where it does
// not, that is the caller's to do (OCI distribution spec 1.1, "Pushing Manifests with Subject").
func (r *Repository) PutReferrer(ctx context.Context, digest, manifestType string, raw []byte) (listed bool, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPut, r.url("manifests/"+digest), bytes.NewReader(raw))
	if err != nil {
		return false, fault.New(fault.BadName, withoutURL(err), "%s", r.name)
	}
	req.Header.Set("Content-Type", manifestType)
	resp, err := r.do(req, r.name.String(), http.StatusCreated, http.StatusOK, http.StatusAccepted)
	if err != nil {
		return false, err
	}
	discard(resp)
	return resp.Header.Get("OCI-Subject") != "", nil
}

// DeleteManifest removes a manifest by its digest. Many registries do not allow
// that, or not to everybody.
func (c *Client) DeleteManifest(ctx context.Context, ref name.Digest) error {
	repo := ref.Context()
	hc, err := c.connect(ctx, repo, transport.DeleteScope, push)
	if err != nil {
		return err
	}
	r := &Repository{name: repo, client: hc}
	req, err := http.NewRequestWithContext(ctx, http.MethodDelete, r.url("manifests/"+ref.DigestStr()), nil)
	if err != nil {
		return fault.New(fault.BadName, withoutURL(err), "%s", ref)
	}
	resp, err := r.do(req, ref.String(), http.StatusAccepted, http.StatusOK, http.StatusNoContent)
	if err == nil {
		discard(resp)
	}
	return err
}
