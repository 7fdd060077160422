package check

import (
	"encoding/binary"
	"fmt"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"github.com/apparate/apparate/api/image"
	"github.com/apparate/apparate/converter/encode"
)

// frameHeader is how many bytes of a skippable frame come before what is in it.
const frameHeader = 8

// maxWindow is the largest window of a frame that is read: what nodes read.
const maxWindow = 64 << 20

// newMember decompresses the gzip member or the zstd frame that r begins with, and
// nothing behind it.
func newMember(isZstd bool, r io.Reader) (io.ReadCloser, error) {
	if !isZstd {
		zr, err := gzip.NewReader(r)
		if err != nil {
			return nil, err
		}
		zr.Multistream(false)
		return zr, nil
	}
	zr, err := zstd.NewReader(&oneFrame{r: r}, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxWindow))
	if err != nil {
		return nil, err
	}
	return zr.IOReadCloser(), nil
}

// oneFrame ends where a zstd frame does (RFC 8878, section 3.1.1): a decoder would go on
// with the next one.
type oneFrame struct {
	r     io.Reader
	begun bool
	last  bool
	crc   int
	left  []byte // of a header, to be handed on
	block int64  // bytes that are left of the block
}

// Read hands on header, blocks and checksum.
func (f *oneFrame) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for len(f.left) == 0 && f.block == 0 {
		if err := f.step(); err != nil {
			return 0, err
		}
	}
	if len(f.left) > 0 {
		n := copy(p, f.left)
		f.left = f.left[n:]
		return n, nil
	}
	n, err := f.r.Read(p[:min(int64(len(p)), f.block)])
	f.block -= int64(n)
	return n, err
}

// step reads the next header.
func (f *oneFrame) step() error {
	switch {
	case !f.begun:
		f.begun = true
		return f.header()
	case !f.last:
		b := make([]byte, 3)
		if _, err := io.ReadFull(f.r, b); err != nil {
			return io.ErrUnexpectedEOF
		}
		v := int64(b[0]) | int64(b[1])<<8 | int64(b[2])<<16
		f.last, f.left, f.block = v&1 == 1, b, v>>3
		if v>>1&3 == 1 {
			f.block = 1 // a byte that is repeated
		}
		return nil
	case f.crc > 0:
		f.block, f.crc = int64(f.crc), 0
		return nil
	}
	return io.EOF
}

// header reads the frame's.
func (f *oneFrame) header() error {
	b := make([]byte, 5, 18)
	if _, err := io.ReadFull(f.r, b); err != nil {
		return err
	}
	if binary.LittleEndian.Uint32(b) != 0xfd2fb528 {
		return fmt.Errorf("no zstd frame, but %x", b[:4])
	}
	d := b[4]
	if d>>2&1 == 1 {
		f.crc = 4
	}
	single := int(d >> 5 & 1)
	more := 1 - single + [...]int{0, 1, 2, 4}[d&3] + [...]int{single, 2, 4, 8}[d>>6]
	b = b[:5+more]
	if _, err := io.ReadFull(f.r, b[5:]); err != nil {
		return io.ErrUnexpectedEOF
	}
	f.left = b
	return nil
}

// zstdFooter reads the footer b of a zstd:chunked layer; false means that the TOC cannot
// be found.
func (l *layerCheck) zstdFooter(b []byte) bool {
	off, size, _, err := encode.ParseZstdFooter(b)
	if err != nil || off < frameHeader || off+size > l.footerAt {
		l.differ("layer: footer", "a zstd:chunked footer", fmt.Sprintf("TOC at %d+%d, %v", off, size, err))
		return false
	}
	l.tocOffset, l.tocEnd, l.contentEnd = off, off+size, off-frameHeader
	l.differ("layer: end of the TOC", l.findIndex(), l.tocEnd)
	return true
}

// zstdAnnotations compares what the manifest says for readers of zstd:chunked. jsonSize
// is the length of the TOC's JSON.
func (l *layerCheck) zstdAnnotations(jsonSize int64) {
	sum, size, err := digesting(io.NewSectionReader(l.file, l.tocOffset, l.tocEnd-l.tocOffset))
	if err != nil {
		l.differ("TOC", "readable", err)
		return
	}
	for k, want := range map[string]string{
		image.AnnotationStargzZstdChecksum: sum,
		image.AnnotationStargzZstdPosition: fmt.Sprintf("%d:%d:%d:1", l.tocOffset, size, jsonSize),
		image.AnnotationZstdChecksum:       "", // containers/storage refuses both dialects at once
		image.AnnotationZstdPosition:       "",
	} {
		l.differ("annotation "+k, want, l.p.acc.Annotations[k])
	}
	footer := make([]byte, encode.ZstdFooterSize)
	if _, err := l.file.ReadAt(footer, l.footerAt); err != nil {
		l.differ("layer: footer", "readable", err)
		return
	}
	l.differ("layer: footer", fmt.Sprintf("%x", encode.ZstdFooter(l.tocOffset, size, jsonSize)), fmt.Sprintf("%x", footer))
}
