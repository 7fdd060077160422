package check

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"strconv"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/apparate/apparate/api/image"
	"github.com/apparate/apparate/converter/encode"
	"github.com/apparate/apparate/converter/fault"
	"github.com/apparate/apparate/converter/registry"
)

// pair is an accelerated layer and its source.
type pair struct {
	acc, src         v1.Descriptor
	accDiff, srcDiff string
}

// layer compares one pair of layers.
func (c *checker) layer(ctx context.Context, at Difference, p pair) error {
	c.report.Layers++
	if p.acc.Digest == p.src.Digest {
		c.report.Copied++
		c.differ(at, "config: diff_id", p.srcDiff, p.accDiff)
		return nil
	}
	key := [2]string{p.acc.Digest.String(), p.src.Digest.String()}
	if c.compared[key] || c.full() {
		return nil
	}
	c.compared[key] = true
	f, err := c.spool(ctx, p.acc)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }() // only read
	l := &layerCheck{c: c, at: at, p: p, file: f, size: p.acc.Size, zstd: strings.HasSuffix(string(p.acc.MediaType), "+zstd")}
	if !l.footer() {
		return nil
	}
	blob, err := c.client.Blob(ctx, c.theirs, p.src.Digest.String(), p.src.Size)
	if err != nil {
		return err
	}
	defer func() { _ = blob.Close() }() // what matters was read
	if err := l.compare(ctx, blob); err != nil {
		return err
	}
	return nil
}

// spool downloads the accelerated layer. What arrives has the right digest.
func (c *checker) spool(ctx context.Context, d v1.Descriptor) (*os.File, error) {
	f, err := encode.TempFile(c.o.TempDir)
	if err != nil {
		return nil, fault.New(fault.Internal, err, "no temporary file can be made: choose another directory with --temp-dir")
	}
	blob, err := c.client.Blob(ctx, c.ours, d.Digest.String(), d.Size)
	if err == nil {
		_, err = io.Copy(f, blob)
		err = errors.Join(err, blob.Close())
	}
	if err != nil {
		_ = f.Close() // of no use
		return nil, err
	}
	return f, nil
}

// layerCheck is the comparison of one layer.
type layerCheck struct {
	c    *checker
	at   Difference
	p    pair
	file *os.File // the accelerated layer
	size int64
	zstd bool // it is zstd:chunked by its media type
	// contentEnd, tocOffset, tocEnd and footerAt are places in the blob; the index is
	// between the last two.
	contentEnd, tocOffset, tocEnd, footerAt int64

	entry string // the entry being compared
	index indexSide
}

func (l *layerCheck) differ(field string, want, got any) {
	at := l.at
	at.Entry = l.entry
	l.c.differ(at, field, want, got)
}

// footer compares the footer with the annotations; false means that the TOC
// cannot be found.
func (l *layerCheck) footer() bool {
	size := int64(encode.FooterSize)
	if l.zstd {
		size = encode.ZstdFooterSize
	}
	if l.size < size {
		l.differ("layer: size", "room for a footer", l.size)
		return false
	}
	l.footerAt = l.size - size
	b := make([]byte, size)
	if _, err := l.file.ReadAt(b, l.footerAt); err != nil {
		l.differ("layer: footer", "readable", err)
		return false
	}
	if l.zstd {
		if !l.zstdFooter(b) {
			return false
		}
	} else {
		off, err := encode.ParseFooter(b)
		if err != nil || off > l.footerAt {
			l.differ("layer: footer", "an eStargz footer", fmt.Sprintf("offset %d, %v", off, err))
			return false
		}
		l.tocOffset, l.contentEnd = off, off
		l.tocEnd = l.findIndex()
	}
	off := l.tocOffset
	for k, want := range map[string]string{
		image.AnnotationTOCOffset:   strconv.FormatInt(off, 10),
		image.AnnotationTOCSize:     strconv.FormatInt(l.tocEnd-off, 10),
		image.AnnotationBlobSize:    strconv.FormatInt(l.size, 10),
		image.AnnotationLayerSource: l.p.src.Digest.String(),
	} {
		l.differ("annotation "+k, want, l.p.acc.Annotations[k])
	}
	return true
}

