package encode

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"

	"github.com/opencontainers/go-digest"

	"github.com/apparate/apparate/api/layerindex"
)

// indexWriter makes the layer index beside the TOC.
type indexWriter struct {
	spool
	w *layerindex.Writer // nil when the layer cannot have an index
	// chunks are those of one file.
	chunks []layerindex.Chunk
}

func newIndexWriter(o Options) (*indexWriter, error) {
	x := &indexWriter{spool: spool{dir: o.TempDir}}
	var err error
	x.w, err = layerindex.NewWriter(o.ChunkSize, func(b []byte) error {
		_, err := x.Write(b)
		return err
	})
	return x, err
}

// types are the entries' types by their names in a TOC.
var types = map[string]layerindex.Type{
	"dir": layerindex.Dir, "reg": layerindex.Reg, "symlink": layerindex.Symlink, "hardlink": layerindex.Hardlink,
	"char": layerindex.Char, "block": layerindex.Block, "fifo": layerindex.Fifo,
}

// entry adds an entry with the chunks that the TOC lists for it.
func (x *indexWriter) entry(e *entry, chunks []entry) error {
	if x.w == nil {
		return nil
	}
	i := layerindex.Entry{
		Path: CleanName(e.Name), Type: types[e.Type], Mode: uint32(e.Mode), UID: uint32(e.UID), GID: uint32(e.GID),
		Sec: e.when.Unix(), Nsec: uint32(e.when.Nanosecond()), Size: e.Size, Link: e.LinkName,
		DevMajor: uint32(e.DevMajor), DevMinor: uint32(e.DevMinor), Xattrs: e.Xattrs,
	}
	if i.Type == layerindex.Hardlink {
		i.Link = CleanName(e.LinkName)
	}
	x.chunks = x.chunks[:0]
	for k := range chunks {
		c := &chunks[k]
		size := c.ChunkSize
		if size == 0 {
			size = e.Size - c.ChunkOffset
		}
		x.chunks = append(x.chunks, layerindex.Chunk{Offset: c.Offset, Inner: c.InnerOffset, Size: size, Digest: c.sum})
	}
	err := x.w.Add(&i, x.chunks)
	if errors.Is(err, layerindex.ErrLimit) || errors.Is(err, layerindex.ErrUnsupported) {
		// Nodes do without; most of what is beyond an index is beyond them as well.
		x.w = nil
		return nil
	}
	return err
}

// writeTo ends the index and writes its members to w. It returns the digest and the
// size in w; no digest when the layer has no index.
func (x *indexWriter) writeTo(w io.Writer, contentEnd int64) (digest.Digest, int64, error) {
	if x.w == nil {
		return "", 0, nil
	}
	header, err := x.w.Close(contentEnd)
	if errors.Is(err, layerindex.ErrLimit) {
		return "", 0, nil
	}
	if err != nil {
		return "", 0, err
	}
	size := layerindex.MembersSize(int64(len(header)) + x.size)
	sum := sha256.New()
	in := io.TeeReader(io.MultiReader(bytes.NewReader(header), x.open()), sum)
	piece := make([]byte, 16*layerindex.MemberSize)
	var members []byte
	for {
		n, err := io.ReadFull(in, piece)
		if errors.Is(err, io.EOF) {
			return digest.NewDigest(digest.SHA256, sum), size, nil
		}
		if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
			return "", 0, fmt.Errorf("read the index back: %w", err)
		}
		members = layerindex.AppendMembers(members[:0], piece[:n])
		if _, err := w.Write(members); err != nil {
			return "", 0, err
		}
	}
}
