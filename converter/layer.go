package converter

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/apparate/apparate/api/image"
	"github.com/apparate/apparate/converter/encode"
	"github.com/apparate/apparate/converter/fault"
	"github.com/apparate/apparate/converter/registry"
)

// layerTries is how often a layer is begun when it fails for a passing reason.
const layerTries = 3

// layer is a distinct layer of the source, and what became of it.
type layer struct {
	source    *descriptor
	mediaType string // OCI's name of the source's type
	foreign   bool
	diffID    string // from the config
	index     int    // from 1

	done     converted
	in, out  atomic.Int64
	lastTick atomic.Int64 // nanoseconds since 1970
}

// converted describes the layer of the result.
type converted struct {
	mediaType, digest, diffID string
	size                      int64
	annotations               map[string]string // only ours
	// absent: a foreign layer that no registry has to have.
	absent bool
}

// convertLayer brings one layer into the target repository.
func (j *job) convertLayer(ctx context.Context, l *layer) error {
	if l.foreign {
		return j.copyForeign(ctx, l)
	}
	if r, ok := j.reusable[l.source.Digest]; ok {
		if has, err := j.client.HasBlob(ctx, j.target.Context(), r.digest); err == nil && has {
			l.done = r.converted
			j.count(func(s *Result) { s.Reused++ })
			j.emit(l.event(LayerReused, Event{Digest: r.digest}))
			return nil
		}
	}
	j.emit(l.event(LayerStarted, Event{}))
	for try := 1; ; try++ {
		err := j.encodeLayer(ctx, l)
		var unsupported *encode.UnsupportedError
		if errors.As(err, &unsupported) {
			return j.copyLayer(ctx, l, unsupported.Error())
		}
		if err == nil || try == layerTries || ctx.Err() != nil || !fault.Temporary(err) || fault.KindOf(err) == fault.DiskFull {
			return err
		}
		j.emit(l.event(LayerRetried, Event{Error: err.Error()}))
		l.in.Store(0)
		l.out.Store(0)
		select {
		case <-time.After(j.o.RetryWait << (try - 1)):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// encodeLayer downloads, converts and uploads a layer. The converted layer waits
// in a file without a name, because its digest comes before its bytes.
func (j *job) encodeLayer(ctx context.Context, l *layer) error {
	spool, err := encode.TempFile(j.o.TempDir)
	if err != nil {
		return fault.New(fault.Internal, err, "no temporary file can be made: choose another directory with --temp-dir")
	}
	defer func() { _ = spool.Close() }() // it was read completely, or is of no use
	enc, err := j.download(ctx, l, spool)
	if err != nil {
		return err
	}
	err = j.client.PutBlob(ctx, j.target.Context(), registry.Upload{
		Digest: enc.Digest.String(), Size: enc.Size,
		Open: func() (io.ReadCloser, error) {
			l.out.Store(0)
			return io.NopCloser(&counter{r: io.NewSectionReader(spool, 0, enc.Size), n: &l.out, tick: func() { j.tick(l) }}), nil
		},
	})
	if err != nil {
		return err
	}
	l.done = converted{
		mediaType: ociLayer + compression(j.req.Format),
		digest:    enc.Digest.String(), diffID: enc.DiffID.String(), size: enc.Size,
		annotations: encodedAnnotations(l.source.Digest, enc),
	}
	j.count(func(s *Result) {
		s.Converted++
		s.BytesIn += l.in.Load()
		s.BytesOut += l.out.Load()
	})
	j.emit(l.event(LayerDone, Event{Digest: l.done.digest}))
	return nil
}

// download reads the source layer through the encoder into spool, and makes sure
// that it was the right one: its digest, and that of its tar.
func (j *job) download(ctx context.Context, l *layer, spool *os.File) (encode.Layer, error) {
	blob, err := j.client.Blob(ctx, j.source.Context(), l.source.Digest, l.source.Size)
	if err != nil {
		return encode.Layer{}, err
	}
	defer func() { _ = blob.Close() }() // everything that matters was read
	tar, _, err := encode.Open(&counter{r: blob, n: &l.in, tick: func() { j.tick(l) }})
	if err != nil {
		return encode.Layer{}, j.broken(l, blob, err)
	}
	defer func() { _ = tar.Close() }() // only frees memory
	sum := sha256.New()
	both := io.TeeReader(tar, sum)
	options := j.o.Encode
	options.Format = j.req.Format
	enc, err := encode.Encode(ctx, spool, both, options)
	if err != nil {
		return enc, j.broken(l, blob, err)
	}
	if _, err := io.Copy(io.Discard, both); err != nil {
		return enc, j.broken(l, blob, err)
	}
	if err := blob.Drain(); err != nil {
		return enc, err
	}
	if got := "sha256:" + hex.EncodeToString(sum.Sum(nil)); got != l.diffID {
		return enc, fault.New(fault.LayerCorrupt, nil, "layer %s of %s unpacks to %s, and the image's config wants %s: push the image again",
			l.source.Digest, j.source.Context(), got, l.diffID)
	}
	return enc, nil
}

// broken judges an error of the encoder. A damaged download looks like a broken
// archive, so the digest decides.
func (j *job) broken(l *layer, blob *registry.Blob, err error) error {
	var known *fault.Error
	var corrupt *encode.CorruptError
	var unsupported *encode.UnsupportedError
	isCorrupt := errors.As(err, &corrupt)
	if errors.As(err, &known) || !isCorrupt && !errors.As(err, &unsupported) {
		return err
	}
	if damaged := blob.Drain(); damaged != nil {
		return damaged
	}
	if isCorrupt {
		return fault.New(fault.LayerCorrupt, corrupt, "layer %s of %s is broken, though its digest is right: build and push the image again", l.source.Digest, j.source.Context())
	}
	return err
}

// copyForeign keeps a foreign layer's descriptor. Its bytes are somewhere else,
// unless the registry was given them all the same.
func (j *job) copyForeign(ctx context.Context, l *layer) error {
	has, err := j.client.HasBlob(ctx, j.source.Context(), l.source.Digest)
	if err != nil {
		return err
	}
	if has {
		return j.copyLayer(ctx, l, "it is a foreign layer")
	}
	l.done = l.asItIs()
	l.done.absent = true
	j.count(func(s *Result) { s.Copied++ })
	j.emit(l.event(LayerCopied, Event{Digest: l.done.digest, Reason: "it is a foreign layer, and not in the registry"}))
	return nil
}

// copyLayer puts the source layer itself into the target repository.
func (j *job) copyLayer(ctx context.Context, l *layer, why string) error {
	l.in.Store(0)
	if err := j.copyBlob(ctx, l.source, &l.in); err != nil {
		return err
	}
	l.done = l.asItIs()
	j.count(func(s *Result) {
		s.Copied++
		s.BytesIn += l.in.Load()
		s.BytesOut += l.in.Load()
	})
	j.emit(l.event(LayerCopied, Event{Digest: l.done.digest, Reason: why}))
	return nil
}

func (l *layer) asItIs() converted {
	return converted{mediaType: l.mediaType, digest: l.source.Digest, diffID: l.diffID, size: l.source.Size}
}

// encodedAnnotations are what a snapshotter learns about the layer.
func encodedAnnotations(source string, l encode.Layer) map[string]string {
	a := map[string]string{
		image.AnnotationTOCDigest:        l.TOCDigest.String(),
		image.AnnotationTOCOffset:        strconv.FormatInt(l.TOCOffset, 10),
		image.AnnotationTOCSize:          strconv.FormatInt(l.TOCSize, 10),
		image.AnnotationBlobSize:         strconv.FormatInt(l.Size, 10),
		image.AnnotationUncompressedSize: strconv.FormatInt(l.UncompressedSize, 10),
		image.AnnotationLayerSource:      source,
	}
	if l.TOCChecksum != "" {
		a[image.AnnotationStargzZstdChecksum] = l.TOCChecksum.String()
		a[image.AnnotationStargzZstdPosition] = fmt.Sprintf("%d:%d:%d:1", l.TOCOffset, l.TOCSize, l.TOCJSONSize)
	}
	if l.IndexDigest != "" {
		a[image.AnnotationIndexDigest] = l.IndexDigest.String()
		a[image.AnnotationIndexOffset] = strconv.FormatInt(l.IndexOffset, 10)
		a[image.AnnotationIndexSize] = strconv.FormatInt(l.IndexSize, 10)
	}
	return a
}

// event fills in what all events of a layer have.
func (l *layer) event(t EventType, e Event) Event {
	e.Type, e.Layer, e.LayerIndex = t, l.source.Digest, l.index
	e.BytesIn, e.BytesOut, e.BytesInTotal = l.in.Load(), l.out.Load(), l.source.Size
	return e
}

// tick reports progress now and then. An upload that is given up may still read
// while the next one begins, so two ticks may come at once.
func (j *job) tick(l *layer) {
	now, last := time.Now().UnixNano(), l.lastTick.Load()
	if now-last >= int64(progressInterval) && l.lastTick.CompareAndSwap(last, now) {
		j.emit(l.event(LayerProgress, Event{}))
	}
}

func (j *job) count(f func(*Result)) {
	j.mu.Lock()
	defer j.mu.Unlock()
	f(&j.result)
}

// counter counts what is read through it.
type counter struct {
	r    io.Reader
	n    *atomic.Int64
	tick func()
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n.Add(int64(n))
	c.tick()
	return n, err
}
