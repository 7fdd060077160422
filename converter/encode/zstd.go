package encode

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"

	"github.com/apparate/apparate/api/layerindex"
)

// Format is how a layer is written.
type Format string

// The formats. The zero value means EStargz.
const (
	EStargz     Format = "estargz"
	ZstdChunked Format = "zstd:chunked"
)

// ZstdFooterSize is the length of the footer of a zstd:chunked layer in bytes, with the
// skippable frame around it.
const ZstdFooterSize = skippableSize + 5*8

const (
	// skippableMagic begins the skippable frames of others (RFC 8878, section 3.1.2).
	skippableMagic = 0x184d2a50
	skippableSize  = 4 + 4
	// zstdMagic ends a footer: "GnUlInUx" (stargz-snapshotter, estargz/zstdchunked).
	zstdMagic = 0x7855_6e49_6c55_6e47
	// zstdTOCType is the type of the only TOC that there is.
	zstdTOCType = 1
)

// ZstdFooter returns what ends a zstd:chunked layer: where the zstd frame of the TOC is,
// how long, and how long its JSON is, in bytes.
func ZstdFooter(tocOffset, tocSize, jsonSize int64) []byte {
	b := skippable(ZstdFooterSize - skippableSize)
	for _, n := range []uint64{uint64(tocOffset), uint64(tocSize), uint64(jsonSize), zstdTOCType, zstdMagic} {
		b = binary.LittleEndian.AppendUint64(b, n)
	}
	return b
}

// ParseZstdFooter returns what ZstdFooter was given.
func ParseZstdFooter(b []byte) (tocOffset, tocSize, jsonSize int64, err error) {
	if len(b) != ZstdFooterSize || !bytes.Equal(b[:skippableSize], skippable(ZstdFooterSize-skippableSize)) {
		return 0, 0, 0, errors.New("not a zstd:chunked footer")
	}
	var n [5]uint64
	for i := range n {
		n[i] = binary.LittleEndian.Uint64(b[skippableSize+8*i:])
	}
	if n[3] != zstdTOCType || n[4] != zstdMagic || max(n[0], n[1], n[2]) > math.MaxInt64/2 {
		return 0, 0, 0, errors.New("not a zstd:chunked footer")
	}
	return int64(n[0]), int64(n[1]), int64(n[2]), nil
}

// skippable is what begins a skippable frame with size bytes in it.
func skippable(size uint32) []byte {
	return binary.LittleEndian.AppendUint32(binary.LittleEndian.AppendUint32(nil, skippableMagic), size)
}

// newZstd returns an encoder whose bytes depend on nothing but its input. level is that
// of the zstd command line tool.
func newZstd(w io.Writer, level int) (*zstd.Encoder, error) {
	// A frame that is one segment needs no window beside its content. Chunks have
	// digests, frames no checksums. Numbers of a model's weights repeat nothing, and are
	// a fifth smaller all the same.
	return zstd.NewWriter(w, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.EncoderLevelFromZstd(level)),
		zstd.WithEncoderCRC(false), zstd.WithSingleSegment(true), zstd.WithLowerEncoderMem(true), zstd.WithAllLitEntropyCompression(true))
}

// zstdMembers makes zstd frames.
type zstdMembers struct{ zw *zstd.Encoder }

func (c zstdMembers) compress(out *bytes.Buffer, raw []byte) error {
	out.Reset()
	_, err := out.Write(c.zw.EncodeAll(raw, out.AvailableBuffer()))
	return err
}

// finishZstd is finish for zstd:chunked: the end of the tar, which the TOC is no part of,
// and skippable frames with the TOC, the index and the footer.
func (s *sink) finishZstd() (Layer, error) {
	tocDigest, err := s.toc.end()
	if err != nil {
		return Layer{}, err
	}
	zw, err := newZstd(nil, s.o.Level)
	if err != nil {
		return Layer{}, err
	}
	end := make([]byte, 2*blockSize)
	if _, err := (uncompressed{s}).Write(end); err != nil {
		return Layer{}, err
	}
	if _, err := s.Write(zw.EncodeAll(end, nil)); err != nil {
		return Layer{}, err
	}
	l := Layer{DiffID: digest.NewDigest(digest.SHA256, s.tar), TOCDigest: tocDigest, TOCJSONSize: s.toc.size, UncompressedSize: s.size, Entries: s.n}
	contentEnd := s.off
	if l.TOCChecksum, l.TOCSize, err = s.writeZstdTOC(); err != nil {
		return Layer{}, err
	}
	l.TOCOffset, l.IndexOffset = contentEnd+skippableSize, s.off
	if l.IndexDigest, l.IndexSize, err = s.index.writeFrame(s, contentEnd); err != nil {
		return Layer{}, err
	}
	if l.IndexSize == 0 {
		l.IndexOffset = 0
	}
	if _, err := s.Write(ZstdFooter(l.TOCOffset, l.TOCSize, l.TOCJSONSize)); err != nil {
		return Layer{}, err
	}
	l.Digest, l.Size = digest.NewDigest(digest.SHA256, s.blob), s.off
	return l, nil
}

// writeZstdTOC writes the TOC in a skippable frame, and returns the digest and the length
// of what is in it.
func (s *sink) writeZstdTOC() (digest.Digest, int64, error) {
	packed := spool{dir: s.o.TempDir} // a frame begins with its length
	defer packed.close()
	zw, err := newZstd(&packed, s.o.Level)
	if err != nil {
		return "", 0, err
	}
	if _, err := io.Copy(zw, s.toc.open()); err != nil {
		return "", 0, errors.Join(err, zw.Close())
	}
	if err := zw.Close(); err != nil {
		return "", 0, err
	}
	if packed.size > math.MaxUint32 {
		return "", 0, fmt.Errorf("the TOC has %d bytes compressed, a frame has room for %d", packed.size, uint32(math.MaxUint32))
	}
	if _, err := s.Write(skippable(uint32(packed.size))); err != nil {
		return "", 0, err
	}
	sum := sha256.New()
	if _, err := io.Copy(io.MultiWriter(s, sum), packed.open()); err != nil {
		return "", 0, err
	}
	return digest.NewDigest(digest.SHA256, sum), packed.size, nil
}

// writeFrame is writeTo for a layer of zstd frames.
func (x *indexWriter) writeFrame(w io.Writer, contentEnd int64) (digest.Digest, int64, error) {
	if x.w == nil {
		return "", 0, nil
	}
	x.w.Zstd = true
	header, err := x.w.Close(contentEnd)
	if errors.Is(err, layerindex.ErrLimit) {
		return "", 0, nil
	}
	if err != nil {
		return "", 0, err
	}
	size := int64(len(header)) + x.size
	if _, err := w.Write(layerindex.FrameHeader(size)); err != nil {
		return "", 0, err
	}
	sum := sha256.New()
	if _, err := io.Copy(io.MultiWriter(w, sum), io.MultiReader(bytes.NewReader(header), x.open())); err != nil {
		return "", 0, err
	}
	return digest.NewDigest(digest.SHA256, sum), layerindex.FrameHeaderSize + size, nil
}
