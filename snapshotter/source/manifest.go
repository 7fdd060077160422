package source

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"time"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	remoteerrors "github.com/containerd/containerd/v2/core/remotes/errors"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/apparate/apparate/snapshotter/fetch"
)

const (
	// maxManifest is the longest manifest or index that is read, in bytes;
	// registries accept 4 MiB.
	maxManifest = 8 << 20
	// manifestTimeout ends Manifest and Resolve.
	manifestTimeout = time.Minute
	// maxIndexDepth is how many indexes may lie above a manifest.
	maxIndexDepth = 3
)

// Why an image cannot be found; for errors.Is.
var (
	ErrNotFound     = errors.New("not found: check the name, the tag and whether you may see it")
	ErrNoPermission = errors.New("no permission to pull: log in with 'docker login', or check the credentials")
	ErrUnreachable  = errors.New("registry cannot be reached: check the name, the network and proxies")
	// ErrNotRegistry says that what answers does not speak the OCI distribution protocol.
	ErrNotRegistry = errors.New("not an answer of an OCI registry: check the host and port")
	// ErrNoPlatform says that the image exists, but not for the platform.
	ErrNoPlatform = errors.New("image has no manifest for the platform")
	// ErrNotManifest says that the digest names an index or something else.
	ErrNotManifest = errors.New("not the manifest of an image for one platform")
)

// Manifest reads the platform manifest d of the image ref, and returns its layers
// from the lowest to the topmost. Layers without a TOC have an empty TOCDigest,
// as have those whose annotations make no sense.
func (r *Resolver) Manifest(ctx context.Context, ref string, d digest.Digest) ([]Layer, error) {
	ctx, cancel := context.WithTimeout(r.quiet(ctx), manifestTimeout)
	defer cancel()
	p, err := r.pull(ref)
	if err != nil {
		return nil, err
	}
	m, err := p.manifest(ctx, d)
	if err != nil {
		return nil, err
	}
	if len(m.Manifests) > 0 {
		return nil, fmt.Errorf("%s@%s: %w", p.named.Name(), d, ErrNotManifest)
	}
	return m.layers(ref, d)
}

// Resolve finds the manifest of the image ref, a tag or a digest, for platform
// ("linux/arm64"; "" is this machine's), and returns its digest and layers.
func (r *Resolver) Resolve(ctx context.Context, ref, platform string) (digest.Digest, []Layer, error) {
	match := platforms.Default()
	if platform != "" {
		p, err := platforms.Parse(platform)
		if err != nil {
			return "", nil, fmt.Errorf("%q is no platform such as linux/amd64 or linux/arm64/v8: %w", platform, err)
		}
		match = platforms.Only(p)
	} else {
		platform = platforms.DefaultString()
	}
	ctx, cancel := context.WithTimeout(r.quiet(ctx), manifestTimeout)
	defer cancel()
	p, err := r.pull(ref)
	if err != nil {
		return "", nil, err
	}
	d, err := p.digest(ctx)
	if err != nil {
		return "", nil, err
	}
	for range maxIndexDepth + 1 {
		m, err := p.manifest(ctx, d)
		if err != nil {
			return "", nil, err
		}
		if len(m.Manifests) == 0 {
			layers, err := m.layers(p.named.String(), d)
			return d, layers, err
		}
		if d = choose(m.Manifests, match); d == "" {
			return "", nil, fmt.Errorf("%s: %w %s", ref, ErrNoPlatform, platform)
		}
	}
	return "", nil, fmt.Errorf("%s: %w: more than %d indexes above it", ref, ErrNotManifest, maxIndexDepth)
}

// choose returns the best manifest of an index, "" if none fits. Entries without
// a platform are attestations or other attachments.
func choose(list []ocispec.Descriptor, match platforms.MatchComparer) digest.Digest {
	list = slices.DeleteFunc(slices.Clone(list), func(d ocispec.Descriptor) bool {
		return d.Platform == nil || !match.Match(*d.Platform)
	})
	if len(list) == 0 {
		return ""
	}
	best := list[0]
	for _, d := range list[1:] {
		if match.Less(*d.Platform, *best.Platform) {
			best = d
		}
	}
	return best.Digest
}

// pull reads the manifests of one repository through containerd's resolver.
type pull struct {
	named    reference.Named
	resolver remotes.Resolver
}

func (r *Resolver) pull(ref string) (*pull, error) {
	named, err := parseRef(ref)
	if err != nil {
		return nil, err
	}
	hosts := func(string) ([]docker.RegistryHost, error) {
		repo, err := r.repository(named)
		if err != nil {
			return nil, err
		}
		return repo.hosts, nil
	}
	headers := http.Header{"User-Agent": {"apparate"}}
	return &pull{named: named, resolver: docker.NewResolver(docker.ResolverOptions{Hosts: hosts, Headers: headers})}, nil
}

