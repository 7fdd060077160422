package toc

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/opencontainers/go-digest"

	"github.com/apparate/apparate/snapshotter/fetch"
)

// tocName is the tar entry that holds the JSON (eStargz specification, "TOC").
const tocName = "stargz.index.json"

// probeSize is how many bytes the footer probe reads from the end of the blob.
// It holds the whole TOC of most layers, which saves a round trip.
const probeSize = 128 << 10

// Hint says where the compressed TOC lies in the blob, in bytes, from the
// annotations of the layer. It only saves the footer probe: what it leads to is
// verified like everything else. Zero means that nothing is known.
type Hint struct{ Offset, Size int64 }

// Load reads, verifies and indexes the TOC of b. It returns the compressed TOC
// as it is in the blob, where that begins in the blob, and the index: with
// raw, want and offset, Parse makes the same index again without the registry.
//
// A hint costs one request, the footer probe one or two. A hint that leads to
// something that is not the TOC falls back to the footer; one that leaves the
// blob is an error, as its source is broken.
func Load(ctx context.Context, b fetch.Blob, want digest.Digest, hint Hint) (raw []byte, offset int64, idx *Index, err error) {
	if err := checkDigest(want); err != nil {
		return nil, 0, nil, err
	}
	if hint == (Hint{}) {
		return loadByFooter(ctx, b, want)
	}
	if err := hint.check(b.Size()); err != nil {
		return nil, 0, nil, err
	}
	raw, err = readRange(ctx, b, hint.Offset, hint.Size)
	if err != nil {
		return nil, 0, nil, err
	}
	idx, hintErr := Parse(raw, want, hint.Offset)
	if hintErr == nil {
		return raw, hint.Offset, idx, nil
	}
	if !errors.Is(hintErr, ErrCorrupt) && !errors.Is(hintErr, ErrDigest) {
		// It is the TOC that the digest names, and we do not want it.
		return nil, 0, nil, hintErr
	}
	raw, offset, idx, err = loadByFooter(ctx, b, want)
	if err != nil {
		return nil, 0, nil, fmt.Errorf("%w (and at the offset of the annotations: %w)", err, hintErr)
	}
	return raw, offset, idx, nil
}

// check refuses a hint that is not a range of a blob of size bytes.
func (h Hint) check(size int64) error {
	if h.Offset < 0 || h.Size <= 0 || h.Offset > size || h.Size > size-h.Offset {
		return failf(ErrHostile, "the annotations put the TOC at %d+%d, the blob has %d bytes", h.Offset, h.Size, size)
	}
	if h.Size > maxCompressedTOC {
		return failf(ErrLimit, "the TOC has %d bytes compressed, the limit is %d", h.Size, maxCompressedTOC)
	}
	return nil
}

// loadByFooter is Load for a blob whose TOC has to be looked for.
func loadByFooter(ctx context.Context, b fetch.Blob, want digest.Digest) ([]byte, int64, *Index, error) {
	size := b.Size()
	if size < legacyFooterSize {
		return nil, 0, nil, failf(ErrNotEStargz, "a blob of %d bytes has no room for a footer", size)
	}
	tailAt := max(0, size-probeSize)
	tail, err := readRange(ctx, b, tailAt, size-tailAt)
	if err != nil {
		return nil, 0, nil, err
	}
	offset, end, err := parseFooter(tail, size)
	if err != nil {
		return nil, 0, nil, err
	}
	var raw []byte
	if offset >= tailAt {
		raw = bytes.Clone(tail[offset-tailAt : end-tailAt])
	} else {
		head, err := readRange(ctx, b, offset, min(end, tailAt)-offset)
		if err != nil {
			return nil, 0, nil, err
		}
		// What follows a zstd:chunked TOC may be longer than the tail.
		raw = append(head, tail[:max(0, end-tailAt)]...)
	}
	idx, err := Parse(raw, want, offset)
	if err != nil {
		return nil, 0, nil, err
	}
	return raw, offset, idx, nil
}

