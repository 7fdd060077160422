package registry

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"hash"
	"io"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"

	"github.com/apparate/apparate/converter/fault"
)

// Blob is a blob being read. Its last Read returns io.EOF only if all bytes
// were there and have the digest; otherwise the error says which it was.
type Blob struct {
	ctx    context.Context
	repo   string
	digest string
	size   int64
	rc     io.ReadCloser
	n      int64
	sum    hash.Hash
	err    error
}

// Blob opens a blob of a repository. size is what the manifest says of it.
func (c *Client) Blob(ctx context.Context, repo name.Repository, digest string, size int64) (*Blob, error) {
	if !strings.HasPrefix(digest, "sha256:") {
		return nil, fault.New(fault.ImageInvalid, nil, "digest %q of a blob of %s is no sha256 digest", digest, repo)
	}
	ref, err := name.NewDigest(repo.String()+"@"+digest, name.WeakValidation)
	if err != nil {
		return nil, fault.New(fault.ImageInvalid, err, "digest %q of a blob of %s", digest, repo)
	}
	// Not ref's own repository: the name lost that plain HTTP is allowed.
	l, err := c.puller.Layer(ctx, repo.Digest(ref.DigestStr()))
	if err != nil {
		return nil, classify(ctx, pull, repo.String(), err)
	}
	rc, err := l.Compressed()
	if err != nil {
		err = classify(ctx, pull, repo.String(), err)
		if fault.KindOf(err) == fault.NotFound {
			return nil, fault.New(fault.ContentMissing, nil, "%s refers to blob %s, which the registry does not have: push the image again", repo, digest)
		}
		return nil, err
	}
	return &Blob{ctx: ctx, repo: repo.String(), digest: digest, size: size, rc: rc, sum: sha256.New()}, nil
}

// Read implements io.Reader.
func (b *Blob) Read(p []byte) (int, error) {
	if b.err != nil {
		return 0, b.err
	}
	n, err := b.rc.Read(p)
	b.n += int64(n)
	_, _ = b.sum.Write(p[:n]) // a hash returns no error
	if b.n > b.size || err != nil {
		b.err = b.end(err)
	}
	return n, b.err
}

// end judges why the blob ended.
func (b *Blob) end(err error) error {
	switch {
	case b.ctx.Err() != nil:
		return context.Cause(b.ctx)
	case b.n >= b.size && !b.intact():
		// The transfer is to blame about as often as the registry's disk.
		return fault.NewTemporary(fault.LayerCorrupt, nil,
			"blob %s of %s is damaged: its bytes have another digest; try again, and push the image again if that does not help", b.digest, b.repo)
	case b.n == b.size && errors.Is(err, io.EOF):
		return io.EOF
	case b.n == b.size:
		// All is there; how the connection ended does not matter.
		return io.EOF
	case errors.Is(err, io.EOF):
		err = io.ErrUnexpectedEOF
	}
	return fault.NewTemporary(fault.Unreachable, withoutURL(err), "blob %s of %s broke off after %d of %d bytes", b.digest, b.repo, b.n, b.size)
}

func (b *Blob) intact() bool {
	return b.n == b.size && "sha256:"+hex.EncodeToString(b.sum.Sum(nil)) == b.digest
}

// Drain reads to the end, for the digest's sake. It returns nil when the blob
// is what its digest says.
func (b *Blob) Drain() error {
	if errors.Is(b.err, io.EOF) {
		return nil
	}
	_, err := io.Copy(io.Discard, b)
	return err
}

// Count is how many bytes were read.
func (b *Blob) Count() int64 { return b.n }

// Close ends reading.
func (b *Blob) Close() error { return b.rc.Close() }