// digest returns what the reference points to. A digest needs no question.
func (p *pull) digest(ctx context.Context) (digest.Digest, error) {
	if c, ok := p.named.(reference.Canonical); ok {
		return c.Digest(), nil
	}
	_, desc, err := p.resolver.Resolve(ctx, p.named.String())
	if err != nil {
		return "", p.explain(err)
	}
	if !images.IsManifestType(desc.MediaType) && !images.IsIndexType(desc.MediaType) {
		return "", fmt.Errorf("%s: %w: its type is %q", p.named, ErrNotRegistry, desc.MediaType)
	}
	return desc.Digest, nil
}

// manifest is what a manifest and an index have that we need; a document with
// Manifests is an index (image-spec 1.1; docker's schema 2 has the same fields).
type manifest struct {
	MediaType string               `json:"mediaType"`
	Config    ocispec.Descriptor   `json:"config"`
	Layers    []ocispec.Descriptor `json:"layers"`
	Manifests []ocispec.Descriptor `json:"manifests"`
}

// manifest reads and verifies the manifest or index d.
func (p *pull) manifest(ctx context.Context, d digest.Digest) (*manifest, error) {
	if err := d.Validate(); err != nil {
		return nil, fmt.Errorf("digest of a manifest of %s: %w", p.named.Name(), err)
	}
	at, err := reference.WithDigest(reference.TrimNamed(p.named), d)
	if err != nil {
		return nil, err
	}
	f, err := p.resolver.Fetcher(ctx, at.String())
	if err != nil {
		return nil, p.explain(err)
	}
	// The size is a bound, as the real one is not known.
	rc, err := f.Fetch(ctx, ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: d, Size: maxManifest})
	if err != nil {
		return nil, p.explain(err)
	}
	b, err := io.ReadAll(io.LimitReader(rc, maxManifest+1))
	if cerr := rc.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return nil, p.explain(err)
	}
	if got := d.Algorithm().FromBytes(b); got != d {
		return nil, fmt.Errorf("%s: registry sent a manifest with digest %s (%d bytes)", at, got, len(b))
	}
	var m manifest
	if err := json.Unmarshal(b, &m); err != nil {
		return nil, fmt.Errorf("%s: %w: %w", at, ErrNotRegistry, err)
	}
	if len(m.Manifests) > 0 && len(m.Layers) > 0 {
		// A document that is both could be shown as one thing to a signer and as
		// another to us (distribution-spec, GHSA-mc8v-mgrf-8f4m).
		return nil, fmt.Errorf("%s: %w: it is a manifest and an index at once", at, ErrNotManifest)
	}
	if len(m.Manifests) == 0 && m.Config.Digest == "" {
		return nil, fmt.Errorf("%s: %w: its type is %q", at, ErrNotManifest, m.MediaType)
	}
	return &m, nil
}

// layers describes the layers of the manifest d.
func (m *manifest) layers(ref string, d digest.Digest) ([]Layer, error) {
	layers := make([]Layer, len(m.Layers))
	for i, desc := range m.Layers {
		if err := desc.Digest.Validate(); err != nil {
			return nil, fmt.Errorf("%s: layer %d: %w", ref, i, err)
		}
		if desc.Size < 0 {
			return nil, fmt.Errorf("%s: layer %d: size %d", ref, i, desc.Size)
		}
		l := Layer{Ref: ref, Manifest: d, Digest: desc.Digest, MediaType: desc.MediaType}
		plain := l
		if err := l.annotate(desc.Annotations); err != nil {
			l = plain // an ordinary layer; its own Prepare says why
		}
		l.BlobSize = desc.Size // the manifest is verified, the annotation only a copy
		layers[i] = l
	}
	return layers, nil
}

// explain names the image and says in one line what went wrong.
func (p *pull) explain(err error) error {
	var kind error
	status, hasStatus := errors.AsType[remoteerrors.ErrUnexpectedStatus](err)
	_, isNet := errors.AsType[net.Error](err)
	switch {
	case errdefs.IsNotFound(err):
		return fmt.Errorf("%s: %w", p.named, ErrNotFound) // the cause says the same once more
	case errors.Is(err, docker.ErrInvalidAuthorization),
		hasStatus && (status.StatusCode == http.StatusUnauthorized || status.StatusCode == http.StatusForbidden):
		kind = ErrNoPermission
	case hasStatus && status.StatusCode >= 500:
		kind = ErrUnreachable
	case hasStatus:
		kind = ErrNotRegistry
	case isNet, errors.Is(err, context.DeadlineExceeded), errors.Is(err, io.EOF), errors.Is(err, http.ErrSchemeMismatch):
		kind = ErrUnreachable
	default:
		return fmt.Errorf("%s: %w", p.named, fetch.Redact(err))
	}
	return fmt.Errorf("%s: %w: %w", p.named, kind, fetch.Redact(err))
}
