package layer

import (
	"errors"
	"fmt"

	"github.com/apparate/apparate/snapshotter/toc"
)

// ErrClosed says that the layer was closed, also under a read that was waiting.
var ErrClosed = errors.New("layer is closed")

// errCut is what members of a background request get that gave way to a reader.
var errCut = errors.New("request was cut short for a reader")

// errUnsteady ends a read whose chunk is fetched and gone again, time after time.
var errUnsteady = errors.New("chunk leaves the cache before it can be read")

// DigestError says that the registry, asked twice, gave bytes for a chunk which
// are not those the content list promises.
type DigestError struct {
	// Layer is the key of the layer.
	Layer string
	// Chunk is the index in toc.Index.Chunks.
	Chunk int
	// Want and Got are SHA-256 digests; Got is zero when the bytes could not even
	// be decompressed.
	Want, Got [32]byte
	// Err says why they could not be decompressed; else nil.
	Err error
}

// Error names layer, chunk and digests.
func (e *DigestError) Error() string {
	if e.Err != nil {
		return fmt.Sprintf("layer %s, chunk %d, sha256:%x: cannot be decompressed: %v", e.Layer, e.Chunk, e.Want, e.Err)
	}
	return fmt.Sprintf("layer %s, chunk %d: got sha256:%x, want sha256:%x", e.Layer, e.Chunk, e.Got, e.Want)
}

// Unwrap returns Err.
func (e *DigestError) Unwrap() error { return e.Err }

const (
	// maxContent bounds the chunks of one member, which are in memory together.
	maxContent = 64 << 20
	// maxInner bounds what is decompressed to get at them.
	maxInner = 128 << 20
)

// Check says whether a Layer can serve idx: the members must be small enough
// to be held in memory, and made of their chunks in order.
func Check(idx *toc.Index) error {
	for i := range idx.Members {
		m := &idx.Members[i]
		if m.First < 0 || m.Count < 1 || m.First+m.Count > len(idx.Chunks) {
			return invalid(toc.ErrHostile, "member %d has no chunks [%d, %d)", i, m.First, m.First+m.Count)
		}
		content, at := int64(0), int64(0)
		for j := m.First; j < m.First+m.Count; j++ {
			c := &idx.Chunks[j]
			if c.Member != i || c.Inner < at {
				return invalid(toc.ErrHostile, "chunk %d is not where member %d has it", j, i)
			}
			at = c.Inner + c.Size
			content += c.Size
			if content > maxContent || at > maxInner {
				return invalid(toc.ErrLimit, "member %d needs more than %d bytes of memory", i, maxContent)
			}
		}
	}
	return nil
}

func invalid(kind error, format string, args ...any) error {
	return &toc.Error{Kind: kind, What: fmt.Sprintf(format, args...)}
}