// compare runs the two tars and the TOC side by side.
func (l *layerCheck) compare(ctx context.Context, blob *registry.Blob) error {
	zr, _, err := encode.Open(blob)
	if err != nil {
		return l.sourceError(err)
	}
	defer func() { _ = zr.Close() }() // only frees memory
	src := newTarSide(zr)
	want := encode.Gzip
	if l.zstd {
		want = encode.Zstd
	}
	all, kind, err := encode.Open(bufio.NewReaderSize(io.NewSectionReader(l.file, 0, l.size), 256<<10))
	if err != nil || kind != want {
		l.differ("layer: compression", want, fmt.Sprintf("%s, %v", kind, err))
		return nil
	}
	defer func() { _ = all.Close() }() // only frees memory
	acc := newTarSide(all)
	toc, err := l.newTOC()
	if err != nil {
		l.differ("TOC", "readable", err)
		return nil
	}
	defer toc.close()
	l.index = l.openIndex(l.tocEnd)
	if err := l.entries(ctx, acc, src, toc); err != nil {
		return err
	}
	if l.c.full() {
		return nil
	}
	l.entry = ""
	if err := src.drain(); err != nil {
		return l.sourceError(err)
	}
	if err := blob.Drain(); err != nil {
		return err
	}
	l.differ("source: diff_id", l.p.srcDiff, src.digest())
	if err := acc.drain(); err != nil {
		l.differ("layer: archive", "readable", err)
		return nil
	}
	l.c.report.Bytes += acc.n
	l.differ("config: diff_id", l.p.accDiff, acc.digest())
	l.differ("annotation "+image.AnnotationUncompressedSize, acc.n, l.p.acc.Annotations[image.AnnotationUncompressedSize])
	if err := toc.end(); err != nil {
		l.differ("TOC", "complete", err)
	}
	if l.zstd {
		acc.tocDigest = toc.digest() // the tar has no TOC
		l.zstdAnnotations(toc.n)
	}
	l.differ("annotation "+image.AnnotationTOCDigest, acc.tocDigest, l.p.acc.Annotations[image.AnnotationTOCDigest])
	l.differ("TOC: digest", acc.tocDigest, toc.digest())
	return nil
}

// sourceError: without the source there is nothing to compare with.
func (l *layerCheck) sourceError(err error) error {
	var known *fault.Error
	if errors.As(err, &known) {
		return err
	}
	return fault.New(fault.LayerCorrupt, err, "layer %s of %s cannot be read", l.p.src.Digest, l.c.theirs)
}

// entries compares until one side ends or disagrees about what comes next.
func (l *layerCheck) entries(ctx context.Context, acc, src *tarSide, toc *tocSide) error {
	for !l.c.full() {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		want, err := src.next()
		if err != nil {
			return l.sourceError(err)
		}
		got, err := acc.next()
		if err != nil {
			l.differ("layer: archive", "readable", err)
			return nil
		}
		if want == nil || got == nil {
			l.entry = ""
			if want != nil || got != nil {
				l.entry = nameOf(want, got)
				l.differ("tar: entry", nameOf(want), nameOf(got))
				return nil
			}
			l.indexEnd()
			return l.tocEnds(toc)
		}
		l.entry = want.Name
		if want.Name != got.Name || want.Typeflag != got.Typeflag {
			l.differ("tar: entry", describe(want), describe(got))
			return nil
		}
		l.headers(got, want)
		ok, err := l.contents(acc, src, toc, got)
		if err != nil || !ok {
			return err
		}
	}
	return nil
}

// tocEnds: when the tar is done the TOC has to be done.
func (l *layerCheck) tocEnds(toc *tocSide) error {
	e, err := toc.next()
	switch {
	case errors.Is(err, io.EOF):
	case err != nil:
		l.differ("TOC", "readable", err)
	default:
		l.entry = e.Name
		l.differ("TOC: entry", "no more entries", e.Type)
	}
	return nil
}

func sum(h hash.Hash) string { return "sha256:" + hex.EncodeToString(h.Sum(nil)) }

// digesting copies r to nowhere and returns its digest and length.
func digesting(r io.Reader) (string, int64, error) {
	h := sha256.New()
	n, err := io.Copy(h, r)
	return sum(h), n, err
}
