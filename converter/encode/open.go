package encode

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// Kind is how a layer's tar was compressed.
type Kind string

// The kinds that [Open] knows.
const (
	Plain Kind = "tar"
	Gzip  Kind = "gzip"
	Zstd  Kind = "zstd"
)

// maxZstdWindow is how much memory a zstd stream may demand: what the zstd
// command line tool allows by default (--long=27).
const maxZstdWindow = 128 << 20

// Open returns the tar inside r and how it was compressed, judged by its first
// bytes: media types lie. Closing the result does not close r. Everything that
// is no gzip and no zstd is taken for a plain tar.
func Open(r io.Reader) (io.ReadCloser, Kind, error) {
	br := bufio.NewReaderSize(r, 64<<10)
	head, err := br.Peek(4)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, "", fmt.Errorf("read layer: %w", err)
	}
	switch {
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b}):
		zr, err := gzip.NewReader(br)
		if err != nil {
			return nil, "", readError("", err)
		}
		return zr, Gzip, nil
	case isZstd(head):
		// One goroutine: the workers need the other processors.
		zr, err := zstd.NewReader(br, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxZstdWindow))
		if err != nil {
			return nil, "", readError("", err)
		}
		return zr.IOReadCloser(), Zstd, nil
	}
	return io.NopCloser(br), Plain, nil
}

// isZstd knows the magic number of a frame and those of skippable frames, with
// which zstd:chunked layers may begin (RFC 8878, section 3.1).
func isZstd(head []byte) bool {
	if len(head) < 4 {
		return false
	}
	return bytes.Equal(head, []byte{0x28, 0xb5, 0x2f, 0xfd}) ||
		head[0]&0xf0 == 0x50 && bytes.Equal(head[1:], []byte{0x2a, 0x4d, 0x18})
}
