// Package encode turns a layer's tar stream into an eStargz or zstd:chunked layer: a valid
// tar+gzip that any runtime can pull whole, and that a reader with the table of
// contents (TOC) can use piece by piece. The same tar and the same [Options]
// always give the same bytes, whatever the machine or the number of workers.
//
// # What is written
//
// The layer is a row of gzip members:
//
//	[headers][chunk + padding + headers]...[tail headers][TOC tar entry + tar end][index]...[footer]
//
// A member begins at the payload of a file, so that its TOC offset needs no
// inner offset; large files begin a member at every ChunkSize bytes, or more often where
// compression does not suffer (denseChunk). Files that
// together stay within GroupSize share a member, each with an innerOffset: a
// directory of small files is then one request and compresses well. A run of
// headers without content (directories, links) is cut into members of its own
// when it gets long; readers see them as the tail of the member before.
//
// zstd:chunked is the same with zstd frames for members. The TOC, the index and the footer
// are in skippable frames behind the end of the tar, which the TOC is no part of:
//
//	...[tail headers][tar end][TOC][index][footer]
//
// It is written as stargz-snapshotter does it, whose dialect has a label for nodes.
// containers/storage pulls it whole: it refuses manifests with both dialects' annotations.
//
// The index says what the TOC says once more, for our own nodes (package
// layerindex). Its members are empty: the tar does not have it.
//
// # What is kept
//
// The tar goes through byte by byte: header blocks, PAX records that nobody
// here knows, global headers and padding included. Only three things change:
// the TOC and landmarks of an input that is eStargz already are dropped, what
// follows the end of the archive is dropped, and the new TOC is appended.
//
// Some archives say what a TOC cannot: names that are not UTF-8, sparse files,
// hard links to a file of another layer. Those end in an [UnsupportedError],
// and the caller copies such a layer as it is.
//
// # How it stays small
//
// One goroutine reads the tar and fills members, Workers compress them, one
// goroutine writes them in order. The number of members is fixed, so memory is
// the same for every layer; the TOC and the index go to temporary files once they are
// long.
// What grows is 16 bytes or so for each entry, to notice hard links that lead
// nowhere.
package encode

import (
	"context"
	"fmt"
	"io"
	"runtime"

	"github.com/klauspost/compress/gzip"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"
)

// Defaults of [Options].
const (
	// DefaultChunkSize is where the bytes that a sparse reader fetches too much
	// and the bytes that compression loses balance.
	DefaultChunkSize = 256 << 10
	// DefaultGroupSize is how much a reader of one small file may have to fetch
	// and decompress, in uncompressed bytes.
	DefaultGroupSize = 128 << 10
	// DefaultLevel is the level of gzip and zstd.
	DefaultLevel = 6
)

// maxChunkSize keeps the fixed number of members within reasonable memory.
const maxChunkSize = 64 << 20

// Options say how a layer is cut and compressed. Format, ChunkSize, GroupSize and Level
// change the bytes of the result; Workers and TempDir do not.
type Options struct {
	// Format is how the layer is written; empty means EStargz.
	Format Format
	// ChunkSize is how many bytes of a file a chunk holds at most: where nothing in them
	// repeats itself it may be a quarter of the default. 0 means DefaultChunkSize.
	ChunkSize int64
	// GroupSize is how many uncompressed bytes, headers included, files share a
	// member. 0 means DefaultGroupSize; negative gives every file its own.
	GroupSize int64
	// Level is the gzip level, 1 to 9, or that of zstd. 0 means DefaultLevel.
	Level int
	// Workers is how many members are compressed at once. 0 means GOMAXPROCS.
	Workers int
	// TempDir is where a long TOC and index wait; empty means the system's.
	TempDir string
}

// Layer describes what [Encode] wrote.
type Layer struct {
	// Digest is the SHA-256 of the blob, DiffID that of its tar, TOCDigest that
	// of the uncompressed TOC JSON.
	Digest, DiffID, TOCDigest digest.Digest
	// Size is the blob's length, UncompressedSize that of its tar, in bytes.
	Size, UncompressedSize int64
	// TOCOffset and TOCSize say where in the blob the compressed TOC is; the
	// index and the footer follow it.
	TOCOffset, TOCSize int64
	// TOCChecksum is the SHA-256 of the compressed TOC, TOCJSONSize its length in bytes
	// without compression; of a zstd:chunked layer only, whose manifest has them.
	TOCChecksum digest.Digest `json:",omitempty"`
	TOCJSONSize int64         `json:",omitempty"`
	// IndexDigest is the SHA-256 of the layer index, IndexOffset and IndexSize say where
	// in the blob its members are. All are zero for a layer that an index cannot
	// describe: nodes use the TOC then.
	IndexDigest            digest.Digest
	IndexOffset, IndexSize int64
	// Entries is the number of tar entries that the TOC lists, chunks not counted.
	Entries int
}

// Encode reads the uncompressed tar and writes the layer to dst.
//
// The error is an [*UnsupportedError] where a TOC cannot express the archive,
// and a [*CorruptError] where the archive is broken. Errors of dst and of the
// tar's reader are wrapped. After an error, what dst holds is of no use. Encode
// reads up to the end of the archive: a caller that verifies a digest of the
// stream has to drain it.
func Encode(ctx context.Context, dst io.Writer, tar io.Reader, o Options) (Layer, error) {
	if err := o.complete(); err != nil {
		return Layer{}, err
	}
	g, ctx := errgroup.WithContext(ctx)
	p := newPipeline(ctx, o)
	out, err := newSink(dst, o)
	if err != nil {
		return Layer{}, err
	}
	defer out.close()
	for range o.Workers {
		g.Go(p.compress)
	}
	g.Go(func() error { return p.drain(out) })
	g.Go(func() error {
		// The producer ends the pipeline: it alone sends.
		defer p.end()
		return newPacker(p, o).pack(tar)
	})
	if err := g.Wait(); err != nil {
		return Layer{}, fmt.Errorf("encode layer: %w", err)
	}
	l, err := out.finish()
	if err != nil {
		return Layer{}, fmt.Errorf("encode layer: %w", err)
	}
	return l, nil
}

// complete fills in defaults and refuses what cannot work.
func (o *Options) complete() error {
	if o.ChunkSize == 0 {
		o.ChunkSize = DefaultChunkSize
	}
	if o.GroupSize == 0 {
		o.GroupSize = DefaultGroupSize
	}
	if o.Level == 0 {
		o.Level = DefaultLevel
	}
	if o.Workers == 0 {
		o.Workers = runtime.GOMAXPROCS(0)
	}
	switch {
	case o.Format != "" && o.Format != EStargz && o.Format != ZstdChunked:
		return fmt.Errorf("format %q is not known: use %s or %s", o.Format, EStargz, ZstdChunked)
	case o.ChunkSize < 1 || o.ChunkSize > maxChunkSize:
		return fmt.Errorf("chunk size %d is not between 1 and %d", o.ChunkSize, maxChunkSize)
	case o.GroupSize > maxChunkSize:
		return fmt.Errorf("group size %d is above %d", o.GroupSize, maxChunkSize)
	case o.Level < gzip.BestSpeed || o.Level > gzip.BestCompression:
		return fmt.Errorf("level %d is not between %d and %d", o.Level, gzip.BestSpeed, gzip.BestCompression)
	case o.Workers < 0:
		return fmt.Errorf("%d workers", o.Workers)
	}
	return nil
}
