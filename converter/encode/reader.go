package encode

import (
	"archive/tar"
	"errors"
	"io"
)

const (
	blockSize  = 512
	maxHeaders = 4 << 20
)

// reader is archive/tar's reader together with the raw blocks behind each
// header. Writing a parsed header anew would lose what the parser does not
// keep: unknown PAX records, the encoding of names and numbers, global headers.
type reader struct {
	tar *tar.Reader
	rec recorder
	// skip is the padding of an entry that the caller dropped: it comes with the
	// next header and has to go as well.
	skip int
	last string
}

// recorder keeps what is read through it while on. archive/tar never reads
// ahead of what it parses, which is what makes this exact.
type recorder struct {
	r   io.Reader
	on  bool
	buf []byte
}

// Read implements io.Reader.
func (c *recorder) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	if c.on {
		if len(c.buf)+n > maxHeaders {
			return 0, errHeaders
		}
		c.buf = append(c.buf, p[:n]...)
	}
	return n, err
}

func newReader(r io.Reader) *reader {
	t := &reader{rec: recorder{r: r}}
	t.tar = tar.NewReader(&t.rec)
	return t
}

// next returns the next header and the raw bytes from the end of the previous
// payload up to this entry's payload: padding, extension headers, the header
// itself. The bytes are valid until the following call. At the end of the
// archive the error is io.EOF, and the bytes are what was left of it.
func (t *reader) next() (*tar.Header, []byte, error) {
	t.rec.buf, t.rec.on = t.rec.buf[:0], true
	h, err := t.tar.Next()
	t.rec.on = false
	raw := t.rec.buf
	raw = raw[min(t.skip, len(raw)):]
	t.skip = 0
	switch {
	case errors.Is(err, io.EOF):
		return nil, raw, io.EOF
	case err != nil:
		return nil, nil, readError(t.last, err)
	}
	t.last = h.Name
	return h, raw, nil
}

// drop reads over the payload of the current entry, and forgets its padding.
func (t *reader) drop(h *tar.Header) error {
	if _, err := io.Copy(io.Discard, t.tar); err != nil {
		return readError(t.last, err)
	}
	t.skip = padding(h.Size)
	return nil
}

// payload fills p with the next bytes of the current entry's content.
func (t *reader) payload(p []byte) error {
	if _, err := io.ReadFull(t.tar, p); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return readError(t.last, err)
	}
	return nil
}

// padding is how many bytes follow n bytes of content up to a whole block.
func padding(n int64) int { return int(-n & (blockSize - 1)) }
