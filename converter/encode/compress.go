package encode

import (
	"bytes"

	"github.com/klauspost/compress/gzip"
)

// members compresses members.
type members interface {
	// compress sets out to the member of raw.
	compress(out *bytes.Buffer, raw []byte) error
}

func newMembers(o Options) (members, error) {
	if o.Format == ZstdChunked {
		zw, err := newZstd(nil, o.Level)
		return zstdMembers{zw}, err
	}
	return newCompressor(o.Level)
}

// compressor makes gzip members.
type compressor struct {
	zw *gzip.Writer
	// plain knows codes of single bytes and no repetitions.
	plain *gzip.Writer
	other bytes.Buffer
}

func newCompressor(level int) (*compressor, error) {
	zw, err := gzip.NewWriterLevel(nil, level)
	if err != nil {
		return nil, err
	}
	plain, err := gzip.NewWriterLevel(nil, gzip.HuffmanOnly)
	return &compressor{zw: zw, plain: plain}, err
}

// compress sets out to the member of raw.
//
// Numbers of a model's weights have no repetitions, but bytes that are more frequent
// than others. The quicker levels look for the former only, and store what has none:
// such a layer would be a quarter larger than one that was made by gzip(1).
func (c *compressor) compress(out *bytes.Buffer, raw []byte) error {
	if err := into(c.zw, out, raw); err != nil {
		return err
	}
	if out.Len() < len(raw)/8*7 {
		return nil
	}
	if err := into(c.plain, &c.other, raw); err != nil {
		return err
	}
	if c.other.Len() < out.Len() {
		out.Reset()
		_, _ = out.Write(c.other.Bytes()) // a buffer returns no error
	}
	return nil
}

// into compresses with one Write: the bytes must not depend on how the source
// happened to be read.
func into(zw *gzip.Writer, out *bytes.Buffer, raw []byte) error {
	out.Reset()
	zw.Reset(out)
	if _, err := zw.Write(raw); err != nil {
		return err
	}
	return zw.Close()
}