// readRange reads n bytes from off. Memory grows with what really arrives, so
// that a registry that lies about a size makes us allocate little.
func readRange(ctx context.Context, b fetch.Blob, off, n int64) ([]byte, error) {
	r, err := b.Open(ctx, off, n)
	if err != nil {
		return nil, err
	}
	const atOnce = 4 << 20
	var buf bytes.Buffer
	buf.Grow(int(min(n, atOnce)) + bytes.MinRead)
	_, err = io.CopyN(&buf, r, n)
	if err := errors.Join(err, r.Close()); err != nil {
		return nil, fmt.Errorf("read the TOC, bytes %d+%d: %w", off, n, err)
	}
	return buf.Bytes(), nil
}

// Parse indexes a TOC: raw is the compressed TOC as Load returned it, want the
// digest of its JSON, or of raw where that is a zstd frame, tocOffset where it begins in the blob: all content of
// files lies before it. Nothing is returned unless the digest is right.
func Parse(raw []byte, want digest.Digest, tocOffset int64) (*Index, error) {
	if err := checkDigest(want); err != nil {
		return nil, err
	}
	if tocOffset < 0 {
		return nil, failf(ErrHostile, "the TOC begins at %d", tocOffset)
	}
	if isZstd(raw) {
		return parseZstd(raw, want, tocOffset)
	}
	zr, err := gzip.NewReader(bytes.NewReader(raw))
	if err != nil {
		return nil, failf(ErrCorrupt, "gzip: %v", err)
	}
	tr := tar.NewReader(zr)
	hdr, err := tr.Next()
	switch {
	case err != nil:
		return nil, failf(ErrCorrupt, "tar: %v", err)
	case hdr.Name != tocName || hdr.Typeflag != tar.TypeReg:
		return nil, failf(ErrCorrupt, "the tar begins with %.64q, not with %q", hdr.Name, tocName)
	case hdr.Size > maxJSON:
		return nil, failf(ErrLimit, "the TOC has %d bytes of JSON, the limit is %d", hdr.Size, maxJSON)
	}
	// The digest is computed on the way to the parser: one pass, and the JSON,
	// often twenty times the compressed size, is never in memory as a whole.
	in := &hashReader{r: tr, h: sha256.New()}
	idx, parseErr := parseJSON(in, newBuilder(hdr.Size, tocOffset))
	// What the parser left unread counts for the digest too. A wrong digest is
	// the better news than what the wrong bytes made the parser say.
	if _, err := io.Copy(io.Discard, in); err != nil {
		return nil, failf(ErrCorrupt, "%v", err)
	}
	if got := digest.NewDigest(digest.SHA256, in.h); got != want {
		return nil, failf(ErrDigest, "it has %s, the image names %s", got, want)
	}
	if parseErr != nil {
		return nil, parseErr
	}
	return idx, nil
}

// checkDigest refuses what cannot be the digest of a TOC.
func checkDigest(d digest.Digest) error {
	if d == "" {
		return failf(ErrNoDigest, "the layer has no TOC digest annotation")
	}
	if err := d.Validate(); err != nil {
		return failf(ErrNoDigest, "%v", err)
	}
	if d.Algorithm() != digest.SHA256 {
		return failf(ErrUnsupported, "the digest of the TOC is %s, only sha256 is supported", d.Algorithm())
	}
	return nil
}

// parseJSON indexes the TOC's JSON that in yields.
func parseJSON(in io.Reader, b *builder) (*Index, error) {
	s := newScanner(in)
	if err := decode(s, b.add); err != nil {
		return nil, err
	}
	return b.finish()
}

// hashReader hashes what is read through it.
type hashReader struct {
	r io.Reader
	h hash.Hash
}

// Read reads and hashes.
func (r *hashReader) Read(p []byte) (int, error) {
	n, err := r.r.Read(p)
	_, _ = r.h.Write(p[:n]) // a hash.Hash never fails
	return n, err
}
