// Package registry is how the converter talks to registries: manifests and
// blobs as bytes, every byte checked against its digest, every failure a
// [fault.Error] that says what to do.
//
// Retries happen at two levels: a request that failed for a passing reason is
// sent again here (connection lost, 429 with Retry-After, 5xx); a body that
// breaks off is the caller's to ask for again, since only it knows what it did
// with the first part.
package registry

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/apparate/apparate/converter/fault"
)

// MaxManifestSize is the largest manifest or config that is read, in bytes.
// Registries commonly take 4 MiB.
const MaxManifestSize = 8 << 20

// maxJobs is how many downloads a client runs at once. It has to exceed what
// callers start, or a download could wait for one that waits for it.
const maxJobs = 64

// Options of a [Client].
type Options struct {
	// PlainHTTP allows http:// for every registry. Loopback addresses and
	// private networks may always be spoken to in this way.
	PlainHTTP bool
	// Insecure accepts any TLS certificate.
	Insecure bool
	// Keychain has the credentials; nil means those of the docker config file.
	Keychain authn.Keychain
	// Transport carries the requests; nil means a usual one. Insecure has no
	// effect on a transport that is given.
	Transport http.RoundTripper
	// RetryWait is the pause before the first repetition of a failed request,
	// which triples each time; 0 means a second.
	RetryWait time.Duration
	// Silence is how long a registry may say nothing while it is read from;
	// 0 means DefaultSilence.
	Silence time.Duration
}

// Client reads from and writes to registries. It remembers tokens, so make one
// for each task. Its methods may be called from several goroutines.
type Client struct {
	o      Options
	puller *remote.Puller
	pusher *remote.Pusher
}

// setDefaults fills in what was left out.
func (o *Options) setDefaults() {
	if o.Keychain == nil {
		o.Keychain = authn.DefaultKeychain
	}
	if o.Transport == nil {
		t := NewTransport()
		if o.Insecure {
			t.TLSClientConfig = &tls.Config{InsecureSkipVerify: true} //nolint:gosec // asked for with --insecure
		}
		o.Transport = t
	}
	if o.RetryWait == 0 {
		o.RetryWait = time.Second
	}
	if o.Silence == 0 {
		o.Silence = DefaultSilence
	}
}

// New makes a Client.
func New(o Options) (*Client, error) {
	o.setDefaults()
	o.Transport = &patient{next: &watch{next: o.Transport, limit: o.Silence}, wait: o.RetryWait}
	opts := []remote.Option{
		remote.WithAuthFromKeychain(o.Keychain),
		remote.WithTransport(o.Transport),
		remote.WithUserAgent("apparate"),
		remote.WithJobs(maxJobs),
		remote.WithRetryBackoff(o.backoff()),
		// A copied manifest with a subject must not write a tag of its own.
		remote.WithReferrersTagFallback(false),
	}
	puller, err := remote.NewPuller(opts...)
	if err != nil {
		return nil, fmt.Errorf("registry client: %w", err)
	}
	pusher, err := remote.NewPusher(opts...)
	if err != nil {
		return nil, fmt.Errorf("registry client: %w", err)
	}
	return &Client{o: o, puller: puller, pusher: pusher}, nil
}

// NewTransport makes a transport that suits registries. The caller may change it
// before its first use.
func NewTransport() *http.Transport {
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.MaxIdleConnsPerHost = 16
	// For writes; see watch for reads. A registry hashes a large blob before it
	// answers.
	t.ResponseHeaderTimeout = 10 * time.Minute
	// Layers are compressed already, and their digests are of the bytes as sent.
	t.DisableCompression = true
	return t
}

// Parse reads an image name: "host/repository:tag", "host/repository@digest".
// Docker's shorthands are understood; no tag means "latest".
func (c *Client) Parse(image string) (name.Reference, error) {
	var opts []name.Option
	if c.o.PlainHTTP {
		opts = append(opts, name.Insecure)
	}
	ref, err := name.ParseReference(strings.TrimSpace(image), opts...)
	if err != nil {
		return nil, fault.New(fault.BadName, err, "%q is no image name such as registry.example.com/team/app:v1", image)
	}
	return ref, nil
}

// backoff says when a failed request is sent again: twice.
func (o *Options) backoff() remote.Backoff {
	return remote.Backoff{Duration: o.RetryWait, Factor: 3, Jitter: 0.1, Steps: 3}
}

// Manifest is a manifest or an index as the registry has it.
type Manifest struct {
	Raw       []byte
	MediaType string
	Digest    string
}

