package toc

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"io"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
)

// A zstd:chunked blob is a row of zstd frames. Behind the content come skippable frames
// (RFC 8878, section 3.1.2): one holds the TOC, a zstd frame of JSON, the last one the
// footer. Its two writers agree on no more than that (stargz-snapshotter,
// estargz/zstdchunked; containers/storage, pkg/chunked):
//
//	stargz-snapshotter  [content][TOC][footer of 5 numbers]
//	containers/storage  [content][TOC][tar-split][footer of 8 numbers]
//
// Offsets in footers and annotations are those of a frame's payload. The last number of
// a footer is a magic, the first four are the TOC's offset, size, size of the JSON and
// type. The blob's own digest for the TOC is that of the JSON in the first dialect and
// of the compressed bytes in the second: no bytes have both, so either is accepted.
const (
	zstdFrameMagic     = 0xfd2fb528
	zstdSkippableMagic = 0x184d2a50
	zstdSkippableSize  = 4 + 4 // a skippable frame's magic and the length of its payload

	zstdFooterStargz  = 5 * 8
	zstdFooterStorage = 8 * 8
	zstdTypeTOC       = 1

	zstdMagicStargz  = 0x7855_6e49_6c55_6e47 // "GnUlInUx"
	zstdMagicStorage = 0x7855_6e49_6c55_4e47 // "GNUlInUx"
)

// MaxZstdWindow is the largest window of a zstd frame that is read, in bytes: what the
// decoder may have to hold. It has room for a frame whose window is the longest chunk.
const MaxZstdWindow = maxChunk

// zstdFooter returns the footer at the end of tail without the frame around it, nil for none.
func zstdFooter(tail []byte) []byte {
	for _, n := range [...]int{zstdFooterStargz, zstdFooterStorage} {
		at := len(tail) - n
		if at < zstdSkippableSize {
			return nil
		}
		head := tail[at-zstdSkippableSize:]
		magic := binary.LittleEndian.Uint64(tail[len(tail)-8:])
		if binary.LittleEndian.Uint32(head) == zstdSkippableMagic && binary.LittleEndian.Uint32(head[4:]) == uint32(n) &&
			(magic == zstdMagicStargz || magic == zstdMagicStorage) {
			return tail[at:]
		}
	}
	return nil
}

// parseZstdFooter reads the footer of a blob of size bytes and returns the range
// [offset, end) of the compressed TOC.
func parseZstdFooter(footer []byte, size int64) (offset, end int64, err error) {
	at, length := binary.LittleEndian.Uint64(footer), binary.LittleEndian.Uint64(footer[8:])
	switch most := uint64(size) - uint64(len(footer)) - zstdSkippableSize; {
	case binary.LittleEndian.Uint64(footer[24:]) != zstdTypeTOC:
		return 0, 0, failf(ErrUnsupported, "the footer names a TOC of type %d", binary.LittleEndian.Uint64(footer[24:]))
	case at < zstdSkippableSize || at >= most || length == 0 || length > most-at:
		return 0, 0, failf(ErrHostile, "the footer puts the TOC at %d+%d, the blob has %d bytes", at, length, size)
	case length > maxCompressedTOC:
		return 0, 0, failf(ErrLimit, "the TOC has %d bytes compressed, the limit is %d", length, maxCompressedTOC)
	}
	return int64(at), int64(at + length), nil
}

// isZstd says whether raw begins as a zstd frame does.
func isZstd(raw []byte) bool {
	return len(raw) >= 4 && binary.LittleEndian.Uint32(raw) == zstdFrameMagic
}

// parseZstd is Parse for a TOC that is a zstd frame.
func parseZstd(raw []byte, want digest.Digest, tocOffset int64) (*Index, error) {
	if tocOffset < zstdSkippableSize {
		return nil, failf(ErrHostile, "the TOC begins at %d", tocOffset)
	}
	zr, err := zstd.NewReader(bytes.NewReader(raw), zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(MaxZstdWindow))
	if err != nil {
		return nil, failf(ErrCorrupt, "zstd: %v", err)
	}
	defer zr.Close()
	known := digest.FromBytes(raw) == want
	limited := &io.LimitedReader{R: zr, N: maxJSON + 1}
	in := &hashReader{r: limited, h: sha256.New()}
	// JSON of small numbers and hex digits becomes a tenth or so.
	const ratio = 8
	b := newBuilder(int64(len(raw))*ratio, tocOffset-zstdSkippableSize)
	b.x.Compression = Zstd
	idx, parseErr := parseJSON(in, b)
	// A wrong digest is the better news, as in Parse.
	if !known {
		if _, err := io.Copy(io.Discard, in); err != nil {
			return nil, failf(ErrCorrupt, "%v", err)
		}
	}
	if limited.N == 0 {
		return nil, failf(ErrLimit, "the TOC has more than %d bytes of JSON", maxJSON)
	}
	if got := digest.NewDigest(digest.SHA256, in.h); !known && got != want {
		return nil, failf(ErrDigest, "it has %s and its JSON %s, the image names %s", digest.FromBytes(raw), got, want)
	}
	if parseErr != nil {
		return nil, parseErr
	}
	return idx, nil
}
