package profile

import (
	"bytes"
	"context"
	"errors"
	"io"

	"github.com/apparate/apparate/converter/fault"
)

const (
	// windowSize is how much of a blob is fetched at once to read a file: what belongs
	// together lies together.
	windowSize = 1 << 20
	// maxWindows is how many of these are kept.
	maxWindows = 16
)

// contents reads files of an image for whom looks into a few of them.
type contents struct {
	im      *Image
	windows []blobWindow // the latest last
	// chunk is the one read last.
	sum  [32]byte
	data []byte
}

// blobWindow is a part of a layer's blob.
type blobWindow struct {
	layer int
	begin int64
	raw   []byte
}

func newContents(im *Image) *contents { return &contents{im: im} }

// chunk returns the content of a chunk that was located.
func (r *contents) chunk(ctx context.Context, sum [32]byte) ([]byte, error) {
	if r.data != nil && r.sum == sum {
		return r.data, nil
	}
	place, ok := r.im.Place(sum)
	if !ok {
		return nil, errors.New("it lies beyond a limit")
	}
	err := retrying(ctx, func() error {
		raw, err := r.window(ctx, place)
		if err != nil {
			return err
		}
		p := &piece{Planned: Planned{Sum: sum, Size: place.Size}, place: place}
		m := member{begin: place.offset, end: place.end, pieces: []*piece{p}}
		if err := m.unpack(raw); err != nil {
			r.windows = nil
			return fault.NewTemporary(fault.LayerCorrupt, err, "layer %s of %s is not what its table of contents says", r.im.Layers[place.Layer].Digest, r.im.Ref)
		}
		r.sum, r.data = sum, p.content
		return nil
	})
	return r.data, err
}

// window returns the compressed bytes of a member, with what follows it.
func (r *contents) window(ctx context.Context, p Place) ([]byte, error) {
	for _, w := range r.windows {
		if w.layer == p.Layer && w.begin <= p.offset && p.end <= w.begin+int64(len(w.raw)) {
			return w.raw[p.offset-w.begin:], nil
		}
	}
	l := &r.im.Layers[p.Layer]
	n := min(max(p.end-p.offset, windowSize), l.Size-p.offset)
	body, err := r.im.repo.Range(ctx, l.Digest, p.offset, n)
	if err != nil {
		return nil, err
	}
	defer func() { _ = body.Close() }() // everything that matters was read
	var raw bytes.Buffer
	if _, err := io.CopyN(&raw, body, n); err != nil {
		return nil, err
	}
	if len(r.windows) == maxWindows {
		r.windows = r.windows[1:]
	}
	r.windows = append(r.windows, blobWindow{p.Layer, p.offset, raw.Bytes()})
	return raw.Bytes(), nil
}

// reader reads one file. It belongs to one goroutine, as contents does.
type reader struct {
	ctx context.Context
	f   *file
	r   *contents
	err *error // the first of reading, which io.ReaderAt's users hide
}

// ReadAt implements io.ReaderAt.
func (x *reader) ReadAt(p []byte, off int64) (n int, err error) {
	for n < len(p) {
		at := off + int64(n)
		c, ok := x.f.chunkAt(at)
		if !ok {
			return n, io.EOF
		}
		data, err := x.r.chunk(x.ctx, c.sum)
		if err != nil {
			if *x.err == nil {
				*x.err = err
			}
			return n, err
		}
		n += copy(p[n:], data[min(at-c.off, int64(len(data))):])
		if at-c.off >= int64(len(data)) {
			return n, io.ErrUnexpectedEOF
		}
	}
	return n, nil
}

// chunkAt is the chunk that a file has at an offset.
func (f *file) chunkAt(off int64) (chunkOf, bool) {
	for _, c := range f.chunks {
		if off >= c.off && off < c.off+c.size {
			return c, true
		}
	}
	return chunkOf{}, false
}