// Manifest fetches what ref names.
func (c *Client) Manifest(ctx context.Context, ref name.Reference) (Manifest, error) {
	d, err := c.puller.Get(ctx, ref)
	if err != nil {
		return Manifest{}, classify(ctx, pull, ref.String(), err)
	}
	if len(d.Manifest) > MaxManifestSize {
		return Manifest{}, fault.New(fault.ImageInvalid, nil, "the manifest of %s has %d bytes, more than the %d that are read", ref, len(d.Manifest), MaxManifestSize)
	}
	mt, _, _ := strings.Cut(string(d.MediaType), ";")
	if mt == "text/html" {
		return Manifest{}, fault.New(fault.NotRegistry, nil, "%s answers with a web page: it is no OCI registry; check the host and port", ref.Context().RegistryStr())
	}
	return Manifest{Raw: d.Manifest, MediaType: strings.TrimSpace(mt), Digest: d.Digest.String()}, nil
}

// Digest returns the digest that ref has now.
func (c *Client) Digest(ctx context.Context, ref name.Reference) (string, error) {
	if d, err := c.puller.Head(ctx, ref); err == nil {
		return d.Digest.String(), nil
	}
	// Some registries leave the digest out of a HEAD, or refuse it.
	m, err := c.Manifest(ctx, ref)
	return m.Digest, err
}

// Exists says whether the registry has the manifest of a digest.
func (c *Client) Exists(ctx context.Context, ref name.Digest) (bool, error) {
	_, err := c.Digest(ctx, ref)
	if fault.KindOf(err) == fault.NotFound {
		return false, nil
	}
	return err == nil, err
}

// PutManifest writes a manifest under a tag or its digest.
func (c *Client) PutManifest(ctx context.Context, ref name.Reference, mediaType string, raw []byte) error {
	err := c.pusher.Put(ctx, ref, rawManifest{raw: raw, mediaType: types.MediaType(mediaType)})
	return classify(ctx, push, ref.String(), err)
}

// rawManifest is what go-containerregistry wants of a manifest to put.
type rawManifest struct {
	raw       []byte
	mediaType types.MediaType
}

func (m rawManifest) RawManifest() ([]byte, error)        { return m.raw, nil }
func (m rawManifest) MediaType() (types.MediaType, error) { return m.mediaType, nil }

// HasBlob says whether the repository has the blob.
func (c *Client) HasBlob(ctx context.Context, repo name.Repository, digest string) (bool, error) {
	l, err := c.puller.Layer(ctx, repo.Digest(digest))
	if err != nil {
		return false, classify(ctx, pull, repo.String(), err)
	}
	ok, err := partial.Exists(l)
	return ok, classify(ctx, pull, repo.String(), err)
}

// ReadBlob reads a small blob, such as a config, whole.
func (c *Client) ReadBlob(ctx context.Context, repo name.Repository, digest string, size int64) ([]byte, error) {
	if size < 0 || size > MaxManifestSize {
		return nil, fault.New(fault.ImageInvalid, nil, "blob %s of %s is said to have %d bytes, more than the %d that are read", digest, repo, size, MaxManifestSize)
	}
	b, err := c.Blob(ctx, repo, digest, size)
	if err != nil {
		return nil, err
	}
	raw, err := io.ReadAll(b)
	return raw, errors.Join(err, b.Close())
}

// Upload describes a blob to write.
type Upload struct {
	Digest string
	Size   int64
	// Open gives the bytes from their beginning. It is called again for another
	// try, and not at all when the repository has the blob.
	Open func() (io.ReadCloser, error)
	// From is a repository of the same registry that has the blob, from which
	// it may be mounted; nil for none.
	From *name.Repository
}

// PutBlob writes a blob unless the repository has it or can mount it.
func (c *Client) PutBlob(ctx context.Context, repo name.Repository, u Upload) error {
	h, err := v1.NewHash(u.Digest)
	if err != nil {
		return fault.New(fault.ImageInvalid, err, "digest %q", u.Digest)
	}
	var l v1.Layer = upload{u, h}
	if u.From != nil && u.From.RegistryStr() == repo.RegistryStr() && u.From.String() != repo.String() {
		l = &remote.MountableLayer{Layer: l, Reference: u.From.Digest(u.Digest)}
	}
	return classify(ctx, push, repo.String(), c.pusher.Upload(ctx, repo, l))
}

// upload is an Upload as go-containerregistry's layer. Of its methods, pushing
// calls no others than Digest, Size, MediaType and Compressed.
type upload struct {
	u Upload
	h v1.Hash
}

func (l upload) Digest() (v1.Hash, error)             { return l.h, nil }
func (l upload) DiffID() (v1.Hash, error)             { return v1.Hash{}, errors.ErrUnsupported }
func (l upload) Compressed() (io.ReadCloser, error)   { return l.u.Open() }
func (l upload) Uncompressed() (io.ReadCloser, error) { return nil, errors.ErrUnsupported }
func (l upload) Size() (int64, error)                 { return l.u.Size, nil }
func (l upload) MediaType() (types.MediaType, error)  { return types.OCILayer, nil }

// Bytes makes an Upload of bytes in memory.
func Bytes(b []byte) Upload {
	h, size, err := v1.SHA256(bytes.NewReader(b))
	if err != nil {
		// Reading memory does not fail.
		panic(err)
	}
	return Upload{Digest: h.String(), Size: size, Open: func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(b)), nil
	}}
}
